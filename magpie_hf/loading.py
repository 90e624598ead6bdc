"""Rows from anywhere: a run directory, a file, a `save_to_disk` directory, or the Hub; with the columns that stages read."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checksums import check_files
from .errors import DatasetError, quoted
from .keys import row_keys
from .place import quiet_datasets
from .rundir import RunDir


if TYPE_CHECKING:
    from datasets import Dataset

_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow"}


def load_rows(
    path: str, *, config: str | None = None, split: str | None = None, revision: str | None = None
) -> Dataset:
    """Load a dataset: a run's or `save_to_disk` directory, a parquet, JSON or CSV file, a directory of them, a Hub id.

    Raises:
        DatasetError: there is nothing there that can be read.
    """
    import datasets

    place = Path(path).expanduser()
    try:
        with quiet_datasets():
            if (place / "run.json").is_file():
                return _run_output(place)
            if (place / "dataset_info.json").is_file():
                return datasets.Dataset.load_from_disk(str(place))
            if place.is_file() and place.suffix in _BUILDERS:
                return datasets.load_dataset(_BUILDERS[place.suffix], data_files=str(place), split="train")
            loaded = datasets.load_dataset(
                str(place) if place.exists() else path, config, split=split or "train", revision=revision
            )
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(
            f"The dataset {quoted(path)} cannot be loaded: {quoted(error)}.",
            hint="Give a run directory, a parquet, JSON or CSV file, a save_to_disk directory, or a Hub id.",
        ) from error
    return loaded


def _run_output(place: Path) -> Dataset:
    import datasets

    outputs = RunDir.read(place).state.get("outputs", {})
    files = [str(place / name) for name in outputs.get("files", [])]
    check_files(place, outputs.get("files", []), outputs.get("checksums"))
    if outputs.get("format") == "arrow":
        return datasets.Dataset.load_from_disk(str(place / "dataset"))
    if not files:
        raise DatasetError("This run has written no dataset yet.", where=str(place), hint="Run it to its end first.")
    return datasets.load_dataset("parquet", data_files=files, split="train")


def with_row_columns(dataset: Dataset) -> Dataset:
    """Return the dataset with `instruction`, `response` and `uuid`, taken from what is there.

    The first turn of `messages` or `conversations` gives the texts; a `uuid` that is missing is made of the row's
    content, so that equal datasets get equal ones.

    Raises:
        DatasetError: there is no column that could hold an instruction.
    """
    if "instruction" not in dataset.column_names:
        dataset = _with_turn(dataset)
    if "uuid" not in dataset.column_names:
        reads = [name for name in ("instruction", "response") if name in dataset.column_names]
        keys = row_keys(dataset, reads).astype(">u8").tobytes()
        made = [str(uuid.UUID(bytes=keys[at : at + 16], version=5)) for at in range(0, len(keys), 16)]
        dataset = dataset.add_column("uuid", made)
    return dataset


def _with_turn(dataset: Dataset) -> Dataset:
    for column, role, text, user, assistant in (
        ("messages", "role", "content", "user", "assistant"),
        ("conversations", "from", "value", "human", "gpt"),
    ):
        if column in dataset.column_names:
            with quiet_datasets():
                return dataset.map(
                    _first_turn,
                    fn_kwargs={"column": column, "role": role, "text": text, "user": user, "assistant": assistant},
                    input_columns=[column],
                )
    raise DatasetError(
        f"No column holds an instruction; there are {', '.join(dataset.column_names[:20])}.",
        hint='Rename it: dataset.rename_column("prompt", "instruction").',
        column="instruction",
    )


def _first_turn(turns: Any, *, column: str, role: str, text: str, user: str, assistant: str) -> dict[str, Any]:
    turns = turns or []
    questions = [turn[text] for turn in turns if turn.get(role) == user]
    answers = [turn[text] for turn in turns if turn.get(role) == assistant]
    return {"instruction": questions[0] if questions else None, "response": answers[0] if answers else None}
