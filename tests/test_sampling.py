from __future__ import annotations

import json
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.errors import ArgumentError
from magpie_hf.sampling import SEED_MODULUS, GridPoint, SamplingParams, grid_sequence, sample_seed, seed_base


shares = st.lists(st.integers(1, 20).map(float), min_size=1, max_size=6)


@given(shares, st.integers(1, 200), st.integers(0, 100))
def test_a_longer_run_begins_as_a_shorter_one(given_shares, length, more):
    longer = list(islice(grid_sequence(given_shares), length + more))
    assert longer[:length] == list(islice(grid_sequence(given_shares), length))


@given(st.lists(st.integers(1, 20).map(float), min_size=1, max_size=2), st.integers(1, 300))
def test_with_two_points_every_prefix_is_within_one_row_of_the_shares(given_shares, length):
    points = [point for point, _ in islice(grid_sequence(given_shares), length)]
    for point, share in enumerate(given_shares):
        assert abs(points.count(point) - length * share / sum(given_shares)) <= 1


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
        ("temperature", 10.5),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("top_k", 2.5),
        ("seed", 0.5),
        ("seed", -1),
        ("top_p", float("inf")),
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


def test_one_stop_text_or_id_is_one_and_not_its_letters():
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(stop_token_ids=5, banned_first_token_ids=[7]).stop_token_ids == (5,)


@given(
    st.builds(
        SamplingParams,
        temperature=st.floats(0, 10),
        top_p=st.floats(0.01, 1),
        top_k=st.none() | st.integers(1, 99),
        max_tokens=st.integers(1, 9999),
        stop=st.lists(st.text(min_size=1, max_size=4), max_size=3).map(tuple),
        seed=st.none() | st.integers(0, SEED_MODULUS - 1),
    )
)
def test_any_setting_survives_being_written_and_read(params):
    again = SamplingParams.from_dict(json.loads(json.dumps(params.to_dict())))
    assert again == params
    assert hash(again) == hash(params)
    assert again.with_seed(3).with_seed(params.seed) == params


@pytest.mark.parametrize("given", [{"temperature": "hot"}, {"max_tokens": None}, {"stop_token_ids": 1.5}])
def test_a_value_of_another_kind_is_named_as_a_sampling_setting(given):
    with pytest.raises(ArgumentError, match="|".join(["sampling", *given])):
        SamplingParams.from_dict(given)


def test_a_share_must_be_above_0():
    for share in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match="share"):
            GridPoint(SamplingParams(), share)
