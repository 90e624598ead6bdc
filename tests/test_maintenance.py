"""Joining shards and opening failed rows again."""

from __future__ import annotations

import pytest

import magpie_hf
from magpie_hf.cli.show import show_status
from magpie_hf.engines.base import Failure
from magpie_hf.errors import ArgumentError, RunLockedError
from magpie_hf.recipe.schema import load_recipe
from magpie_hf.session.maintenance import merge_runs, reopen_rows
from magpie_hf.session.status import run_status
from magpie_hf.storage.journal import HEADER, MAGIC
from magpie_hf.storage.rundir import RunDir
from tests.end_to_end.harness import nothing_twice
from tests.stages import conftest as runs


null, make = runs.null, runs.make
REFUSED = Failure("too_long", False, "too long")
PARTS = 3


def shards(make, **settings):
    for part in range(PARTS):
        make(f"s{part}", shard=f"{part}/{PARTS}", **settings)


def places(tmp_path):
    return [tmp_path / f"s{part}" for part in range(PARTS)]


def finish(tmp_path, name="all"):
    return magpie_hf.run(RunDir.read(tmp_path / name).recipe, output=tmp_path / name)


def test_shards_make_disjoint_samples_and_together_nothing_twice(make, null, tmp_path):
    shards(make, num_rows=500, stages=["instructions"])
    assert len(set(null.log)) == len(null.log)
    merge_runs(places(tmp_path), tmp_path / "all")
    nothing_twice(tmp_path / "all")


def test_a_merged_run_keeps_tokens_reasons_and_seconds_of_its_shards(make, tmp_path):
    shards(make, num_rows=200, engine={"unfinished_every": 5})
    merge_runs(places(tmp_path), tmp_path / "all")
    finish(tmp_path)
    merged = {stage.name: stage for stage in run_status(tmp_path / "all").stages}
    parts = [{stage.name: stage for stage in run_status(place).stages} for place in places(tmp_path)]
    for name in ("instructions", "responses"):
        assert merged[name].seconds >= sum(part[name].seconds for part in parts) - 1e-6
    assert merged["responses"].completion_tokens == 12 * 200
    assert merged["instructions"].by_code["unfinished"] > 0


def test_the_status_of_a_merged_run_shows_the_rows_that_it_needs(make, tmp_path, capsys):
    shards(make, num_rows=200, stages=["instructions", "responses", "lengths"])
    merge_runs(places(tmp_path), tmp_path / "all")
    finish(tmp_path)
    show_status(tmp_path / "all")
    lines = capsys.readouterr().out.splitlines()
    for name in ("instructions", "responses", "lengths"):
        assert "200 / 200" in next(line for line in lines if line.startswith(name)), name


def test_merging_again_changes_nothing(make, tmp_path):
    shards(make, num_rows=200)
    merge_runs(places(tmp_path), tmp_path / "all")
    before = {key: state.counts for key, state in RunDir.read(tmp_path / "all").state.stages.items()}
    files = sorted(path.name for path in (tmp_path / "all").rglob("*.jnl"))
    merge_runs(places(tmp_path), tmp_path / "all")
    after = {key: state.counts for key, state in RunDir.read(tmp_path / "all").state.stages.items()}
    assert after == before
    assert sorted(path.name for path in (tmp_path / "all").rglob("*.jnl")) == files


