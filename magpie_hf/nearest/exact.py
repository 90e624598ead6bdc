"""Exact search: blocks of rows against blocks of rows, each pair of blocks once, on the CPU or a GPU.

The work is one matrix product a pair of blocks and two passes over it while it is in the cache: the best of each row,
the best of each column. Entries over the threshold are only looked for in rows that have one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .state import RECHECK, FloatArray, IntArray, State, Vectors


CPU_BLOCK = 2048
GPU_BLOCK = 16_384
Progress = Callable[[int, int], None]


class ExactSearch:
    """All nearest neighbours and near duplicates of a set.

    `device`: "cpu" or a CUDA device. `precision`: of the products on a GPU: "float32", "tf32" or "float16"; what comes
    out is computed again in float64 from the vectors where it is near the threshold or zero.
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
        self._buffer: Any = None

    @property
    def num_blocks(self) -> int:
        """How many rows of blocks there are: `advance` does one."""
        return -(-len(self.vectors) // self.block_rows)

    def advance(self) -> bool:
        """Compare the next block with itself and all behind it; return False when there is none left."""
        import torch

        number = self.done
        if number >= self.num_blocks:
            return False
        first = self._block(number)
        left = self._load(first)
        with torch.inference_mode():
            for other in range(number, self.num_blocks):
                second = first if other == number else self._block(other)
                self._pair(first, left, second, left if other == number else self._load(second))
        self.done += 1
        return True

    def _block(self, number: int) -> IntArray:
        start = number * self.block_rows
        return np.arange(start, min(start + self.block_rows, len(self.vectors)), dtype=np.int64)

    def _load(self, rows: IntArray) -> Any:
        import torch

        values = torch.from_numpy(self.vectors.rows(slice(int(rows[0]), int(rows[-1]) + 1)))
        kind = torch.float16 if self.precision == "float16" and self.device != "cpu" else torch.float32
        return values.to(self.device, kind)

    def _pair(self, first: IntArray, left: Any, second: IntArray, right: Any) -> None:
        """Take one product in: best of rows and columns, pairs over the threshold."""
        import torch

        if self.device != "cpu":
            torch.backends.cuda.matmul.allow_tf32 = self.precision == "tf32"
        product = self._product(left, right)
        for rows, axis in ((first, 0), (second, 1)):
            bad = torch.from_numpy(np.flatnonzero(~self.vectors.valid[rows])).to(product.device)
            if len(bad):
                product.index_fill_(axis, bad, -3.0)
        is_same = first is second
        if is_same:
            product.fill_diagonal_(-3.0)
        best = product.amax(dim=1)
        self._see(first, best, second)
        if not is_same:
            self._see(second, product.amax(dim=0), first)
        self._near(first, second, product, best, is_same)

    def _product(self, left: Any, right: Any) -> Any:
        """Return all cosines of two blocks, in memory that is used again for each pair."""
        import torch

        shape = (len(left), len(right))
        if self._buffer is None or tuple(self._buffer.shape) != shape:
            self._buffer = torch.empty(shape, dtype=left.dtype, device=left.device)
        return torch.mm(left, right.T, out=self._buffer)

    def _see(self, rows: IntArray, best: Any, others: IntArray) -> None:
        """Note in which block each row's best other row lies; which one it is, `resolve` looks up once, at the end."""
        cosines: FloatArray = best.float().cpu().numpy()
        better = cosines > self.state.best[rows]
        self.state.best[rows[better]] = cosines[better]
        self.state.nearest[rows[better]] = others[0]

    def resolve(self) -> None:
        """Turn the blocks that `nearest` holds into rows: one more product with a single block for each row."""
        import torch

        starts = self.state.nearest.copy()
        with torch.inference_mode():
            for start in np.unique(starts[starts >= 0]):
                block = np.arange(start, min(start + self.block_rows, len(self.vectors)), dtype=np.int64)
                right = self._load(block)
                rows = np.flatnonzero(starts == start)
                for at in range(0, len(rows), self.block_rows):
                    some = rows[at : at + self.block_rows]
                    left = torch.from_numpy(self.vectors.rows(some)).to(right.device, right.dtype)
                    product = torch.mm(left, right.T)
                    product[:, torch.from_numpy(~self.vectors.valid[block]).to(product.device)] = -3.0
                    own = np.flatnonzero((some >= block[0]) & (some <= block[-1]))
                    product[torch.from_numpy(own), torch.from_numpy(some[own] - start)] = -3.0
                    self.state.nearest[some] = block[product.argmax(dim=1).cpu().numpy()]

    def _near(self, first: IntArray, second: IntArray, product: Any, best: Any, is_same: bool) -> None:
        """Find the entries under the threshold and join their rows."""
        slack = RECHECK if self.precision == "float32" else 4e-3
        least = 1 - (self.threshold + slack) / 2
        rows = (best > least).nonzero()[:, 0]
        if not len(rows):
            return
        # At most some million entries at once: in a block of equal rows, all of them are under the threshold.
        step = max(1, (1 << 22) // max(1, len(second)))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            hits = (product[some] > least).nonzero()
            a = first[some[hits[:, 0]].cpu().numpy()]
            b = second[hits[:, 1].cpu().numpy()]
            if is_same:
                a, b = a[a < b], b[a < b]
            cosines = product[some][hits[:, 0], hits[:, 1]].float().cpu().numpy() if not is_same else None
            self._take_pairs(a, b, cosines, slack)

    def _take_pairs(self, a: IntArray, b: IntArray, cosines: Any, slack: float) -> None:
        if cosines is None:
            distances = self.vectors.distances(a, b)
        else:
            distances = 2 - 2 * cosines.astype(np.float64)
            unsure = np.abs(distances - self.threshold) < 2 * slack
            if unsure.any():
                distances[unsure] = self.vectors.distances(a[unsure], b[unsure])
        near = distances < self.threshold
        self.state.join(a[near], b[near])
