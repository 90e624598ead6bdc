"""Change finished runs: join the shards of a job array, open failed rows again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, StorageError, did_you_mean
from ..recipe.schema import load_recipe
from ..stage import CODE_NUMBERS, CODES
from ..storage.journal import CODE_REOPENED, Journal, halves_key
from ..storage.rundir import RunDir
from .existing import check_continues


def merge_runs(
    paths: Sequence[str | Path], output: str | Path, *, force: bool = False, take_over: bool = False
) -> RunDir:
    """Join the journals of runs of one recipe (shards of a job array) in a new run directory.

    The same recipe, run with that directory as output, then takes all rows from there and makes only what no shard
    has: usually nothing, at most a few samples. `force`, `take_over`: as in `magpie_hf.run`.

    Raises:
        ArgumentError: the runs are not of one recipe, or the directory holds another one's.
        StorageError: a file cannot be copied.
    """
    runs = [RunDir.read(path) for path in paths]
    if not runs:
        raise ArgumentError("No run was given to merge.", hint="Give the shards' run directories.")
    _check_same(runs)
    recipe = runs[0].recipe
    with RunDir(output).own(take_over=take_over) as merged:
        check_continues(load_recipe(recipe), merged, force=force)
        merged.state["pins"] = {**runs[0].state["pins"], **merged.state["pins"]}
        merged.state["recipe"] = recipe
        merged.state["merged_from"] = [run.state.get("shard") for run in runs]
        merged.save()  # before the journals: an interrupted merge leaves a run whose state is known
        for run in runs:
            for key, state in run.state["stages"].items():
                _copy_journal(run.path / "stages" / key / "journal", merged.path / "stages" / key / "journal")
                target = merged.state["stages"].setdefault(
                    key, {k: state[k] for k in ("name", "identity", "identity_fields", "kind", "served") if k in state}
                )
                _add_counts(target, state, "/".join(map(str, run.state.get("shard", [0, 1]))))
        merged.save()
    return merged


def _check_same(runs: Sequence[RunDir]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for name in ("recipe_hash", "recipe", "pins"):
            mine, other = _asked(first, name), _asked(run, name)
            if mine != other:
                raise ArgumentError(
                    f"{run.path} and {first.path} differ in their {name.replace('_', ' ')}, so they are no shards of one run.",
                    hint="Merge only runs of the same recipe, started with the same settings and --shard i/n.",
                )


def _asked(run: RunDir, name: str) -> Any:
    value = run.state.get(name)
    if name == "recipe" and isinstance(value, dict):
        return {key: value.get(key) for key in ("model", "num_rows", "sampling", "stages", "seed")}
    return value


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
                hint="Free disk space and merge again.",
            ) from error


def _add_counts(target: dict[str, Any], state: Mapping[str, Any], shard: str) -> None:
    """Add a shard's engine-seconds, and how often its rows were opened again: then stages behind them collect anew."""
    counters = target.setdefault("counters", {})
    seconds = _added(target, "merged_seconds", shard, state.get("counters", {}).get("seconds", 0.0))
    counters["seconds"] = counters.get("seconds", 0.0) + seconds
    reopened = _added(target, "merged_reopened", shard, state.get("reopened", 0))
    if reopened > 0:  # it falls where a shard's state was rebuilt
        target["reopened"] = target.get("reopened", 0) + reopened
        target["status"] = "reopened"


def _added(target: dict[str, Any], name: str, shard: str, now: float) -> Any:
    """Return what a shard's count grew by since it was last merged: merging twice adds nothing."""
    merged = target.setdefault(name, {})
    before, merged[shard] = merged.get(shard, 0), now
    return now - before


def reopen_rows(path: str | Path, codes: str | Sequence[str], *, take_over: bool = False) -> dict[str, int]:
    """Open the rows again that finished with one of these codes; return how many a stage.

    Raises:
        ArgumentError: no such code, or one of rows that are fine.
        RunLockedError: the run is on.
    """
    codes = [codes] if isinstance(codes, str) else codes
    for code in codes:
        if code not in CODE_NUMBERS or code == "ok":
            raise ArgumentError(f"There is no error code {code!r}.", hint=did_you_mean(code, CODES[1:]))
    wanted = {CODE_NUMBERS[code] for code in codes}
    RunDir.read(path)
    opened: dict[str, int] = {}
    with RunDir(path).own(take_over=take_over) as run_dir:
        for key, state in run_dir.state["stages"].items():
            count = _reopen(run_dir.path / "stages" / key / "journal", wanted)
            if count:
                opened[state["name"]] = opened.get(state["name"], 0) + count
                state["reopened"] = state.get("reopened", 0) + 1
                state["status"] = "reopened"
        run_dir.save()
    return opened


def _reopen(directory: Path, wanted: set[int]) -> int:
    with Journal(directory) as journal:
        index = journal.index()
        rows = [row for row, code in enumerate(index.codes) if int(code) in wanted]
        for row in rows:
            journal.append(halves_key(index.keys[row]), {}, code=CODE_REOPENED)
    return len(rows)
