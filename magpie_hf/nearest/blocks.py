"""Blocks of unit vectors on a device, and the loop over their matrix products for all exact comparisons."""

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
"""Maximum size of the vectors that are kept in CPU memory as float32; also limited to half of the free memory."""
PAIRS_AT_ONCE = 4096

Progress = Callable[[int, int], None]


class Blocks:
    """Rows of `vectors` as tensors on a device, in blocks of `block_rows`.

    If they fit into memory, all rows are normalized once and stay on the device; otherwise, or with `keep` False, each
    block is normalized when it is used. Blocks are float16 with `precision` "float16", otherwise float32.
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
        self._is_load_tried = not keep
        self._per_thread = threading.local()

    def __len__(self) -> int:
        return -(-len(self.vectors) // self.block_rows)

    def span(self, number: int) -> slice:
        """Return the rows of a block."""
        return slice(number * self.block_rows, min((number + 1) * self.block_rows, len(self.vectors)))

    def load(self, number: int) -> torch.Tensor:
        """Return a block of unit vectors, (rows, dim); invalid rows are zeros."""
        import torch

        self._load_all_if_possible()
        span = self.span(number)
        if self._resident is not None:
            values = self._resident[span]
        else:
            values = torch.from_numpy(self.vectors.rows(span)).to(self.device)
        return values.half() if self.precision == "float16" else values

    def mask_invalid(self, product: torch.Tensor, axis: int, number: int) -> None:
        """Set the entries of a block's invalid rows to `NO_COSINE`; `axis`: the axis of the block in the product."""
        import torch

        bad = np.flatnonzero(~self.vectors.valid[self.span(number)])
        if len(bad):
            product.index_fill_(axis, torch.from_numpy(bad).to(self.device), NO_COSINE)

    def products(self, left: torch.Tensor, numbers: Iterable[int], take: Callable[[int, torch.Tensor], None]) -> None:
        """Compare unit vectors with blocks: `take` receives each block's number and the cosines, (len(left), rows).

        Entries of invalid rows of the block are `NO_COSINE`. On the CPU, `take` is called from several threads at once. It
        may change the product, whose memory is reused after it returns.
        """
        import torch

        self._load_all_if_possible()  # before threads are started

        def compare(number: int) -> None:
            right = self.load(number)
            product = torch.mm(left, right.T, out=self._buffer(len(left), len(right), left.dtype))
            self.mask_invalid(product, 1, number)
            take(number, product)

        in_parallel(self.device, compare, numbers)

    def _buffer(self, rows: int, columns: int, kind: torch.dtype) -> torch.Tensor:
        """Return memory for a product, which each thread reuses: a new allocation takes as long as a pass over it."""
        import torch

        memory: torch.Tensor | None = getattr(self._per_thread, "memory", None)
        if memory is None or memory.numel() < rows * columns:
            memory = self._per_thread.memory = torch.empty(rows * self.block_rows, dtype=kind, device=self.device)
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

    def _load_all_if_possible(self) -> None:
        """Copy all rows to the device if they fit; done once."""
        import torch

        if self._is_load_tried:
            return
        self._is_load_tried = True
        shape = (len(self.vectors), self.vectors.dim)
        if 4 * shape[0] * shape[1] > free_bytes(self.device):
            return
        resident = torch.empty(shape, dtype=torch.float32, device=self.device)
        for start in range(0, len(self.vectors), CPU_BLOCK):
            some = slice(start, start + CPU_BLOCK)
            resident[some] = torch.from_numpy(self.vectors.rows(some)).to(self.device)
        self._resident = resident


def best_matches(left: FloatArray, blocks: Blocks, own: IntArray | None = None) -> tuple[FloatArray, IntArray]:
    """Return each unit vector's highest cosine with the blocks' rows, and the index of that row (the first if equal).

    `own`: the row of each vector, which is not compared with itself. Without a valid row, `NO_COSINE` and -1.
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


def in_parallel(device: str, work: Callable[[int], None], numbers: Iterable[int]) -> None:
    """Call `work` for each number; on the CPU in parallel threads, each of which uses one core.

    If each thread computes whole products, threads do not wait for each other within a product. Such waits may take longer
    than the product when other processes use the same cores. The work after a product is also distributed over all cores.
    """
    import torch

    if device != "cpu":
        with torch.inference_mode():
            for number in numbers:
                work(number)
        return

    def run(number: int) -> None:
        with torch.inference_mode():  # applies to the current thread only
            work(number)

    with _single_threaded() as threads, ThreadPoolExecutor(threads) as pool:
        try:
            for _ in pool.map(run, numbers):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _single_threaded() -> Iterator[int]:
    """Limit torch to one thread inside the context; yields the previous number of threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@contextmanager
def precision_of_products(precision: str) -> Iterator[None]:
    """Set the precision of float32 products on GPUs inside the context."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
