"""`export`: rows in the formats of trainers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ArgumentError
from ..exports.convert import Converted, Settings, convert, described
from ..exports.files import check_output, write_export
from ..exports.targets import target_of
from ..storage.loading import as_dataset, run_splits
from ..storage.rundir import is_run


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from .recipes import RowSource

logger = logging.getLogger("magpie_hf")


def export(
    dataset: RowSource | DatasetDict,
    target: str,
    *,
    output_dir: str | Path | None = None,
    model: str | None = None,
    chat_template: str | None = None,
    task: str = "auto",
    reasoning: str = "auto",
    system_prompt: str = "messages",
    columns: Sequence[str] = (),
    on_invalid: str = "error",
) -> Dataset | DatasetDict:
    """Return rows in the format that a trainer reads, and write them to files if `output_dir` is given.

    Args:
        dataset: A Dataset or DatasetDict, a DataFrame or list of rows, or a path or Hub id. All splits of a run directory
            are exported.
        target: "trl-sft", "trl-prompt-completion", "trl-dpo", "trl-kto", "trl-reward", "trl-grpo", "axolotl", "llamafactory",
            "sharegpt" or "openai".
        output_dir: Directory for the rows (Parquet for TRL, else JSONL), the configuration file that reads them, and
            `export.yaml` with the number of rows. An earlier export in it is replaced.
        model: The model that will be trained. Its chat template decides how reasoning is written.
        chat_template: Jinja text or file to use instead of the model's own.
        task: "sft" or "preference", for targets that have both. Default: preference if the rows have `chosen` and `rejected`.
        reasoning: How the reasoning of a response is written: a key of the message ("reasoning_content", "thinking",
            "reasoning"), "content" (between tags, before the answer), or "drop". Default ("auto"): the form that the chat
            template of `model` prints.
        system_prompt: "messages": system messages of the conversations. "column": also the column `system_prompt`, for
            conversations without one. "drop": none.
        columns: Columns of the dataset to keep, e.g., ["uuid"].
        on_invalid: "error", or "skip": rows that cannot be exported (e.g., without a response) are left out and counted.

    Returns:
        The rows as a Dataset, or a DatasetDict if the dataset has several splits.

    Raises:
        DatasetError: the dataset lacks columns (the error names the stages that write them), or has rows that cannot be
            exported (the error counts them by reason).
        ArgumentError: an argument is invalid, or the rows have reasoning and neither `model` nor `reasoning` is given.
        StorageError: `output_dir` contains other files, or cannot be written.
    """
    settings = Settings(
        target=target,
        task=task,
        reasoning=reasoning,
        model=model,
        chat_template=chat_template,
        system_prompt=system_prompt,
        columns=columns if isinstance(columns, str) else tuple(columns),  # type: ignore[arg-type]
        on_invalid=on_invalid,
    )
    made = exported(dataset, settings, output_dir)
    for split, part in made.parts.items():
        if part.skipped:
            logger.warning(
                "%d rows of the split %s were not exported: %s.",
                sum(part.skipped.values()),
                split,
                described(part.skipped),
            )
    if made.single:
        return made.parts["train"].rows
    import datasets

    return datasets.DatasetDict({split: part.rows for split, part in made.parts.items()})


class Exported(NamedTuple):
    """The splits of an export, the files that were written, and whether the source was one Dataset."""

    parts: dict[str, Converted]
    files: list[Path]
    single: bool


def exported(dataset: RowSource | DatasetDict, settings: Settings, output_dir: str | Path | None) -> Exported:
    """Export all splits of a dataset; arguments and errors as in `export`."""
    place = None if output_dir is None else Path(output_dir).expanduser()
    if place is not None:
        check_output(place)
    splits = splits_of(dataset)
    parts: dict[str, Converted] = {}
    for split, rows in splits.items():
        known = next((part.form for part in parts.values()), None)
        parts[split] = convert(rows, settings, known)
    files = [] if place is None else write_export(parts, target_of(settings.target), place, settings.model)
    return Exported(parts, files, list(parts) == ["train"] and not isinstance(dataset, Mapping))


def splits_of(dataset: Any) -> dict[str, Dataset]:
    """Return the splits of an argument by name; rows without splits are the split "train"."""
    import datasets

    if isinstance(dataset, datasets.DatasetDict):
        if not dataset:
            raise ArgumentError("The DatasetDict has no splits.", hint="Give a Dataset, or a DatasetDict with splits.")
        return dict(dataset)
    if isinstance(dataset, (str, Path)) and is_run(Path(dataset).expanduser()):
        return run_splits(Path(dataset).expanduser())
    return {"train": as_dataset(dataset)}
