"""The finished dataset of a run, written so that `load_dataset(OUTPUT)` or `load_from_disk(OUTPUT/dataset)` reads it."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
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
from .shape import Shape, joined


if TYPE_CHECKING:
    from datasets import Dataset

    from .shape import Written


logger = logging.getLogger("magpie_hf")
DIRECTORIES = {"parquet": "data", "arrow": "dataset"}
_OUR_FILE = re.compile(
    r"(train|test)-\d{5}-of-\d{5}\.parquet|data-\d{5}-of-\d{5}\.arrow|dataset_info\.json|state\.json|dataset_dict\.json"
)


def write_output(
    dataset: Dataset,
    run_dir: RunDir,
    file_format: str,
    stages: Sequence[str] | None = None,
    *,
    shape: Shape | None = None,
) -> Written:
    """Write the dataset into the run directory; return it as it was written, a DatasetDict if it has a test split.

    `file_format`: "parquet" (data/SPLIT-*.parquet), "arrow" (`save_to_disk` into dataset/), or "none". Nothing is
    written if the same dataset is already saved. `stages`: keys of the stages that produced the dataset. `shape`: its
    columns and splits; by default all columns in the released order, and one split.
    """
    shape = shape or Shape()
    fingerprint = shape.fingerprint(dataset)
    splits = shape.apply(dataset, _cache_file(run_dir.path, fingerprint))
    saved = run_dir.state.output
    is_saved = saved is not None and (saved.fingerprint, saved.format) == (fingerprint, file_format)
    if saved is None or not is_saved or not _is_whole(run_dir.path, saved):
        run_dir.check_owner()
        check_target(run_dir.path, file_format)
        with writing("the dataset", run_dir.path), quiet_datasets():
            files = file_records(run_dir.path, _write(splits, run_dir.path, file_format))
        if saved is None or saved.fingerprint != fingerprint:
            _drop_stale(run_dir.path, file_format)
        sizes = {name: len(rows) for name, rows in splits.items()} if len(splits) > 1 else {}
        columns = splits["train"].column_names
        saved = SavedRows(fingerprint, len(dataset), file_format, files, columns, splits=sizes)
        run_dir.state.output = saved
        run_dir.save()
    if stages is not None:
        run_dir.state.output = dataclasses.replace(saved, stages=list(stages))
        run_dir.save()
    return joined(splits)


def _cache_file(place: Path, fingerprint: str) -> Path:
    """Return the path of the Arrow file of rows with the columns of a release; remove those of earlier settings."""
    directory = place / "stages" / "shared"
    for old in directory.glob("output-*.arrow"):
        old.unlink(missing_ok=True)
    return directory / f"output-{fingerprint}.arrow"


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
        files = file_records(run_dir.path, _replace({"train": ordered}, target, "parquet"))
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
    found = [path for path in directory.iterdir() if not (path.is_dir() and path.name in ("train", "test"))]
    found += [path for split in ("train", "test") for path in (directory / split).glob("*")]
    return all(_OUR_FILE.fullmatch(path.name) for path in found)


def _write(splits: Mapping[str, Dataset], place: Path, file_format: str) -> list[str]:
    if file_format == "none":
        return []
    return _replace(splits, place / DIRECTORIES[file_format], file_format)


def _replace(splits: Mapping[str, Dataset], target: Path, file_format: str) -> list[str]:
    """Write the dataset next to the target, then replace the target; return paths relative to the run directory."""
    place = target.parent
    fresh = place / f".{target.name}-new"
    shutil.rmtree(fresh, ignore_errors=True)
    if file_format == "arrow":
        _save_to_disk(splits, fresh)
    else:
        for name, rows in splits.items():
            write_shards(rows, fresh, name)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return [str(path.relative_to(place)) for path in sorted(target.rglob("*")) if path.is_file()]


def _save_to_disk(splits: Mapping[str, Dataset], target: Path) -> None:
    written = joined(splits)
    if len(splits) > 1 or len(splits["train"]):
        written.save_to_disk(str(target))
        return
    # Without rows, save_to_disk writes no file unless num_shards is given, and load_from_disk then fails.
    splits["train"].save_to_disk(str(target), num_shards=1)
