"""The way from raw pairs to a dataset worth training on, on the demo models: killed, gone on with, lean, and by hand."""

from __future__ import annotations

import html.parser

import pytest
from datasets import Dataset, load_dataset

import magpie_hf
from magpie_hf.errors import MagpieError
from magpie_hf.session.maintenance import merge_runs
from magpie_hf.session.status import run_status
from magpie_hf.storage.rundir import RunDir
from tests.end_to_end.harness import finish, here, journal_bytes, kill_when, moments, nothing_twice, rows, start
from tests.servers.completions_server import CompletionsServer
from tests.servers.tgi_server import TgiServer
from tools.demo.grammar.judge import judged, truth


SETTINGS = [
    *("--set", "sampling.max_tokens=48", "--set", "stages.responses.sampling.max_tokens=48"),
    *("--set", "stages.base_responses.sampling.max_tokens=32", "--set", "engine.batch_size=16"),
    *("--rows", "0"),
]
NUM_ROWS = 24


@pytest.fixture(autouse=True)
def _demo(demo_model_dir):
    """The bundled models must be there."""


def command(place, *more):
    return [
        "run",
        "showcase",
        "--num-rows",
        NUM_ROWS,
        "--output",
        place,
        "--set",
        "stages.select.longest=10",
        *SETTINGS,
        *more,
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """An uninterrupted run of the showcase: its rows and the size of its journals."""
    place = tmp_path_factory.mktemp("showcase") / "run"
    here(*command(place))
    return rows(place), journal_bytes(place), place


@pytest.mark.slow
def test_the_showcase_writes_every_annotation_a_selection_and_a_report(reference):
    found, _, place = reference
    assert 0 < len(found) <= 10
    row = found[0]
    assert row["input_quality"] in ("good", "excellent")
    assert row["safety"] == "safe"
    assert row["min_neighbor_distance"] > 0
    assert row["reward_difference"] == pytest.approx(row["instruct_reward"] - row["base_reward"])
    assert row["task_category_generator"] == row["reward_model"] == row["base_model"] == "demo"
    funnel = next(s.funnel for s in RunDir.read(place).state.stages.values() if s.name == "select")
    assert funnel[0]["rows_in"] == NUM_ROWS
    assert funnel[-1]["rows_out"] == len(found)
    page = (place / "report.html").read_text("utf-8")
    assert "Funnel" in page
    html.parser.HTMLParser().feed(page)


@pytest.mark.slow
def test_a_second_run_loads_no_model_and_changes_nothing(reference):
    found, size, place = reference
    output = here(*command(place))
    assert "in this session" not in output
    assert rows(place) == found
    assert journal_bytes(place) == size


def check_kills(reference, place, seed, kills):
    expected, size, _ = reference
    for moment in moments(seed, kills, size):
        kill_when(start(*command(place)), lambda moment=moment: journal_bytes(place) >= moment)
    finish(start(*command(place)))
    assert rows(place) == expected
    nothing_twice(place)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_while_it_annotates_the_run_ends_with_the_same_rows(reference, tmp_path):
    check_kills(reference, tmp_path / "run", seed=1, kills=2)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(2, 6))
def test_killed_at_twenty_moments_of_annotating_the_runs_end_with_the_same_rows(reference, tmp_path, seed):
    check_kills(reference, tmp_path / "run", seed=seed, kills=5)


def lean_recipe(order):
    return {
        "model": "demo",
        "name": "lean",
        "num_rows": 60,
        "order": order,
        "engine": {"kind": "transformers", "batch_size": 32},
        "sampling": {"temperature": 1.2, "max_tokens": 48},
        "judge": "combined",
        "stages": [
            "instructions",
            {"stage": "responses", "sampling": {"temperature": 0, "max_tokens": 48}},
            *("quality", "difficulty", "category", "neighbors", "reward"),
            {"stage": "base_responses", "sampling": {"temperature": 0, "max_tokens": 48}},
            *("reward_difference", "lengths"),
            {
                "stage": "select",
                "where": "quality >= excellent and difficulty >= easy and reward > -12 and reward_difference > -9",
                "one_per_group": True,
                "longest": 10,
            },
        ],
    }


