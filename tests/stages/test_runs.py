"""Which rows a run makes, keeps, makes again and never makes twice; on an engine that is a pure function."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Features

import magpie_hf
from magpie_hf.engines.base import Failure, Served
from magpie_hf.errors import (
    BudgetExceeded,
    DatasetError,
    ModelMismatchError,
    NothingUsable,
    RecipeError,
    RowsPending,
    TooManyFailures,
)
from magpie_hf.hub.schema import column_order
from magpie_hf.recipe.schema import load_recipe
from magpie_hf.session.explain import explain_changes
from magpie_hf.session.maintenance import merge_runs, reopen_rows
from magpie_hf.session.status import run_status
from magpie_hf.stage import CODES
from magpie_hf.stages import stage_class
from magpie_hf.stages.turns import Turns
from magpie_hf.storage.journal import Journal
from magpie_hf.storage.rundir import RunDir
from magpie_hf.storage.state import ServedState, StoppedBy
from tests.end_to_end.harness import nothing_twice


GRID = [{"temperature": 1.0, "share": 3}, {"temperature": 1.2, "share": 1}]
DOWN = Failure("timeout", True, "no answer")
REFUSED = Failure("too_long", False, "too long")


def instructions(dataset):
    return list(dataset["instruction"])


def points(dataset):
    return [row["grid_point"] for row in dataset["gen_input_configs"]]


def test_rows_do_not_depend_on_the_order_in_which_they_are_finished(make):
    one = make("a", engine={"window": 1}, sampling=GRID)
    assert instructions(make("b", engine={"window": 64}, sampling=GRID)) == instructions(one)
    assert instructions(make("c", engine={"window": 17, "reverse": True}, sampling=GRID)) == instructions(one)


def test_unfinished_texts_are_replaced_and_counted(make, tmp_path):
    dataset = make(engine={"unfinished_every": 3})
    assert len(dataset) == 40
    assert all(seed % 3 for seed in (row["seed"] for row in dataset["gen_input_configs"]))
    stage = run_status(tmp_path / "run").stages[0]
    assert stage.by_code["unfinished"] > 5
    assert stage.done == stage.by_code["ok"] + stage.by_code["unfinished"]


def test_grid_points_get_their_shares(make):
    dataset = make(sampling=GRID, engine={"unfinished_every": 4})
    assert [points(dataset).count(point) for point in (0, 1)] == [30, 10]
    assert [points(dataset)[:8].count(point) for point in (0, 1)] == [6, 2]


def test_a_larger_run_begins_with_the_smaller_ones_rows_and_asks_for_the_rest_only(make, null, tmp_path):
    small = make(num_rows=40, sampling=GRID, engine={"unfinished_every": 5})
    asked = set(null.log)
    null.reset()
    large = make(num_rows=150, sampling=GRID, engine={"unfinished_every": 5})
    assert instructions(large)[:40] == instructions(small)
    assert not asked & set(null.log)
    null.reset()
    assert instructions(make(num_rows=40, sampling=GRID, engine={"unfinished_every": 5})) == instructions(small)
    assert null.log == []
    assert null.opened == 0
    nothing_twice(tmp_path / "run")


def test_a_changed_grid_point_makes_its_own_samples_anew_and_no_others(make, null):
    before = make(sampling=GRID)
    null.reset()
    after = make(sampling=[GRID[0], {"temperature": 1.3, "share": 1}])
    kept = {t for t, p in zip(instructions(before), points(before), strict=True) if p == 0}
    assert {t for t, p in zip(instructions(after), points(after), strict=True) if p == 0} == kept
    assert len(null.log) < 40


@pytest.mark.parametrize(
    "changed",
    [{"engine": {"window": 3}}, {"output": {"format": "arrow"}}, {"budget": {"max_hours": 5}}, {"name": "other"}],
    ids=["window", "format", "budget", "name"],
)
def test_what_changes_no_text_makes_nothing_anew(make, null, changed):
    before = make()
    null.reset()
    assert instructions(make(**changed)) == instructions(before)
    assert null.opened == 0


@pytest.mark.parametrize(
    ("changed", "asked"),
    [
        ({"sampling": {"temperature": 0.9}}, 80),
        ({"seed": 1}, 80),
        ({"template": {"kwargs": {"x": 1}}}, 80),
        ({"stages": ["instructions", {"stage": "responses", "sampling": {"max_tokens": 9}}, "lengths"]}, 40),
        ({"stages": ["instructions", {"stage": "responses", "system_prompt": "Be brief."}]}, 40),
        ({"stages": ["instructions", "responses", {"stage": "turns", "turns": 2}, "lengths"]}, 80),
    ],
    ids=["temperature", "seed", "template", "response sampling", "response system prompt", "a further stage"],
)
def test_what_changes_texts_makes_anew_what_depends_on_it_and_no_more(make, null, changed, asked):
    make()
    null.reset()
    make(**changed)
    assert asked <= len(null.log) <= asked + 64


def test_a_finished_run_comes_back_without_engine_and_without_model_libraries(make, tiny_model_dir, tmp_path):
    make()
    script = f"""
