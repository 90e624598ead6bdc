"""Exact search: blocks of rows against blocks of rows, each pair of blocks once, on the CPU or a GPU.

The work is one matrix product per pair of blocks and two passes over it while it is in the cache: the best of each
row, the best of each column. Everything else only looks at rows that have a better neighbor there, or a near-duplicate;
pairs of near-duplicates are counted and joined product by product and never stored, so groups may be of any size.
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
"""Entries of a product that are examined together for near-duplicates: all of them may be near."""
ROUGH = 4e-3
"""Distances from float16 or tf32 products err by less: both keep 11 bits, so a cosine near 1 is within 2^-10."""


class ExactSearch:
    """All nearest neighbors and near-duplicates of a set.

    `device`: "cpu" or a CUDA device. `precision`: of the products: "float32", "tf32" or "float16". Distances close to
    the threshold are computed again in float64 from the vectors; with rough products (the last two), so are those of
    all candidates for the nearest row among near-duplicates.

    `advance` does one row of blocks; between two calls, `done` and `state.arrays()` are all there is to save.
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
        self._slack = RECHECK if precision == "float32" else ROUGH
        self._lock = threading.Lock()

    @property
    def num_blocks(self) -> int:
        """How many rows of blocks there are: `advance` does one."""
        return len(self._blocks)

    def advance(self) -> bool:
        """Compare the next block with itself and all later ones; return False when all are done."""
        number = self.done
        if number >= self.num_blocks:
            return False
        with precision_of_products(self.precision):
            left = self._blocks.load(number)
            others = range(number, self.num_blocks)
            self._blocks.products(left, others, lambda other, product: self._take(number, other, product))
        self.done += 1
        return True

    def _take(self, number: int, other: int, product: Tensor) -> None:
        """Use the product of two blocks: best of rows and columns, pairs under the threshold."""
        is_same = other == number
        self._blocks.mask_invalid(product, 0, number)
        first, second = (_numbers(self._blocks.span(block)) for block in (number, other))
        if is_same:
            product.fill_diagonal_(NO_COSINE)
        best = product.amax(dim=1)
        below = best if is_same else product.amax(dim=0)
        self._see(first, second, product, best)
        if not is_same:
            self._see(second, first, product.T, below)
        self._near(first, second, product, best, below, is_same)

    def _least(self, slack: float) -> float:
        return 1 - (self.threshold + slack) / 2

    def _see(self, rows: IntArray, others: IntArray, product: Tensor, best: Tensor) -> None:
        """Update the rows whose nearest row is in this product; only for these, soon few, is its position looked up."""
        import torch

        cosines: FloatArray = best.float().cpu().numpy()
        better = (cosines >= self.state.best[rows]) & (cosines > NO_COSINE)
        if self.precision != "float32":
            better &= cosines <= self._least(self._slack)  # `_rank` orders the others
        here = np.flatnonzero(better)
        if not len(here):
            return
        some = product[torch.from_numpy(here).to(self.device)]
        # On the CPU, numpy's argmax of rows is ten times as fast as torch's.
        at = some.contiguous().numpy().argmax(axis=1) if self.device == "cpu" else some.argmax(dim=1).cpu().numpy()
        with self._lock:
            self.state.see(rows[here], cosines[here], others[at])

    def _near(
        self, first: IntArray, second: IntArray, product: Tensor, best: Tensor, below: Tensor, is_same: bool
    ) -> None:
        """Find the entries under the threshold, and count and join their rows."""
        least = self._least(self._slack)
        rows = (best > least).nonzero()[:, 0]
        if not len(rows):
            return
        columns = (below > least).nonzero()[:, 0]
        step = max(1, ENTRIES_AT_ONCE // len(columns))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            cosines = product[some][:, columns]
            near = cosines > least
            a, b = first[some.cpu().numpy()], second[columns.cpu().numpy()]
            if self.precision != "float32":
                top = (cosines >= best[some][:, None] - self._slack) | (cosines >= below[columns] - self._slack)
                self._rank(a, b, near & top, is_same)
            self._settle(a, b, near, near & (cosines < self._least(-self._slack)))
            self._join(a, b, near.cpu().numpy(), is_same)

    def _settle(self, a: IntArray, b: IntArray, near: Tensor, unsure: Tensor) -> None:
        """Decide entries that are too close to the threshold, in place, from the vectors."""
        import torch

        rows, columns = unsure.nonzero(as_tuple=True)
        if not len(rows):
            return
        distances = self._blocks.distances(a[rows.cpu().numpy()], b[columns.cpu().numpy()])
        near[rows, columns] = torch.from_numpy(distances < self.threshold).to(near.device)

    def _rank(self, a: IntArray, b: IntArray, candidates: Tensor, is_same: bool) -> None:
        """Find the nearest rows among candidates whose cosines are too rough to order them."""
        rows, columns = (part.cpu().numpy() for part in candidates.nonzero(as_tuple=True))
        left, right = a[rows], b[columns]
        cosines = (1 - self._blocks.distances(left, right) / 2).astype(np.float32)
        # Of several entries of one row the last counts: the nearest, and of equally near ones the smallest rank.
        for one, other in ((left, right),) if is_same else ((left, right), (right, left)):
            order = np.lexsort((-self.state.rank[other], cosines))
            with self._lock:
                self.state.see_last(one[order], cosines[order], other[order])

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
            self.state.link(a, b, near)


def _numbers(span: slice) -> IntArray:
    return np.arange(span.start, span.stop, dtype=np.int64)
