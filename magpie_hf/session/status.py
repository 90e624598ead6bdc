"""The status of a run: finished and remaining rows, their cost, and the facts for reports and cards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import MagpieError
from ..execution.budget import Budget, Limit
from ..recipe.schema import load_recipe
from ..stage import CODES, Stage
from ..stages.instructions import Instructions
from ..stages.subset import Subset
from ..storage.journal import Journal
from ..storage.lock import Owner, running_owner
from ..storage.rundir import RunDir, is_run, stage_name
from ..storage.state import Counts, JsonObject, RunFacts, RunState, SavedRows, SessionState, StageState, Totals
from .session import Session


class StageReport(NamedTuple):
    """One stage of a run: finished rows by code, tokens, and engine-seconds; `total` is None while it is unknown.

    `status`: "done", "running", "stopped", "reopened" (by `retry`), "recovered" (run.json was lost), "pending", or
    "to come". `left`: remaining rows; `eta_s`: estimated seconds for them at the rate so far, None while unknown.
    `rows_per_s`: finished rows per engine-second. `special_tokens`: rows rejected for a special token,
    by the token. `is_current`: whether the stage belongs to the settings of the last session.
    """

    name: str
    status: str
    done: int
    total: int | None
    by_code: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    special_tokens: dict[str, int]
    left: int | None = None
    eta_s: float | None = None
    rows_per_s: float | None = None
    is_current: bool = True


class RunReport(NamedTuple):
    """A run: its stages, totals, sessions and saved rows, and how much of each budget limit is used.

    `stages`: the stages of the current recipe in order, then the stages of earlier settings. `owner`: host and pid of
    the process that is running it, None if it is not running.
    """

    path: str
    recipe: JsonObject
    stages: list[StageReport]
    totals: Totals
    sessions: list[SessionState]
    output: SavedRows | None
    limits: list[Limit]
    owner: Owner | None = None


def run_status(path: str | Path) -> RunReport:
    """Return the status of a run directory; also works while the run is running.

    Raises:
        ArgumentError: the directory does not contain a run.
    """
    run_dir = RunDir.read(path)
    state, owner = run_dir.state, running_owner(run_dir.path / "lock")
    is_done = owner is None and state.ended_done
    stages = list(_stage_reports(run_dir, is_running=owner is not None, is_done=is_done))
    tokens = sum(stage.prompt_tokens + stage.completion_tokens for stage in stages)
    seconds, budget = sum(stage.seconds for stage in stages), Budget(**state.budget)  # type: ignore[arg-type]
    totals = state.totals or Totals()
    if not is_done:
        live = Totals(tokens, seconds, budget.cost(seconds))
        totals = dataclasses.replace(live, cost_per_1000_rows=totals.cost_per_1000_rows)
    used = budget.used(tokens, seconds)
    return RunReport(str(path), state.recipe, stages, totals, state.sessions, state.output, used, owner)


def _stage_reports(run_dir: RunDir, *, is_running: bool, is_done: bool) -> Iterator[StageReport]:
    """Yield all stages of the current recipe in order, also those not started, then the stages of earlier settings."""
    state = run_dir.state
    begun = {key: stage for key, stage in state.stages.items() if stage.has_begun}
    plan = [key for key in state.plan if key in begun or not is_done] or list(begun)
    for key in plan:
        if key in begun:
            yield _stage_report(run_dir, begun[key], is_running=is_running)
        else:
            yield _to_come(stage_name(key))
    if not state.plan and not is_done:  # stopped before the stages were checked
        yield from _recipe_stages(state.recipe, {stage.name for stage in begun.values()})
    for key, stage in begun.items():
        if key not in plan:
            yield _stage_report(run_dir, stage, is_running=is_running)._replace(is_current=False)


def _recipe_stages(raw: JsonObject, begun: set[str]) -> Iterator[StageReport]:
    """Yield the stages of the recipe that have not started; nothing if the recipe cannot be read on this machine."""
    try:
        recipe = load_recipe(raw)
    except MagpieError:
        return
    labels = [stage.label for stage in recipe.stages if not isinstance(stage, Subset)]
    yield from (_to_come(label) for label in labels if label not in begun)


def _to_come(name: str) -> StageReport:
    return StageReport(name, "to come", 0, None, {}, 0, 0, 0.0, {})


def _stage_report(run_dir: RunDir, state: StageState, *, is_running: bool) -> StageReport:
    saved = state.counts or Counts(done=state.rows_out or 0)
    counts, status = saved, str(state.status)
    if status != "done" and state.kind == "row":
        counts = _recounted(run_dir, state, saved)
    if status == "running" and not is_running:
        status = "stopped"
    total = state.rows_in if counts.total is None else counts.total
    counted = counts.done if counts.accepted is None else counts.by_code.get("ok", 0)
    left = None if status == "done" or total is None else max(total - counted, 0)
    return StageReport(
        state.name,
        status,
        counts.done,
        total,
        counts.by_code,
        counts.prompt_tokens,
        counts.completion_tokens,
        counts.seconds,
        counts.special_tokens,
        left,
        _eta_s(left, saved),
        saved.done / saved.seconds if saved.seconds else None,
    )


def _eta_s(left: int | None, saved: Counts) -> float | None:
    """Estimate how long the remaining rows take, from row count and seconds that were saved at the same time."""
    counted = saved.done if saved.accepted is None else saved.accepted
    return left * saved.seconds / counted if left is not None and counted and saved.seconds else None


def _recounted(run_dir: RunDir, state: StageState, saved: Counts) -> Counts:
    """Count the rows of an unfinished stage in its journal: run.json may be seconds old, or older if the run was killed."""
    import numpy as np

    index = Journal(run_dir.stage_dir(state.name, state.identity) / "journal").index()
    numbers, counts = np.unique(index.codes, return_counts=True)
    return dataclasses.replace(
        saved,
        done=len(index.codes),
        by_code={
            CODES[number] if number < len(CODES) else f"code {number}": count
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
        },
        prompt_tokens=int(index.prompt_tokens.sum()),
        completion_tokens=int(index.completion_tokens.sum()),
    )


def run_facts(place: Path, config: str | None = None) -> tuple[RunFacts | None, list[JsonObject] | None]:
    """Return the facts of a run about its dataset (recipe, totals, stages), and the funnels of its selections.

    `config`: return the facts of this subset instead, with only the stages that produced it.
    """
    if not is_run(place.expanduser()):
        return None, None
    state = RunDir.read(place.expanduser()).state
    saved = state.subsets.get(config) if config else state.output
    stages = state.stages
    if saved is not None and saved.stages is not None:
        stages = {key: stages[key] for key in saved.stages if key in stages}
    funnel = [step for stage in stages.values() for step in stage.funnel]
    return RunFacts(state.recipe, _totals(state, stages.values()), stages), funnel or None


def _totals(state: RunState, stages: Iterable[StageState]) -> Totals:
    """Return the tokens, engine-seconds and cost of these stages."""
    counted = [stage.counts for stage in stages if stage.counts is not None]
    seconds = sum(counts.seconds for counts in counted)
    budget = Budget(**state.budget)  # type: ignore[arg-type]
    return Totals(sum(counts.tokens for counts in counted), seconds, budget.cost(seconds))


def finished_rows(session: Session, stage: Stage) -> int:
    """Return how many rows a stage has finished with these settings; for instructions, only accepted rows count.

    Batch and set stages finish all rows at once. A subset has no state, so its saved rows are counted.
    """
    if isinstance(stage, Subset):
        saved = session.run_dir.state.subsets.get(stage.config)
        return saved.rows if saved is not None else 0
    state = session.environment_of(stage).state_of(stage)
    if state is None:
        return 0
    if state.kind != "row":
        return (state.rows_in or 0) if state.status == "done" else 0
    report = _stage_report(session.run_dir, state, is_running=False)
    return report.by_code.get("ok", 0) if isinstance(stage, Instructions) else report.done
