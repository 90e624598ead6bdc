"""Statistics of a dataset: counted over Arrow batches, so that a million rows take seconds and little memory.

What is counted is in the register of columns (`magpie_hf.columns`). Parts whose columns are missing are left out, and
`missing` says which annotation would add them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from ..columns import GENERATION_STAGES, NEED_SETTINGS, REGISTER, Column, Kind, columns_of


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

BATCH_ROWS = 20_000
BINS = 30
LARGEST_GROUPS = 10


FloatArray: TypeAlias = npt.NDArray[np.float64]


class ColumnFacts(TypedDict):
    """How a counted column is shown."""

    title: str
    unit: str
    card: bool


class LabelFacts(TypedDict):
    """Rows by label, in the order of the labels if they have one, else by size; `nulls`: rows without a label."""

    counts: dict[str, int]
    nulls: int


class Histogram(TypedDict):
    """`edges` has one entry more than `counts`."""

    counts: list[int]
    edges: list[float]


class _NumberCounts(TypedDict):
    count: int
    nulls: int


class NumberFacts(_NumberCounts, total=False):
    """Distribution of a column of numbers; only `count` and `nulls` if there are none."""

    mean: float
    sd: float
    min: float
    max: float
    total: float
    quantiles: dict[str, float]
    histogram: Histogram


class GroupFacts(TypedDict):
    """Groups of near-duplicates: how many of several rows, rows in them, and the largest as (group_id, rows)."""

    groups: int
    rows_in_groups: int
    largest: list[tuple[str, int]]


class TurnFacts(TypedDict):
    """Tokens of an instruction and its response together, of the rows that have both."""

    mean: float
    sd: float
    total: float
    rows: int


class Statistics(TypedDict):
    """All statistics of a dataset; JSON-like.

    `columns`: the counted columns. `lists`: entries of lists by column. `flags`: name to rows. `errors`: codes of failed
    annotations by column. `groups`, `turns`: None where columns are missing. `missing`: annotation to the column that it
    would add.
    """

    rows: int
    columns: dict[str, ColumnFacts]
    labels: dict[str, LabelFacts]
    numbers: dict[str, NumberFacts]
    lists: dict[str, dict[str, int]]
    flags: dict[str, int]
    errors: dict[str, dict[str, int]]
    groups: GroupFacts | None
    turns: TurnFacts | None
    missing: dict[str, str]


def dataset_statistics(dataset: Dataset) -> Statistics:
    """Return the statistics of a dataset: what the register (`magpie_hf.columns`) says of its columns."""
    known = columns_of(dataset.features)
    shown = {name: column for name, column in known.items() if column.report}
    flags = (_flag_counts(dataset, name) for name in _of(shown, "flags"))
    return {
        "rows": len(dataset),
        "columns": {name: {"title": c.heading, "unit": c.unit, "card": c.card} for name, c in shown.items()},
        "labels": {name: label_counts(dataset, name, shown[name].labels) for name in _of(shown, "label", "flag")},
        "numbers": {name: number_facts(column_numbers(dataset, name)) for name in _of(shown, "number")},
        "lists": {name: _list_counts(dataset, name) for name in _of(shown, "list")},
        "flags": {flag: count for counts in flags for flag, count in counts.items()},
        "errors": {name: label_counts(dataset, name)["counts"] for name in _of(shown, "error")},
        "groups": _group_facts(dataset) if "group_id" in known else None,
        "turns": _turn_facts(dataset) if {"instruction_tokens", "response_tokens"} <= known.keys() else None,
        "missing": _missing(known),
    }


def _of(columns: Mapping[str, Column], *kinds: Kind) -> list[str]:
    return [name for name, column in columns.items() if column.kind in kinds]


def _batches(dataset: Dataset, column: str) -> Iterator[pa.Table]:
    return iter(dataset.select_columns([column]).with_format("arrow").iter(batch_size=BATCH_ROWS))


def label_counts(dataset: Dataset, column: str, labels: Sequence[str] = ()) -> LabelFacts:
    """Return how often each value of a column of text or booleans occurs, and its nulls; `labels`: its order."""
    counts: Counter[str] = Counter()
    nulls = 0
    for table in _batches(dataset, column):
        for entry in table[column].value_counts():
            value = entry["values"].as_py()
            if value is None:
                nulls += entry["counts"].as_py()
            else:
                counts[_text(value)] += entry["counts"].as_py()
    ordered = {label: counts.get(label, 0) for label in labels}
    ordered |= {label: count for label, count in counts.most_common() if label not in ordered}
    return {"counts": ordered, "nulls": nulls}


def _text(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def column_numbers(dataset: Dataset, column: str) -> FloatArray:
    """Return a column of numbers as float64, null as NaN: (num_rows,)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    out = np.full(len(dataset), np.nan)
    at = 0
    for table in _batches(dataset, column):
        values = pc.cast(table[column], pa.float64())
        out[at : at + len(table)] = np.asarray(values.fill_null(float("nan")))
        at += len(table)
    return out


