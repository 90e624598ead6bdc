"""How a selection is applied to a dataset.

Order: row conditions, one row per group of near-duplicates, quotas, the longest or shortest rows, a sample. Ties are broken by the
row's position, so that equal datasets give equal selections. Each step is a line of the funnel.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from ..columns import scales_of
from ..errors import ArgumentError, did_you_mean, quoted
from ..mixing import mixed_rubrics
from .expressions import Expression, parse
from .selections import SELECTIONS, Selection, as_selection, length_source, named_selection
from .tree import BATCH_ROWS, resolve_name


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

__all__ = [
    "SELECTIONS",
    "FunnelStep",
    "Selected",
    "Selection",
    "apply_selection",
    "as_selection",
    "named_selection",
    "select_rows",
    "split_for_lean",
]

logger = logging.getLogger("magpie_hf")

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class FunnelStep(NamedTuple):
    """A condition with the rows before and after it, and the number of rows for which a null made it unknown."""

    condition: str
    rows_in: int
    rows_out: int
    nulls: int = 0


class Selected(NamedTuple):
    """The positions of the rows kept, (num_kept,) int64, ascending unless shuffled; and the funnel."""

    indices: IntArray
    funnel: list[FunnelStep]


def select_rows(dataset: Dataset, given: str | Mapping[str, object] | Selection, **changes: object) -> Selected:
    """Apply a selection given in any form; see `as_selection` and `apply_selection`."""
    if isinstance(given, str) and given.isidentifier() and resolve_name(given) not in dataset.column_names:
        for name in difflib.get_close_matches(given, SELECTIONS, n=1, cutoff=0.8):
            raise ArgumentError(
                f"{quoted(given)} is neither a column nor a selection.",
                hint=f'Did you mean "{name}"?',
                key="selection",
            )
    return apply_selection(dataset, as_selection(given, **changes))


def apply_selection(dataset: Dataset, selection: Selection) -> Selected:
    """Return which rows a selection keeps. Memory: some tens of bytes per row, however long the texts are.

    Raises:
        DatasetError: a column is missing; says which annotation writes it.
        ArgumentError: a label is not on its scale, or types do not match.
    """
    selection.check(dataset.features)
    for warning in mixed_rubrics(dataset, selection.columns_on(scales_of(dataset.features))):
        logger.warning(warning)
    keep = np.arange(len(dataset), dtype=np.int64)
    funnel: list[FunnelStep] = []
    for part in parse(selection.where).conjuncts if selection.where else ():
        found = part.evaluate(dataset)
        kept = keep[found.keep[keep]]
        funnel.append(FunnelStep(part.text, len(keep), len(kept), int(found.unknown[keep].sum())))
        keep = kept
    for condition, kept in _set_steps(dataset, selection, keep):
        funnel.append(FunnelStep(condition, len(keep), len(kept)))
        keep = kept
    if selection.shuffle is not None:
        keep = np.random.default_rng(selection.shuffle).permutation(keep)
    return Selected(keep, funnel)


def nothing_kept(selected: Selected) -> str | None:
    """Return the warning for a selection that keeps no row; None if it keeps some."""
    if len(selected.indices):
        return None
    last = next((step for step in selected.funnel if step.rows_in and not step.rows_out), None)
    return f"No row is kept: none of {last.rows_in:,} rows meets {last.condition!r}." if last else None


def _set_steps(dataset: Dataset, selection: Selection, keep: IntArray) -> Iterator[tuple[str, IntArray]]:
    """Yield (name, rows kept) of each step that compares rows."""
    if selection.one_per_group:
        by = selection.one_per_group if isinstance(selection.one_per_group, str) else None
        keep = _survivors(dataset, keep, by)
        yield "one per group" + (f", the best by {by}" if by else ""), keep
    count, which = selection.by_length, "shortest" if selection.shortest else "longest"
    preferred = _by_length(dataset, selection) if selection.quotas or count is not None else np.zeros(0)
    for column, given in selection.quotas.items():
        keep = _by_quota(dataset, keep, column, _within(given, count), preferred)
        yield f"quotas of {column}", keep
    if count is not None:
        keep = _first(keep, preferred, count)
        yield f"the {count:,} {which} by {selection.length_column}", keep
    if selection.sample is not None:
        count = round(selection.sample * len(keep)) if selection.sample < 1 else int(selection.sample)
        chosen = np.random.default_rng(selection.seed).permutation(len(keep))[:count]
        keep = keep[np.sort(chosen)]
        yield f"a sample of {selection.sample:g}", keep


def _column(dataset: Dataset, name: str, rows: IntArray | None = None) -> pa.Array:
    """Return a column as one Arrow array; only this column is read."""
    import pyarrow as pa

    data = dataset.select_columns([name]).with_format("arrow")[:][name]
    data = data.combine_chunks() if isinstance(data, pa.ChunkedArray) else data
    return data if rows is None else data.take(pa.array(rows))


def _ordinals(data: pa.Array, name: str, labels: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return a column's values as numbers that sort as the column does, by its `labels` if it has any; null is lowest."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(data.type):
        return np.full(len(data), -np.inf)
    if labels:
        return np.asarray(pc.fill_null(pc.index_in(data, pa.array(labels, data.type)), -1)).astype(np.float64)
    if not (pa.types.is_integer(data.type) or pa.types.is_floating(data.type) or pa.types.is_boolean(data.type)):
        raise ArgumentError(
            f"The values of the column {quoted(name)} have no order.",
            hint="Name a column of ordered labels or numbers.",
        )
    numbers = np.asarray(pc.cast(data, pa.float64()).fill_null(float("-inf")))
    return np.where(np.isnan(numbers), -np.inf, numbers)


def _survivors(dataset: Dataset, keep: IntArray, by: str | None) -> IntArray:
    """Return one row of each group: the highest by a column, else the smallest uuid; rows without a group are kept."""
    import pyarrow.compute as pc

    groups, uuids = _column(dataset, "group_id", keep), _column(dataset, "uuid", keep)
    codes = np.asarray(pc.fill_null(groups.dictionary_encode().indices, -1)).astype(np.int64)
    alone = codes < 0
    codes[alone] = np.arange(alone.sum()) + codes.max(initial=0) + 1
    ranks = np.empty(len(keep), dtype=np.int64)
    ranks[np.asarray(pc.sort_indices(uuids))] = np.arange(len(keep))
    best = np.zeros(len(keep))
    if by is not None:
        best = -_ordinals(_column(dataset, by, keep), by, scales_of(dataset.features).get(by, ()))
    order = np.lexsort((ranks, best, codes))
    first = np.ones(len(keep), dtype=bool)
    first[1:] = codes[order][1:] != codes[order][:-1]
    return np.sort(keep[order[first]])


def _by_quota(
    dataset: Dataset, keep: IntArray, column: str, quotas: Mapping[str, float], preferred: FloatArray
) -> IntArray:
    """Return the preferred rows of each label, up to its quota; labels without a quota are dropped."""
    data, scale = _column(dataset, column, keep), scales_of(dataset.features).get(column, ())
    parts = []
    for label, quota in quotas.items():
        rows = keep[_labeled(data, column, label, scale)]
        count = round(quota * len(keep)) if 0 < quota < 1 else int(quota)
        parts.append(_first(rows, preferred, count))
    return np.unique(np.concatenate(parts)) if parts else keep[:0]


def _within(quotas: Mapping[str, float], limit: int | None) -> Mapping[str, float]:
    """Return quotas scaled down in proportion so that their sum is at most `limit`; Filter6 keeps equal halves."""
    total = sum(quotas.values())
    if limit is None or any(value < 1 for value in quotas.values()) or total <= limit:
        return quotas
    return {label: round(limit * value / total) for label, value in quotas.items()}


def _labeled(data: pa.Array, column: str, label: str, scale: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return which values are a label; "> easy" means all labels above it on the column's scale."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_string(data.type) or pa.types.is_large_string(data.type) or pa.types.is_null(data.type)):
        hint = "Quotas are given by label: name a column of texts."
        raise ArgumentError(f"The column {quoted(column)} of type {data.type} has no labels.", hint=hint, key="quotas")
    is_above = label.startswith(">") and bool(scale)
    wanted = label[1:].strip() if is_above else label
    if scale and wanted not in scale:
        raise ArgumentError(f"{quoted(wanted)} is not a label of {column}.", hint=did_you_mean(wanted, scale))
    if is_above:
        found: npt.NDArray[np.bool_] = _ordinals(data, column, scale) > scale.index(wanted)
        return found
    return np.asarray(pc.fill_null(pc.equal(data, label), False))


def _first(rows: IntArray, preferred: FloatArray, count: int) -> IntArray:
    """Return the `count` rows with the largest values of `preferred`, in their order; the first ones of equal values."""
    if len(rows) <= count:
        return rows
    order = np.argsort(-preferred[rows], kind="stable")[:count]
    return np.sort(rows[order])


def _by_length(dataset: Dataset, selection: Selection) -> FloatArray:
    """Return a number for each row, (num_rows,) float64, the largest for the row to keep first; -inf without a length."""
    name = selection.length_column
    if name not in dataset.column_names:
        name = length_source(name)
    lengths = np.zeros(len(dataset))
    at = 0
    for table in dataset.select_columns([name]).with_format("arrow").iter(batch_size=BATCH_ROWS):
        lengths[at : at + len(table)] = _lengths(table[name], name)
        at += len(table)
    return np.where(np.isfinite(lengths), -lengths, -np.inf) if selection.shortest is not None else lengths


def _lengths(data: pa.ChunkedArray, name: str) -> FloatArray:
    """Return the numbers of a column, or the characters of its texts or messages (without system messages); -inf for null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array, kind = data.combine_chunks(), data.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _ordinals(pc.utf8_length(array), name, ())
    if not (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)):
        return _ordinals(array, name, ())
    if kind.value_type.get_field_index("content") < 0:
        raise ArgumentError(
            f"The lengths of the column {quoted(name)} of type {kind} cannot be measured.",
            hint="Name a column of numbers, texts or messages (role, content).",
            key="length_column",
        )
    entries = array.flatten()
    counts = pc.fill_null(pc.utf8_length(pc.struct_field(entries, "content")), 0)
    if kind.value_type.get_field_index("role") >= 0:  # the system message does not count
        counts = pc.if_else(pc.fill_null(pc.equal(pc.struct_field(entries, "role"), "system"), False), 0, counts)
    sums = np.bincount(np.asarray(pc.list_parent_indices(array)), np.asarray(counts), len(array))
    return np.where(np.asarray(array.is_valid()), sums, -np.inf)


def split_for_lean(selection: Selection, known: set[str]) -> tuple[Selection | None, str | None]:
    """Return the part of a selection that reads only the `known` columns, or the reason why it has no such part.

    Selecting one row per group belongs to it only if *all* row conditions do: a later condition could otherwise drop the
    chosen row.
    """
    parts: tuple[Expression, ...] = parse(selection.where).conjuncts if selection.where else ()
    early = [part for part in parts if part.columns <= known]
    grouped = selection.one_per_group and len(early) == len(parts)
    preferred = {selection.one_per_group} if isinstance(selection.one_per_group, str) else set()
    grouped = bool(grouped) and {"group_id", "uuid", *preferred} <= known
    if not early and not grouped:
        return None, "its conditions read " + ", ".join(sorted(set(selection.columns) - known))
    where = " and ".join(f"({part.text})" for part in early)
    kept = selection.one_per_group if grouped else False
    return Selection(f"{selection.name} (early)", where, one_per_group=kept, source=selection.source), None
