"""What a search knows so far: nearest neighbours, near duplicates counted and joined to groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
RECHECK = 1e-4
"""Distances this near to the threshold or to zero are computed again from the vectors: float32 products err by 1e-6."""


class Vectors:
    """Rows of a matrix as unit vectors in float32, block by block; the matrix may be a memory map in float16.

    `valid`: (num_rows,) bool, False for rows that are zero or not finite: they have no neighbour.
    """

    def __init__(self, matrix: Any, block_rows: int = 1024) -> None:
        self.matrix = matrix
        self._scale = np.zeros(len(matrix), dtype=np.float64)
        for start in range(0, len(matrix), block_rows):
            block = np.asarray(matrix[start : start + block_rows], dtype=np.float64)
            with np.errstate(all="ignore"):
                norms = np.sqrt(np.einsum("ij,ij->i", block, block))
                self._scale[start : start + block_rows] = np.where(np.isfinite(norms) & (norms > 0), 1 / norms, 0)
        self.valid: BoolArray = self._scale > 0

    def __len__(self) -> int:
        return len(self.matrix)

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return int(self.matrix.shape[1]) if len(self.matrix.shape) > 1 else 0

    def rows(self, where: Any) -> FloatArray:
        """Return some rows as unit vectors, (number, dim) float32; invalid ones as zeros."""
        scale = self._scale[where]
        block = _as_float32(self.matrix[where])
        usual = (scale > 1e-18) & (scale < 1e18)  # where a product in float32 neither overflows nor loses digits
        if usual.all():
            unit: FloatArray = np.multiply(block, scale[:, None].astype(np.float32), dtype=np.float32)
            return unit
        with np.errstate(all="ignore"):
            out: FloatArray = np.multiply(block, scale[:, None], dtype=np.float64).astype(np.float32)
        out[scale == 0] = 0
        return out

    def distances(self, left: IntArray, right: IntArray) -> npt.NDArray[np.float64]:
        """Return the distance of each pair of rows, computed from their difference in float64: (number,)."""
        out = np.empty(len(left), dtype=np.float64)
        for start in range(0, len(left), 1024):
            some = slice(start, start + 1024)
            difference = np.subtract(self.rows(left[some]), self.rows(right[some]), dtype=np.float64)
            out[some] = np.einsum("ij,ij->i", difference, difference)
        return out


def _as_float32(block: Any) -> FloatArray:
    """Return a block as float32; half precision by torch, which does it several times as fast as numpy."""
    given = np.asarray(block)
    if given.dtype != np.float16:
        return np.asarray(given, dtype=np.float32)
    import torch

    out: FloatArray = torch.from_numpy(np.array(given)).float().numpy()
    return out


class State:
    """Arrays over all rows: nearest row and its cosine, number of near duplicates, smallest of them, and groups.

    `rank`: (num_rows,) int64, the order in which rows are preferred; so results do not depend on the rows' order.
    `weight`: (num_rows,) int64, how many rows of the dataset each stands for.
    """

    def __init__(self, rank: IntArray, weight: IntArray | None = None) -> None:
        count = len(rank)
        self.rank = rank
        self.weight = np.ones(count, dtype=np.int64) if weight is None else weight
        self.best = np.full(count, -2.0, dtype=np.float32)
        self.nearest = np.full(count, -1, dtype=np.int64)
        self.repeats = np.zeros(count, dtype=np.int64)
        self.smallest = rank.copy()
        self.parent = np.arange(count, dtype=np.int64)

    def arrays(self) -> dict[str, Any]:
        """Return what has to be saved to go on later."""
        names = ("best", "nearest", "repeats", "smallest", "parent")
        return {name: getattr(self, name) for name in names}

    def restore(self, arrays: dict[str, Any]) -> None:
        """Take up what `arrays` gave."""
        for name, values in arrays.items():
            getattr(self, name)[:] = values

    def see(self, rows: IntArray, cosines: FloatArray, others: IntArray) -> None:
        """Note each row's best other row of a block; of equal ones the one of the smallest rank."""
        old = self.nearest[rows]
        tie = (cosines == self.best[rows]) & (old >= 0) & (self.rank[others] < self.rank[old])
        better = (cosines > self.best[rows]) | tie
        self.best[rows[better]] = cosines[better]
        self.nearest[rows[better]] = others[better]

    def see_last(self, rows: IntArray, cosines: FloatArray, others: IntArray) -> None:
        """Note the last of each row's entries, where a row may have several."""
        last = len(rows) - 1 - np.unique(rows[::-1], return_index=True)[1]
        self.see(rows[last], cosines[last], others[last])

    def count(self, rows: IntArray, near: BoolArray) -> tuple[IntArray, IntArray]:
        """Return for each column of `near`, (rows, columns), its number of near duplicates and their smallest rank.

        Each column has one at least.
        """
        if (self.weight[rows] == 1).all():
            number = np.count_nonzero(near, axis=0)
        else:
            number = (self.weight[rows].astype(np.float64) @ near).astype(np.int64)
        order = np.argsort(self.rank[rows])
        return number, self.rank[rows[order[near[order].argmax(axis=0)]]]

    def add(self, rows: IntArray, number: IntArray, smallest: IntArray) -> None:
        """Add what `count` found for rows, each given once."""
        self.repeats[rows] += number
        self.smallest[rows] = np.minimum(self.smallest[rows], smallest)

    def link(self, rows: IntArray, columns: IntArray, near: BoolArray) -> None:
        """Join the groups of rows and columns where `near`, (rows, columns), says so; each has a partner."""
        self.union(rows, columns[near.argmax(axis=1)])
        self.union(columns, rows[near.argmax(axis=0)])
        while True:
            upper, lower = self.roots(rows), self.roots(columns)
            if (upper == upper[0]).all() and (lower == upper[0]).all():
                return
            apart = near & (upper[:, None] != lower)
            some = apart.any(axis=1)
            if not some.any():
                return
            self.union(rows[some], columns[apart[some].argmax(axis=1)])

    def union(self, left: IntArray, right: IntArray) -> None:
        """Join the groups of pairs."""
        parent = self.parent
        while True:
            a, b = self.roots(left), self.roots(right)
            differ = a != b
            if not differ.any():
                return
            left, right = np.minimum(a[differ], b[differ]), np.maximum(a[differ], b[differ])
            # The last write of a root wins; pairs whose link was overwritten are tried again.
            parent[right] = left

    def roots(self, rows: IntArray) -> IntArray:
        """Return each row's root; paths on the way are halved."""
        parent = self.parent
        found = parent[rows]
        while True:
            above = parent[found]
            if (above == found).all():
                parent[rows] = found
                return found
            parent[rows] = above
            found = above

    def forget(self) -> None:
        """Start anew."""
        self.__init__(self.rank, self.weight)  # type: ignore[misc]

    def groups(self) -> IntArray:
        """Return for each row the smallest rank in its group: (num_rows,) int64."""
        roots = self.roots(np.arange(len(self.parent), dtype=np.int64))
        least = self.rank.copy()
        np.minimum.at(least, roots, self.rank)
        return least[roots]
