"""Rows against another set: how near is the nearest row that exists already."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .blocks import CPU_BLOCK, Progress
from .state import FloatArray, IntArray, Vectors


class Nearest(NamedTuple):
    """Each row's distance (squared L2 of unit vectors, float32; NaN without one) to its nearest row in the other set."""

    distance: FloatArray
    nearest: IntArray


def find_nearest(new: Any, old: Any, *, block_rows: int = CPU_BLOCK, progress: Progress | None = None) -> Nearest:
    """Compare every row of `new` with every row of `old`; matrices (number, dim), float16 or float32."""
    import torch

    rows, others = Vectors(new), Vectors(old)
    best = np.full(len(rows), -3.0, dtype=np.float32)
    at = np.full(len(rows), -1, dtype=np.int64)
    blocks = -(-len(rows) // block_rows)
    for number in range(blocks):
        block = slice(number * block_rows, min((number + 1) * block_rows, len(rows)))
        left = torch.from_numpy(rows.rows(block))
        for start in range(0, len(others), block_rows):
            part = slice(start, min(start + block_rows, len(others)))
            product = torch.mm(left, torch.from_numpy(others.rows(part)).T)
            product[:, torch.from_numpy(~others.valid[part])] = -3.0
            values, where = (found.numpy() for found in product.max(dim=1))
            better = values > best[block]
            best[block][better] = values[better]
            at[block][better] = where[better] + start
        if progress is not None:
            progress(number + 1, blocks)
    found = rows.valid & (at >= 0) & (best > -3.0)
    distance = np.full(len(rows), np.nan, dtype=np.float32)
    places = np.flatnonzero(found)
    distance[places] = np.minimum(_between(rows, others, places, at[places]), 4.0)
    return Nearest(distance, np.where(found, at, -1))


def _between(rows: Vectors, others: Vectors, left: IntArray, right: IntArray) -> Any:
    out = np.empty(len(left), dtype=np.float64)
    for start in range(0, len(left), 16_384):
        some = slice(start, start + 16_384)
        a, b = rows.rows(left[some]).astype(np.float64), others.rows(right[some]).astype(np.float64)
        out[some] = np.einsum("ij,ij->i", a - b, a - b)
    return out
