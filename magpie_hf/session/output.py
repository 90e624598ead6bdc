"""The finished dataset of a run, written so that `load_dataset(OUTPUT)` or `load_from_disk(OUTPUT/dataset)` reads it."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StorageError
from ..hub.push import write_shards
from ..hub.schema import column_order
from ..storage.checksums import damaged_files, file_records
from ..storage.disk import writing
from ..storage.loading import quiet_datasets
from ..storage.rundir import RunDir, is_run
from ..storage.state import SavedRows


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger("magpie_hf")
DIRECTORIES = {"parquet": "data", "arrow": "dataset"}
_OUR_FILE = re.compile(r"train-\d{5}-of-\d{5}\.parquet|data-\d{5}-of-\d{5}\.arrow|dataset_info\.json|state\.json")


def write_output(dataset: Dataset, run_dir: RunDir, file_format: str, stages: Sequence[str] | None = None) -> Dataset:
    """Put the columns in the released order and write the dataset into the run directory; return it.

    `file_format`: "parquet" (data/train-*.parquet), "arrow" (`save_to_disk` into dataset/), or "none". Nothing is
    written if the same dataset is already saved. `stages`: keys of the stages that produced the dataset.
    """
    fingerprint = str(dataset._fingerprint)
    ordered = dataset.select_columns(column_order(dataset.column_names))
    saved = run_dir.state.output
    is_saved = saved is not None and (saved.fingerprint, saved.format) == (fingerprint, file_format)
    if saved is None or not is_saved or not _is_whole(run_dir.path, saved):
        run_dir.check_owner()
        check_target(run_dir.path, file_format)
        with writing("the dataset", run_dir.path), quiet_datasets():
            files = file_records(run_dir.path, _write(ordered, run_dir.path, file_format))
        if saved is None or saved.fingerprint != fingerprint:
            _drop_stale(run_dir.path, file_format)
        saved = SavedRows(fingerprint, len(dataset), file_format, files, ordered.column_names)
        run_dir.state.output = saved
        run_dir.save()
    if stages is not None:
        run_dir.state.output = dataclasses.replace(saved, stages=list(stages))
        run_dir.save()
    return ordered


def _is_whole(place: Path, saved: SavedRows) -> bool:
    """Whether all files of a saved dataset are unchanged; log a warning about damaged files."""
    problems = damaged_files(place, saved.files)
    if problems:
        logger.warning("The dataset in %s is damaged (%s) and is written again.", place, ", ".join(problems[:5]))
    return not problems


def write_subset(dataset: Dataset, run_dir: RunDir, config: str, stages: Sequence[str] | None = None) -> list[str]:
    """Write the rows at this point of the run as a separate config, CONFIG/train-*.parquet; return the files."""
    fingerprint = str(dataset._fingerprint)
    subsets = run_dir.state.subsets
    saved = subsets.get(config)
    if saved is not None and saved.fingerprint == fingerprint and _is_whole(run_dir.path, saved):
        return list(saved.files)
    target = run_dir.path / config
    if target.exists() and not _is_ours(target):
        raise StorageError(
            f"The subset {config!r} cannot be written here: this directory contains files that were not written by a run.",
            where=str(target),
            hint="Choose another --output, or another name for the subset.",
        )
    run_dir.check_owner()
    ordered = dataset.select_columns(column_order(dataset.column_names))
    with writing("the subset", target), quiet_datasets():
        files = file_records(run_dir.path, _replace(ordered, target, "parquet"))
    subsets[config] = SavedRows(
        fingerprint,
        len(dataset),
        files=files,
        columns=ordered.column_names,
        stages=None if stages is None else list(stages),
    )
    run_dir.save()
    return list(files)


def _drop_stale(place: Path, file_format: str) -> None:
    """Remove the dataset that this run saved earlier in another format: `load_dataset` would still load it."""
    for other, directory in DIRECTORIES.items():
        if other != file_format and _is_ours(place / directory):
            shutil.rmtree(place / directory, ignore_errors=True)


def check_target(place: Path, file_format: str) -> None:
    """Raise if the directory of the dataset contains other files. Checked before anything is generated.

    Raises:
        StorageError: the directory of the dataset contains files that were not written by a run.
    """
    target = place / DIRECTORIES.get(file_format, "")
    if file_format in DIRECTORIES and target.exists() and not _is_ours(target):
        raise StorageError(
            "The dataset cannot be written here: this directory contains files that were not written by a run.",
            where=str(target),
            hint="Choose another --output.",
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
    """Write the dataset next to the target, then replace the target; return paths relative to the run directory."""
    place = target.parent
    fresh = place / f".{target.name}-new"
    shutil.rmtree(fresh, ignore_errors=True)
    if file_format == "arrow":
        # Without rows, save_to_disk writes no file unless num_shards is given, and load_from_disk then fails.
        dataset.save_to_disk(str(fresh), num_shards=None if len(dataset) else 1)
    else:
        write_shards(dataset, fresh)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return [str(path.relative_to(place)) for path in sorted(target.iterdir())]