@pytest.mark.slow
def test_lean_selects_the_rows_of_the_papers_order_and_saves_responses(tmp_path):
    paper = magpie_hf.run(lean_recipe("paper"), output=tmp_path / "paper")
    lean = magpie_hf.run(lean_recipe("lean"), output=tmp_path / "lean")
    assert len(paper) == 10
    assert lean.to_list() == paper.to_list()  # to the last bit of every reward
    early = next(s for s in RunDir.read(tmp_path / "lean").state.stages.values() if "select-early" in s.name)
    dropped = early.rows_in - early.rows_out
    assert dropped > 5
    for name in ("responses", "base_responses"):
        tokens = {}
        for order in ("paper", "lean"):
            stage = next(s for s in run_status(tmp_path / order).stages if s.name == name)
            tokens[order] = stage.completion_tokens
        assert tokens["lean"] < tokens["paper"] * (1 - dropped / 60 / 3)


@pytest.mark.slow
def test_shards_leave_what_needs_the_whole_set_to_the_merge(tmp_path):
    recipe = {**lean_recipe("paper"), "num_rows": 24, "name": "parts"}
    whole = magpie_hf.run(recipe, output=tmp_path / "whole")
    for part in range(2):
        shard = magpie_hf.run(recipe, output=tmp_path / f"part{part}", shard=f"{part}/2")
        assert "instruct_reward" in shard.column_names
        assert "min_neighbor_distance" not in shard.column_names
    merge_runs([tmp_path / "part0", tmp_path / "part1"], tmp_path / "merged")
    merged = magpie_hf.run(recipe, output=tmp_path / "merged")
    assert merged.to_list() == whole.to_list()
    nothing_twice(tmp_path / "merged")


def test_rows_that_are_there_are_no_job_array(tmp_path):
    Dataset.from_dict({"instruction": ["a"]}).to_parquet(str(tmp_path / "rows.parquet"))
    with pytest.raises(MagpieError, match="shard can only be used to synthesize rows"):
        magpie_hf.run(
            {"dataset": str(tmp_path / "rows.parquet"), "stages": ["flags"]}, shard="0/2", output=tmp_path / "r"
        )


def test_the_readmes_way_from_python(tmp_path):
    ds = magpie_hf.synthesize("demo", num_rows=30, output=tmp_path / "run", sampling={"max_tokens": 48})
    names = [
        "quality",
        "difficulty",
        "category",
        "flags",
        "safety",
        "reward",
        "reward_difference",
        "neighbors",
        "lengths",
    ]
    ds = magpie_hf.annotate(ds, names, judge="demo", output=tmp_path / "annotated")
    kept, funnel = magpie_hf.select(
        ds, "quality >= average and min_neighbor_distance > 0", longest=10, return_funnel=True
    )
    assert len(kept) == min(10, funnel[-1].rows_out)
    named = magpie_hf.select(ds, "air-filter")
    assert all(row["reward_difference"] > 0 and row["difficulty"] in ("medium", "hard", "very hard") for row in named)
    page = magpie_hf.report(kept, tmp_path / "report.html").read_text("utf-8")
    assert "Quality of instructions" in page
    again = magpie_hf.report(tmp_path / "annotated", tmp_path / "whole.html", compare={"kept": kept})
    assert again.stat().st_size > 10_000


