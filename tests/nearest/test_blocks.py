from __future__ import annotations

from pathlib import Path

import numpy as np

import magpie_hf.nearest
from magpie_hf.nearest.blocks import Blocks, best_matches
from magpie_hf.nearest.state import NO_COSINE, Vectors


def units(*rows):
    matrix = np.array(rows, dtype=np.float32)
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-9)


def test_exact_approximate_and_cross_search_share_one_loop_over_products():
    sources = [path.read_text("utf-8") for path in Path(magpie_hf.nearest.__file__).parent.glob("*.py")]
    assert sum(source.count("torch.mm(") + source.count(" @ vectors") for source in sources) == 1


def test_the_first_of_equally_near_rows_is_the_best_match_whichever_block_is_done_first():
    old = units(*[[1, 0], [0, 1]] * 50)
    for _ in range(20):
        best, at = best_matches(units([3, 0], [0, 2]), Blocks(Vectors(old), 4))
        assert at.tolist() == [0, 1]
        assert best.tolist() == [1, 1]


def test_a_row_is_not_its_own_match_and_rows_without_a_vector_match_nothing():
    old = units([1, 0], [1, 1], [0, 0])
    blocks = Blocks(Vectors(old), 2, keep=False)
    _, at = best_matches(old[:2], blocks, np.array([0, 1]))
    assert at.tolist() == [1, 0]
    best, at = best_matches(old[:1], Blocks(Vectors(units([0, 0]))))
    assert (best.tolist(), at.tolist()) == ([NO_COSINE], [-1])
