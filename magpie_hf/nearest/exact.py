"""Exact search: each pair of blocks of rows is compared once, on the CPU or a GPU.

Each pair of blocks requires one matrix product and, while it is in the cache, two passes over it: the maximum of each
row and of each column. All further work is limited to rows for which the product contains a closer neighbor or a
near-duplicate. Pairs of near-duplicates are counted and grouped after each product and not stored, so the size of a group
is not limited.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from .blocks import CPU_BLOCK, GPU_BLOCK, Blocks, precision_of_products
from .state import NO_COSINE, RECHECK, BoolArray, FloatArray, IntArray, State, Vectors


if TYPE_CHECKING:
    from torch import Tensor


ENTRIES_AT_ONCE = 1 << 20
"""Entries of a product that are searched for near-duplicates at once, which limits the memory if all of them are near."""
RECHECK_LOW_PRECISION = 4e-3
"""Upper bound of the error of distances from float16 or tf32 products: with 11 bits, a cosine near 1 errs by < 2^-10."""


class ExactSearch:
    """Finds all nearest neighbors and near-duplicates in a set.

    `device`: "cpu" or a CUDA device. `precision`: of the products: "float32", "tf32" or "float16". Distances close to
    the threshold are computed again in float64 from the vectors. With "tf32" and "float16", the same applies to all
    candidates for the nearest row of a row with near-duplicates.

    Each call of `advance` compares one block with all later ones. To resume, save `done` and `state.arrays()` between two
    calls.
    """

    def __init__(
        self,
        vectors: Vectors,
        state: State,
        threshold: float,
        *,
        block_rows: int | None = None,
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        self.vectors = vectors
        self.state = state
        self.threshold = threshold
        self.device = device
        self.precision = precision
        self.block_rows = block_rows or (CPU_BLOCK if device == "cpu" else GPU_BLOCK)
        self.done = 0
        self._blocks = Blocks(vectors, self.block_rows, device, precision)
        self._slack = RECHECK if precision == "float32" else RECHECK_LOW_PRECISION
        self._lock = threading.Lock()

    @property
    def num_blocks(self) -> int:
        """Number of blocks, and of calls of `advance`."""
        return len(self._blocks)

    def advance(self) -> bool:
        """Compare the next block with itself and all later ones; return False if all blocks have been compared."""
        number = self.done
        if number >= self.num_blocks:
            return False
        with precision_of_products(self.precision):
            left = self._blocks.load(number)
            others = range(number, self.num_blocks)
            self._blocks.products(left, others, lambda other, product: self._use_product(number, other, product))
        self.done += 1
        return True

    def _use_product(self, number: int, other: int, product: Tensor) -> None:
        """Update the state from the product of two blocks: nearest rows and near-duplicates."""
        is_same = other == number
        self._blocks.mask_invalid(product, 0, number)
        first, second = (_numbers(self._blocks.span(block)) for block in (number, other))
        if is_same:
            product.fill_diagonal_(NO_COSINE)
        best = product.amax(dim=1)
        column_best = best if is_same else product.amax(dim=0)
        self._update_nearest(first, second, product, best)
        if not is_same:
            self._update_nearest(second, first, product.T, column_best)
        self._find_near(first, second, product, best, column_best, is_same)

    def _min_cosine(self, slack: float) -> float:
        return 1 - (self.threshold + slack) / 2

    def _update_nearest(self, rows: IntArray, others: IntArray, product: Tensor, best: Tensor) -> None:
        """Update the nearest rows of `rows`; the position of a maximum is computed only if it is an improvement."""
        import torch

        cosines: FloatArray = best.float().cpu().numpy()
        better = (cosines >= self.state.best[rows]) & (cosines > NO_COSINE)
        if self.precision != "float32":
            better &= cosines <= self._min_cosine(self._slack)  # the others are compared by `_update_nearest_exactly`
        here = np.flatnonzero(better)
        if not len(here):
            return
        some = product[torch.from_numpy(here).to(self.device)]
        # On the CPU, numpy's argmax of rows is ten times as fast as torch's.
        at = some.contiguous().numpy().argmax(axis=1) if self.device == "cpu" else some.argmax(dim=1).cpu().numpy()
        with self._lock:
            self.state.update_nearest(rows[here], cosines[here], others[at])

    def _find_near(
        self, first: IntArray, second: IntArray, product: Tensor, best: Tensor, column_best: Tensor, is_same: bool
    ) -> None:
        """Find the entries below the threshold, and count and group their rows."""
        least = self._min_cosine(self._slack)
        rows = (best > least).nonzero()[:, 0]
        if not len(rows):
            return
        columns = (column_best > least).nonzero()[:, 0]
        step = max(1, ENTRIES_AT_ONCE // len(columns))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            cosines = product[some][:, columns]
            near = cosines > least
            a, b = first[some.cpu().numpy()], second[columns.cpu().numpy()]
            if self.precision != "float32":
                top = (cosines >= best[some][:, None] - self._slack) | (cosines >= column_best[columns] - self._slack)
                self._update_nearest_exactly(a, b, near & top, is_same)
            self._recheck(a, b, near, near & (cosines < self._min_cosine(-self._slack)))
            self._join(a, b, near.cpu().numpy(), is_same)

    def _recheck(self, a: IntArray, b: IntArray, near: Tensor, unsure: Tensor) -> None:
        """Compute entries of `near` that are too close to the threshold again from the vectors, in place."""
        import torch

        rows, columns = unsure.nonzero(as_tuple=True)
        if not len(rows):
            return
        distances = self._blocks.distances(a[rows.cpu().numpy()], b[columns.cpu().numpy()])
        near[rows, columns] = torch.from_numpy(distances < self.threshold).to(near.device)

    def _update_nearest_exactly(self, a: IntArray, b: IntArray, candidates: Tensor, is_same: bool) -> None:
        """Update the nearest rows from candidates whose cosines are not precise enough; computed again from the vectors."""
        rows, columns = (part.cpu().numpy() for part in candidates.nonzero(as_tuple=True))
        left, right = a[rows], b[columns]
        cosines = (1 - self._blocks.distances(left, right) / 2).astype(np.float32)
        # Only the last entry of each row is used: the nearest one; among equal distances, the one with the smallest rank.
        for one, other in ((left, right),) if is_same else ((left, right), (right, left)):
            order = np.lexsort((-self.state.rank[other], cosines))
            with self._lock:
                self.state.update_nearest_from_last(one[order], cosines[order], other[order])

    def _join(self, a: IntArray, b: IntArray, near: BoolArray, is_same: bool) -> None:
        rows, columns = near.any(axis=1), near.any(axis=0)
        if not rows.any():
            return
        a, b, near = a[rows], b[columns], near[np.ix_(rows, columns)]
        counted = self.state.count(b, near.T), None if is_same else self.state.count(a, near)
        with self._lock:
            self.state.add(a, *counted[0])
            if counted[1] is not None:
                self.state.add(b, *counted[1])
            self.state.merge_groups(a, b, near)


def _numbers(span: slice) -> IntArray:
    return np.arange(span.start, span.stop, dtype=np.int64)