def test_a_shard_that_was_not_finished_is_made_up_for(make, null, tmp_path):
    settings = {"num_rows": 200, "stages": ["instructions"]}
    whole = make("whole", **settings)["instruction"][:]
    shards(make, **settings)
    for segment in (tmp_path / "s1").rglob("*.jnl"):
        segment.write_bytes(segment.read_bytes()[: segment.stat().st_size // 2])
    merge_runs(places(tmp_path), tmp_path / "all")
    null.reset()
    assert finish(tmp_path)["instruction"][:] == whole
    assert 0 < len(null.log) < 60, "what the broken shard lost and little more"


def test_many_holes_are_filled_together_and_not_one_after_another(make, null, tmp_path, monkeypatch):
    """A run killed near its end leaves open what was in flight; these go out at once on resume."""
    settings = {"stages": ["instructions"], "engine": {"window": 16}}
    whole = make("whole", num_rows=80, **settings)["instruction"][:]
    make(num_rows=100, **settings)
    (segment,) = (tmp_path / "run").rglob("*.jnl")
    data, at, kept = segment.read_bytes(), len(MAGIC), [MAGIC]
    for number in range(10**6):
        if at >= len(data):
            break
        end = at + HEADER.size + HEADER.unpack_from(data, at)[0]
        if number % 10:
            kept.append(data[at:end])
        at = end
    segment.write_bytes(b"".join(kept))
    for file in (tmp_path / "run" / "stages").glob("*/*.arrow"):
        file.unlink()
    null.reset()
    most = _most_in_flight(null, monkeypatch)
    assert make(num_rows=80, **settings)["instruction"][:] == whole
    assert 7 <= len(null.log) <= 9
    assert max(most) == len(null.log)


def _most_in_flight(null, monkeypatch):
    """Record how many requests the engine was given between two answers."""
    given = [0]
    real = null.generate

    def generate(self, requests):
        def watched():
            for request in requests:
                given[-1] += request is not None
                yield request

        for generation in real(self, watched()):
            given.append(0)
            yield generation

    monkeypatch.setattr(null, "generate", generate)
    return given


def test_only_runs_of_one_recipe_are_merged(make, tmp_path):
    make("a", num_rows=4)
    for name, changed in {"b": {"seed": 5}, "c": {"sampling": {"top_p": 0.9}}, "d": {"num_rows": 9}}.items():
        make(name, **{"num_rows": 4, **changed})
        with pytest.raises(ArgumentError, match="not shards of one run"):
            merge_runs([tmp_path / "a", tmp_path / name], tmp_path / "all")
    with pytest.raises(ArgumentError, match="no runs to merge"):
        merge_runs([], tmp_path / "all")
    with pytest.raises(ArgumentError, match="No run found"):
        merge_runs([tmp_path / "nowhere"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("code", ["ok", "no_such", "too_lon"])
def test_a_code_that_cannot_be_retried_names_the_nearest(make, tmp_path, code):
    make(num_rows=4)
    with pytest.raises(ArgumentError, match=code) as caught:
        reopen_rows(tmp_path / "run", [code])
    assert "too_long" in caught.value.hint


def test_rows_are_not_opened_under_a_running_process(make, tmp_path):
    make(num_rows=4)
    with RunDir(tmp_path / "run").own(), pytest.raises(RunLockedError):
        reopen_rows(tmp_path / "run", ["too_long"])


def test_opened_rows_alone_are_made_again_and_the_stages_behind_them_follow(make, null, tmp_path):
    make(num_rows=20, stages=["instructions"])
    null.reset()
    null.fail = {4: REFUSED}
    settings = {"num_rows": 20, "stages": ["instructions", "responses", {"stage": "turns", "turns": 2}, "lengths"]}
    before = make(**settings)
    assert before["num_turns"][:].count(0) == 1
    assert reopen_rows(tmp_path / "run", ["too_long", "failed"]) == {"responses": 1}
    null.reset()
    after = make(**settings)
    assert len(null.log) == 3, "one response, and its second turn"
    changed = [n for n, (a, b) in enumerate(zip(before.to_list(), after.to_list(), strict=True)) if a != b]
    assert len(changed) == 1
    assert after[changed[0]]["num_turns"] == 2
    assert reopen_rows(tmp_path / "run", ["too_long"]) == {}


def test_opening_again_survives_a_clock_that_went_back(make, null, tmp_path):
    """Segments of another host may bear later names: what is opened now still counts after them."""
    make(num_rows=10, stages=["instructions"])
    null.reset()
    null.fail = {0: REFUSED}
    make(num_rows=10)
    for segment in (tmp_path / "run").rglob("*.jnl"):
        stamp, _, rest = segment.name.partition("-")
        segment.rename(segment.with_name(f"{int(stamp) + 10**15:020d}-{rest}"))
    assert reopen_rows(tmp_path / "run", ["too_long"]) == {"responses": 1}
    null.reset()
    assert None not in make(num_rows=10)["response"]
    assert len(null.log) == 1


def test_merging_and_opening_leave_valid_recipes_behind(make, tmp_path):
    shards(make, num_rows=30)
    merged = merge_runs(places(tmp_path), tmp_path / "all")
    assert load_recipe(RunDir.read(tmp_path / "all").recipe).num_rows == 30
    assert merged.state.merged_from == [(part, PARTS) for part in range(PARTS)]


def test_rows_that_a_shard_opened_again_reach_the_run_that_it_was_merged_into(make, null, tmp_path):
    settings = {"num_rows": 60, "stages": ["instructions", "responses"]}
    shards(make, **{**settings, "stages": ["instructions"]})
    null.fail = {3: REFUSED}
    shards(make, **settings)
    merge_runs(places(tmp_path), tmp_path / "all")
    null.reset()
    assert None in finish(tmp_path)["response"]
    null.reset()
    for part in range(PARTS):
        assert reopen_rows(tmp_path / f"s{part}", "too_long") == {"responses": 1}
    shards(make, **settings)
    assert len(null.log) == PARTS
    null.reset()
    for _ in range(2):  # merging twice counts once
        merge_runs(places(tmp_path), tmp_path / "all")
        assert None not in finish(tmp_path)["response"]
    assert null.log == []
    assert sorted(state.reopened for state in RunDir.read(tmp_path / "all").state.stages.values()) == [
        0,
        3,
    ]