import sys
import threading
from collections import Counter
from magpie_hf.engines import ENGINES
import magpie_hf
from magpie_hf.storage.state import ServedState, StoppedBy
ENGINES["null"] = "tests.null_engine:NullEngine"
recipe = {{"model": {str(tiny_model_dir)!r}, "num_rows": 40, "engine": "null",
          "stages": ["instructions", "responses", "lengths"]}}
assert len(magpie_hf.run(recipe, output={str(tmp_path / "run")!r})) == 40
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_damaged_cache_file_is_made_anew_from_the_journal(make, null, tmp_path):
    before = make().to_list()
    for file in (tmp_path / "run" / "stages").glob("*/*.arrow"):
        file.write_bytes(b"nonsense")
    null.reset()
    assert make().to_list() == before
    assert null.log == []


def test_transient_failures_leave_rows_open_and_a_rerun_asks_for_these_only(make, null, tmp_path):
    make(stages=["instructions"])
    null.reset()
    null.fail = {3: DOWN, 7: DOWN}
    with pytest.raises(RowsPending, match="2 of 40 rows are unfinished") as caught:
        make()
    assert "--accept-failures" in caught.value.hint
    null.reset()
    assert len(make()) == 40
    assert len(null.log) == 2
    nothing_twice(tmp_path / "run")


def test_transient_failures_of_instructions_are_asked_for_again_too(make, null, tmp_path):
    null.fail = {2: DOWN}
    with pytest.raises(RowsPending, match="instructions"):
        make(stages=["instructions"])
    null.reset()
    rows = instructions(make(stages=["instructions"]))
    null.reset()
    assert instructions(make("fresh", stages=["instructions"])) == rows


def test_accepted_failures_are_finished_with_their_code(make, null):
    make(stages=["instructions"])
    null.reset()
    null.fail = {3: DOWN}
    dataset = make(accept_failures=True)
    assert [row["response_finish_reason"] for row in dataset if row["response"] is None] == ["error: timeout"]


def test_permanent_failures_are_counted_and_retried_only_when_asked(make, null, tmp_path):
    make(stages=["instructions"])
    null.reset()
    null.fail = {0: REFUSED, 5: REFUSED}
    dataset = make()
    failed = [row for row in dataset if row["response"] is None]
    assert len(failed) == 2
    assert {row["response_length"] for row in failed} == {None}
    assert run_status(tmp_path / "run").stages[1].by_code == {"ok": 38, "too_long": 2}
    null.reset()
    make()
    assert null.log == []
    assert reopen_rows(tmp_path / "run", ["too_long"]) == {"responses": 2}
    again = make()
    assert len(null.log) == 2
    assert None not in again["response"]
    assert None not in again["response_length"]


def test_a_model_that_writes_nothing_usable_is_named_with_the_reasons(make):
    with pytest.raises(NothingUsable, match=r"0 of \d+ samples were usable") as caught:
        make(engine={"unfinished_every": 1})
    assert "unfinished" in str(caught.value)
    assert "magpie-hf probe" in caught.value.hint


def test_most_requests_failing_stops_the_run(make, null):
    make(num_rows=300, stages=["instructions"])
    null.reset()
    null.fail = dict.fromkeys(range(20, 400), DOWN)
    with pytest.raises(TooManyFailures, match="of the last"):
        make(num_rows=300)


