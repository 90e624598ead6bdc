"""Load rows from a run directory, a file, a `save_to_disk` directory or the Hub, and add the columns that stages read."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, DatasetError, MagpieError, quoted
from .checksums import check_files, damage
from .conversations import COLUMNS, FirstTurn, first_turn
from .keys import row_keys
from .rundir import RunDir, is_run


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("magpie_hf")

PROMPT_COLUMNS = ("instruction", "prompt", "question", "query", "problem", "input", "text")
"""Names of the column of prompts in other datasets, the most common first."""
DEMO = "demo"
DEMO_ROWS = Path(__file__).parents[1] / "demo" / "rows.jsonl"
"""The dataset "demo": 64 conversations that the demo model wrote, to rehearse recipes that annotate existing rows."""
_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow"}


def load_rows(
    path: str, *, config: str | None = None, split: str | None = None, revision: str | None = None
) -> Dataset:
    """Load a dataset: a run or `save_to_disk` directory, a Parquet, JSON or CSV file, a directory of them, or a Hub id.

    The path "demo" is the bundled dataset.

    Raises:
        DatasetError: the dataset cannot be loaded.
    """
    import datasets

    place = DEMO_ROWS if path == DEMO else Path(path).expanduser()
    try:
        with quiet_datasets():
            if is_run(place):
                return _rows_of_run(place, split)
            if (place / "dataset_dict.json").is_file():
                splits = datasets.DatasetDict.load_from_disk(str(place))
                return splits[split] if split else _only_split(splits)
            if (place / "dataset_info.json").is_file():
                return datasets.Dataset.load_from_disk(str(place))
            if place.is_file() and place.suffix == ".parquet":
                return _read_parquet([str(place)])
            if place.is_file() and place.suffix in _BUILDERS:
                return datasets.load_dataset(_BUILDERS[place.suffix], data_files=str(place), split="train")
            loaded = datasets.load_dataset(
                str(place) if place.exists() else path, config, split=split or "train", revision=revision
            )
    except MagpieError:
        raise
    except Exception as error:
        missing = "" if place.exists() else " (this path does not exist on this machine)"
        raise DatasetError(
            f"The dataset {quoted(path)} cannot be loaded{missing}: {quoted(error)}.",
            hint="Give a run directory, a parquet, JSON or CSV file, a save_to_disk directory, or a Hub id.",
        ) from error
    return loaded


def _rows_of_run(place: Path, split: str | None) -> Dataset:
    """Return the rows of a split of a run, or of several ("train+test", as in `datasets`); by default those of train."""
    import datasets

    if split is None:
        split, output = "train", RunDir.read(place).state.output
        others = [name for name in (output.splits if output is not None else ()) if name != split]
        if others:
            logger.warning(
                "Only the split train of %s is read, without the split %s. A recipe reads all rows with `split: %s`.",
                place, ", ".join(others), "+".join([split, *others]),
            )  # fmt: skip
    names = [name.strip() for name in split.split("+")]
    return datasets.concatenate_datasets([run_splits(place, name)[name] for name in names])


def concatenated(parts: Sequence[Mapping[str, Any]]) -> Dataset:
    """Load datasets by `path`, `config`, `split` and `revision`, and concatenate their rows in this order.

    Of a dataset with `columns`, only these are kept, in this order.

    Raises:
        DatasetError: a dataset cannot be loaded, it lacks one of its `columns`, or its columns differ from those of the
            first one; names the dataset.
    """
    import datasets

    keys = ("config", "split", "revision")
    loaded = [
        _selected(load_rows(part["path"], **{key: part.get(key) for key in keys}), part.get("columns"), part["path"])
        for part in parts
    ]
    first = loaded[0]
    for part, rows in zip(parts[1:], loaded[1:], strict=True):
        _check_same_columns(rows, first, part["path"], parts[0]["path"])
    ordered = [rows.select_columns(first.column_names) for rows in loaded]
    return datasets.concatenate_datasets(ordered) if len(ordered) > 1 else first


def _selected(rows: Dataset, columns: list[str] | None, path: str) -> Dataset:
    """Return the rows with the given columns only, or with all if None."""
    if columns is None:
        return rows
    if missing := [name for name in columns if name not in rows.column_names]:
        raise DatasetError(
            f"The dataset has no column {quoted(missing[0])}.",
            where=path,
            hint=f"Its columns: {', '.join(rows.column_names)}.",
            column=missing[0],
        )
    return rows.select_columns(columns)


def _check_same_columns(rows: Dataset, first: Dataset, path: str, first_path: str) -> None:
    """Raise DatasetError if the columns of two datasets or their types differ."""
    hint = f"Write both with the same recipe and settings, or name the columns to keep, e.g., dataset: [{{path: {first_path}, columns: [instruction, response]}}, …]."
    names, others = set(rows.column_names), set(first.column_names)
    if names != others:
        said = [f"only {quoted(at)} has {', '.join(sorted(only))}" for at, only in
                ((first_path, others - names), (path, names - others)) if only]  # fmt: skip
        raise DatasetError(
            f"The datasets to concatenate have different columns: {'; '.join(said)}.", where=path, hint=hint
        )
    for name in first.column_names:
        if rows.features[name] != first.features[name]:
            raise DatasetError(
                f"The column {quoted(name)} is {_type_text(rows.features[name])}, but {_type_text(first.features[name])} in "
                f"{quoted(first_path)}.",
                where=path,
                hint=hint,
                column=name,
            )


def _type_text(feature: object) -> str:
    return str(getattr(feature, "dtype", feature))


def run_splits(place: Path, split: str | None = None) -> dict[str, Dataset]:
    """Return the splits of the dataset of a run by name: "train", and "test" if it has a test split.

    `split`: only this split.

    Raises:
        DatasetError: the run has not written a dataset yet, or it has no such split.
    """
    import datasets

    output = RunDir.read(place).state.output
    if output is not None:
        check_files(place, output.files)
    if output is None or not output.files:
        raise DatasetError(
            "This run has not written a dataset yet, or its state (run.json) was lost.",
            where=str(place),
            hint="Run its recipe with this directory as --output: finished rows are kept.",
        )
    names = list(output.splits or ("train",))
    if split is not None and split not in names:
        raise DatasetError(
            f"This run has no split {quoted(split)}.", where=str(place), hint=f"Its splits: {', '.join(names)}."
        )
    wanted = [split] if split is not None else names
    if output.format == "arrow":
        saved = {name: place / "dataset" / (name if output.splits else "") for name in wanted}
        return {name: datasets.Dataset.load_from_disk(str(directory)) for name, directory in saved.items()}
    return {name: _read_parquet([str(place / path) for path in files_of(output.files, name)]) for name in wanted}


def rows_with_all_columns(place: Path) -> Dataset | None:
    """Return the rows of a run as its last stage made them, if its dataset has other columns or a test split.

    None if the dataset has all rows and columns, or if the file of the stage is gone or damaged.
    """
    import datasets

    state = RunDir.read(place).state
    given, output = state.recipe.get("output"), state.output
    if (
        output is None
        or not output.stages
        or not isinstance(given, Mapping)
        or not {*given} & {"columns", "test_size"}
    ):
        return None
    key = output.stages[-1]
    name = f"{state.stages[key].fingerprint}.arrow" if key in state.stages else ""
    file = place / "stages" / key / name
    if not name or name not in state.stages[key].files or damage(file, state.stages[key].files[name]):
        return None
    rows = datasets.Dataset.from_file(str(file))
    return rows if len(rows) == output.rows else None


def files_of(paths: Iterable[str], split: str) -> list[str]:
    """Return the Parquet files of a split, by their names: SPLIT-00000-of-00001.parquet."""
    return [path for path in paths if Path(path).name.rpartition("-of-")[0].rpartition("-")[0] == split]


def _read_parquet(files: Sequence[str]) -> Dataset:
    """Load Parquet files. Unlike `load_dataset`, this also loads files without rows."""
    import datasets
    import pyarrow.parquet as pq

    if any(pq.read_metadata(name).num_rows for name in files):
        return datasets.load_dataset("parquet", data_files=list(files), split="train")
    return datasets.Dataset(pq.read_table(files[0]))


def as_dataset(given: Any) -> Dataset:
    """Return an argument as a Dataset: paths and Hub ids are loaded, tables and lists of rows are converted.

    Of a DatasetDict with one split, this split is returned.

    Raises:
        ArgumentError: the argument has an unsupported type, cannot be converted to columns, or has several splits.
        DatasetError: the path or Hub id cannot be loaded.
    """
    import datasets

    if isinstance(given, datasets.Dataset):
        return given
    if isinstance(given, (str, Path)):
        return load_rows(str(given))
    if isinstance(given, datasets.DatasetDict):
        return _only_split(given)
    if isinstance(given, (datasets.IterableDataset, datasets.IterableDatasetDict)):
        raise ArgumentError(
            "A streamed dataset (IterableDataset) is not supported: rows are read more than once, by index.",
            hint="Load it without streaming=True, or convert a part: Dataset.from_list(list(ds.take(10_000))).",
        )
    import pyarrow as pa

    try:
        return _of_table(given)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, MagpieError):
            raise
        raise ArgumentError(
            f"The rows cannot be converted to a Dataset: {quoted(error)}.",
            hint="All columns must have the same length, and the values of a column the same type (text, number, list, dict).",
        ) from error


def _only_split(given: Any) -> Dataset:
    if len(given) == 1:
        return next(iter(given.values()))
    if not given:
        raise ArgumentError("The DatasetDict has no splits.", hint="Give a Dataset, or a DatasetDict of one split.")
    splits = ", ".join(f'"{name}" ({len(rows):,} rows)' for name, rows in given.items())
    raise ArgumentError(
        f"A DatasetDict with {len(given)} splits was given: {splits}.",
        hint=f'Choose one, e.g., ds["{next(iter(given), "train")}"], or datasets.concatenate_datasets(list(ds.values())).',
    )


def _of_table(given: Any) -> Dataset:
    """Return columns, a list of rows, a pandas or polars DataFrame, or an Arrow table, as a Dataset."""
    import datasets
    import pyarrow as pa

    if isinstance(given, Mapping):
        return datasets.Dataset.from_dict(dict(given))
    if isinstance(given, (list, tuple)) and all(isinstance(row, Mapping) for row in given):
        return datasets.Dataset.from_list(list(given))
    package = type(given).__module__.partition(".")[0]
    if isinstance(given, pa.Table):
        return datasets.Dataset(given)
    if package == "pandas" and hasattr(given, "columns"):
        return datasets.Dataset.from_pandas(given, preserve_index=False)
    if package == "polars" and hasattr(given, "columns"):
        return datasets.Dataset.from_polars(given)
    raise ArgumentError(
        f"Expected a dataset, not {_type_name(given)}.",
        hint="Give a Dataset, a path, a Hub id, a DataFrame, or a list of rows (dicts).",
    )


def _type_name(given: object) -> str:
    module, name = type(given).__module__, type(given).__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def with_row_columns(dataset: Dataset) -> Dataset:
    """Return the dataset with the columns `instruction`, `response` and `uuid`.

    If the dataset has no instructions, they are read from the first turn of a conversation column (`messages`,
    `conversations`, …), which is kept. A system message at the beginning is saved in `system_prompt`. A missing `uuid`
    is computed from the content of the row, so that equal datasets get equal uuids.

    Raises:
        DatasetError: no column contains an instruction; or the conversation of a row is not recognized or does not begin
            with a user message (the error names the row).
    """
    if "instruction" not in dataset.column_names:
        dataset = _with_first_turn(dataset, conversation_column(dataset))
    if "uuid" not in dataset.column_names:
        import pyarrow as pa

        reads = [name for name in ("instruction", "response") if name in dataset.column_names]
        keys = row_keys(dataset, reads).astype(">u8").tobytes()
        made = [str(uuid.UUID(bytes=keys[at : at + 16], version=5)) for at in range(0, len(keys), 16)]
        dataset = dataset.add_column("uuid", pa.array(made, pa.string()))  # also without rows
    return dataset


def conversation_column(dataset: Dataset) -> str:
    """Return the column with the conversations of a dataset that has no column of instructions.

    Raises:
        DatasetError: no such column was found.
    """
    there = dataset.column_names
    for name in COLUMNS:
        if name in there:
            return name
    prompts = [
        name for name in PROMPT_COLUMNS if name in there and getattr(dataset.features[name], "dtype", "") == "string"
    ]
    raise DatasetError(
        f"No column contains an instruction; the columns are {', '.join(there[:20]) or 'none'}.",
        hint=f'Rename it: dataset.rename_column("{prompts[0]}", "instruction").'
        if prompts
        else f"Rows need `instruction`, or a conversation in one of {', '.join(COLUMNS)}.",
        column="instruction",
    )


def _with_first_turn(dataset: Dataset, column: str) -> Dataset:
    from datasets import Dataset, Features, Value

    names = [name for name in FirstTurn._fields if name not in dataset.column_names]
    features = Features({**dataset.features, **{name: Value("string") for name in names}})

    def read(conversations: Sequence[Any], rows: Sequence[int]) -> dict[str, list[Any]]:
        turns = [first_turn(given, f"row {row}, {column}") for given, row in zip(conversations, rows, strict=True)]
        return {name: [getattr(turn, name) for turn in turns] for name in names}

    if not len(dataset):  # `map` adds no column to an empty dataset
        features.pop("system_prompt" if "system_prompt" in names else "", None)
        return Dataset(features.arrow_schema.empty_table())
    with quiet_datasets():
        plain = dataset.with_format(None)
        made = plain.map(read, input_columns=[column], batched=True, with_indices=True, features=features)
    if "system_prompt" in names and not any(_batches_with_text(made, "system_prompt")):
        made = made.remove_columns("system_prompt")
    return made


def _batches_with_text(dataset: Dataset, column: str) -> Iterator[bool]:
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=10_000):
        yield table[column].null_count < len(table)


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hide the progress bars of `datasets`, which would show the copying of finished rows."""
    import datasets

    was_on = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            datasets.utils.logging.enable_progress_bar()
