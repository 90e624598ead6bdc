"""Approximate search for large sets on the CPU: an inverted file (faiss IVF). Recall is measured against exact search.

Near-duplicates are almost always in the same cell or in an adjacent one, so it is enough to search a few cells per
row; the share that is missed is measured on a sample and reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .blocks import Blocks, Progress, best_matches
from .state import NO_COSINE, RECHECK, BoolArray, DoubleArray, FloatArray, IntArray, State, Vectors


if TYPE_CHECKING:
    import faiss


NEIGHBORS = 8
PROBES = 16
TRAIN_ROWS_PER_CELL = 39  # faiss's minimum of training points per centroid
BATCH = 8192
SAMPLE = 2048


class Recall(NamedTuple):
    """The shares of rows whose nearest row was found: of all rows, and of rows with a near-duplicate.

    Measured on `sampled` rows. Rows for which the search found near-duplicates are sampled more often and have a lower
    weight, so that the result is not biased towards them. A share is None if no sampled row belongs to its group.
    """

    nearest: float | None
    near_duplicates: float | None
    sampled: int


def build_index(
    vectors: Vectors, *, cells: int | None = None, seed: int = 0, progress: Progress | None = None
) -> faiss.IndexIVFFlat:
    """Return a faiss index of all valid rows; its ids are row numbers."""
    import faiss

    rows = np.flatnonzero(vectors.valid)
    cells = cells or int(max(1, min(4 * np.sqrt(len(rows)), len(rows) / TRAIN_ROWS_PER_CELL)))
    quantizer = faiss.IndexFlatIP(vectors.dim)
    index = faiss.IndexIVFFlat(quantizer, vectors.dim, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed + 1
    index.cp.niter = 8
    sample = np.random.default_rng(seed).permutation(rows)[: max(cells * TRAIN_ROWS_PER_CELL, 1000)]
    index.train(vectors.rows(np.sort(sample)))
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        index.add_with_ids(vectors.rows(some), some)
        if progress is not None:
            progress(min(start + BATCH, len(rows)), 2 * len(rows))
    index.nprobe = min(PROBES, cells)
    return index


def search_approximately(
    vectors: Vectors, state: State, threshold: float, *, seed: int = 0, progress: Progress | None = None
) -> Recall:
    """Find the neighbors of all rows with an index, group near-duplicates, and measure the recall."""
    rows = np.flatnonzero(vectors.valid)
    if not len(rows):
        return Recall(None, None, 0)
    index = build_index(vectors, seed=seed, progress=progress)
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        _search_batch(index, vectors, state, some, threshold)
        if progress is not None:
            progress(len(rows) + min(start + BATCH, len(rows)), 2 * len(rows))
    return measure_recall(vectors, state, threshold, seed=seed)


def _search_batch(index: faiss.IndexIVFFlat, vectors: Vectors, state: State, rows: IntArray, threshold: float) -> None:
    block = vectors.rows(rows)
    cosines, found = index.search(block, NEIGHBORS + 1)
    own = found == rows[:, None]
    cosines = np.where(own | (found < 0), NO_COSINE, cosines).astype(np.float32)
    best = cosines.argmax(axis=1)
    at = np.arange(len(rows))
    has = cosines[at, best] > NO_COSINE
    state.update_nearest(rows[has], cosines[at, best][has], found[at, best][has])
    least = 1 - (threshold + RECHECK) / 2
    full = cosines.min(axis=1, where=~own, initial=2.0) > least  # as many neighbors as requested: more may exist
    near = (cosines > least) & ~full[:, None]
    _join(vectors, state, rows[near.nonzero()[0]], found[near], cosines[near], threshold)
    saturated = np.flatnonzero(full)
    for start in range(0, len(saturated), 64):
        some = saturated[start : start + 64]
        limits, values, ids = index.range_search(block[some], least)
        counts: IntArray = (limits[1:] - limits[:-1]).astype(np.int64)
        _join(vectors, state, np.repeat(rows[some], counts), ids.astype(np.int64), values, threshold)


def _join(
    vectors: Vectors, state: State, left: IntArray, right: IntArray, cosines: FloatArray, threshold: float
) -> None:
    """Group and count pairs. Most pairs are found from both rows, so each pair counts for its left row only."""
    other = left != right
    left, right = left[other], right[other]
    distances = 2 - 2 * cosines[other].astype(np.float64)
    unsure = np.abs(distances - threshold) < RECHECK
    distances[unsure] = vectors.distances(left[unsure], right[unsure])
    near = distances < threshold
    left, right = left[near], right[near]
    np.add.at(state.repeats, left, state.weight[right])
    np.minimum.at(state.smallest, left, state.rank[right])
    state.merge_pairs(left, right)


def measure_recall(vectors: Vectors, state: State, threshold: float, *, seed: int = 0, sample: int = SAMPLE) -> Recall:
    """Compare sampled rows with exact search; each sampled row is weighted by the number of rows it represents."""
    rng = np.random.default_rng(seed)
    drawn, weights = [], []
    for rows, number in (
        (np.flatnonzero(vectors.valid & (state.repeats > 0)), sample // 2),
        (np.flatnonzero(vectors.valid & (state.repeats == 0)), sample),
    ):
        some = rng.permutation(rows)[:number]
        drawn.append(some)
        weights.append(np.full(len(some), len(rows) / max(len(some), 1)))
    some, weight = np.concatenate(drawn), np.concatenate(weights)
    truth, _ = best_matches(vectors.rows(some), Blocks(vectors, keep=False), some)
    found = np.where(state.nearest[some] >= 0, state.best[some], NO_COSINE)
    hit = found >= truth - 1e-5
    near = 2 - 2 * truth < threshold
    return Recall(_share(hit, weight), _share(hit[near], weight[near]), len(some))


def _share(hit: BoolArray, weight: DoubleArray) -> float | None:
    return float((hit * weight).sum() / weight.sum()) if len(hit) else None
