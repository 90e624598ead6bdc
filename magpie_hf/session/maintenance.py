"""Change finished runs: merge the shards of a job array, reopen failed rows."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..errors import ArgumentError, StorageError, did_you_mean
from ..recipe.schema import load_recipe
from ..stage import CODE_NUMBERS, CODES
from ..storage.journal import CODE_REOPENED, Journal, halves_key
from ..storage.rundir import RunDir
from ..storage.state import Counts, MergedCounts, RunState, StageState
from .existing import check_continues


def merge_runs(
    paths: Sequence[str | Path], output: str | Path, *, force: bool = False, take_over: bool = False
) -> RunDir:
    """Merge the journals of runs of one recipe (shards of a job array) into a new run directory.

    If you then run the same recipe with that directory as output, it reuses all rows and generates only rows that no
    shard has: usually none, at most a few samples. `force`, `take_over`: as in `magpie_hf.run`.

    Raises:
        ArgumentError: the runs are from different recipes, or the directory contains the run of another recipe.
        StorageError: a file cannot be copied.
    """
    runs = [RunDir.read(path) for path in paths]
    if not runs:
        raise ArgumentError("There are no runs to merge.", hint="Give the run directories of the shards.")
    _check_same(runs)
    recipe = runs[0].recipe
    with RunDir(output).own(take_over=take_over) as merged:
        check_continues(load_recipe(recipe), merged, force=force)
        merged.state.pins = runs[0].state.pins.updated(merged.state.pins)
        merged.state.recipe = recipe
        merged.state.merged_from = [run.state.shard for run in runs]
        merged.save()  # before the journals: an interrupted merge leaves a run whose state is known
        for run in runs:
            for key, state in run.state.stages.items():
                _copy_journal(run.path / "stages" / key / "journal", merged.path / "stages" / key / "journal")
                target = merged.state.stages.setdefault(key, _new_stage(state))
                _add_counts(target, state, run.state.shard_name)
        merged.save()
    return merged


def _check_same(runs: Sequence[RunDir]) -> None:
    first = runs[0]
    for run in runs[1:]:
        mine, other = _asked(first.state), _asked(run.state)
        changed = next((name for name in mine if mine[name] != other[name]), None)
        if changed is not None:
            raise ArgumentError(
                f"{run.path} and {first.path} differ in their {changed}, so they are not shards of one run.",
                hint="Merge only runs of the same recipe, started with the same settings and --shard i/n.",
            )


def _asked(state: RunState) -> dict[str, object]:
    """Return the parts of a state that are equal in all shards of one run."""
    recipe = {key: state.recipe.get(key) for key in ("model", "num_rows", "sampling", "stages", "seed")}
    return {"recipe hash": state.recipe_hash, "recipe": recipe, "pins": state.pins}


def _new_stage(state: StageState) -> StageState:
    """Return the state of a merged stage before its first shard is added."""
    kept = dataclasses.replace(state, counts=None, status="pending", rows_in=None, rows_out=None, fingerprint=None)
    return dataclasses.replace(kept, files={}, report={}, samples={}, seconds=0.0, reopened=0, merged={})


def _copy_journal(source: Path, target: Path) -> None:
    for segment in sorted(source.glob("*.jnl")):
        copy = target / segment.name
        if copy.exists() and copy.stat().st_size == segment.stat().st_size:
            continue
        try:
            target.mkdir(parents=True, exist_ok=True)
            part = copy.with_suffix(".part")
            shutil.copyfile(segment, part)
            os.replace(part, copy)
        except OSError as error:
            raise StorageError(
                f"Cannot copy a journal: {error.strerror or error}.",
                where=str(copy),
                hint="Free some disk space and merge again.",
            ) from error


def _add_counts(target: StageState, state: StageState, shard: str) -> None:
    """Add the increase of a shard's engine-seconds and reopened counts since it was last merged.

    If rows were reopened, the later stages write their output again.
    """
    merged = target.merged.get(shard, MergedCounts())
    now = MergedCounts(state.counts.seconds if state.counts else 0.0, state.reopened)
    if state.counts is not None:  # batch and set stages count no rows
        target.counts = target.counts or Counts()
        target.counts.seconds += now.seconds - merged.seconds
    reopened = now.reopened - merged.reopened
    if reopened > 0:  # negative if the state of a shard was rebuilt
        target.reopened += reopened
        target.status = "reopened"
    target.merged[shard] = now


def reopen_rows(path: str | Path, codes: str | Sequence[str], *, take_over: bool = False) -> dict[str, int]:
    """Reopen the rows that finished with one of these codes, so that they run again; return their number per stage.

    Raises:
        ArgumentError: a code is unknown, or does not mean an error.
        RunLockedError: another process owns the run directory.
    """
    codes = [codes] if isinstance(codes, str) else codes
    for code in codes:
        if code not in CODE_NUMBERS or code == "ok":
            raise ArgumentError(f"Unknown error code {code!r}.", hint=did_you_mean(code, CODES[1:]))
    wanted = {CODE_NUMBERS[code] for code in codes}
    RunDir.read(path)
    opened: dict[str, int] = {}
    with RunDir(path).own(take_over=take_over) as run_dir:
        for key, state in run_dir.state.stages.items():
            count = _reopen(run_dir.path / "stages" / key / "journal", wanted)
            if count:
                opened[state.name] = opened.get(state.name, 0) + count
                state.reopened += 1
                state.status = "reopened"
        run_dir.save()
    return opened


def _reopen(directory: Path, wanted: set[int]) -> int:
    with Journal(directory) as journal:
        index = journal.index()
        rows = [row for row, code in enumerate(index.codes) if int(code) in wanted]
        for row in rows:
            journal.append(halves_key(index.keys[row]), {}, code=CODE_REOPENED)
    return len(rows)
