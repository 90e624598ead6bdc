"""Which samples are asked for, and which of them make the dataset, whatever the order of the answers."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magpie_hf.errors import ArgumentError
from magpie_hf.execution.candidates import BLOCK, Candidates, Shard, _samples, _samples_to_generate, needed_per_point
from magpie_hf.sampling import grid_sequence
from magpie_hf.stage import CODE_NUMBERS


def is_good(point, sample, rejects):
    """A pure function of the sample, as a model under a fixed seed is."""
    return (sample * 7 + point * 3) % 10 >= rejects


def expected(point, needed, rejects):
    return list(itertools.islice((i for i in itertools.count() if is_good(point, i, rejects)), needed))


def fresh(needs, shard, finished=()):
    """Return the candidates of a session that finds these samples in the journal."""
    points = [Candidates(number, number, need, shard) for number, need in enumerate(needs)]
    for (point, sample), code in finished:
        points[point].set(sample, sample, code)
    return points


def session(points, random, *, window, rejects, drops=0.0, stop_after=None):
    """Ask and answer in a random order; return what was finished. `drops`: share of transient failures."""
    finished, flying, asked = {}, [], Counter()
    wanted = _samples_to_generate(points)
    while stop_after is None or len(finished) < stop_after:
        row = next(wanted, "end") if len(flying) < window else None
        if row == "end":
            break
        if row is not None:
            flying.append((row.values["grid_point"], row.values["sample_index"]))
            asked[flying[-1]] += 1
            continue
        assert flying, "nothing is in flight and nothing is asked for"
        point, sample = flying.pop(random.randrange(len(flying)))
        if random.random() < drops:
            points[point].drop(sample)
        else:
            code = CODE_NUMBERS["ok" if is_good(point, sample, rejects) else "empty"]
            finished[point, sample] = code
            points[point].set(sample, sample, code)
    assert set(asked.values()) <= {1}
    return finished


needs = st.lists(st.integers(0, 90), min_size=1, max_size=3)
windows = st.sampled_from([1, 2, 7, 64])


@settings(max_examples=80, deadline=None)
@given(needs, windows, st.integers(0, 8), st.randoms(use_true_random=False))
def test_the_first_accepted_samples_are_chosen_whatever_the_order(needed, window, rejects, random):
    points = fresh(needed, Shard())
    session(points, random, window=window, rejects=rejects)
    for candidates in points:
        assert list(candidates.chosen()[0]) == expected(candidates.point, candidates.needed, rejects)
        assert candidates.chosen()[1] == 0


@settings(max_examples=80, deadline=None)
@given(needs, windows, st.integers(0, 6), st.lists(st.floats(0, 0.6), max_size=4), st.randoms(use_true_random=False))
def test_killed_and_failing_sessions_end_in_the_same_samples_and_ask_for_none_twice(
    needed, window, rejects, sessions, random
):
    finished = {}
    for drops in sessions:
        stop_after = random.randrange(1, 60)
        points = fresh(needed, Shard(), finished.items())
        new = session(points, random, window=window, rejects=rejects, drops=drops, stop_after=stop_after)
        assert not new.keys() & finished.keys()
        finished |= new
    points = fresh(needed, Shard(), finished.items())
    assert not session(points, random, window=window, rejects=rejects).keys() & finished.keys()
    for candidates in points:
        assert list(candidates.chosen()[0]) == expected(candidates.point, candidates.needed, rejects)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 5), st.integers(0, 5), st.randoms(use_true_random=False))
def test_shards_make_their_own_blocks_and_together_the_whole(needed, parts, rejects, random):
    finished = {}
    for part in range(parts):
        shard = Shard(part, parts)
        points = fresh(needed_per_point([1.0], needed, shard), shard)
        new = session(points, random, window=16, rejects=rejects)
        assert all((sample // BLOCK) % parts == part for _, sample in new)
        assert not new.keys() & finished.keys()
        finished |= new
    points = fresh([needed], Shard(), finished.items())
    session(points, random, window=16, rejects=rejects)
    assert list(points[0].chosen()[0]) == expected(0, needed, rejects)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 8), st.randoms(use_true_random=False))
def test_little_more_is_made_than_is_needed(needed, rejects, random):
    points = fresh([needed], Shard())
    made = len(session(points, random, window=8, rejects=rejects))
    assert made <= expected(0, needed, rejects)[-1] + 1 + 8 + 20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9).map(float), min_size=1, max_size=4), st.integers(1, 200), st.integers(0, 100))
def test_grid_points_are_woven_in_their_shares_and_a_larger_run_begins_as_a_smaller(shares, num_rows, more):
    def woven(count):
        picks = [list(range(0, 2 * need, 2)) for need in needed_per_point(shares, count, Shard())]
        chosen = _samples(picks, shares, count)
        return list(zip(chosen["grid_point"], chosen["sample_index"], strict=True))

    assert woven(num_rows + more)[:num_rows] == woven(num_rows)
    assert [point for point, _ in woven(num_rows)] == [
        point for point, _ in itertools.islice(grid_sequence(shares), num_rows)
    ]


@pytest.mark.parametrize("text", ["", "1", "a/b", "4/4", "-1/4", "0/0", "1/2/3", "1.5/2", "0/-1"])
def test_a_shard_that_is_none_says_how_to_write_one(text):
    with pytest.raises(ArgumentError, match="shard") as caught:
        Shard.parse(text)
    assert '"0/4"' in caught.value.hint


def test_a_shard_is_read():
    assert Shard.parse("3/4") == (3, 4)
    assert Shard.parse(None) == (0, 1)