def number_facts(values: FloatArray) -> NumberFacts:
    """Return mean, standard deviation, quantiles and histogram of numbers; NaN and infinities count as nulls."""
    good = values[np.isfinite(values)]
    facts: NumberFacts = {"count": len(good), "nulls": len(values) - len(good)}
    if not len(good):
        return facts
    low, high = float(good.min()), float(good.max())
    # A few outliers would put all other values into one bin, so they are counted in the outermost bins.
    left, right = (float(v) for v in np.quantile(good, [0.005, 0.995]))
    if right <= left:
        left, right = low, high if high > low else low + 1
    counts, edges = np.histogram(np.clip(good, left, right), bins=BINS, range=(left, right))
    quantiles = np.quantile(good, [0.05, 0.25, 0.5, 0.75, 0.95])
    return {
        **facts,
        "mean": float(good.mean()),
        "sd": float(good.std()),
        "min": low,
        "max": high,
        "total": float(good.sum()),
        "quantiles": dict(zip(("5%", "25%", "50%", "75%", "95%"), map(float, quantiles), strict=True)),
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
    }


def _list_counts(dataset: Dataset, column: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for table in _batches(dataset, column):
        for entry in table[column].combine_chunks().flatten().value_counts():
            if entry["values"].as_py() is not None:
                counts[str(entry["values"].as_py())] += entry["counts"].as_py()
    return dict(counts.most_common())


def _flag_counts(dataset: Dataset, column: str) -> dict[str, int]:
    import pyarrow.compute as pc

    counts: Counter[str] = Counter()
    for table in _batches(dataset, column):
        struct = table[column].combine_chunks()
        for field in struct.type:
            counts[field.name] += pc.sum(pc.struct_field(struct, field.name)).as_py() or 0
    return dict(counts)


def _group_facts(dataset: Dataset) -> GroupFacts:
    import pyarrow.compute as pc

    column = dataset.select_columns(["group_id"]).with_format("arrow")[:]["group_id"]
    counted = column.value_counts()
    counts = np.asarray(pc.struct_field(counted, "counts"))
    several = counts > 1
    order = np.argsort(-counts, kind="stable")[:LARGEST_GROUPS]
    names = pc.struct_field(counted, "values")
    return {
        "groups": int(several.sum()),
        "rows_in_groups": int(counts[several].sum()),
        "largest": [(names[int(n)].as_py(), int(counts[n])) for n in order if counts[n] > 1],
    }


def _turn_facts(dataset: Dataset) -> TurnFacts | None:
    """Return tokens per turn (instruction and response), as in the paper's Table 4."""
    both = column_numbers(dataset, "instruction_tokens") + column_numbers(dataset, "response_tokens")
    both = both[np.isfinite(both)]
    if not len(both):
        return None
    return {"mean": float(both.mean()), "sd": float(both.std()), "total": float(both.sum()), "rows": len(both)}


def _missing(known: Mapping[str, Column]) -> dict[str, str]:
    """Return the annotations that the dataset has no shown column of, each with the first column it would add."""
    shown: dict[str, list[str]] = {}
    for name, column in REGISTER.items():
        if column.report and column.writer not in (*GENERATION_STAGES, *NEED_SETTINGS):
            shown.setdefault(column.writer, []).append(name)
    return {annotation: names[0] for annotation, names in shown.items() if not known.keys() & {*names}}
