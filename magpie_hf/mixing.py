"""Labels of different rubrics in one dataset: which rubric made each label, and a warning if there are several.

The same label means different things in different rubrics, so that conditions, shares and kappa over such rows are wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from .columns import columns_of, listed


if TYPE_CHECKING:
    from datasets import Dataset

UNKNOWN = "an unknown rubric"
"""The rubric of labels without a name of their rubric, e.g., in the rows of another dataset."""
_JUDGED = ("label", "number", "flag", "list")
_BATCH_ROWS = 20_000


def rubrics_of(dataset: Dataset, column: str) -> dict[str, int]:
    """Return the rubrics that made the labels of a column, with their number of rows; empty if the rows do not say."""
    named = rubric_columns(dataset.features).get(column)
    if named is None:
        return {}
    counts: Counter[str] = Counter()
    for batch in dataset.select_columns([column, named]).with_format("arrow").iter(batch_size=_BATCH_ROWS):
        labeled = batch.filter(batch[column].is_valid())
        for entry in labeled[named].value_counts().to_pylist():
            counts[entry["values"] or UNKNOWN] += entry["counts"]
    return dict(counts.most_common())


def rubric_columns(features: Mapping[str, object]) -> dict[str, str]:
    """Return for each column of labels the column that names their rubric."""
    known = columns_of(features)
    named = {column.writer: name for name, column in known.items() if column.kind == "rubric"}
    judged = (column for column in known.values() if column.kind in _JUDGED and column.writer in named)
    return {column.name: named[column.writer] for column in judged}


def mixed_rubrics(dataset: Dataset, columns: Collection[str] | None = None) -> list[str]:
    """Return a warning for each column whose labels were made with several rubrics; `columns`: by default all."""
    found = []
    for name in rubric_columns(dataset.features):
        rubrics = rubrics_of(dataset, name) if columns is None or name in columns else {}
        if len(rubrics) > 1:
            rows = listed(
                [f"{rubric} ({count:,} {'row' if count == 1 else 'rows'})" for rubric, count in rubrics.items()]
            )
            found.append(
                f'The labels in "{name}" were made with different rubrics: {rows}. The same label has another meaning in each '
                "of them: annotate all rows with one rubric."
            )
    return found
