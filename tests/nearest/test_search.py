"""Near duplicates against brute force in float64, on random and on adversarial data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from magpie_hf.nearest.cross import find_nearest
from magpie_hf.nearest.exact import ExactSearch
from magpie_hf.nearest.search import choose_method, find_neighbors
from magpie_hf.nearest.state import State, Vectors


THRESHOLD = 0.05


def brute_force(matrix, rank):
    """Distances, repeats, smallest ranks and groups by all pairs."""
    count = len(matrix)
    matrix = matrix.astype(np.float64)
    with np.errstate(all="ignore"):
        norms = np.sqrt((matrix**2).sum(axis=1))
    good = np.isfinite(norms) & (norms > 0)
    unit = np.zeros_like(matrix)
    unit[good] = matrix[good] / norms[good][:, None]
    distances = ((unit[:, None] - unit[None]) ** 2).sum(axis=-1)
    np.fill_diagonal(distances, np.inf)
    distances[~good] = distances[:, ~good] = np.inf
    near = distances < THRESHOLD
    nearest = distances.min(axis=1, initial=np.inf)
    labels = connected_components(csr_matrix(near))[1] if count else np.zeros(0, int)
    groups = np.array([rank[labels == label].min() for label in labels], dtype=np.int64)
    smallest = np.array([min(rank[near[n]].min(), rank[n]) if near[n].any() else -1 for n in range(count)])
    return np.where(np.isfinite(nearest), nearest, np.nan), near.sum(axis=1), smallest, groups


def check(matrix, seed=0, **options):
    rank = np.random.default_rng(seed).permutation(len(matrix))
    found = find_neighbors(matrix, rank=rank, threshold=THRESHOLD, **options)
    distance, repeats, smallest, groups = brute_force(np.asarray(matrix), rank)
    np.testing.assert_allclose(found.distance, distance, atol=3e-6)
    assert found.repeats.tolist() == repeats.tolist()
    assert found.smallest.tolist() == smallest.tolist()
    assert found.group.tolist() == groups.tolist()
    return found


def planted(count=240, dim=24, seed=0):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(count, dim)).astype(np.float32)
    matrix[100:160] = matrix[0] + 0.05 * rng.normal(size=(60, dim))
    matrix[170:180] = matrix[1] + 0.12 * rng.normal(size=(10, dim))
    matrix[200] = matrix[201] = matrix[5]
    return matrix


ADVERSARIAL = {
    "random": np.random.default_rng(1).normal(size=(200, 16)).astype(np.float32),
    "planted duplicates": planted(),
    "float16": planted().astype(np.float16),
    "all identical": np.ones((600, 8), np.float32),
    "all but one identical": np.concatenate([np.ones((599, 8)), -np.ones((1, 8))]).astype(np.float32),
    "a group over 500": np.random.default_rng(2).normal(0, 0.02, (620, 8)).astype(np.float32) + 1,
    "zeros": np.zeros((7, 8), np.float32),
    "one row": np.ones((1, 8), np.float32),
    "two rows": np.eye(2, 8, dtype=np.float32),
    "no row": np.zeros((0, 8), np.float32),
    "a chain": np.array([[np.cos(t), np.sin(t)] for t in np.arange(0, 3, 0.15)], np.float32),
    "not of unit length": planted() * np.random.default_rng(3).uniform(0.1, 90, (240, 1)).astype(np.float32),
    "tiny and huge": (planted() * np.float32(1e-15)).astype(np.float32),
}
BROKEN = planted()
BROKEN[3], BROKEN[4], BROKEN[7, 2], BROKEN[9] = np.nan, np.inf, np.nan, 0
ADVERSARIAL["some NaN, inf and zero rows"] = BROKEN


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("block_rows", [1, 7, 64, 4096])
def test_exact_search_equals_brute_force(name, block_rows):
    if block_rows == 1 and len(ADVERSARIAL[name]) > 300:
        pytest.skip("many small blocks of many rows")
    found = check(ADVERSARIAL[name], method="exact", block_rows=block_rows)
    if name == "some NaN, inf and zero rows":
        assert found.report["invalid_rows"] == 4
        assert found.nearest[[3, 4, 7, 9]].tolist() == [-1] * 4


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_identical_vectors_are_at_no_distance_at_all(precision):
    matrix = planted().astype(precision)
    found = check(matrix, method="exact")
    assert found.distance[[5, 200, 201]].tolist() == [0.0, 0.0, 0.0]
    assert sorted(found.nearest[[5, 200, 201]].tolist()) != [5, 200, 201] or all(
        found.nearest[n] != n for n in (5, 200, 201)
    )


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(1, 20))
def test_groups_and_survivors_do_not_depend_on_the_order_of_rows(seed, count, block_rows):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(max(1, count // 4), 6))
    matrix = (centers[rng.integers(0, len(centers), count)] + 0.05 * rng.normal(size=(count, 6))).astype(np.float32)
    rank = rng.permutation(count)
    order = rng.permutation(count)
    one = find_neighbors(matrix, rank=rank, method="exact", block_rows=block_rows)
    two = find_neighbors(matrix[order], rank=rank[order], method="exact")
    assert one.group[order].tolist() == two.group.tolist()
    assert one.repeats[order].tolist() == two.repeats.tolist()
    assert one.smallest[order].tolist() == two.smallest.tolist()
    for group in np.unique(one.group):
        assert (rank[one.group == group] == group).sum() == 1  # one survivor, and it is of the group


def test_rows_that_share_a_vector_count_as_rows():
    matrix = planted(240, 8)
    copies = np.array([0, 1, 1, 1, 2, 3])
    found = find_neighbors(matrix, copies=copies, method="exact")
    assert found.distance[1:4].tolist() == [0.0, 0.0, 0.0]
    assert found.repeats[1:4].tolist() == [2, 2, 2]
    assert found.nearest[1] in (2, 3)
    assert found.group[1:4].tolist() == [1, 1, 1]
    assert found.group[4] == 4


def test_a_search_resumes_from_its_saved_state():
    vectors = Vectors(planted())
    whole, half, rest = (State(np.arange(240)) for _ in range(3))
    search = ExactSearch(vectors, whole, THRESHOLD, block_rows=50)
    while search.advance():
        pass
    first = ExactSearch(vectors, half, THRESHOLD, block_rows=50)
    first.advance()
    first.advance()
    second = ExactSearch(vectors, rest, THRESHOLD, block_rows=50)
    rest.restore({name: values.copy() for name, values in half.arrays().items()})
    second.done = first.done
    while second.advance():
        pass
    for name, values in whole.arrays().items():
        if name != "parent":
            np.testing.assert_array_equal(values, rest.arrays()[name])
    assert whole.groups().tolist() == rest.groups().tolist()


def test_an_interrupted_search_resumes_and_restarts_if_its_state_is_damaged(tmp_path, monkeypatch):
    from magpie_hf.nearest import search as module

    monkeypatch.setattr(module, "SAVE_EVERY_S", 0.0)
    expected = find_neighbors(planted(), method="exact")
    blocks = []

    class Stop(Exception):
        pass

    def stop(done, total):
        blocks.append(done)
        if done == 3 and len(blocks) == 3:
            raise Stop

    options = {"method": "exact", "block_rows": 40, "directory": tmp_path, "progress": stop}
    with pytest.raises(Stop):
        find_neighbors(planted(), **options)
    found = find_neighbors(planted(), **options)
    assert blocks == [1, 2, 3, 3, 4, 5, 6]  # the third block's state was not saved yet
    assert found.group.tolist() == expected.group.tolist()
    (tmp_path / "search.npz").write_bytes(b"PK damaged")
    again = find_neighbors(planted(), method="exact", block_rows=40, directory=tmp_path)
    assert again.repeats.tolist() == expected.repeats.tolist()


@pytest.mark.parametrize("count", [300, 3000])
def test_approximate_search_finds_near_duplicates_and_measures_itself(count):
    rng = np.random.default_rng(4)
    matrix = rng.normal(size=(count, 32)).astype(np.float32)
    half = count // 2
    matrix[half : half + count // 10] = matrix[: count // 10] + 0.02 * rng.normal(size=(count // 10, 32))
    matrix[-30:] = matrix[0] + 0.02 * rng.normal(size=(30, 32))  # more than the search asks for at once
    exact = find_neighbors(matrix, method="exact")
    found = find_neighbors(matrix, method="approximate")
    recall = found.report["recall"]
    assert recall["near_duplicates"] >= 0.98
    assert recall["sampled"] > 0
    assert (found.repeats == exact.repeats).mean() > 0.98
    assert (found.group == exact.group).mean() > 0.98
    assert found.repeats[0] >= 30


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_approximate_search_takes_any_data(name):
    matrix = ADVERSARIAL[name]
    found = find_neighbors(matrix, method="approximate")
    assert len(found.distance) == len(matrix)
    exact = find_neighbors(matrix, method="exact")
    assert (found.repeats <= exact.repeats).all()


def test_the_method_is_chosen_by_the_work():
    assert choose_method(100_000, 384) == "exact"
    assert choose_method(1_000_000, 768) == "approximate"
    assert choose_method(1_000_000, 768, "cuda:0") == "exact"


def test_rows_against_another_set():
    rng = np.random.default_rng(5)
    old, new = rng.normal(size=(150, 12)).astype(np.float32), rng.normal(size=(70, 12)).astype(np.float32)
    new[3], new[4], old[9] = old[17], 0, np.nan
    for block_rows in (1, 16, 4096):
        found = find_nearest(new, old, block_rows=block_rows)
        unit = lambda m: m / np.maximum(np.linalg.norm(m, axis=1, keepdims=True), 1e-9)  # noqa: E731
        keep = np.delete(np.arange(150), 9)
        distances = ((unit(new.astype(float))[:, None] - unit(old[keep].astype(float))[None]) ** 2).sum(-1)
        rows = np.delete(np.arange(70), 4)
        np.testing.assert_allclose(found.distance[rows], distances[rows].min(axis=1), atol=3e-6)
        assert found.nearest[rows].tolist() == keep[distances[rows].argmin(axis=1)].tolist()
        assert (found.distance[3], found.nearest[3]) == (0.0, 17)
        assert np.isnan(found.distance[4])
    assert find_nearest(new, old[:0]).nearest.tolist() == [-1] * 70