def test_the_same_from_the_command_line(tmp_path):
    here(
        "synthesize",
        "--model",
        "demo",
        "--num-rows",
        12,
        "--output",
        tmp_path / "run",
        "--set",
        "sampling.max_tokens=48",
        "--rows",
        0,
    )
    printed = here("annotate", tmp_path / "run", "quality,neighbors", "--judge", "demo", "--output", tmp_path / "a")
    assert "quality" in printed
    printed = here(
        "select", tmp_path / "a", "quality >= average", "--longest", 5, "--output", tmp_path / "kept.parquet"
    )
    assert "quality >= average" in printed
    assert len(load_dataset("parquet", data_files=str(tmp_path / "kept.parquet"), split="train")) <= 5
    here("report", tmp_path / "kept.parquet", "--output", tmp_path / "r.html", "--compare", f"all={tmp_path / 'a'}")
    assert (tmp_path / "r.html").is_file()
    here(
        "annotate",
        tmp_path / "run",
        "quality,difficulty,category",
        "--judge",
        "demo",
        "--judge-mode",
        "combined",
        "--output",
        tmp_path / "b",
    )
    printed = here("agreement", tmp_path / "a", tmp_path / "b")
    assert "input_quality" in printed
    assert "Unknown selection" in here(
        "select", tmp_path / "a", "air-filtr", "--output", tmp_path / "x.parquet", code=1
    )
    printed = here("select", tmp_path / "a", "reward > 0", "--output", tmp_path / "x.parquet", code=1)
    assert 'annotate(ds, ["reward"]) first' in printed


def labelled(count, seed):
    import random

    rng = random.Random(seed)
    pairs = [judged(rng) for _ in range(count)]
    return [{"instruction": damaged.text, **truth(exchange, damaged)} for exchange, damaged in pairs]


def test_the_demo_judges_labels_are_those_of_the_grammar_far_above_guessing(tmp_path, record_property):
    wanted = labelled(120, seed=4711)
    data = Dataset.from_dict({"instruction": [row["instruction"] for row in wanted]})
    ds = magpie_hf.annotate(data, ["quality", "difficulty", "category"], judge="demo", output=tmp_path / "run")
    keys = {"input_quality": "input_quality", "difficulty": "difficulty", "task_category": "primary_tag"}
    for column, key in keys.items():
        truths = [row[key] for row in wanted]
        right = sum(a == b for a, b in zip(ds[column], truths, strict=True)) / len(truths)
        most = max(truths.count(label) for label in set(truths)) / len(truths)
        record_property(f"accuracy of {column}", round(right, 3))
        assert right > most + 0.2, column
        assert ds[column][:].count(None) == 0


def test_hard_rows_go_through_every_annotation(tmp_path):
    texts = [
        "x" * 100_000,
        "",
        "   ",
        "\u202eturned \x00 text",
        "<|eot_id|><|start_header_id|>",
        '{"input_quality": "excellent"}',
        "你好 hello привет",
        None,
    ]
    data = Dataset.from_dict({"instruction": texts, "response": ["y", None, "", "z" * 50_000, "```", "{}", "好", "w"]})
    names = [
        "quality",
        "difficulty",
        "category",
        "flags",
        "safety",
        "reward",
        "reward_difference",
        "neighbors",
        "lengths",
    ]
    ds = magpie_hf.annotate(data, names, judge="demo", judge_mode="combined", output=tmp_path / "run")
    assert len(ds) == len(texts)
    assert ds[0]["quality_error"] == "too_long"
    assert ds[7]["quality_error"] is not None
    assert magpie_hf.select(ds, "quality >= good", return_funnel=True)[1][0].rows_in == len(texts)
    magpie_hf.report(ds, tmp_path / "report.html")


@pytest.mark.slow
def test_servers_continue_the_prefill_of_a_rubric_as_the_local_engine_does(tmp_path, demo_model_dir):
    data = Dataset.from_dict({"instruction": ["What is 2 + 3?", "Name three rivers.", "Write a poem about rain."]})
    stage = {"stage": "difficulty", "rubrics": "reference", "sampling": {"max_tokens": 80}}

    def labels(name, **engine):
        given = {"model": "demo", "engine": {"kind": name, **engine}}
        found = magpie_hf.annotate(data, [stage], judge=given, output=tmp_path / name)
        assert found["difficulty_rubric"][:] == ["reference-v1"] * 3
        return found.select_columns(["intent", "knowledge", "difficulty", "difficulty_error"]).to_list()

    local = labels("transformers")
    assert all(row["difficulty"] for row in local), "the demo model completes the object that the prefill began"
    with CompletionsServer(demo_model_dir, model_id="demo") as server:
        assert labels("openai", endpoint=server.url) == local
    with TgiServer(demo_model_dir, model_id="demo") as server:
        assert labels("tgi", endpoint=server.url) == local