def test_a_budget_finishes_what_is_in_flight_and_a_larger_one_resumes(make, null, tmp_path):
    with pytest.raises(BudgetExceeded, match="max_tokens_total = 1,500"):
        make(budget={"max_tokens_total": 1500}, engine={"window": 8})
    asked = len(null.log)
    report = run_status(tmp_path / "run")
    assert sum(stage.done for stage in report.stages) == asked > 20
    assert report.totals.tokens <= 1500
    make(engine={"window": 8})
    assert len(set(null.log)) == len(null.log), "nothing in flight was lost"


def test_a_limit_that_is_too_small_for_any_row_stops_the_run_before_a_request(make, null, tmp_path):
    with pytest.raises(
        BudgetExceeded, match=r"max_tokens_total = 500 would be exceeded .*used: 0 tokens; a row may use 1,0"
    ):
        make(budget={"max_tokens_total": 500})
    assert null.log == []
    last = run_status(tmp_path / "run").sessions[-1]
    assert last.stopped_by == StoppedBy("instructions", "max_tokens_total", 500, 0)


def test_tokens_spent_under_earlier_settings_of_a_stage_count_too(make, null, tmp_path):
    make(stages=["instructions"])
    before = run_status(tmp_path / "run").totals.tokens
    null.reset()
    with pytest.raises(BudgetExceeded) as caught:
        make(stages=[{"stage": "instructions", "max_scripts": 1}], budget={"max_tokens_total": 1100})
    assert caught.value.data["spent"] == before > 0
    assert null.log == []


def test_an_interrupt_keeps_everything_finished(make, null, tmp_path):
    null.die_after = 25
    with pytest.raises(KeyboardInterrupt):
        make(engine={"window": 4})
    null.die_after = None
    make(engine={"window": 4})
    nothing_twice(tmp_path / "run")
    assert run_status(tmp_path / "run").sessions[0].outcome == "KeyboardInterrupt"


def test_a_version_that_is_a_number_is_saved_as_text(make, null, tmp_path):
    null.served_now = Served(model="m", version=3)
    make(stages=["instructions"])
    (stage,) = RunDir.read(tmp_path / "run").state.stages.values()
    assert stage.served.version == "3"
    make(stages=["instructions"], num_rows=41)


def test_a_model_that_changes_in_mid_run_stops_it_unless_allowed(make, null):
    null.served_now = Served(model="m", revision="one")
    make(stages=["instructions"])
    null.served_now = Served(model="m", revision="one")
    null.fail = {5: DOWN}
    with pytest.raises(RowsPending):
        make()
    null.reset()
    null.served_now = Served(model="m", revision="two")
    with pytest.raises(ModelMismatchError, match="revision: one before, two now"):
        make()
    dataset = make(allow_mixed=True)
    revisions = [row["served_revision"] for row in dataset["gen_response_configs"]]
    assert (revisions.count("one"), revisions.count("two")) == (39, 1)


def test_a_fingerprint_that_changes_is_recorded_and_does_not_stop_the_run(make, null, tmp_path, caplog):
    null.served_now = Served(model="m", fingerprint="server-1-aaaa")
    null.fail = {5: DOWN}
    with pytest.raises(RowsPending):
        make(stages=["instructions"])
    null.reset()
    null.served_now = Served(model="m", fingerprint="server-2-bbbb")
    make(stages=["instructions"])
    (state,) = RunDir.read(tmp_path / "run").state.stages.values()
    assert state.served == ServedState("m", fingerprints=["server-1-aaaa", "server-2-bbbb"])
    assert caplog.text.count("different system fingerprints (server-1-aaaa, server-2-bbbb)") == 1


def test_shards_merged_equal_one_run(make, null, tiny_model_dir, tmp_path):
    settings = {"sampling": GRID, "engine": {"unfinished_every": 4}, "num_rows": 300}
    whole = make("whole", **settings)
    for part in range(4):
        make(f"s{part}", shard=f"{part}/4", **settings)
    null.reset()
    merged = merge_runs([tmp_path / f"s{part}" for part in range(4)], tmp_path / "all")
    dataset = magpie_hf.run(load_recipe(merged.state.recipe), output=tmp_path / "all")
    assert dataset.to_list() == whole.to_list()
    assert len(null.log) < 60, "a tenth of all requests at most: shards make a little more than their part"
    nothing_twice(tmp_path / "all")


