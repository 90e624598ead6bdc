from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.errors import ArgumentError
from magpie_hf.sampling import SEED_MODULUS, GridPoint, SamplingParams, grid_sequence, sample_seed, seed_base


shares = st.lists(st.integers(1, 20).map(float), min_size=1, max_size=6)


@given(shares, st.integers(1, 300))
def test_every_prefix_keeps_the_shares_as_closely_as_whole_rows_can(given_shares, length):
    points = [point for point, _ in islice(grid_sequence(given_shares), length)]
    for point, share in enumerate(given_shares):
        assert abs(points.count(point) - length * share / sum(given_shares)) <= len(given_shares) / 2 + 1


@given(shares)
def test_ranks_of_each_point_count_up(given_shares):
    seen = [0] * len(given_shares)
    for point, rank in islice(grid_sequence(given_shares), 100):
        assert rank == seen[point]
        seen[point] += 1


@given(st.integers(0, SEED_MODULUS - 1), st.integers(0, 10**9))
def test_seeds_of_contiguous_samples_count_up(base, index):
    assert (sample_seed(base, index + 1) - sample_seed(base, index)) % SEED_MODULUS == 1


def test_bases_differ_by_every_part():
    bases = {
        seed_base(*parts)
        for parts in [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a1", ""), (0, "a", "1", "")]
    }
    assert len(bases) == 6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", 0),
        ("max_tokens", 0),
        ("repetition_penalty", 0),
        ("seed", SEED_MODULUS),
    ],
)
def test_a_value_out_of_range_names_the_parameter(name, value):
    with pytest.raises(ArgumentError, match=name):
        SamplingParams(**{name: value})


def test_an_unknown_parameter_names_the_nearest():
    with pytest.raises(ArgumentError, match="temperture") as caught:
        SamplingParams.from_dict({"temperture": 1})
    assert '"temperature"' in caught.value.hint


def test_what_is_off_is_not_part_of_the_identity_and_round_trips():
    params = SamplingParams(temperature=0.7, stop=("x",))
    assert params.to_dict() == {"temperature": 0.7, "top_p": 1.0, "max_tokens": 1024, "stop": ["x"]}
    assert SamplingParams.from_dict(params.to_dict()) == params


def test_a_share_changes_no_text():
    sampling = SamplingParams()
    assert GridPoint(sampling, 3).to_dict() == GridPoint(sampling, 1).to_dict()
