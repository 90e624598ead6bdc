"""Search across two sets: the distance of each row to its nearest row in another set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .blocks import CPU_BLOCK, Blocks, best_matches
from .state import FloatArray, IntArray, Matrix, Vectors, distances_between


class Nearest(NamedTuple):
    """Each row's distance (squared L2 of unit vectors, float32; NaN without one) to its nearest row in the other set."""

    distance: FloatArray
    nearest: IntArray


def find_nearest(new: Matrix, old: Matrix, *, block_rows: int = CPU_BLOCK) -> Nearest:
    """Compare every row of `new` with every row of `old`; matrices (number, dim), float16 or float32."""
    rows, others = Vectors(new), Blocks(Vectors(old), block_rows)
    at = np.full(len(rows), -1, dtype=np.int64)
    for start in range(0, len(rows), block_rows):
        block = slice(start, start + block_rows)
        at[block] = best_matches(rows.rows(block), others)[1]
    at[~rows.valid] = -1
    distance = np.full(len(rows), np.nan, dtype=np.float32)
    found = np.flatnonzero(at >= 0)
    distance[found] = np.minimum(distances_between(rows, found, others.vectors, at[found]), 4.0)
    return Nearest(distance, at)