def test_runs_of_different_recipes_are_not_merged(make, tmp_path):
    make("a")
    make("b", seed=5)
    with pytest.raises(magpie_hf.MagpieError, match="not shards of one run"):
        merge_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "all")


def test_the_fields_that_would_make_stages_run_again_are_named(make, tmp_path):
    make(sampling=GRID)

    def verdicts(**overrides):
        changes = explain_changes(tmp_path / "run", overrides)
        return [change.verdict for change in changes], [field for change in changes for field, _, _ in change.reasons]

    assert verdicts() == (["kept"] * 3, [])
    assert verdicts(num_rows=60) == (["rows"] * 3, ["num_rows"])
    both = ["sampling: number of different settings"]
    both += ["grid[0].sampling.temperature", "grid[1].sampling.temperature"]
    assert verdicts(**{"sampling.temperature": 0.9}) == (["rows"] * 3, both)
    assert verdicts(seed=3) == (["again", "again", "rows"], ["seed", "seed"])
    one = ["parameters.sampling.max_tokens"]
    assert verdicts(**{"stages.responses.sampling.max_tokens": 9}) == (["kept", "again", "rows"], one)


def test_conversations_of_several_turns_and_their_columns(make):
    dataset = make(stages=["instructions", "responses", {"stage": "turns", "turns": 3}, "lengths"], num_rows=5)
    row = dataset[0]
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * 3
    assert "conversations" not in row
    assert row["messages"][4]["content"] == row["instruction_3"]
    assert (row["num_turns"], row["turns_end"]) == (3, "complete")
    names = dataset.column_names
    assert names[3:10] == [
        *("instruction", "response", "instruction_2", "response_2", "instruction_3", "response_3"),
        "instruction_length",
    ]


def test_a_conversation_whose_follow_up_is_unusable_ends_short_and_is_counted(make, tmp_path):
    dataset = make(
        stages=["instructions", "responses", {"stage": "turns", "turns": 2, "attempts": 1}],
        engine={"unfinished_every": 2},
    )
    short = [row for row in dataset if row["instruction_2"] is None]
    assert short
    assert {row["turns_end"] for row in short} == {"unfinished"}
    assert all(len(row["messages"]) == 2 for row in short)
    assert run_status(tmp_path / "run").stages[2].by_code["fewer_turns"] == len(short)


def test_an_unusable_follow_up_is_tried_again_under_another_seed(make):
    def num_short(attempts):
        stages = ["instructions", "responses", {"stage": "turns", "turns": 2, "attempts": attempts}]
        dataset = make(str(attempts), stages=stages, engine={"unfinished_every": 3})
        return dataset["num_turns"][:].count(1)

    assert num_short(1) > 5
    assert num_short(4) < num_short(1) / 2


def test_provenance_of_each_row_can_be_read_from_the_dataset(make):
    row = make(num_rows=3)[0]
    config = row["gen_input_configs"]
    for name in (
        "temperature",
        "top_p",
        "max_tokens",
        "seed",
        "input_generator",
        "revision",
        "template_hash",
        "stage_version",
    ):
        assert config[name] is not None
    assert config["pre_query_template"].endswith("user<|end_header_id|>\n\n")
    assert row["gen_response_configs"]["output_generator"] == row["model"]


def test_a_missing_column_is_named(make):
    from datasets import Dataset

    from magpie_hf.stages.responses import Responses

    with pytest.raises(DatasetError, match='reads the column "instruction"') as caught:
        Responses().check_columns(Dataset.from_dict({"instructions": ["x"]}))
    assert '"instructions"' in caught.value.hint


TURNS = ["instructions", "responses", {"stage": "turns", "turns": 3}, "lengths"]


def test_conversations_do_not_depend_on_the_order_in_which_they_are_finished(make):
    settings = {"stages": TURNS, "num_rows": 30}
    one = make("a", engine={"window": 1, "unfinished_every": 6}, **settings).to_list()
    assert make("b", engine={"window": 11, "unfinished_every": 6, "reverse": True}, **settings).to_list() == one


