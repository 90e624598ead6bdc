"""Blocks of unit vectors on a device, and threads that work on products of them side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from .state import IntArray, Vectors


CPU_BLOCK = 2048
GPU_BLOCK = 16_384
RESIDENT_BYTES = 4 << 30
"""All vectors are kept as float32 in the CPU's memory up to this size, and up to half of what is free."""
PAIRS_AT_ONCE = 4096

Progress = Callable[[int, int], None]


class Blocks:
    """Rows of `vectors` as tensors on a device, in blocks of `block_rows`.

    Where they fit, all rows are made unit vectors once and stay on the device; else each block is made when asked for.
    `precision` "float16" gives blocks in that type, any other float32.
    """

    def __init__(self, vectors: Vectors, block_rows: int, device: str, precision: str = "float32") -> None:
        self.vectors = vectors
        self.block_rows = block_rows
        self.device = device
        self.precision = precision
        self._resident: Any = None
        self._is_asked = False

    def __len__(self) -> int:
        return -(-len(self.vectors) // self.block_rows)

    def span(self, number: int) -> slice:
        """Return the rows of a block."""
        return slice(number * self.block_rows, min((number + 1) * self.block_rows, len(self.vectors)))

    def load(self, number: int) -> Any:
        """Return a block: (rows, dim), unit vectors, invalid rows as zeros."""
        import torch

        self._settle()
        span = self.span(number)
        if self._resident is not None:
            values = self._resident[span]
        else:
            values = torch.from_numpy(self.vectors.rows(span)).to(self.device)
        return values.half() if self.precision == "float16" else values

    def invalid(self, number: int) -> Any:
        """Return the places of invalid rows in a block, as a tensor on the device, or None."""
        import torch

        bad = np.flatnonzero(~self.vectors.valid[self.span(number)])
        return torch.from_numpy(bad).to(self.device) if len(bad) else None

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

        if self._is_asked:
            return
        self._is_asked = True
        shape = (len(self.vectors), self.vectors.dim)
        if 4 * shape[0] * shape[1] > room(self.device):
            return
        self._resident = torch.empty(shape, dtype=torch.float32, device=self.device)
        for start in range(0, len(self.vectors), CPU_BLOCK):
            some = slice(start, start + CPU_BLOCK)
            self._resident[some] = torch.from_numpy(self.vectors.rows(some)).to(self.device)


def room(device: str) -> int:
    """Return how many bytes of vectors may stay on a device."""
    import torch

    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    try:
        return min(RESIDENT_BYTES, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    except (AttributeError, OSError, ValueError):  # not every system tells
        return RESIDENT_BYTES // 4


def side_by_side(device: str, work: Callable[[int], None], numbers: Iterable[int]) -> None:
    """Call `work` for each number; on the CPU in as many threads as torch has, each computing alone.

    One product a thread needs no waiting for each other in the middle of a product, which costs more than the product
    where other processes use the same cores; and what follows a product runs on all cores too.
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
    """Let products use one thread for the time being; give how many there were."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Let a GPU's float32 products be as precise as `precision` says, for the time being."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
