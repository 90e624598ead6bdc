"""What a search knows so far: nearest neighbours, near duplicates counted and joined to groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
RECHECK = 1e-4
"""Distances this near to the threshold or to zero are computed again from the vectors: float32 products err by 1e-6."""


class Vectors:
    """Rows of a matrix as unit vectors in float32, block by block; the matrix may be a memory map in float16.

    `valid`: (num_rows,) bool, False for rows that are zero or not finite: they have no neighbour.
    """

    def __init__(self, matrix: Any, block_rows: int = 8192) -> None:
        self.matrix = matrix
        self.valid = np.zeros(len(matrix), dtype=bool)
        self._scale = np.zeros((len(matrix), 1), dtype=np.float32)
        for start in range(0, len(matrix), block_rows):
            block = np.asarray(matrix[start : start + block_rows], dtype=np.float64)
            with np.errstate(all="ignore"):
                norms = np.sqrt(np.einsum("ij,ij->i", block, block))
                scale = (1 / norms).astype(np.float32)
            # Also no neighbour for what is so small or large that float32 cannot bring it to unit length.
            good = np.isfinite(norms) & (norms > 0) & np.isfinite(scale) & (scale > 0)
            self.valid[start : start + block_rows] = good
            self._scale[start : start + block_rows, 0][good] = scale[good]

    def __len__(self) -> int:
        return len(self.matrix)

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return int(self.matrix.shape[1]) if len(self.matrix.shape) > 1 else 0

    def rows(self, where: Any) -> FloatArray:
        """Return some rows as unit vectors, (number, dim) float32; invalid ones as zeros."""
        block = _as_float32(self.matrix[where])
        with np.errstate(invalid="ignore"):
            unit: FloatArray = block * self._scale[where]
        bad = ~self.valid[where]
        if bad.any():
            unit[bad] = 0  # NaN times zero is NaN
        return unit

    def distances(self, left: IntArray, right: IntArray) -> npt.NDArray[np.float64]:
        """Return the distance of each pair of rows, computed from their difference in float64: (number,)."""
        out = np.empty(len(left), dtype=np.float64)
        for start in range(0, len(left), 16_384):
            a = self.rows(left[start : start + 16_384]).astype(np.float64)
            b = self.rows(right[start : start + 16_384]).astype(np.float64)
            out[start : start + 16_384] = np.einsum("ij,ij->i", a - b, a - b)
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

    def join(self, left: IntArray, right: IntArray) -> None:
        """Count pairs of near duplicates, each pair given once, and join their groups."""
        if not len(left):
            return
        np.add.at(self.repeats, left, self.weight[right])
        np.add.at(self.repeats, right, self.weight[left])
        np.minimum.at(self.smallest, left, self.rank[right])
        np.minimum.at(self.smallest, right, self.rank[left])
        self.union(left, right)

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