@pytest.mark.parametrize("after", [1, 17, 45, 70, 100])
def test_an_interrupted_run_ends_in_the_same_dataset(make, null, tmp_path, after):
    settings = {"stages": TURNS, "num_rows": 30, "engine": {"window": 6, "unfinished_every": 6}}
    whole = make("whole", **settings).to_list()
    null.reset()
    null.die_after = after
    with pytest.raises(KeyboardInterrupt):
        make(**settings)
    null.die_after = None
    assert make(**settings).to_list() == whole
    nothing_twice(tmp_path / "run")


def test_a_run_stopped_by_a_budget_during_conversations_resumes_to_the_same_dataset(make, tmp_path):
    settings = {"stages": TURNS, "num_rows": 30}
    whole = make("whole", engine={"window": 6}, **settings).to_list()
    stops = 0
    for limit in itertools.count(300, 300):
        try:
            dataset = make(engine={"window": 6}, budget={"max_tokens_total": limit}, **settings)
            break
        except BudgetExceeded:
            stops += 1
    assert dataset.to_list() == whole
    assert stops > 5
    nothing_twice(tmp_path / "run")


def test_features_are_those_that_the_stages_declare(make):
    dataset = make(stages=TURNS)
    for name in ("instructions", "responses", "turns", "lengths"):
        declared = Features((Turns(turns=3) if name == "turns" else stage_class(name)()).features())
        assert {column: dataset.features[column] for column in declared} == dict(declared)
    assert dataset.column_names == column_order(dataset.column_names)


