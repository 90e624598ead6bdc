"""Look at a run without touching it: what is done, what it cost, and what would run again and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .budget import Budget, Limit
from .journal import Journal
from .recipe import Recipe, load_recipe
from .rundir import RunDir, stable_hash
from .session import Session, spent
from .stage import CODES, Stage
from .stages.instructions import Instructions


class StageReport(NamedTuple):
    """One stage of a run: finished rows by code, tokens, and engine-seconds; `total` is None while that is open.

    `special_tokens`: rows rejected for a special token, by the token.
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


class RunReport(NamedTuple):
    """A run: its stages in order, its totals, its sessions, its files, and what is spent of each limit of its budget."""

    path: str
    recipe: dict[str, Any]
    stages: list[StageReport]
    totals: dict[str, Any]
    sessions: list[dict[str, Any]]
    outputs: dict[str, Any]
    limits: list[Limit]


def run_status(path: str | Path) -> RunReport:
    """Return what a run directory holds; works while the run is on.

    Raises:
        ArgumentError: there is no run.
    """
    run_dir = RunDir.read(path)
    current = [state for state in run_dir.state["stages"].values() if state.get("counters") or state.get("status")]
    return RunReport(
        str(path),
        run_dir.state.get("recipe", {}),
        [_stage_report(run_dir, state) for state in current],
        run_dir.state.get("totals", {}),
        run_dir.state["sessions"],
        run_dir.state["outputs"],
        Budget(**run_dir.state.get("budget", {})).used(*spent(run_dir)),
    )


def _stage_report(run_dir: RunDir, state: Mapping[str, Any]) -> StageReport:
    counters = dict(state.get("counters", {}))
    status = str(state.get("status", "pending"))
    done, by_code = counters.get("done", state.get("rows_out", 0)), counters.get("by_code", {})
    if status != "done" and state.get("kind") == "row":
        done, by_code, counters = _recount(run_dir, state, counters)
    return StageReport(
        state["name"],
        status,
        done,
        counters.get("total", state.get("rows_in")),
        by_code,
        counters.get("prompt_tokens", 0),
        counters.get("completion_tokens", 0),
        counters.get("seconds", 0.0),
        counters.get("special_tokens", {}),
    )


def _recount(
    run_dir: RunDir, state: Mapping[str, Any], counters: dict[str, Any]
) -> tuple[int, dict[str, int], dict[str, Any]]:
    """Count a stage that is not finished from its journal: run.json may be seconds old, or from before a kill."""
    index = Journal(run_dir.stage_dir(state["name"], state["identity"]) / "journal").index()
    numbers, counts = _unique(index.codes)
    by_code = {
        CODES[number] if number < len(CODES) else f"code {number}": count
        for number, count in zip(numbers, counts, strict=True)
    }
    counters["prompt_tokens"] = int(index.prompt_tokens.sum())
    counters["completion_tokens"] = int(index.completion_tokens.sum())
    return len(index.codes), by_code, counters


def _unique(values: Any) -> tuple[list[int], list[int]]:
    import numpy as np

    numbers, counts = np.unique(values, return_counts=True)
    return numbers.tolist(), counts.tolist()


def run_facts(place: Path, config: str | None = None) -> tuple[dict[str, Any] | None, list[Any] | None]:
    """Return what a run directory says of its dataset: recipe, totals and stages, and the funnels of its selections.

    `config`: of that subset instead: only the stages that made it.
    """
    if not (place.expanduser() / "run.json").is_file():
        return None, None
    state = RunDir.read(place.expanduser()).state
    made = state.get("subsets", {}).get(config, {}) if config else state["outputs"]
    stages = state["stages"]
    if "stages" in made:
        stages = {key: stages[key] for key in made["stages"] if key in stages}
    funnel = [step for stage in stages.values() for step in stage.get("report", {}).get("funnel", [])]
    facts = {"recipe": state.get("recipe", {}), "totals": _totals(state, stages), "stages": stages}
    return facts, funnel or None


