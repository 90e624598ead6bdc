"""Statistics of a dataset: counted over Arrow batches, so that a million rows take seconds and little memory.

What is counted is in the register of columns (`magpie_hf.columns`). Parts whose columns are missing are left out, and
`missing` says which annotation would add them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..columns import GENERATION_STAGES, NEED_SETTINGS, REGISTER, Column, Kind, columns_of


if TYPE_CHECKING:
    from datasets import Dataset

BATCH_ROWS = 20_000
BINS = 30
LARGEST_GROUPS = 10


def dataset_statistics(dataset: Dataset) -> dict[str, Any]:
    """Return all figures, JSON-like: `rows`, `columns`, `labels`, `numbers`, `lists`, `flags`, `errors`, `groups`, `turns`, `missing`.

    `columns`: title, unit and place in cards of the columns that are counted. `labels`: column to {counts, nulls}, counts
    in the order of the labels if they have one, else by size. `numbers`: column to {count, nulls, mean, sd, min, max,
    total, quantiles, histogram}. `flags`: name to rows. `turns`: tokens per turn.
    """
    known = columns_of(dataset.features)
    shown = {name: column for name, column in known.items() if column.report}
    facts: dict[str, Any] = {"rows": len(dataset)}
    facts["columns"] = {
        name: {"title": column.heading, "unit": column.unit, "card": column.card} for name, column in shown.items()
    }
    facts["labels"] = {name: label_counts(dataset, name, shown[name].labels) for name in _of(shown, "label", "flag")}
    facts["numbers"] = {name: number_facts(column_numbers(dataset, name)) for name in _of(shown, "number")}
    facts["lists"] = {name: _list_counts(dataset, name) for name in _of(shown, "list")}
    facts["flags"] = {flag: n for name in _of(shown, "flags") for flag, n in _flag_counts(dataset, name).items()}
    facts["errors"] = {name: label_counts(dataset, name)["counts"] for name in _of(shown, "error")}
    facts["groups"] = _group_facts(dataset) if "group_id" in known else {}
    facts["turns"] = _turn_facts(dataset) if {"instruction_tokens", "response_tokens"} <= known.keys() else {}
    facts["missing"] = _missing(known)
    return facts


def _of(columns: Mapping[str, Column], *kinds: Kind) -> list[str]:
    return [name for name, column in columns.items() if column.kind in kinds]


def _batches(dataset: Dataset, *columns: str) -> Any:
    return dataset.select_columns([*columns]).with_format("arrow").iter(batch_size=BATCH_ROWS)


def label_counts(dataset: Dataset, column: str, labels: Sequence[str] = ()) -> dict[str, Any]:
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


def column_numbers(dataset: Dataset, column: str) -> Any:
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


def number_facts(values: Any) -> dict[str, Any]:
    """Return mean, spread, quantiles and histogram of numbers; NaN and infinite ones count as nulls."""
    good = values[np.isfinite(values)]
    facts: dict[str, Any] = {"count": len(good), "nulls": len(values) - len(good)}
    if not len(good):
        return facts
    low, high = float(good.min()), float(good.max())
    # The few farthest out would squeeze all others into one bin: they are counted in the outermost ones.
    left, right = (float(v) for v in np.quantile(good, [0.005, 0.995]))
    if right <= left:
        left, right = low, high if high > low else low + 1
    counts, edges = np.histogram(np.clip(good, left, right), bins=BINS, range=(left, right))
    quantiles = np.quantile(good, [0.05, 0.25, 0.5, 0.75, 0.95])
    return facts | {
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


def _group_facts(dataset: Dataset) -> dict[str, Any]:
    """Return how many groups of several rows there are, how many rows they hold, and the largest."""
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


def _turn_facts(dataset: Dataset) -> dict[str, Any]:
    """Return tokens per turn (instruction and response), mean and spread, and the total, as the paper's Table 4.

    Of rows that have both.
    """
    both = column_numbers(dataset, "instruction_tokens") + column_numbers(dataset, "response_tokens")
    both = both[np.isfinite(both)]
    if not len(both):
        return {}
    return {"mean": float(both.mean()), "sd": float(both.std()), "total": float(both.sum()), "rows": len(both)}


def _missing(known: Mapping[str, Column]) -> dict[str, str]:
    """Return annotation to its first column for the annotations of which the dataset has nothing to show."""
    shown: dict[str, list[str]] = {}
    for name, column in REGISTER.items():
        if column.report and column.writer not in (*GENERATION_STAGES, *NEED_SETTINGS):
            shown.setdefault(column.writer, []).append(name)
    return {annotation: names[0] for annotation, names in shown.items() if not known.keys() & {*names}}
