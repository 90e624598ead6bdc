"""Agreement of two annotations of the same rows: exact agreement, Cohen's kappa, weighted kappa for ordered labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from ..columns import REGISTER, Column, columns_of
from ..errors import DatasetError
from ..mixing import mixed_rubrics, rubrics_of
from ..storage.loading import as_dataset


if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset


logger = logging.getLogger("magpie_hf")

Label: TypeAlias = str | bool | int | float
Table: TypeAlias = npt.NDArray[np.int64]


class Agreement(TypedDict):
    """Agreement on one column: see `agreement`."""

    rubrics_first: list[str]
    rubrics_second: list[str]
    rows: int
    agreement: float | None
    kappa: float | None
    weighted_kappa: float | None
    nulls_first: int
    nulls_second: int
    labels: list[Label]
    table: list[list[int]]


def agreement(
    first: Dataset | str | Path, second: Dataset | str | Path, columns: Sequence[str] | None = None
) -> dict[str, Agreement]:
    """Compare the labels of two datasets (or paths, or Hub ids) row by row, joined by `uuid`.

    Returns column to {rows, agreement, kappa, weighted_kappa, nulls_first, nulls_second, labels, table, rubrics_first,
    rubrics_second}: `rows` with a label in both; kappas from -1 to 1, null if all rows have the same label; `weighted_kappa` (quadratic) for ordered
    labels only; `table[i][j]` counts rows with label i in the first and label j in the second; `rubrics_first` and `rubrics_second`: the rubrics that
    made the labels, empty if the rows do not say. A dataset whose labels were made with several rubrics gives a warning. `columns`: by default the
    annotations that both datasets have.

    Raises:
        DatasetError: a dataset has no `uuid`, or they have no row or no annotation in common.
    """
    first, second = as_dataset(first), as_dataset(second)
    for dataset in (first, second):
        if "uuid" not in dataset.column_names:
            raise DatasetError("Rows are compared by uuid, but a dataset has no such column.", column="uuid")
    known = columns_of(second.features) | columns_of(first.features)
    names = list(columns) if columns is not None else _compared(first, second, known)
    if not names:
        writers = dict.fromkeys(column.writer for column in REGISTER.values() if column.agreement)
        raise DatasetError(
            "The datasets share no annotation.", hint=f"Annotate both with one of {', '.join(writers)}."
        )
    for warning in (text for dataset in (first, second) for text in mixed_rubrics(dataset, names)):
        logger.warning(warning)
    left, right = _matched(first, second)
    return {name: _compare(first, second, known.get(name, Column(name)), left, right) for name in names}


def _compared(first: Dataset, second: Dataset, known: Mapping[str, Column]) -> list[str]:
    """Return the annotations that both datasets have."""
    shared = {*first.column_names} & {*second.column_names}
    return [name for name, column in known.items() if column.agreement and name in shared]


def _matched(first: Dataset, second: Dataset) -> tuple[list[int], list[int]]:
    """Return the positions of the rows that both datasets have, in the order of the first."""
    positions = {uuid: at for at, uuid in enumerate(second.with_format(None)["uuid"])}
    pairs = [(at, positions[uuid]) for at, uuid in enumerate(first.with_format(None)["uuid"]) if uuid in positions]
    if not pairs:
        raise DatasetError("The datasets share no row.", hint="Annotate the same dataset twice.", column="uuid")
    return [a for a, _ in pairs], [b for _, b in pairs]


def _compare(first: Dataset, second: Dataset, column: Column, left: list[int], right: list[int]) -> Agreement:
    name, scale = column.name, column.labels
    for dataset in (first, second):
        if name not in dataset.column_names:
            raise DatasetError(f'A dataset has no column "{name}".', column=name)
    a_all, b_all = (list(dataset.with_format(None)[name]) for dataset in (first, second))
    pairs = [(a_all[a], b_all[b]) for a, b in zip(left, right, strict=True)]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    labels: list[Label] = list(scale) if scale else sorted({label for pair in both for label in pair}, key=str)
    table = confusion(both, labels)
    return {
        "rubrics_first": [*rubrics_of(first, name)],
        "rubrics_second": [*rubrics_of(second, name)],
        "rows": len(both),
        "agreement": float(np.mean([a == b for a, b in both])) if both else None,
        "kappa": kappa(table),
        "weighted_kappa": kappa(table, weighted=True) if scale else None,
        "nulls_first": sum(a is None for a, _ in pairs),
        "nulls_second": sum(b is None for _, b in pairs),
        "labels": labels,
        "table": table.tolist(),
    }


def confusion(pairs: Sequence[tuple[Label, Label]], labels: Sequence[Label]) -> Table:
    """Return the table of counts, (labels, labels) int64; pairs with other labels are ignored."""
    place = {label: n for n, label in enumerate(labels)}
    table = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for a, b in pairs:
        if a in place and b in place:
            table[place[a], place[b]] += 1
    return table


def kappa(table: Table, *, weighted: bool = False) -> float | None:
    """Return Cohen's kappa of a table, `weighted` by the squared distance of labels; None if all rows have one label."""
    total = table.sum()
    if not total:
        return None
    size = len(table)
    at = np.arange(size)
    weights = (at[:, None] - at[None, :]) ** 2.0 if weighted else (at[:, None] != at[None, :]).astype(float)
    expected = table.sum(axis=1)[:, None] * table.sum(axis=0)[None, :] / total
    chance = (weights * expected).sum()
    return None if chance == 0 else float(1 - (weights * table).sum() / chance)
