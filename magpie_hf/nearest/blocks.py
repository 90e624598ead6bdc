"""Blocks of unit vectors on a device, and the loop over their matrix products that every exact comparison uses."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .state import NO_COSINE, FloatArray, IntArray, Vectors


if TYPE_CHECKING:
    import torch


CPU_BLOCK = 2048
GPU_BLOCK = 16_384
RESIDENT_BYTES = 4 << 30
"""All vectors are kept as float32 in the CPU's memory up to this size, and up to half of the free memory."""
PAIRS_AT_ONCE = 4096

Progress = Callable[[int, int], None]


class Blocks:
    """Rows of `vectors` as tensors on a device, in blocks of `block_rows`.

    Where they fit, all rows are normalized once and stay on the device; otherwise, and without `keep`, each block is
    normalized when it is used. `precision` "float16" gives blocks in that type, any other float32.
    """

    def __init__(
        self,
        vectors: Vectors,
        block_rows: int = CPU_BLOCK,
        device: str = "cpu",
        precision: str = "float32",
        *,
        keep: bool = True,
    ) -> None:
        self.vectors = vectors
        self.block_rows = block_rows
        self.device = device
        self.precision = precision
        self._resident: torch.Tensor | None = None
        self._is_settled = not keep
        self._own = threading.local()

    def __len__(self) -> int:
        return -(-len(self.vectors) // self.block_rows)

    def span(self, number: int) -> slice:
        """Return the rows of a block."""
        return slice(number * self.block_rows, min((number + 1) * self.block_rows, len(self.vectors)))

    def load(self, number: int) -> torch.Tensor:
        """Return a block of unit vectors, (rows, dim); invalid rows are zeros."""
        import torch

        self._settle()
        span = self.span(number)
        if self._resident is not None:
            values = self._resident[span]
        else:
            values = torch.from_numpy(self.vectors.rows(span)).to(self.device)
        return values.half() if self.precision == "float16" else values

    def mask_invalid(self, product: torch.Tensor, axis: int, number: int) -> None:
        """Set the entries of invalid rows of a block, which lie along `axis` of a product, to `NO_COSINE`."""
        import torch

        bad = np.flatnonzero(~self.vectors.valid[self.span(number)])
        if len(bad):
            product.index_fill_(axis, torch.from_numpy(bad).to(self.device), NO_COSINE)

    def products(self, left: torch.Tensor, numbers: Iterable[int], take: Callable[[int, torch.Tensor], None]) -> None:
        """Compare unit vectors with blocks: `take` gets each block's number and the cosines, (len(left), rows).

        Entries of invalid rows of the block are `NO_COSINE`. On the CPU, `take` is called from several threads at once;
        the product is valid, and may be changed, until it returns.
        """
        import torch

        self._settle()  # before there are threads

        def compare(number: int) -> None:
            right = self.load(number)
            product = torch.mm(left, right.T, out=self._buffer(len(left), len(right), left.dtype))
            self.mask_invalid(product, 1, number)
            take(number, product)

        side_by_side(self.device, compare, numbers)

    def _buffer(self, rows: int, columns: int, kind: torch.dtype) -> torch.Tensor:
        """Return memory for a product, reused by its thread: allocating it each time costs as much as a pass over it."""
        import torch

        memory: torch.Tensor | None = getattr(self._own, "memory", None)
        if memory is None or memory.numel() < rows * columns:
            memory = self._own.memory = torch.empty(rows * self.block_rows, dtype=kind, device=self.device)
        return memory[: rows * columns].view(rows, columns)

    def distances(self, left: IntArray, right: IntArray) -> npt.NDArray[np.float64]:
        """Return the distance of each pair of rows, from their difference in float64: (number,)."""
        import torch

        if self._resident is None or self.device == "cpu":
            return self.vectors.distances(left, right)
        out = np.empty(len(left), dtype=np.float64)
        for start in range(0, len(left), 16 * PAIRS_AT_ONCE):
            some = slice(start, start + 16 * PAIRS_AT_ONCE)
            a, b = (self._resident[torch.from_numpy(rows[some]).to(self.device)].double() for rows in (left, right))
            out[some] = (a - b).square().sum(dim=1).cpu().numpy()
        return out

    def _settle(self) -> None:
        """Put all rows on the device, if they fit."""
        import torch

        if self._is_settled:
            return
        self._is_settled = True
        shape = (len(self.vectors), self.vectors.dim)
        if 4 * shape[0] * shape[1] > free_bytes(self.device):
            return
        resident = torch.empty(shape, dtype=torch.float32, device=self.device)
        for start in range(0, len(self.vectors), CPU_BLOCK):
            some = slice(start, start + CPU_BLOCK)
            resident[some] = torch.from_numpy(self.vectors.rows(some)).to(self.device)
        self._resident = resident


def best_matches(left: FloatArray, blocks: Blocks, own: IntArray | None = None) -> tuple[FloatArray, IntArray]:
    """Return the highest cosine of each unit vector with the blocks' rows, and that row; of equal ones the first.

    `own`: the row of each vector, which is not compared with itself. `NO_COSINE` and -1 where no row is valid.
    """
    import torch

    best = np.full(len(left), NO_COSINE, dtype=np.float32)
    at = np.full(len(left), -1, dtype=np.int64)
    lock = threading.Lock()

    def take(number: int, product: torch.Tensor) -> None:
        span = blocks.span(number)
        cosines: FloatArray = product.numpy()
        if own is not None:
            inside = np.flatnonzero((own >= span.start) & (own < span.stop))
            cosines[inside, own[inside] - span.start] = NO_COSINE
        values = product.amax(dim=1).numpy()
        few = np.flatnonzero((values >= best) & (values > NO_COSINE))
        rows = cosines[few].argmax(axis=1) + span.start  # numpy's argmax of rows is ten times as fast as torch's
        with lock:
            is_better = (values[few] > best[few]) | ((values[few] == best[few]) & (rows < at[few]))
            best[few[is_better]], at[few[is_better]] = values[few[is_better]], rows[is_better]

    blocks.products(torch.from_numpy(left), range(len(blocks)), take)
    return best, at


def free_bytes(device: str) -> int:
    """Return how many bytes of vectors may stay on a device."""
    import torch

    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    try:
        return min(RESIDENT_BYTES, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    except (AttributeError, OSError, ValueError):  # not every system reports it
        return RESIDENT_BYTES // 4


def side_by_side(device: str, work: Callable[[int], None], numbers: Iterable[int]) -> None:
    """Call `work` for each number; on the CPU in as many threads as torch has, each computing alone.

    With one product per thread, no thread waits for another in the middle of a product, which costs more than the
    product itself where other processes use the same cores; and the work after a product runs on all cores, too.
    """
    import torch

    if device != "cpu":
        with torch.inference_mode():
            for number in numbers:
                work(number)
        return

    def run(number: int) -> None:
        with torch.inference_mode():  # holds for one thread only
            work(number)

    with _one_thread_each() as threads, ThreadPoolExecutor(threads) as pool:
        try:
            for _ in pool.map(run, numbers):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Let products use one thread for now; yield how many threads there were."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@contextmanager
def precision_of_products(precision: str) -> Iterator[None]:
    """Set the precision of a GPU's float32 products for now."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
