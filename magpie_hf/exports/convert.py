"""Convert a Dataset to the rows of a target, and count the rows that cannot be exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..columns import REGISTER, listed
from ..errors import ArgumentError, DatasetError, DependencyError, did_you_mean, quoted
from ..messages import messages_feature
from ..storage.conversations import COLUMNS
from ..storage.loading import quiet_datasets
from .forms import Writer
from .reasoning import Form, form_of
from .rows import REASONING_KEYS, SYSTEM_PROMPTS, InvalidRow, Reader
from .targets import PAIR, Shape, Target, Task, target_of


if TYPE_CHECKING:
    from datasets import Dataset, Features

ON_INVALID = ("error", "skip")
GRPO_COLUMNS = ("task_category", "difficulty", "input_quality", "language")
"""Columns that `trl-grpo` also writes if the rows have them: TRL passes them to reward functions."""
_REASON, _ROW = "_magpie_reason", "_magpie_row"
_MOST_ROWS_NAMED = 5


class Converted(NamedTuple):
    """The rows of a target; how many source rows were skipped, by reason; and the shape of the rows."""

    rows: Dataset
    skipped: dict[str, int]
    shape: Shape
    task: Task
    form: Form


@dataclass(frozen=True)
class Settings:
    """Settings of an export; see `magpie_hf.export`."""

    target: str
    task: str = "auto"
    reasoning: str = "auto"
    model: str | None = None
    chat_template: str | None = None
    system_prompt: str = "messages"
    columns: tuple[str, ...] = ()
    on_invalid: str = "error"

    def __post_init__(self) -> None:
        target_of(self.target)
        for name, known in (("system_prompt", SYSTEM_PROMPTS), ("on_invalid", ON_INVALID)):
            value = getattr(self, name)
            if value not in known:
                raise ArgumentError(
                    f"Invalid value {name} = {quoted(value, 60)}.", hint=did_you_mean(str(value), known), key=name
                )
        if isinstance(self.columns, str):
            raise ArgumentError(
                "columns is a text.", hint='Give a list of names, e.g., columns=["uuid"].', key="columns"
            )


def convert(dataset: Dataset, settings: Settings, form: Form | None = None) -> Converted:
    """Return the rows of the target.

    `form`: the form of reasoning, if it is known from another split.

    Raises:
        DatasetError: the dataset lacks columns, or has rows that cannot be exported and `on_invalid` is "error", or no
            row can be exported.
        ArgumentError: a setting is invalid.
    """
    if not len(dataset):
        raise DatasetError("The dataset has no rows to export.", hint="Check the selection that made it.")
    target = target_of(settings.target)
    task = target.task(settings.task, dataset.column_names)
    shape = target.shapes[task]
    reader = _reader(dataset, target, task, settings)
    kept = _kept(dataset, shape, task, settings.columns)
    if form is None:
        form = form_of(settings.reasoning, settings.model, settings.chat_template, shape.reasoning, target.name)
    features = _features(dataset, shape, reader, kept)
    with quiet_datasets():
        made = dataset.with_format(None).map(
            _Batches(shape.writer(reader, form), tuple(features), kept),
            batched=True,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=features,
            load_from_cache_file=False,  # the cache does not know the version of this code
        )
    valid, skipped = _valid(made, settings.on_invalid, target.name)
    return Converted(valid, skipped, shape, task, form)


def _reader(dataset: Dataset, target: Target, task: Task, settings: Settings) -> Reader:
    """Return the reader of the rows, after a check of the columns."""
    present = dataset.column_names
    column = next((name for name in COLUMNS if name in present), None)
    if task == "preference":
        _check_columns(PAIR, present, target)
    elif column is None:
        _check_columns(("instruction", "response"), present, target, " or a column `messages`")
    if settings.system_prompt == "column":
        _check_columns(("system_prompt",), present, target)
    has_reasoning = "reasoning" in present and task != "preference" and _has_values(dataset, "reasoning")
    return Reader(column, settings.system_prompt, has_reasoning)


def _check_columns(needed: Sequence[str], present: Sequence[str], target: Target, also: str = "") -> None:
    missing = [name for name in needed if name not in present]
    if not missing:
        return
    stages = [REGISTER[name].writer for name in needed if name in REGISTER]
    if missing[0] in PAIR:
        stages.insert(0, "preference_responses")
    shown = listed([f'"{name}"' for name in dict.fromkeys(stages)])
    raise DatasetError(
        f'The target "{target.name}" reads the columns {listed([f"`{name}`" for name in needed])}{also}, but the dataset does '
        f"not have {listed([f'`{name}`' for name in missing])}.",
        hint=f"The stages that write them: {shown}. Columns: {', '.join(present[:40]) or 'none'}.",
        column=missing[0],
        columns=missing,
    )


def _has_values(dataset: Dataset, column: str) -> bool:
    batches = dataset.select_columns([column]).with_format("arrow").iter(batch_size=10_000)
    return any(table[column].null_count < len(table) for table in batches)


def _kept(dataset: Dataset, shape: Shape, task: Task, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of the dataset that are written, too."""
    written = (*shape.columns, "tools", _REASON, _ROW)
    for name in columns:
        if name in written:
            raise ArgumentError(
                f'columns contains "{name}", which the target writes itself.', hint="Rename it first.", key="columns"
            )
        if name not in dataset.column_names:
            raise DatasetError(
                f'columns contains "{name}", but the dataset does not have it.',
                hint=did_you_mean(name, dataset.column_names),
                column=name,
            )
    default = [name for name in GRPO_COLUMNS if task == "prompts" and name in dataset.column_names]
    return tuple(dict.fromkeys([*default, *columns]))


