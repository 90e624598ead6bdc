"""The finished dataset of a run, written so that `load_dataset(OUTPUT)` or `load_from_disk(OUTPUT/dataset)` reads it."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StorageError
from ..hub.push import write_shards
from ..hub.schema import column_order
from ..storage.checksums import damaged_files, file_records
from ..storage.disk import writing
from ..storage.loading import quiet_datasets
from ..storage.rundir import RunDir, is_run


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger("magpie_hf")
DIRECTORIES = {"parquet": "data", "arrow": "dataset"}
_OUR_FILE = re.compile(r"train-\d{5}-of-\d{5}\.parquet|data-\d{5}-of-\d{5}\.arrow|dataset_info\.json|state\.json")


def write_output(dataset: Dataset, run_dir: RunDir, file_format: str, stages: Sequence[str] | None = None) -> Dataset:
    """Put the columns in the released order and write the dataset into the run directory; return it.

    `file_format`: "parquet" (data/train-*.parquet), "arrow" (`save_to_disk` into dataset/), or "none". What is there
    already under the same fingerprint is left alone. `stages`: which of run.json's made it.
    """
    fingerprint = str(dataset._fingerprint)
    ordered = dataset.select_columns(column_order(dataset.column_names))
    outputs = run_dir.state["outputs"]
    written = outputs.get("fingerprint") == fingerprint and outputs.get("format") == file_format
    if not (written and _is_whole(run_dir.path, outputs)):
        run_dir.check_owner()
        check_target(run_dir.path, file_format)
        with writing("the dataset", run_dir.path), quiet_datasets():
            files = _write(ordered, run_dir.path, file_format)
            checksums = file_records(run_dir.path, files)
        if outputs.get("fingerprint") != fingerprint:
            _drop_stale(run_dir.path, file_format)
        run_dir.state["outputs"] = {
            "fingerprint": fingerprint,
            "format": file_format,
            "files": files,
            "checksums": checksums,
            "rows": len(dataset),
            "columns": ordered.column_names,
        }
        run_dir.save()
    if stages is not None:
        run_dir.state["outputs"]["stages"] = list(stages)
        run_dir.save()
    return ordered


def _is_whole(place: Path, made: Mapping[str, Any]) -> bool:
    """Whether all files of a dataset that was written are as they were written; say which are not."""
    problems = damaged_files(place, made.get("files", []), made.get("checksums"))
    if problems:
        logger.warning("The dataset saved in %s is damaged (%s): written again.", place, ", ".join(problems[:5]))
    return not problems


def write_subset(dataset: Dataset, run_dir: RunDir, config: str, stages: Sequence[str] | None = None) -> list[str]:
    """Write the rows that there are at this point as a config of their own, CONFIG/train-*.parquet; return the files."""
    fingerprint = str(dataset._fingerprint)
    subsets = run_dir.state.setdefault("subsets", {})
    known = subsets.get(config, {})
    if known.get("fingerprint") == fingerprint and _is_whole(run_dir.path, known):
        return [str(name) for name in known["files"]]
    target = run_dir.path / config
    if target.exists() and not _is_ours(target):
        raise StorageError(
            f"The subset {config!r} would be written here, and files lie here that no run wrote.",
            where=str(target),
            hint="Choose another place with --output, or another name for the subset.",
        )
    run_dir.check_owner()
    ordered = dataset.select_columns(column_order(dataset.column_names))
    with writing("the subset", target), quiet_datasets():
        files = _replace(ordered, target, "parquet")
        checksums = file_records(run_dir.path, files)
    subsets[config] = {
        "fingerprint": fingerprint,
        "files": files,
        "checksums": checksums,
        "rows": len(dataset),
        "columns": ordered.column_names,
        **({} if stages is None else {"stages": list(stages)}),
    }
    run_dir.save()
    return files


def _drop_stale(place: Path, file_format: str) -> None:
    """Remove what an earlier dataset of this run left in another format: `load_dataset` would go on reading it."""
    for other, directory in DIRECTORIES.items():
        if other != file_format and _is_ours(place / directory):
            shutil.rmtree(place / directory, ignore_errors=True)


def check_target(place: Path, file_format: str) -> None:
    """Refuse to replace a directory of somebody's: asked before the run, as the dataset is written at its end.

    Raises:
        StorageError: the dataset's directory holds files that no run wrote.
    """
    target = place / DIRECTORIES.get(file_format, "")
    if file_format in DIRECTORIES and target.exists() and not _is_ours(target):
        raise StorageError(
            "The dataset would be written here, and files lie here that no run wrote.",
            where=str(target),
            hint="Choose another place with --output.",
        )


def _is_ours(directory: Path) -> bool:
    if not (directory.is_dir() and is_run(directory.parent)):
        return False
    return all(_OUR_FILE.fullmatch(path.name) for path in directory.iterdir())


def _write(dataset: Dataset, place: Path, file_format: str) -> list[str]:
    if file_format == "none":
        return []
    return _replace(dataset, place / DIRECTORIES[file_format], file_format)


def _replace(dataset: Dataset, target: Path, file_format: str) -> list[str]:
    """Write the dataset beside the target and put it in its place; return the files, relative to the run."""
    place = target.parent
    fresh = place / f".{target.name}-new"
    shutil.rmtree(fresh, ignore_errors=True)
    if file_format == "arrow":
        # Without a row, save_to_disk writes no file unless asked for one, and load_from_disk then fails.
        dataset.save_to_disk(str(fresh), num_shards=None if len(dataset) else 1)
    else:
        write_shards(dataset, fresh)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return [str(path.relative_to(place)) for path in sorted(target.iterdir())]