def test_a_damaged_journal_is_reported_and_only_its_lost_rows_are_computed_again(make, null, tmp_path, caplog):
    before = make().to_list()
    for file in (tmp_path / "run" / "stages").glob("*/*.arrow"):
        file.unlink()
    (segment,) = (tmp_path / "run" / "stages").glob("responses-*/journal/*.jnl")
    data = bytearray(segment.read_bytes())
    data[len(data) * 3 // 4] ^= 0xFF
    segment.write_bytes(data)
    null.reset()
    with caplog.at_level("INFO", "magpie_hf"):
        assert make().to_list() == before
    assert 0 < len(null.log) < 20
    assert "responses: 1 damaged journal segment" in caplog.text


def test_the_rows_of_a_mapped_dataset_are_still_there_after_the_run(make):
    """The result is a plain dataset: it maps, filters, shuffles, and is written like any other."""
    dataset = make(num_rows=10)
    kept = dataset.filter(lambda row: row["response_length"] > 0).shuffle(seed=0)
    assert len(kept) == 10
    assert kept.map(lambda row: {"n": len(row["messages"])})["n"][:] == [2] * 10


def test_a_run_works_inside_a_running_event_loop(make):
    async def cell():
        return make(num_rows=5)

    assert len(asyncio.run(cell())) == 5


def test_a_recipe_object_takes_overrides_too(null, tiny_model_dir, tmp_path):
    recipe = load_recipe({"model": str(tiny_model_dir), "num_rows": 5, "engine": "null"})
    assert len(magpie_hf.run(recipe, {"num_rows": 7}, output=tmp_path / "run")) == 7


def test_without_output_the_run_is_in_the_cache_named_after_the_request(null, tiny_model_dir):
    from huggingface_hub import constants

    recipe = {"model": str(tiny_model_dir), "num_rows": 5, "engine": "null"}
    magpie_hf.run(recipe)
    null.reset()
    assert len(magpie_hf.run({**recipe, "num_rows": 5})) == 5
    assert null.log == []
    assert len(list((Path(constants.HF_HOME) / "magpie").iterdir())) == 1
    magpie_hf.run({**recipe, "seed": 1})
    assert len(list((Path(constants.HF_HOME) / "magpie").iterdir())) == 2


def test_each_row_says_which_server_made_it(make, null):
    null.served_now = Served(model="served/name", revision="abc")
    row = make(num_rows=3)[0]
    assert (row["gen_input_configs"]["served_model"], row["gen_response_configs"]["served_revision"]) == (
        "served/name",
        "abc",
    )


def test_rejected_texts_are_kept_in_the_journal_with_their_reason(make, tmp_path):
    make(engine={"unfinished_every": 3})
    (directory,) = (tmp_path / "run" / "stages").glob("instructions-*/journal")
    with Journal(directory) as journal:
        index = journal.index()
        rejected = [
            int(at) for at, code in zip(index.locations, index.codes, strict=True) if CODES[code] == "unfinished"
        ]
        assert rejected
        assert all(journal.read(at)["raw"].startswith("What is the meaning") for at in rejected)


def test_a_failed_generation_of_an_instruction_is_replaced_and_counted(make, null, tmp_path):
    null.fail = {3: REFUSED, 9: REFUSED}
    dataset = make(stages=["instructions"])
    assert len(dataset) == 40
    assert None not in dataset["instruction"][:]
    assert run_status(tmp_path / "run").stages[0].by_code["too_long"] == 2


def test_equal_grid_points_are_one_and_make_no_row_twice(make):
    dataset = make(sampling=[{"share": 1}, {"temperature": 1.2}, {"temperature": 1.0, "share": 2}])
    assert len(set(dataset["uuid"])) == len(dataset) == 40
    assert [points(dataset).count(point) for point in (0, 1)] == [30, 10]


def test_a_change_of_settings_and_back_asks_nothing_again(make, null):
    first = make().to_list()
    make(seed=1)
    make(sampling={"temperature": 0.5})
    null.reset()
    assert make().to_list() == first
    assert null.opened == 0


def test_the_same_model_in_another_directory_is_the_same_run(make, null, tiny_model_dir, tmp_path):
    make()
    moved = shutil.copytree(tiny_model_dir, tmp_path / "elsewhere" / tiny_model_dir.name)
    null.reset()
    make(model=str(moved))
    assert null.log == []


def test_a_finished_run_says_from_python_too_what_was_made_and_where_it_is(make, tmp_path, caplog):
    with caplog.at_level("INFO", "magpie_hf"):
        make(engine={"unfinished_every": 3})
    tokens = run_status(tmp_path / "run").totals.tokens
    (summary,) = [record.message for record in caplog.records if "Saved in" in record.message]
    assert summary.startswith(f"40 rows, {tokens:,} tokens, ")
    assert "instructions: rejected unfinished " in summary
    assert summary.endswith(f"Saved in {tmp_path / 'run'}")


def test_many_runs_in_one_process_leave_no_threads_open_files_or_package_indexes(make, tmp_path, monkeypatch):
    def held():
        gc.collect()
        kinds = Counter(type(thing).__qualname__ for thing in gc.get_objects())
        names = (
            "RunDir",
            "Session",
            "Listener",
            "StageStore",
            "Journal",
            "Driver",
            "Dataset",
            "MemoryMappedTable",
            "Lookup",
        )
        files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
        return threading.active_count(), files, {name: kinds[name] for name in names}

    monkeypatch.syspath_prepend(str(tmp_path))  # as in a notebook: the run directories are made beside it
    for number in range(2):
        make(f"first-{number}", num_rows=4)
    before = held()
    for number in range(6):
        make(f"run-{number}", num_rows=4)
    assert held() == before


@pytest.mark.parametrize("lost", [["run.json"], ["run.json", "run.json.bak"]])
def test_a_run_whose_state_is_missing_continues_and_generates_nothing(make, null, tmp_path, lost):
    before = make(num_rows=20).to_list()
    for name in lost:
        (tmp_path / "run" / name).unlink()
    null.reset()
    assert make(num_rows=20).to_list() == before
    assert null.log == []
    assert (tmp_path / "run" / "run.json").is_file()


DATED = (
    "{{ bos_token }}Today is {{ strftime_now('%d %b %Y') }}.{% for m in messages %}<|start_header_id|>{{ m['role'] }}"
    "<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


class Tomorrow(dt.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + dt.timedelta(days=1)


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_run_that_lost_its_state_keeps_the_date_that_it_began_with(
    make, null, tmp_path, monkeypatch, caplog, is_kept
):
    settings = {"num_rows": 10, "template": {"chat_template": DATED}}
    before = make(**settings).to_list()
    (tmp_path / "run" / "run.json").write_text("{")
    (tmp_path / "run" / "run.json.bak").write_text("{")
    if not is_kept:
        (tmp_path / "run" / "pins.json").write_text("{")
    monkeypatch.setattr("magpie_hf.templates.template.dt.datetime", Tomorrow)
    null.reset()
    with caplog.at_level("WARNING", "magpie_hf"):
        after = make(**settings).to_list()
    assert (after == before, null.log == []) == (is_kept, is_kept)
    assert ("generates its rows again" in caplog.text) != is_kept


def rejected(place):
    """Return the rejected samples that a run saved, as (grid point, number, reason, seed)."""
    found = pq.read_table(place / "rejected").to_pylist()
    configs = [row["gen_input_configs"] for row in found]
    assert [row["instruction"] for row in found] == [row["raw_instruction"] for row in found]
    return [
        (config["grid_point"], config["sample_index"], row["rejection_reason"], config["seed"])
        for row, config in zip(found, configs, strict=True)
    ]


def test_rejected_samples_are_saved_with_their_reasons_and_do_not_depend_on_the_order_of_replies(make, tmp_path):
    settings = {"sampling": GRID, "output": {"rejected": True}}
    ds = make("a", engine={"unfinished_every": 3, "window": 1}, **settings)
    found = rejected(tmp_path / "a")
    assert {reason for _, _, reason, _ in found} == {"unfinished"}
    assert all(seed % 3 == 0 for *_, seed in found)
    assert found == sorted(found)
    kept = {(row["grid_point"], row["sample_index"]) for row in ds["gen_input_configs"]}
    both = kept | {(point, number) for point, number, *_ in found}
    for point in (0, 1):
        numbers = sorted(number for at, number in both if at == point)
        assert numbers == list(range(len(numbers))), "every sample up to the last accepted one is in one of the two"
    make("b", engine={"unfinished_every": 3, "window": 50, "reverse": True}, **settings)
    assert rejected(tmp_path / "b") == found


def test_rejected_samples_of_a_run_that_was_killed_and_extended_are_those_of_a_run_at_once(make, null, tmp_path):
    settings = {"sampling": GRID, "engine": {"unfinished_every": 4}, "output": {"rejected": True}}
    null.die_after = 30
    with pytest.raises(KeyboardInterrupt):
        make("run", num_rows=20, **settings)
    null.die_after = None
    make("run", num_rows=20, **settings)
    make("run", num_rows=60, **settings)
    make("once", num_rows=60, **settings)
    assert rejected(tmp_path / "run") == rejected(tmp_path / "once") != []


def test_rejected_samples_of_merged_shards_are_those_of_one_run(make, tmp_path):
    settings = {"engine": {"unfinished_every": 4}, "output": {"rejected": True}, "num_rows": 300}
    for part in (0, 1):
        make(f"part{part}", shard=f"{part}/2", **settings)
    merge_runs([tmp_path / "part0", tmp_path / "part1"], tmp_path / "merged")
    make("merged", **settings)
    make("once", **settings)
    assert rejected(tmp_path / "merged") == rejected(tmp_path / "once") != []


def test_rejected_samples_are_only_saved_if_asked_and_removed_from_the_state_when_no_longer(make, null, tmp_path):
    make("run", engine={"unfinished_every": 3})
    assert not (tmp_path / "run" / "rejected").exists()
    make("run", engine={"unfinished_every": 3}, output={"rejected": True})
    assert rejected(tmp_path / "run")
    assert "rejected" in RunDir.read(tmp_path / "run").state.subsets
    asked = len(null.log)
    make("run", engine={"unfinished_every": 3}, output={"rejected": True})
    assert len(null.log) == asked
    make("run", engine={"unfinished_every": 3})
    assert "rejected" not in RunDir.read(tmp_path / "run").state.subsets


def test_no_sample_is_rejected_where_no_reason_is_listed(make, tmp_path):
    raw = [{"stage": "instructions", "clean": False, "reject": []}]
    ds = make("run", engine={"unfinished_every": 3}, stages=raw, output={"rejected": True})
    assert ds["rejection_reason"][:].count("unfinished") > 5
    assert rejected(tmp_path / "run") == []


def test_annotations_have_no_rejected_samples():
    with pytest.raises(RecipeError, match="only the stage `instructions`"):
        load_recipe({"dataset": "rows.jsonl", "stages": ["lengths"], "output": {"rejected": True}})
