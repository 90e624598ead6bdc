"""Rough products, large groups, saved states of other data, and the recall that a search tells of itself."""

from __future__ import annotations

import numpy as np
import pytest

from magpie_hf.nearest.approximate import measure_recall
from magpie_hf.nearest.exact import ExactSearch
from magpie_hf.nearest.search import find_neighbors
from magpie_hf.nearest.state import State, Vectors


def search_all(search):
    while search.advance():
        pass


def planted(count=400, dim=32, seed=0):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(count, dim)).astype(np.float32)
    parts = count // 4
    matrix[-parts:] = matrix[:parts] + rng.uniform(0, 0.3, (parts, 1)) * rng.normal(size=(parts, dim))
    return matrix


@pytest.mark.parametrize("precision", ["float16", "tf32"])
@pytest.mark.parametrize("block_rows", [64, 4096])
def test_rough_products_give_the_same_groups_and_exact_nearest_rows_among_near_duplicates(precision, block_rows):
    vectors = Vectors(planted())
    fine, rough = (State(np.random.default_rng(7).permutation(400)) for _ in range(2))
    search_all(ExactSearch(vectors, fine, 0.05))
    search_all(ExactSearch(vectors, rough, 0.05, block_rows=block_rows, precision=precision))
    assert rough.repeats.tolist() == fine.repeats.tolist()
    assert rough.smallest.tolist() == fine.smallest.tolist()
    assert rough.groups().tolist() == fine.groups().tolist()
    near = fine.repeats > 0
    assert near.sum() > 20
    rows = np.arange(400)
    np.testing.assert_allclose(
        vectors.distances(rows[near], rough.nearest[near]),
        vectors.distances(rows[near], fine.nearest[near]),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        vectors.distances(rows, rough.nearest), vectors.distances(rows, fine.nearest), atol=8e-3
    )


def test_weights_are_counted_in_blocks():
    matrix = np.ones((6, 4), np.float32) + np.float32(1e-3) * np.arange(24).reshape(6, 4)
    weight = np.array([1, 2, 3, 4, 5, 6])
    state = State(np.arange(6)[::-1].copy(), weight)
    search_all(ExactSearch(Vectors(matrix), state, 0.05, block_rows=2))
    assert state.repeats.tolist() == (weight.sum() - weight).tolist()
    assert state.smallest.tolist() == [0] * 6


@pytest.mark.parametrize("change", ["vectors", "ranks", "threshold"])
def test_the_saved_state_of_another_search_is_ignored(tmp_path, monkeypatch, change):
    from magpie_hf.nearest import search as module

    monkeypatch.setattr(module, "SAVE_EVERY_S", 0.0)
    options = {"method": "exact", "block_rows": 64, "directory": tmp_path}
    find_neighbors(planted(), **options)
    other, rank, threshold = planted(), np.arange(400), 0.05
    if change == "vectors":
        other = planted(seed=1)
    elif change == "ranks":
        rank = rank[::-1].copy()
    else:
        threshold = 0.02
    found = find_neighbors(other, rank=rank, threshold=threshold, **options)
    expected = find_neighbors(other, rank=rank, threshold=threshold, method="exact")
    for name in ("distance", "repeats", "smallest", "group"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_a_saved_state_that_was_cut_off_is_begun_anew(tmp_path, monkeypatch):
    from magpie_hf.nearest import search as module

    monkeypatch.setattr(module, "SAVE_EVERY_S", 0.0)
    options = {"method": "exact", "block_rows": 64, "directory": tmp_path}
    expected = find_neighbors(planted(), **options)
    saved = tmp_path / "search.npz"
    saved.write_bytes(saved.read_bytes()[:-100])
    assert find_neighbors(planted(), **options).repeats.tolist() == expected.repeats.tolist()


def test_zeros_of_both_signs_are_the_same():
    matrix = np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]], np.float32)
    found = find_neighbors(matrix, method="exact")
    assert found.distance.tolist()[:2] == [0.0, 0.0]
    assert found.report["num_vectors"] == 2


def test_the_reported_recall_is_that_of_all_rows_not_only_of_those_that_were_found():
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(6000, 16)).astype(np.float32)
    matrix[3000:3600] = matrix[:600] + 0.02 * rng.normal(size=(600, 16))
    vectors, state = Vectors(matrix), State(np.arange(6000))
    search_all(ExactSearch(vectors, state, 0.05))
    missed = rng.permutation(600)[:300]
    for rows in (missed, missed + 3000):
        state.best[rows], state.nearest[rows], state.repeats[rows] = -2, -1, 0
    told = measure_recall(vectors, state, 0.05)
    assert told.near_duplicates == pytest.approx(0.5, abs=0.05)
    assert told.nearest == pytest.approx(0.9, abs=0.02)
