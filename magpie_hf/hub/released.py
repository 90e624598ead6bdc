"""Rows with the columns of a release: its names, order and types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import DatasetError, quoted
from ..storage.loading import quiet_datasets
from .layouts import CONFIGS, SCORES, Kind, Layout


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

RequestOf: TypeAlias = Callable[[str, str | None], Mapping[str, object]]
"""From an instruction and a system prompt to the fields of `gen_response_configs` that rows do not keep: `prompt`,
`stop_tokens`, `engine`, `repetition_penalty`."""
_SHAREGPT_ROLES = {"user": "human", "assistant": "gpt"}
_BATCH = 1000


def released(
    dataset: Dataset, layout: Layout, *, request_of: RequestOf | None = None, cache_file: Path | None = None
) -> Dataset:
    """Return rows with the columns of a release: names, order and types, and nothing else stored in the features.

    `request_of`: gives the fields of `gen_response_configs` that rows do not keep; without it they are null.
    `cache_file`: the Arrow file of the result; by default in the cache of `datasets`.

    Raises:
        DatasetError: a column is missing, or a value does not fit into the released type.
    """
    from datasets import Dataset

    missing = layout.missing(dataset.features)
    if missing:
        raise DatasetError(
            f'The rows lack columns for "{layout.name}": {", ".join(missing.values())}.', column=next(iter(missing))
        )
    features = released_features(layout)
    if not len(dataset):  # `map` changes no columns of an empty dataset
        return Dataset(features.arrow_schema.empty_table())
    sources = {name: _source(dataset, layout, name) for name in layout.columns}
    reads = list(dict.fromkeys(sources.values()))
    if CONFIGS in sources and "instruction" in dataset.column_names:
        reads = list(dict.fromkeys([*reads, "instruction"]))
    narrow = dataset.select_columns(reads).with_format("arrow")
    if cache_file is not None:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
    with quiet_datasets():
        made = narrow.map(
            lambda table: _table(table, layout, sources, features, request_of),
            batched=True,
            batch_size=_BATCH,
            features=features,
            remove_columns=reads,
            cache_file_name=None if cache_file is None else str(cache_file),
            load_from_cache_file=False,
        )
    return made.with_format(None)


def released_features(layout: Layout) -> Features:
    """Return the features of a layout; no entries of our register are stored in them."""
    from datasets import Features

    return Features({name: _feature(kind) for name, kind in layout.columns.items()})


def _feature(kind: Kind) -> Any:
    from datasets import Value

    if isinstance(kind, Mapping):
        return {name: _feature(inner) for name, inner in kind.items()}
    return [_feature(kind[0])] if isinstance(kind, list) else Value(kind)


def _source(dataset: Dataset, layout: Layout, name: str) -> str:
    """Return the column that a released column is made from: ours, else one that already has the released name.

    The ids of a release stay: the `uuid` of such rows was only computed from their texts.
    """
    ours = layout.source(name)
    is_id = ours == "uuid" and name in dataset.column_names
    return ours if ours in dataset.column_names and not is_id else name


def _table(
    table: pa.Table,
    layout: Layout,
    sources: Mapping[str, str],
    features: Features,
    request_of: RequestOf | None,
) -> pa.Table:
    import pyarrow as pa

    schema = features.arrow_schema
    texts = table["instruction"].to_pylist() if "instruction" in table.column_names else [None] * len(table)
    arrays = []
    for name, kind in layout.columns.items():
        given = table[sources[name]]
        try:
            if isinstance(kind, str):
                arrays.append(given.cast(schema.field(name).type))
                continue
            values = given.to_pylist()
            if name == CONFIGS and request_of is not None:
                values = [_with_request(value, text, request_of) for value, text in zip(values, texts, strict=True)]
            if name == SCORES and sources[name] != name:
                values = [scores and [{"score": score} for score in scores] for scores in values]
            arrays.append(pa.array([_value(value, kind) for value in values], schema.field(name).type))
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise DatasetError(
                f'The column "{sources[name]}" does not fit into the released column "{name}": {quoted(error)}.',
                column=sources[name],
            ) from error
    return pa.table(dict(zip(layout.columns, arrays, strict=True)))


def _with_request(configs: Mapping[str, Any] | None, instruction: str | None, request_of: RequestOf) -> Any:
    if configs is None or instruction is None:
        return configs
    return {**request_of(instruction, configs.get("system_prompt")), **configs}


def _value(value: Any, kind: Kind) -> Any:
    """Return a value of our columns as a value of a released type."""
    if value is None or kind == "null":
        return None
    if isinstance(kind, list):
        return [_value(inner, kind[0]) for inner in value]
    if isinstance(kind, Mapping):
        return {name: _value(_field(value, name), inner) for name, inner in kind.items()}
    if kind == "int64" and value != int(value):
        raise ValueError(f"{value} is not a whole number")
    return value


def _field(value: Mapping[str, Any], name: str) -> Any:
    """Return a field of a struct by its released name."""
    if name in value:
        return value[name]
    if name == "extract_input":
        return value.get("pre_query_template")
    if name == "pre_query_template":
        return value.get("extract_input")
    if name == "from":
        return _SHAREGPT_ROLES.get(value["role"], value["role"])
    return value.get("content") if name == "value" else None
