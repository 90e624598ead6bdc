"""Vectors, and the state of a search: nearest neighbors, counts and groups of near-duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt


FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
DoubleArray = npt.NDArray[np.float64]
Selector: TypeAlias = slice | IntArray
NO_COSINE = -3.0
"""Value for pairs of rows that are not compared; lower than any cosine."""
RECHECK = 1e-4
"""Distances this close to the threshold are computed again from the vectors: float32 products have errors of 1e-6."""


class Matrix(Protocol):
    """An array of (rows, dim), in memory or mapped from a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and dimensions."""

    @property
    def dtype(self) -> np.dtype[np.float16] | np.dtype[np.float32]:
        """The dtype."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: Selector, /) -> npt.NDArray[np.float16] | FloatArray: ...


class PickedRows:
    """Some rows of a matrix, read when they are used."""

    def __init__(self, matrix: Matrix, rows: IntArray) -> None:
        self._matrix, self._rows = matrix, rows
        self.shape, self.dtype = (len(rows), *matrix.shape[1:]), matrix.dtype
        self._is_all = len(rows) == len(matrix) and bool((rows == np.arange(len(rows))).all())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, where: Selector, /) -> npt.NDArray[np.float16] | FloatArray:
        return self._matrix[where if self._is_all else self._rows[where]]


class Vectors:
    """Rows of a matrix as unit vectors in float32, block by block; the matrix may be a memory map in float16.

    `valid`: (num_rows,) bool, False for rows that are zero or not finite: they have no neighbors.
    """

    def __init__(self, matrix: Matrix, block_rows: int = 1024) -> None:
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
        """Dimensions of a vector."""
        return int(self.matrix.shape[1]) if len(self.matrix.shape) > 1 else 0

    def rows(self, where: Selector) -> FloatArray:
        """Return some rows as unit vectors, (number, dim) float32; invalid ones as zeros."""
        scale = self._scale[where]
        block = _as_float32(self.matrix[where])
        # For these lengths, a float32 product neither overflows nor loses precision.
        usual = (scale > 1e-18) & (scale < 1e18)
        if usual.all():
            unit: FloatArray = np.multiply(block, scale[:, None].astype(np.float32), dtype=np.float32)
            return unit
        with np.errstate(all="ignore"):
            out: FloatArray = np.multiply(block, scale[:, None], dtype=np.float64).astype(np.float32)
        out[scale == 0] = 0
        return out

    def distances(self, left: IntArray, right: IntArray) -> DoubleArray:
        """Return the distance of each pair of rows: (number,)."""
        return distances_between(self, left, self, right)


def distances_between(one: Vectors, left: IntArray, other: Vectors, right: IntArray) -> DoubleArray:
    """Return the distance of each pair of rows of two sets, computed from their difference in float64: (number,)."""
    out = np.empty(len(left), dtype=np.float64)
    for start in range(0, len(left), 1024):
        some = slice(start, start + 1024)
        difference = np.subtract(one.rows(left[some]), other.rows(right[some]), dtype=np.float64)
        out[some] = np.einsum("ij,ij->i", difference, difference)
    return out


def _as_float32(block: npt.NDArray[np.float16] | FloatArray) -> FloatArray:
    """Return a block as float32; torch converts half precision several times as fast as numpy."""
    given = np.asarray(block)
    if given.dtype != np.float16:
        return np.asarray(given, dtype=np.float32)
    import torch

    out: FloatArray = torch.from_numpy(np.array(given)).float().numpy()
    return out


class State:
    """Results for each row: nearest row and its cosine, number and smallest rank of near-duplicates, group.

    `rank`: (num_rows,) int64, the order of preference, so that results do not depend on the order of the rows.
    `weight`: (num_rows,) int64, the number of dataset rows that each row represents.
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

    def arrays(self) -> dict[str, FloatArray | IntArray]:
        """Return the arrays to save; see `restore`."""
        return {name: getattr(self, name) for name in "best nearest repeats smallest parent".split()}

    def restore(self, arrays: Mapping[str, FloatArray | IntArray]) -> None:
        """Restore saved arrays."""
        for name, values in arrays.items():
            getattr(self, name)[:] = values

    def update_nearest(self, rows: IntArray, cosines: FloatArray, others: IntArray) -> None:
        """Update the nearest row of each of `rows` with a candidate; of equal distances, the smallest rank is kept."""
        old = self.nearest[rows]
        tie = (cosines == self.best[rows]) & (old >= 0) & (self.rank[others] < self.rank[old])
        better = (cosines > self.best[rows]) | tie
        self.best[rows[better]] = cosines[better]
        self.nearest[rows[better]] = others[better]

    def update_nearest_from_last(self, rows: IntArray, cosines: FloatArray, others: IntArray) -> None:
        """Update the nearest rows if `rows` has duplicates: only the last candidate of each row is used."""
        last = len(rows) - 1 - np.unique(rows[::-1], return_index=True)[1]
        self.update_nearest(rows[last], cosines[last], others[last])

    def count(self, rows: IntArray, near: BoolArray) -> tuple[IntArray, IntArray]:
        """Return the number of near-duplicates of each column of `near`, (rows, columns), and their smallest rank.

        Each column must have at least one near-duplicate.
        """
        if (self.weight[rows] == 1).all():
            number = np.count_nonzero(near, axis=0)
        else:
            number = (self.weight[rows].astype(np.float64) @ near).astype(np.int64)
        order = np.argsort(self.rank[rows])
        return number, self.rank[rows[order[near[order].argmax(axis=0)]]]

    def add(self, rows: IntArray, number: IntArray, smallest: IntArray) -> None:
        """Add the result of `count` for distinct rows."""
        self.repeats[rows] += number
        self.smallest[rows] = np.minimum(self.smallest[rows], smallest)

    def merge_groups(self, rows: IntArray, columns: IntArray, near: BoolArray) -> None:
        """Merge the groups of rows and columns that are `near`, (rows, columns); each row and column has a near-duplicate."""
        self.merge_pairs(rows, columns[near.argmax(axis=1)])
        self.merge_pairs(columns, rows[near.argmax(axis=0)])
        while True:
            upper, lower = self.roots(rows), self.roots(columns)
            if (upper == upper[0]).all() and (lower == upper[0]).all():
                return
            apart = near & (upper[:, None] != lower)
            some = apart.any(axis=1)
            if not some.any():
                return
            self.merge_pairs(rows[some], columns[apart[some].argmax(axis=1)])

    def merge_pairs(self, left: IntArray, right: IntArray) -> None:
        """Merge the groups of the two rows of each pair."""
        parent = self.parent
        while True:
            a, b = self.roots(left), self.roots(right)
            differ = a != b
            if not differ.any():
                return
            left, right = np.minimum(a[differ], b[differ]), np.maximum(a[differ], b[differ])
            # If a root is written twice, the last write is kept; the overwritten pairs are merged in the next pass.
            parent[right] = left

    def roots(self, rows: IntArray) -> IntArray:
        """Return the root of each row's group, and shorten the paths to it."""
        parent = self.parent
        found = parent[rows]
        while True:
            above = parent[found]
            if (above == found).all():
                parent[rows] = found
                return found
            parent[rows] = above
            found = above

    def reset(self) -> None:
        """Discard all results."""
        self.__init__(self.rank, self.weight)  # type: ignore[misc]

    def groups(self) -> IntArray:
        """Return the smallest rank in each row's group: (num_rows,) int64."""
        roots = self.roots(np.arange(len(self.parent), dtype=np.int64))
        least = self.rank.copy()
        np.minimum.at(least, roots, self.rank)
        return least[roots]
