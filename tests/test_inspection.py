"""What `status` and `explain` say of a run, finished, stopped or damaged."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import magpie_hf
from magpie_hf.cli.show import show_status
from magpie_hf.engines.base import Failure
from magpie_hf.errors import ArgumentError, BudgetExceeded, DatasetError, MagpieError, RecipeError, RowsPending
from magpie_hf.execution.driver import StageCounters
from magpie_hf.execution.progress import Listener
from magpie_hf.recipe.schema import load_recipe
from magpie_hf.session.explain import StageChange, differences, explain_changes
from magpie_hf.session.session import Session
from magpie_hf.session.status import RunReport, StageReport, run_facts, run_status
from magpie_hf.storage.loading import load_rows
from magpie_hf.storage.lock import running_owner
from magpie_hf.storage.rundir import RunDir
from magpie_hf.storage.state import Counts, Totals
from tests.end_to_end.harness import here
from tests.stages import conftest as runs


null, make = runs.null, runs.make
STAGES = ["instructions", "responses", {"stage": "turns", "turns": 2}, "lengths"]
leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
trees = st.recursive(leaves, lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3))


def by_name(report):
    return {stage.name: stage for stage in report.stages}


@given(trees)
def test_equal_settings_have_no_differences(tree):
    assert list(differences(tree, tree)) == []


@given(st.dictionaries(st.text("ab", min_size=1), leaves), st.dictionaries(st.text("ab", min_size=1), leaves))
def test_differences_name_exactly_the_leaves_that_differ(before, now):
    found = {path: (old, new) for path, old, new in differences(before, now)}
    assert found == {
        key: (before.get(key), now.get(key)) for key in {*before, *now} if before.get(key) != now.get(key)
    }


def test_a_finished_run_shows_rows_reasons_tokens_and_where_its_dataset_lies(make, tmp_path):
    dataset = make(stages=STAGES, engine={"unfinished_every": 4}, budget={"price_per_gpu_hour": 3600.0})
    report = run_status(tmp_path / "run")
    stages = by_name(report)
    assert [stage.status for stage in report.stages] == ["done"] * 4
    first = stages["instructions"]
    assert first.by_code == {"ok": first.done - first.by_code["unfinished"], "unfinished": first.by_code["unfinished"]}
    assert first.prompt_tokens == 10 * first.done
    assert stages["responses"].completion_tokens == 12 * 40
    assert report.output.rows == len(dataset) == 40
    assert report.output.columns == dataset.column_names
    totals = report.totals
    assert totals.tokens == sum(stage.prompt_tokens + stage.completion_tokens for stage in report.stages)
    assert totals.cost == pytest.approx(totals.engine_seconds)
    assert totals.cost_per_1000_rows == pytest.approx(totals.cost * 25)
    assert [session.outcome for session in report.sessions] == ["done"]


def test_a_stopped_stage_is_counted_from_its_journal(make, tmp_path):
    brief = {"stage": "responses", "sampling": {"max_tokens": 64}}
    with pytest.raises(BudgetExceeded):
        make(stages=["instructions", brief], budget={"max_tokens_total": 1200}, engine={"window": 4})
    run_dir = RunDir.read(tmp_path / "run")
    for state in run_dir.state.stages.values():
        if state.name == "responses":
            state.counts = None  # as after a kill -9 between two saves
    run_dir.save()
    stage = by_name(run_status(tmp_path / "run"))["responses"]
    assert stage.status == "stopped"
    assert 0 < stage.done < 40
    assert stage.by_code == {"ok": stage.done}
    assert stage.completion_tokens == 12 * stage.done


def test_status_follows_the_size_that_was_asked_for_last(make, tmp_path):
    make(num_rows=20)
    make(num_rows=60)
    make(num_rows=20)
    state = RunDir.read(tmp_path / "run").state
    assert {stage.rows_out for stage in state.stages.values()} == {20}
    assert state.output.rows == 20


def test_a_run_that_went_back_to_its_cache_is_done_again(make, null, tmp_path):
    make(num_rows=20)
    null.fail = {3: Failure("timeout", True, "no answer")}
    with pytest.raises(RowsPending):
        make(num_rows=60)
    make(num_rows=20)
    assert {stage.status for stage in run_status(tmp_path / "run").stages} == {"done"}


def test_a_stage_satisfied_from_the_journal_alone_keeps_its_counts(make, null, tmp_path):
    make(num_rows=60)
    null.reset()
    make(num_rows=33)
    assert null.log == []
    stages = by_name(run_status(tmp_path / "run"))
    assert stages["responses"].done == 33
    assert stages["responses"].completion_tokens == 33 * 12


@pytest.mark.parametrize(
    ("overrides", "verdicts", "fields"),
    [
        ({}, ["kept"] * 4, set()),
        ({"num_rows": 7}, ["rows"] * 4, {"num_rows"}),
        ({"engine.window": 5}, ["kept"] * 4, set()),
        ({"output.format": "arrow", "budget.max_hours": 3, "name": "x"}, ["kept"] * 4, set()),
        ({"sampling.temperature": 0.9}, ["rows"] * 4, {"grid[0].sampling.temperature"}),
        ({"sampling": [{}, {"temperature": 1.2}]}, ["rows"] * 4, {"sampling: number of different settings"}),
        ({"system_prompt": "Be curious."}, ["rows"] * 4, {"grid[0].system_prompt"}),
        ({"seed": 4}, ["again", "again", "again", "rows"], {"seed"}),
        ({"template.kwargs": {"x": 1}}, ["again", "again", "again", "rows"], {"template.kwargs.x"}),
        (
            {"stages.responses.sampling.temperature": 0.5},
            ["kept", "again", "rows", "rows"],
            {"parameters.sampling.temperature"},
        ),
        ({"stages.turns.turns": 3}, ["kept", "kept", "again", "rows"], {"parameters.turns"}),
        ({"stages.instructions.clean": False}, ["again", "rows", "rows", "rows"], {"parameters.clean"}),
        ({"stages.lengths.tokens": False}, ["kept", "kept", "kept", "again"], {"parameters.tokens", "tokenizer"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_exactly_the_changed_fields_are_named(make, tmp_path, overrides, verdicts, fields):
    make(stages=STAGES, num_rows=4)
    changes = explain_changes(tmp_path / "run", overrides)
    assert [change.verdict for change in changes] == verdicts
    assert {field for change in changes for field, _, _ in change.reasons} == fields


def test_a_change_of_revision_makes_everything_again(make, tiny_model_dir, tmp_path):
    make(num_rows=4)
    other = tmp_path / tiny_model_dir.name
    other.mkdir()
    for file in tiny_model_dir.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "generation_config.json").write_text('{"eos_token_id": 4, "pad_token_id": 4, "max_length": 99}')
    changes = explain_changes(tmp_path / "run", {"model": str(other)})
    assert [change.verdict for change in changes] == ["again", "again", "again"]
    assert {field for change in changes for field, _, _ in change.reasons} == {"engine.revision", "tokenizer.revision"}


def test_a_new_stage_is_called_new_and_what_was_asked_stays(make, tmp_path):
    make(num_rows=4)
    before = (tmp_path / "run" / "run.json").read_bytes()
    changes = explain_changes(tmp_path / "run", {"stages": STAGES})
    assert [(change.name, change.verdict) for change in changes][2:] == [("turns", "new"), ("lengths", "rows")]
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_looking_needs_a_run_and_settings_that_can_be_used(make, tmp_path):
    with pytest.raises(ArgumentError, match="No run found"):
        run_status(tmp_path)
    make(num_rows=4)
    with pytest.raises(RecipeError, match="num_rows"):
        explain_changes(tmp_path / "run", {"num_rows": -3})


@pytest.mark.parametrize("text", ["", "[]", '{"version": "x"}', "null", '{"no": 1}', "\x00"])
def test_a_file_that_is_no_state_is_one_readable_error(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(MagpieError) as caught:
        run_status(tmp_path)
    assert "run.json" in str(caught.value)


def test_a_run_that_is_on_has_an_owner_stages_to_come_and_a_rest(make, tmp_path):
    brief = {"stage": "responses", "sampling": {"max_tokens": 64}}
    with pytest.raises(BudgetExceeded):
        make(stages=["instructions", brief, "lengths"], budget={"max_tokens_total": 1200}, engine={"window": 4})
    assert run_status(tmp_path / "run").owner is None
    with RunDir(tmp_path / "run").own() as run_dir:
        responses = next(state for state in run_dir.state.stages.values() if state.name == "responses")
        assert responses.status == "stopped"
        responses.status = "running"
        run_dir.save()
        report = run_status(tmp_path / "run")
    assert report.owner["pid"] == os.getpid()
    assert [(stage.name, stage.status) for stage in report.stages] == [
        ("instructions", "done"), ("responses", "running"), ("lengths", "to come"),
    ]  # fmt: skip
    stage = report.stages[1]
    assert stage.left == 40 - stage.done
    assert stage.eta_s == pytest.approx(stage.left / stage.rows_per_s)


def test_only_the_stage_of_the_current_session_is_shown_as_running(make, null, tmp_path):
    null.die_after = 60
    with pytest.raises(KeyboardInterrupt):
        make(engine={"window": 4})
    run_dir = RunDir.read(tmp_path / "run")
    for state in run_dir.state.stages.values():
        state.status = "running"  # as after a kill -9
    run_dir.save()
    recipe = load_recipe(run_dir.recipe, {"num_rows": 60})
    with run_dir.own(), Session(recipe, run_dir).recorded():
        report = run_status(tmp_path / "run")
    assert [stage.status for stage in report.stages] == ["stopped", "stopped", "to come"]


def test_no_row_is_shown_as_accepted_where_all_were_rejected(monkeypatch, capsys):
    stage = StageReport("responses", "done", 5, 100, {"fragment": 5}, 0, 0, 0.0, {})
    report = RunReport("run", {}, [stage], Totals(), [], None, [])
    monkeypatch.setattr("magpie_hf.session.status.run_status", lambda _: report)
    show_status(Path("run"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("responses")]
    assert line.split()[2:5] == ["0", "/", "100"]


def test_a_process_that_is_gone_runs_nothing(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    record = {"host": socket.gethostname(), "pid": child.pid, "token": "x"}
    (tmp_path / "lock").write_text(json.dumps(record))
    assert running_owner(tmp_path / "lock") is None
    (tmp_path / "lock").write_text(json.dumps(record | {"pid": os.getpid()}))
    assert running_owner(tmp_path / "lock")["pid"] == os.getpid()
    (tmp_path / "lock").write_text(json.dumps(record | {"host": "another"}))
    assert running_owner(tmp_path / "lock")["host"] == "another"
    os.utime(tmp_path / "lock", (0, 0))
    assert running_owner(tmp_path / "lock") is None


@pytest.mark.parametrize(
    ("overrides", "rows"),
    [
        ({"num_rows": 7}, [(3, 7), (3, 7), (3, 7), (7, 7)]),
        ({"num_rows": 3}, [(0, 3), (0, 3), (0, 3), (3, 3)]),
        ({"sampling.temperature": 0.9}, [(4, 4)] * 4),
        ({"sampling": [{}, {"temperature": 1.2}]}, [(2, 4)] * 3 + [(4, 4)]),
        ({"stages.responses.sampling.temperature": 0.5}, [None, (4, 4), (4, 4), (4, 4)]),
        ({"stages.turns.turns": 3}, [None, None, (4, 4), (4, 4)]),
    ],
    ids=str,
)
def test_the_rows_that_would_run_again_are_counted(make, tmp_path, overrides, rows):
    make(stages=STAGES, num_rows=4)
    assert [change.rows for change in explain_changes(tmp_path / "run", overrides)] == rows


def explained(place, overrides):
    return {change.name: (change.rows, change.is_bound) for change in explain_changes(place, overrides)}


def test_behind_a_selection_rows_are_counted_exactly_or_at_most(make, tmp_path):
    turns = {"stage": "turns", "turns": 2}
    make(stages=["instructions", "responses", "lengths", {"stage": "select", "longest": 3}, turns], num_rows=8)
    kept = explained(tmp_path / "run", {"stages.turns.turns": 3})
    assert kept["turns"] == ((3, 3), False)
    changed = explained(tmp_path / "run", {"stages.select.longest": 5})
    assert changed["select"] == ((8, 8), False)
    assert changed["turns"] == ((5, 5), True)
    said = here(
        "explain",
        tmp_path / "run",
        "--set",
        "stages.select.longest=null",
        "--set",
        "stages.select.where=response_length > 0",
    )
    assert "runs on at most 8 rows: their input changed" in said


@pytest.mark.parametrize(
    ("before", "overrides", "rows", "is_bound"),
    [
        ({}, {"stages": ["flags", "lengths"], "model": "demo"}, (6, 6), False),
        ({}, {"num_rows": 4}, (4, 4), False),
        ({"num_rows": 3}, {"num_rows": 5}, (5, 5), True),
        ({"num_rows": 3}, {"num_rows": 2}, (2, 2), False),
        ({}, {"dataset.path": "other.jsonl", "num_rows": 9}, (9, 9), True),
        ({}, {"dataset.path": "other.jsonl"}, None, False),
        ({"num_rows": 3}, {}, None, False),
    ],
    ids=str,
)
def test_rows_of_a_dataset_recipe_are_counted_exactly_or_at_most(tmp_path, before, overrides, rows, is_bound):
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Hi there"}\n' * 6)
    recipe = {"name": "a", "dataset": {"path": str(tmp_path / "rows.jsonl")}, "stages": ["flags"], **before}
    magpie_hf.run(recipe, output=tmp_path / "run")
    change = explain_changes(tmp_path / "run", overrides)[-1]
    assert (change.rows, change.is_bound) == (rows, is_bound)


def test_what_happens_to_a_stage_is_said_with_its_number_of_rows():
    def said(*change):
        return StageChange("x", change[0], [], *change[1:]).describe()

    assert said("again", (12, 12)) == "runs again, all 12 rows"
    assert said("again", (12, 12), True) == "runs again, at most 12 rows"
    assert said("again") == "runs again, all rows"
    assert said("new", (9, 9), True) == "runs on at most 9 rows: the stage is new in the recipe"
    assert said("left", (3, 9)) == "resumes: 3 of 9 rows remain"
    assert said("rows", (0, 9)) == "its output is written again from cached rows"
    assert said("rows", (3, 9)) == "runs on 3 of 9 rows: their input changed"
    assert said("kept", None) == "from the cache"
    named = StageChange("x", "rows", [("num_rows", 3, 9)], (6, 9))
    assert named.describe() == "runs on 6 of 9 rows", "the setting that changed is printed below"


def test_status_shows_the_stages_of_earlier_settings_under_a_heading(make, tmp_path):
    make(stages=["instructions", "responses", "lengths"], num_rows=4)
    make(stages=["instructions", {"stage": "responses", "sampling": {"temperature": 0.5}}], num_rows=4)
    report = run_status(tmp_path / "run")
    assert [(stage.name, stage.is_current) for stage in report.stages] == [
        ("instructions", True), ("responses", True), ("responses", False), ("lengths", False),
    ]  # fmt: skip
    lines = [line.split()[:2] for line in here("status", tmp_path / "run").splitlines() if line]
    heading = lines.index(["stages", "of"])
    assert [line[0] for line in lines[heading - 2 : heading + 3]] == [
        "instructions",
        "responses",
        "stages",
        "responses",
        "lengths",
    ]


def test_stages_to_come_are_listed_in_the_order_of_the_recipe(make, null, tmp_path):
    null.die_after = 60
    with pytest.raises(KeyboardInterrupt):
        make(stages=STAGES)
    assert [(stage.name, stage.status) for stage in run_status(tmp_path / "run").stages] == [
        ("instructions", "done"), ("responses", "stopped"), ("turns", "to come"), ("lengths", "to come"),
    ]  # fmt: skip


def test_a_rate_is_known_from_the_third_row_on_and_is_of_one_moment(make, null, tmp_path):
    null.die_after = 60
    with pytest.raises(KeyboardInterrupt):
        make(engine={"window": 4})
    with RunDir(tmp_path / "run").own() as run_dir:
        responses = next(stage for stage in run_dir.state.stages.values() if stage.name == "responses")
        responses.status = "running"
        responses.counts = Counts(total=40)  # as saved when the stage begins
        run_dir.save()
        assert "rows remaining, estimating the time" in here("status", tmp_path / "run")
        responses.counts = Counts(total=40, done=3, seconds=6.0)
        run_dir.save()
        stage = by_name(run_status(tmp_path / "run"))["responses"]
    assert stage.done > 3, "counted from the journal"
    assert (stage.rows_per_s, stage.eta_s) == (0.5, stage.left * 2.0)


def test_the_counts_are_saved_at_the_third_row(tmp_path):
    saved = []
    listener = Listener(show=False)
    listener.stage_begins("x", StageCounters(total=9))
    listener.on_save = lambda counters: saved.append(counters.done)
    counters = StageCounters(total=9)
    for _ in range(9):
        counters.add_row("ok")
        listener.row_finished(counters)
    assert saved == [3]


def test_the_rows_that_a_stopped_run_has_left_are_counted(make, null, tmp_path):
    null.die_after = 60
    with pytest.raises(KeyboardInterrupt):
        make(stages=STAGES, num_rows=40)
    null.die_after = None
    done = by_name(run_status(tmp_path / "run"))
    left = 40 - done["responses"].done
    assert 0 < left < 40
    changes = {change.name: change for change in explain_changes(tmp_path / "run", {})}
    assert (changes["instructions"].verdict, changes["instructions"].rows) == ("kept", None)
    assert (changes["responses"].verdict, changes["responses"].rows) == ("left", (left, 40))
    assert changes["lengths"].rows == (40, 40)
    more = {change.name: change.rows for change in explain_changes(tmp_path / "run", {"num_rows": 50})}
    assert more["instructions"] == (10, 50)
    assert more["responses"] == (left + 10, 50)
    assert f"resumes: {left} of 40 rows remain" in here("explain", tmp_path / "run")


def test_finished_stages_of_a_stopped_run_are_from_the_cache(make, null, tmp_path):
    null.die_after = 100  # in turns: a selection closes the engine
    selection = {"stage": "select", "where": "response_length >= 0"}
    stages = ["instructions", "responses", "lengths", selection, "subset", {"stage": "turns", "turns": 3}]
    with pytest.raises(KeyboardInterrupt):
        make(stages=stages, num_rows=40)
    verdicts = {change.name: change.verdict for change in explain_changes(tmp_path / "run", {})}
    assert verdicts.pop("turns") == "left"
    assert verdicts == dict.fromkeys(["instructions", "responses", "lengths", "select", "subset-raw"], "kept")


def test_a_second_selection_is_the_same_one_if_a_stage_is_put_before_it(make, tmp_path):
    picks = [{"stage": "select", "where": f"instruction_length > {length}"} for length in (1, 2)]
    make(stages=["instructions", "responses", "lengths", *picks])
    added = {"stages": ["instructions", "responses", "lengths", "flags", *picks]}
    verdicts = {change.name: change.verdict for change in explain_changes(tmp_path / "run", added)}
    assert (verdicts["flags"], verdicts["select"], verdicts["select 2"]) == ("new", "rows", "rows")


def test_two_selections_with_equal_settings_have_states_of_their_own(make, null, tmp_path):
    """With order: lean, a condition is applied twice: before the responses and at its own position."""
    make(num_rows=40, stages=["instructions"])
    selection = {"stage": "select", "where": "(instruction != 'a')"}
    null.die_after = 10  # in responses, behind the early selection
    with pytest.raises(KeyboardInterrupt):
        make(num_rows=40, order="lean", stages=["instructions", "responses", selection])
    verdicts = {change.name: change.verdict for change in explain_changes(tmp_path / "run", {})}
    assert (verdicts["select-early"], verdicts["select"]) == ("kept", "left")


def test_the_totals_of_a_run_that_is_not_finished_are_those_of_its_rows(make, null, tmp_path):
    null.die_after = 60
    with pytest.raises(KeyboardInterrupt):
        make(stages=STAGES, num_rows=40, budget={"max_tokens_total": 100_000})
    place = RunDir.read(tmp_path / "run")
    report = run_status(place.path)
    tokens = sum(stage.prompt_tokens + stage.completion_tokens for stage in report.stages)
    assert report.totals.tokens == tokens == report.limits[0].spent > 0


def test_a_run_that_has_only_the_copy_of_its_state_is_still_one(make, tmp_path):
    make(num_rows=8)
    (tmp_path / "run" / "run.json").unlink()
    facts, _ = run_facts(tmp_path / "run")
    assert facts.recipe["num_rows"] == 8
    (data,) = (tmp_path / "run" / "data").iterdir()
    data.write_bytes(data.read_bytes()[:-9] + b"x" * 9)
    with pytest.raises(DatasetError, match="is damaged"):
        load_rows(str(tmp_path / "run"))


def test_the_rows_of_a_run_that_lost_its_state_are_not_taken_for_a_plain_dataset(make, tmp_path):
    make(num_rows=8)
    for name in ("run.json", "run.json.bak"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(DatasetError, match=r"state \(run\.json\) was lost") as caught:
        load_rows(str(tmp_path / "run"))
    assert "--output" in caught.value.hint
