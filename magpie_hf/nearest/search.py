"""Search within a set. Equal vectors are merged first; the results do not depend on the order of the rows."""

from __future__ import annotations

import hashlib
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from .approximate import search_approximately
from .blocks import CPU_BLOCK, GPU_BLOCK, Progress
from .exact import ExactSearch
from .state import BoolArray, FloatArray, IntArray, Matrix, PickedRows, State, Vectors


THRESHOLD = 0.05
"""Distance below which two instructions are near-duplicates: the default of the releases' script."""
METHODS = ("auto", "exact", "approximate")
EXACT_FLOPS_CPU = 2.5e13
"""Maximum work of exact search on the CPU with method "auto": about five minutes on two cores."""
EXACT_FLOPS_GPU = 1e16
"""The same on a GPU."""
BYTES_PER_ROW = 80
"""Memory per row of a search in addition to the vectors: the arrays of its state, and temporary copies of them."""
SAVE_EVERY_S = 20.0


class SearchReport(TypedDict):
    """Method and statistics of a search. `flops`: of an exact search; `recall`: of an approximate one."""

    method: str
    device: str
    precision: str
    threshold: float
    num_rows: int
    num_vectors: int
    dim: int
    invalid_rows: int
    duplicate_rows: int
    groups: int
    seconds: float
    flops: float | None
    recall: dict[str, float | int | None] | None


@dataclass
class SearchResult:
    """Result of a search; all arrays are (num_rows,).

    `distance`: float32, squared L2 to the nearest other row, or NaN without one. `nearest`: int64 row, or -1.
    `repeats`: int64, number of other rows below the threshold. `smallest`: int64, the smallest rank among these and the
    row itself, or -1 without such rows. `group`: int64, the smallest rank in the row's group.
    """

    distance: FloatArray
    nearest: IntArray
    repeats: IntArray
    smallest: IntArray
    group: IntArray
    report: SearchReport = field(init=False)


def choose_method(num_rows: int, dim: int, device: str = "cpu") -> str:
    """Return "exact" if it takes at most minutes (estimated by n^2 * dim multiply-adds), otherwise "approximate"."""
    limit = EXACT_FLOPS_CPU if device == "cpu" else EXACT_FLOPS_GPU
    return "exact" if float(num_rows) ** 2 * dim <= limit else "approximate"