def _totals(state: Mapping[str, Any], stages: Mapping[str, Any]) -> dict[str, Any]:
    """Return what these stages cost."""
    counted = [stage.get("counters", {}) for stage in stages.values()]
    tokens = sum(c.get("prompt_tokens", 0) + c.get("completion_tokens", 0) for c in counted)
    seconds = sum(c.get("seconds", 0.0) for c in counted)
    budget = Budget(**state.get("budget", {}))
    return {"tokens": tokens, "engine_seconds": seconds, "cost": budget.cost(seconds)}


class StageChange(NamedTuple):
    """What becomes of a stage under changed settings.

    `verdict`: "kept" (from the cache), "again" (its identity changes: all rows), "rows" (only rows whose input
    changed), or "new". `reasons`: (field, before, now).
    """

    name: str
    verdict: str
    reasons: list[tuple[str, Any, Any]]


def explain_changes(path: str | Path, overrides: Mapping[str, Any]) -> list[StageChange]:
    """Return for each stage of a run whether it would run again under these overrides, and which field is the reason.

    Loads no model; the tokenizer only if the template's settings changed.

    Raises:
        ArgumentError: there is no run.
        RecipeError: an override cannot be used.
    """
    run_dir = RunDir.read(path)
    before = load_recipe(run_dir.recipe)
    now = load_recipe(run_dir.recipe, overrides)
    identities = [_identities(recipe, run_dir) for recipe in (before, now)]
    changes: list[StageChange] = []
    upstream = False
    for name, stage in zip(identities[1], now.stages, strict=True):
        change = _compare(name, stage, before, now, identities, upstream)
        upstream = upstream or change.verdict != "kept"
        changes.append(change)
    return changes


def _identities(recipe: Recipe, run_dir: RunDir) -> dict[str, dict[str, Any]]:
    session = Session(recipe, run_dir, show_progress=False)
    out: dict[str, dict[str, Any]] = {}
    for stage in recipe.stages:
        fields = session.environment(stage.role if stage.uses_engine else "generator").identity_of(stage)
        name = stage.label if stage.label not in out else f"{stage.label} {len(out)}"
        out[name] = {key: value for key, value in fields.items() if key != "stage"}
    return out


def _compare(
    name: str, stage: Stage, before: Recipe, now: Recipe, identities: list[dict[str, dict[str, Any]]], upstream: bool
) -> StageChange:
    old, new = identities[0].get(name), identities[1][name]
    if old is None:
        return StageChange(name, "new", [])
    reasons = list(differences(old, new))
    if reasons:
        return StageChange(name, "again", reasons)
    if isinstance(stage, Instructions):
        rows = list(_grid_differences(before, now))
        return StageChange(name, "rows" if rows else "kept", rows)
    return StageChange(name, "rows" if upstream else "kept", [])


def _grid_differences(before: Recipe, now: Recipe) -> Iterator[tuple[str, Any, Any]]:
    if before.num_rows != now.num_rows:
        yield "num_rows", before.num_rows, now.num_rows
    known = {stable_hash(point.to_dict()) for point in before.grid}
    if len(before.grid) == len(now.grid):
        for number, (old, new) in enumerate(zip(before.grid, now.grid, strict=True)):
            if stable_hash(new.to_dict()) not in known:
                yield from differences(old.to_dict(), new.to_dict(), f"grid[{number}]")
            elif old.share != new.share:
                yield f"grid[{number}].share", old.share, new.share
    else:
        yield "sampling: number of different settings", len(before.grid), len(now.grid)
        if len(now.grid) == 1:  # as after --set sampling.temperature=…: what each point differs in
            for number, old in enumerate(before.grid):
                yield from differences(old.to_dict(), now.grid[0].to_dict(), f"grid[{number}]")


def differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted path, before, now) for every leaf that differs between two nested mappings."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    elif before != now:
        yield path, before, now
