"""Explain which stages of a run would run again under changed settings, on how many rows, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from ..execution.candidates import WHOLE, needed_per_point
from ..recipe.schema import Recipe, load_recipe
from ..stage import Stage
from ..stages.instructions import Instructions
from ..stages.select import Select
from ..stages.subset import Subset
from ..storage.hashing import stable_hash
from ..storage.rundir import RunDir
from .session import Session
from .status import finished_rows


Difference = tuple[str, object, object]
"""A dotted path, its value before, and its value now."""


class StageChange(NamedTuple):
    """What happens to a stage under changed settings.

    `verdict`: "kept" (cached), "again" (all rows run again, because the identity changes), "rows" (only rows with a new
    input run), "left" (the run stopped before the stage was finished), or "new" (a new stage). `reasons`: what differs.
    `rows`: (rows that run, rows in total), None if unknown. `is_bound`: both numbers are upper bounds, because it is
    not known how many rows a selection will keep.
    """

    name: str
    verdict: Literal["kept", "again", "rows", "left", "new"]
    reasons: list[Difference]
    rows: tuple[int, int] | None = None
    is_bound: bool = False

    def describe(self) -> str:
        """Describe the change in words, e.g., "runs on 3 of 10 rows"."""
        if self.rows is None or self.verdict == "kept":
            return _VERDICTS[self.verdict]
        computed, total = self.rows
        cause = "" if self.reasons else ": their input changed"
        at_most = "at most " if self.is_bound else ""
        if self.verdict == "again":
            return f"runs again, {at_most or 'all '}{total:,} rows"
        if self.verdict == "new":
            return f"runs on {at_most}{total:,} rows: the stage is new in the recipe"
        if self.verdict == "left":
            return f"resumes: {at_most}{computed:,} of {total:,} rows remain"
        if not computed:
            return "its output is written again from cached rows"
        if self.is_bound:
            return f"runs on at most {computed:,} rows{cause}"
        if computed == total:
            return f"runs again, all {total:,} rows{cause}"
        return f"runs on {computed:,} of {total:,} rows{cause}"


_VERDICTS = {
    "kept": "from the cache",
    "again": "runs again, all rows",
    "rows": "runs on the rows whose input changed",
    "left": "resumes: the run stopped before this stage was finished",
    "new": "runs: the stage is new in the recipe",
}


def explain_changes(path: str | Path, overrides: Mapping[str, object]) -> list[StageChange]:
    """Return for each stage of a run whether it would run again with these overrides, on how many rows, and why.

    No model is loaded, and a tokenizer only if the template settings changed. An existing dataset is assumed to have
    the same rows as in the last session.

    Raises:
        ArgumentError: the directory does not contain a run.
        RecipeError: an override is invalid.
    """
    run_dir = RunDir.read(path)
    before = load_recipe(run_dir.recipe)
    now = load_recipe(run_dir.recipe, overrides)
    identities = [_identities(recipe, run_dir) for recipe in (before, now)]
    inputs = _Inputs(before, now, run_dir)
    session = Session(now, run_dir, show_progress=False)
    is_done = run_dir.state.ended_done
    changes: list[StageChange] = []
    upstream = bool(inputs.reasons)
    for name, stage in zip(identities[1], now.stages, strict=True):
        change = _compare(name, stage, before, now, identities, upstream)
        if not changes and inputs.reasons:
            change = change._replace(reasons=[*inputs.reasons, *change.reasons])
        upstream = upstream or change.verdict != "kept"
        total, is_bound = inputs.total, inputs.is_bound
        change = change._replace(
            rows=inputs.count(stage, change.verdict, _kept_rows(session, stage)), is_bound=is_bound
        )
        if not is_done and change.verdict in ("kept", "rows"):
            change = _left(change, finished_rows(session, stage), total)
        changes.append(change)
    return changes


def _left(change: StageChange, finished: int, total: int | None) -> StageChange:
    """Add the unfinished rows to the change of a stage, if the run stopped before the stage was finished."""
    if total is None:
        return change._replace(verdict="left", rows=None)
    left = max(total - finished, change.rows[0] if change.rows else 0)
    return change._replace(verdict="left", rows=(left, total)) if left else change


def _kept_rows(session: Session, stage: Stage) -> int | None:
    """Return how many rows a finished selection kept with these settings; None if it is not finished."""
    if not _selects(stage):
        return None
    state = session.environment_of(stage).state_of(stage)
    return state.rows_out if state is not None and state.status == "done" else None


def _selects(stage: Stage) -> bool:
    return not stage.features() and not isinstance(stage, Subset)


class _Inputs:
    """Counts how many rows of each stage have a new input, from the first stage to the last.

    `total`: number of rows at the current stage, None if unknown; `is_bound`: whether it is an upper bound. `new`: how
    many of these rows earlier sessions did not have. `reasons`: why the rows of an existing dataset differ.
    """

    def __init__(self, before: Recipe, now: Recipe, run_dir: RunDir) -> None:
        self.changed: set[str] = set()
        self.reasons: list[Difference] = []
        self.total: int | None = now.num_rows
        self.is_bound = False
        if not now.dataset:
            self.new = _new_instructions(before, now)
            return
        old, limit = _limit(before), _limit(now)
        self.reasons += differences(before.dataset, now.dataset, "dataset")
        known = None if self.reasons else _rows_of_dataset(run_dir)
        if old != limit:
            self.reasons.append(("num_rows", old, limit))
        is_cut = known is None or (old is not None and known >= old)  # the dataset may have more rows
        if known is not None and (old == limit or not is_cut):
            self.total = known if limit is None else min(known, limit)
        else:
            self.total = limit
            self.is_bound = limit is not None and (known is None or limit > known)
        self.new = max((self.total or 0) - (known or 0), 0)

    def count(self, stage: Stage, verdict: str, kept: int | None) -> tuple[int, int] | None:
        """Return (rows that the stage runs, rows in total), None if unknown; `kept`: the number of rows that it kept before."""
        total, is_all = self.total, verdict in ("again", "new")
        if verdict == "rows" and not isinstance(stage, Instructions):
            is_all = stage.kind in ("batch", "set") or bool({*getattr(stage, "needs", ())} & self.changed)
        if verdict != "kept" and is_all:
            self.changed |= set(stage.features())
        computed = None if total is None else total if is_all else min(self.new, total)
        if _selects(stage):
            self._select(stage, kept if verdict == "kept" else None)
        return None if total is None or computed is None or verdict == "kept" else (computed, total)

    def _select(self, stage: Stage, kept: int | None) -> None:
        """Update the counts after a selection that kept this many rows; None if the number is not known."""
        if kept is not None:
            self.total, self.is_bound = kept, False
        elif self.total is not None:
            limit = stage.selection.by_length if isinstance(stage, Select) else None
            self.total = self.new = self.total if limit is None else min(self.total, limit)
            self.is_bound = True


def _limit(recipe: Recipe) -> int | None:
    """Return the maximum number of rows of its dataset that a recipe uses, None if it uses all rows."""
    return recipe.num_rows if "num_rows" in recipe.raw else None


def _rows_of_dataset(run_dir: RunDir) -> int | None:
    """Return how many rows of its dataset the last session used."""
    state = run_dir.state
    first = state.stages.get(state.plan[0]) if state.plan else None
    if first is None:
        return None
    return first.rows_in if first.rows_in is not None or first.counts is None else first.counts.total


def _new_instructions(before: Recipe, now: Recipe) -> int:
    """Return how many rows come from samples that the recipe did not request before."""
    counts = [
        Counter(dict(zip([stable_hash(p.to_dict()) for p in recipe.grid], needed, strict=True)))
        for recipe in (before, now)
        for needed in [needed_per_point([point.share for point in recipe.grid], recipe.num_rows, WHOLE)]
    ]
    return (counts[1] - counts[0]).total()


def _identities(recipe: Recipe, run_dir: RunDir) -> dict[str, dict[str, object]]:
    session = Session(recipe, run_dir, show_progress=False)
    out: dict[str, dict[str, object]] = {}
    seen: Counter[str] = Counter()
    for stage in recipe.stages:
        fields = session.environment_of(stage).identity_of(stage)
        seen[stage.label] += 1
        name = stage.label if seen[stage.label] == 1 else f"{stage.label} {seen[stage.label]}"
        out[name] = {key: value for key, value in fields.items() if key != "stage"}
    return out


def _compare(
    name: str,
    stage: Stage,
    before: Recipe,
    now: Recipe,
    identities: list[dict[str, dict[str, object]]],
    upstream: bool,
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


def _grid_differences(before: Recipe, now: Recipe) -> Iterator[Difference]:
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
        if len(now.grid) == 1:  # e.g., after --set sampling.temperature=…: compare each old point with the new one
            for number, old in enumerate(before.grid):
                yield from differences(old.to_dict(), now.grid[0].to_dict(), f"grid[{number}]")


def differences(before: object, now: object, path: str = "") -> Iterator[Difference]:
    """Yield (dotted path, before, now) for every leaf that differs between two nested mappings."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    elif before != now:
        yield path, before, now