def find_neighbors(
    matrix: Matrix,
    *,
    rank: IntArray | None = None,
    copies: IntArray | None = None,
    threshold: float = THRESHOLD,
    method: str = "auto",
    device: str = "cpu",
    precision: str = "float32",
    block_rows: int | None = None,
    directory: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Find each row's nearest row, its near-duplicates and its group.

    Args:
        matrix: (num_vectors, dim), float32 or float16, may be a memory map; rows need not have unit length.
        rank: (num_rows,) int64, a permutation: the order of preference of the rows. Default: the order of the rows.
        copies: (num_rows,) int64, the index of each row's vector; rows with equal texts share one. Default: one each.
        threshold: Distance below which rows are near-duplicates.
        method: "exact", "approximate", or "auto".
        device: "cpu" or a CUDA device, for exact search.
        precision: Of the products on a GPU: "float32", "tf32" or "float16".
        block_rows: Rows of a block.
        directory: The directory in which an exact search saves its state, to resume after an interruption.
        progress: Called with the number of blocks done and the total.
    """
    started = time.monotonic()
    copies = np.arange(len(matrix), dtype=np.int64) if copies is None else np.asarray(copies, dtype=np.int64)
    rank = np.arange(len(copies), dtype=np.int64) if rank is None else np.asarray(rank, dtype=np.int64)
    copies, used, content = _equal_vectors(matrix, copies)
    vectors = Vectors(PickedRows(matrix, used))
    least = np.full(len(used), len(copies), dtype=np.int64)
    np.minimum.at(least, copies, rank)
    state = State(least, np.bincount(copies, minlength=len(used)).astype(np.int64))
    chosen = choose_method(len(vectors), vectors.dim, device) if method == "auto" else method
    recall = None
    if chosen == "exact":
        used_precision = "float32" if device == "cpu" else precision
        search = ExactSearch(vectors, state, threshold, block_rows=block_rows, device=device, precision=used_precision)
        _run_exact(search, directory, progress, content)
    elif len(vectors):
        recall = search_approximately(vectors, state, threshold, progress=progress)
    found = _expand(vectors, state, copies, rank)
    flops = float(len(vectors)) ** 2 * vectors.dim
    found.report = {
        "method": chosen,
        "device": device,
        "precision": precision if device != "cpu" else "float32",
        "threshold": threshold,
        "num_rows": len(copies),
        "num_vectors": len(vectors),
        "dim": vectors.dim,
        "invalid_rows": int((~vectors.valid[copies]).sum()) if len(copies) else 0,
        "duplicate_rows": int((found.repeats > 0).sum()),
        "groups": len(np.unique(found.group[found.repeats > 0])),
        "seconds": round(time.monotonic() - started, 3),
        "flops": flops if chosen == "exact" else None,
        "recall": None if recall is None else recall._asdict(),
    }
    return found


def _equal_vectors(matrix: Matrix, copies: IntArray) -> tuple[IntArray, IntArray, bytes]:
    """Return each row's index among the distinct vectors, the positions of these in the matrix, and a hash of all."""
    width = matrix.shape[1] * matrix.dtype.itemsize if len(matrix) else 0
    digests = np.empty((len(matrix), 2), dtype=np.uint64)
    for start in range(0, len(matrix), 8192):
        data = (np.ascontiguousarray(matrix[start : start + 8192]) + 0).tobytes()  # -0.0 + 0 is 0.0
        parts = [
            hashlib.blake2b(data[at : at + width], digest_size=16).digest() for at in range(0, len(data), width or 1)
        ]
        digests[start : start + len(parts)] = np.frombuffer(b"".join(parts), dtype=np.uint64).reshape(-1, 2)
    if not len(matrix):
        return copies, np.arange(0, dtype=np.int64), b""
    order = np.lexsort((np.arange(len(digests)), digests[:, 1], digests[:, 0]))
    new = np.ones(len(digests), dtype=bool)
    new[1:] = (digests[order][1:] != digests[order][:-1]).any(axis=1)
    used = np.sort(order[new])  # in the order of the matrix, so that blocks are read sequentially
    first = np.empty(len(digests), dtype=np.int64)
    first[order] = order[new][np.cumsum(new) - 1]
    content = hashlib.blake2b(digests.tobytes(), digest_size=16).digest()
    return np.searchsorted(used, first)[copies], used, content


def _run_exact(search: ExactSearch, directory: Path | None, progress: Progress | None, content: bytes) -> None:
    """Run a search and save its state regularly; resume from a saved state of the same search."""
    file = None if directory is None else directory / "search.npz"
    facts = _facts(search, content)
    if file is not None and file.is_file():
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as saved:
                if np.array_equal(saved["facts"], facts):
                    search.state.restore({name: saved[name] for name in search.state.arrays()})
                    search.done = int(saved["done"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            search.done = 0  # damaged state: start again
            search.state.reset()
    last = time.monotonic()
    while search.advance():
        if progress is not None:
            progress(search.done, search.num_blocks)
        if file is not None and time.monotonic() - last > SAVE_EVERY_S:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name("search.part.npz")
            np.savez(part, facts=facts, done=np.int64(search.done), **search.state.arrays())  # type: ignore[arg-type]
            part.replace(file)
            last = time.monotonic()


def _facts(search: ExactSearch, content: bytes) -> npt.NDArray[np.uint8]:
    """Return a hash of everything that a saved state depends on: vectors, ranks, weights, and settings of the search."""
    state = search.state
    digest = hashlib.blake2b(content, digest_size=16)
    digest.update(state.rank.tobytes() + state.weight.tobytes())
    digest.update(repr((len(state.rank), search.block_rows, search.threshold, search.precision)).encode())
    return np.frombuffer(digest.digest(), dtype=np.uint8)


def _expand(vectors: Vectors, state: State, copies: IntArray, rank: IntArray) -> SearchResult:
    """Convert the results for distinct vectors to results for all rows, including copies."""
    count = state.weight
    own = np.flatnonzero(state.nearest >= 0)
    distance = np.full(len(vectors), np.nan)
    distance[own] = np.minimum(vectors.distances(own, state.nearest[own]), 4.0)
    repeats, smallest, groups = state.repeats, np.minimum(state.smallest, state.rank), state.groups()
    several = (count > 1)[copies] & vectors.valid[copies]
    holder = np.empty(len(vectors), dtype=np.int64)
    holder[copies[::-1]] = np.arange(len(copies))[::-1]  # each vector's first row
    nearest = np.where(state.nearest[copies] >= 0, holder[state.nearest[copies]], -1)
    row_distance = np.where(several, 0.0, distance[copies]).astype(np.float32)
    row_repeats = np.where(vectors.valid[copies], repeats[copies] + count[copies] - 1, 0)
    alone = ~vectors.valid[copies]
    if several.any():
        nearest[several] = _other_copies(copies, several)
    return SearchResult(
        row_distance,
        np.where(alone, -1, nearest),
        row_repeats,
        np.where(row_repeats > 0, smallest[copies], -1),
        np.where(alone, rank, groups[copies]),
    )


def _other_copies(copies: IntArray, several: BoolArray) -> IntArray:
    """Return another row with the same vector for each row whose vector has copies."""
    rows = np.flatnonzero(several)
    order = rows[np.argsort(copies[rows], kind="stable")]
    same = np.r_[copies[order][1:] == copies[order][:-1], False]
    following = np.r_[order[1:], -1]
    before = np.r_[-1, order[:-1]]
    other = np.empty(len(copies), dtype=np.int64)
    other[order] = np.where(same, following, before)
    return other[rows]


__all__ = ["CPU_BLOCK", "GPU_BLOCK", "METHODS", "THRESHOLD", "SearchResult", "choose_method", "find_neighbors"]