def _features(dataset: Dataset, shape: Shape, reader: Reader, kept: Sequence[str]) -> Features:
    """Return the types of the columns. Messages with reasoning or tools are JSON values, so that no key is added as null."""
    from datasets import Features, Value

    has_tools = "tools" in dataset.column_names and _has_values(dataset, "tools")
    has_extras = reader.reasoning or has_tools or _has_message_keys(dataset)
    turns = [_json()] if has_extras else messages_feature()
    types: dict[str, Any] = {
        "messages": turns, "prompt": turns, "completion": turns, "chosen": turns, "rejected": turns,
        "preferred_output": turns, "non_preferred_output": turns, "label": Value("bool"), "response": Value("string"),
        "conversations": [{"from": Value("string"), "value": Value("string")}],
    }  # fmt: skip
    if "input" in shape.columns:
        types["input"] = _json()
    if shape.writer.one_message:
        types |= {side: types["conversations" if "conversations" in shape.columns else side][0] for side in PAIR}
    features = {name: types[name] for name in shape.columns}
    if has_tools and shape.writer.tools is not None:
        features["tools"] = Value("string") if shape.writer.tools == "text" else [_json()]
    features |= {name: dataset.features[name] for name in kept}
    return Features({**features, _REASON: Value("string"), _ROW: Value("int64")})


def _has_message_keys(dataset: Dataset) -> bool:
    """Return whether messages may have other keys than role and content that are exported."""
    names = [name for name in (*COLUMNS, "prompt", *PAIR) if name in dataset.column_names]
    shown = repr({name: dataset.features[name] for name in names})
    return (
        any(f"'{key}'" in shown for key in (*REASONING_KEYS, "tool_calls", "tool_call_id", "name")) or "Json" in shown
    )


def _json() -> Any:
    """Return the type of JSON values.

    Raises:
        DependencyError: this version of `datasets` has no such type.
    """
    try:
        from datasets import Json
    except ImportError as error:
        raise DependencyError(
            "Messages with reasoning or tools need the type Json of datasets.", hint="pip install 'datasets>=4.7'"
        ) from error
    return Json()


@dataclass(frozen=True)
class _Batches:
    """The function of `Dataset.map`: columns of source rows → columns of the target, with row numbers and reasons."""

    write: Writer
    names: tuple[str, ...]
    kept: tuple[str, ...]

    def __call__(self, batch: Mapping[str, list[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        made = [row for at, number in enumerate(indices) for row in self._rows(batch, at, number)]
        return {name: [row.get(name) for row in made] for name in self.names}

    def _rows(self, batch: Mapping[str, list[Any]], at: int, number: int) -> list[dict[str, Any]]:
        source = {name: values[at] for name, values in batch.items()}
        also = {**{name: source[name] for name in self.kept}, _ROW: number}
        try:
            return [{**row, **also} for row in self.write(source)]
        except InvalidRow as reason:
            return [{_REASON: str(reason), _ROW: number}]


def _valid(made: Dataset, on_invalid: str, target: str) -> tuple[Dataset, dict[str, int]]:
    """Return the valid rows, and how many source rows are invalid, by reason."""
    import numpy as np

    reasons = np.array(made[_REASON][:], dtype=object)
    invalid = np.flatnonzero([reason is not None for reason in reasons])
    counts = dict(Counter(str(reason) for reason in reasons[invalid]).most_common())
    if len(invalid) and (on_invalid == "error" or len(invalid) == len(made)):
        rows = [str(made[int(at)][_ROW]) for at in invalid[:_MOST_ROWS_NAMED]]
        raise DatasetError(
            f'{len(invalid):,} of {len(set(made[_ROW][:])):,} rows cannot be exported as "{target}": {described(counts)}.',
            where=f"row{'s' if len(rows) > 1 else ''} {', '.join(rows)}{', …' if len(invalid) > len(rows) else ''}",
            hint='Remove them with magpie_hf.select, or skip them with on_invalid="skip" (--on-invalid skip).'
            if len(invalid) < len(made)
            else "No row can be exported: check the columns, or choose another target.",
            reasons=counts,
        )
    valid = made.select(np.flatnonzero([reason is None for reason in reasons])) if len(invalid) else made
    return valid.remove_columns([_REASON, _ROW]), counts


def described(counts: Mapping[str, int]) -> str:
    """Return counts by reason for a sentence: "2 no response, 1 no instruction"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
