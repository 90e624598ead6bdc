"""A judge, a guard and a responder behind a chat API: the texts of the local engine, refusals as reasons, kill and resume."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

import magpie_hf
from magpie_hf.errors import BudgetExceeded, MagpieError, RecipeError
from tests.end_to_end.harness import RESPONSES, TEXTS, finish, here, kill_when, nothing_twice, num_records, rows, start
from tests.servers.completions_server import CompletionsServer
from tests.servers.faults import Fault


LABELS = ("input_quality", "difficulty", "task_category", "intent")


@pytest.fixture(scope="module")
def server(demo_model_dir, demo_generator):
    with CompletionsServer(demo_model_dir, generator=demo_generator, model_id="demo", chat_only=True) as running:
        yield running


@pytest.fixture
def data():
    return Dataset.from_dict({"instruction": TEXTS, "response": RESPONSES})


@pytest.fixture(autouse=True)
def no_faults(server):
    yield
    server.configure(faults=())


def annotate(data, annotations, server, **more):
    return magpie_hf.annotate(data, annotations, engine="chat", endpoint=f"{server.url}/v1", **more)


def test_a_judge_and_a_guard_behind_a_chat_api_give_the_labels_of_the_local_ones(server, data, tmp_path):
    names = ["quality", "difficulty", "category", "safety"]
    found = annotate(data, names, server, judge="demo", guard="demo", output=tmp_path / "chat")
    local = magpie_hf.annotate(data, names, judge="demo", output=tmp_path / "local")
    for column in (*LABELS, "safety"):
        assert found[column][:] == local[column][:], column
    assert found["quality_error"][:] == [None] * len(TEXTS)
    nothing_twice(tmp_path / "chat")


def test_a_responder_behind_a_chat_api_gives_the_responses_of_the_local_one(server, data, tmp_path):
    stages = [{"stage": "responses", "system_prompt": "Be short.", "sampling": {"temperature": 0, "max_tokens": 40}}]
    data.select_columns("instruction").to_parquet(tmp_path / "rows.parquet")
    recipe = {"model": "demo", "stages": stages, "dataset": str(tmp_path / "rows.parquet")}
    chat = {"responder": {"model": "demo", "engine": {"kind": "chat", "endpoint": server.url}}}
    found = magpie_hf.run(recipe | chat, output=tmp_path / "chat")
    local = magpie_hf.run(recipe, output=tmp_path / "local")
    assert found["response"][:] == local["response"][:]
    assert found["messages"][:] == local["messages"][:]
    configs = found[0]["gen_response_configs"]
    assert (configs["output_generator"], configs["served_model"], configs["template_hash"]) == ("demo", "demo", None)


def test_preference_responses_come_from_a_chat_api_under_their_seeds(server, data, tmp_path):
    stage = {"stage": "preference_responses", "num_samples": 3, "sampling": {"temperature": 1.0, "max_tokens": 20}}
    made = [annotate(data, [stage], server, model="demo", output=tmp_path / str(i)) for i in (1, 2)]
    assert made[0]["responses"][:] == made[1]["responses"][:]
    assert any(len({*texts}) > 1 for texts in made[0]["responses"])


def test_withheld_texts_are_reasons_of_their_rows_and_are_not_asked_for_again(server, data, tmp_path):
    path = tmp_path / "rows.parquet"
    data.to_parquet(path)
    # Numbers count from the first request: eight are those that detect what the server supports.
    server.record.reset()
    server.configure(faults=[Fault("filtered", at=(9,)), Fault("refused", at=(10,))])
    found = annotate(str(path), ["quality"], server, judge="demo", concurrency=1, output=tmp_path / "run")
    assert sorted(filter(None, found["quality_error"])) == ["content_filter", "refusal"]
    assert sum(label is None for label in found["input_quality"]) == 2
    posts = len(server.record.entries)
    again = annotate(str(path), ["quality"], server, judge="demo", concurrency=1, output=tmp_path / "run")
    assert again["quality_error"][:] == found["quality_error"][:]
    assert len(server.record.entries) == posts
    printed = here("status", tmp_path / "run")
    assert "content_filter" in printed
    assert "refusal" in printed
    server.configure(faults=())
    here("retry", tmp_path / "run", "--errors", "content_filter", "--errors", "refusal")
    assert [row["quality_error"] for row in rows(tmp_path / "run")] == [None] * len(TEXTS)


def test_overload_and_broken_connections_cost_no_row(server, data, tmp_path):
    whole = annotate(data, ["quality"], server, judge="demo", output=tmp_path / "whole")
    faults = [Fault("overloaded", every=3, retry_after=0), Fault("reset", at=(11,)), Fault("null", at=(13,))]
    server.record.reset()
    server.configure(faults=faults)
    hurt = annotate(data, ["quality"], server, judge="demo", backoff_s=(0.01, 0.05), output=tmp_path / "hurt")
    assert hurt["input_quality"][:] == whole["input_quality"][:]


def test_tokens_are_counted_from_usage_and_a_budget_stops_the_run(server, data, tmp_path):
    stage = {"stage": "quality", "sampling": {"max_tokens": 100}}
    run = {"judge": "demo", "concurrency": 1, "output": tmp_path / "run"}
    with pytest.raises(BudgetExceeded):
        annotate(data, [stage], server, **run, budget={"max_tokens_total": 1200})
    some = num_records(tmp_path / "run")
    assert 0 < some < len(TEXTS)
    assert len(annotate(data, [stage], server, **run, budget={"max_tokens_total": 100_000})) == len(TEXTS)
    nothing_twice(tmp_path / "run")


@pytest.mark.slow
def test_a_run_with_a_chat_judge_is_killed_and_resumed_without_judging_a_row_twice(server, tmp_path):
    texts = [f"What is {a} + {b}?" for a in range(2, 8) for b in range(3, 7)]
    Dataset.from_dict({"instruction": texts}).to_parquet(tmp_path / "rows.parquet")
    command = ("annotate", tmp_path / "rows.parquet", "quality", "--judge", "demo", "--engine", "chat")
    command += ("--endpoint", server.url, "--output")
    run = start(*command, tmp_path / "run")
    assert kill_when(run, lambda: num_records(tmp_path / "run") >= 9)
    assert 9 <= num_records(tmp_path / "run") < len(texts)
    finish(start(*command, tmp_path / "run"))
    here(*command, tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    nothing_twice(tmp_path / "run")


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "chat-apis.md"
EXAMPLES = dict(re.findall(r"```yaml runnable (\S+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_recipes_of_the_page_run_with_the_demo_model_behind_the_api(name, server, data, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-real-key")
    data.to_parquet(tmp_path / "rows.parquet")
    text = re.sub(r"https?://[\w.:]+", server.url, EXAMPLES[name]).replace("data/mine", str(tmp_path / "rows.parquet"))
    recipe = yaml.safe_load(re.sub(r"(?m)^( *model:) .*$", r"\1 demo", text))
    if "engine" in recipe:
        recipe |= {"engine": "transformers", "num_rows": 6}
    for entry in recipe["stages"]:
        if isinstance(entry, dict):
            entry["sampling"]["max_tokens"] = 200
    bodies, read = [], server.chat.read
    monkeypatch.setattr(server.chat, "read", lambda given: bodies.append(given) or read(given))
    found = magpie_hf.run(recipe, output=tmp_path / "run")
    column = "input_quality" if "judge" in recipe else "response"
    assert any(value is not None for value in found[column])
    role = recipe.get("judge") or recipe["responder"]
    assert all(bodies[-1][field] == value for field, value in role["engine"]["extra_body"].items())
    assert not {*role["engine"].get("omit", [])} & bodies[-1].keys()


def test_parameters_that_were_not_sent_are_null_in_the_provenance_of_a_row(server, data, tmp_path):
    recipe = {
        "dataset": str(tmp_path / "rows.parquet"),
        "responder": {
            "model": "demo",
            "engine": {"kind": "chat", "endpoint": server.url, "omit": ["temperature", "seed"]},
        },
        "stages": [{"stage": "responses", "sampling": {"temperature": 0.8, "top_p": 0.9, "max_tokens": 30}}],
    }
    data.to_parquet(recipe["dataset"])
    for row in magpie_hf.run(recipe, output=tmp_path / "run")["gen_response_configs"]:
        assert (row["temperature"], row["seed"], row["top_p"], row["max_tokens"]) == (None, None, 0.9, 30)


# What a chat API cannot do


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"engine": {"kind": "chat"}, "stages": ["instructions"]}, r'engine.kind: the stage "instructions" needs raw prompts'),
        ({"engine": {"kind": "chat"}, "dataset": "x", "stages": ["turns"]}, r'the stage "turns" needs raw prompts'),
        (
            {"dataset": "x", "stages": ["base_responses"], "base": {"model": "m", "engine": {"kind": "chat"}}},
            r'base.engine.kind: the stage "base_responses" needs raw prompts',
        ),
        (
            {
                "dataset": "x",
                "stages": ["quality"],
                "judge": {"model": "m", "engine": {"kind": "chat"}, "template": {"kwargs": {"enable_thinking": False}}},
            },
            r"judge.template: the engine \"chat\" uses the chat template of the server",
        ),
    ],
    ids=["generator", "turns", "base", "template"],
)  # fmt: skip
def test_roles_that_need_raw_prompts_are_refused_when_the_recipe_is_read(recipe, message):
    for section in (recipe, *recipe.values()):
        if isinstance(section, dict) and isinstance(section.get("engine"), dict):
            section["engine"]["endpoint"] = "http://127.0.0.1:1"
    with pytest.raises(RecipeError, match=message) as caught:
        magpie_hf.load_recipe({"model": "demo", **recipe})
    assert "transformers, vllm, tgi or openai" in caught.value.hint or "chat_template_kwargs" in caught.value.hint


def test_the_command_line_refuses_a_generator_behind_a_chat_api_before_anything_runs(server, tmp_path):
    before = len(server.record.entries)
    arguments = ("--engine", "chat", "--endpoint", server.url, "--model", "demo", "--output", tmp_path / "run")
    printed = here("synthesize", *arguments, code=None)
    assert "a chat API applies the chat template to every prompt" in printed
    assert len(server.record.entries) == before
    assert not (tmp_path / "run").exists()


def test_lengths_beside_a_chat_api_counts_characters(server, data, tmp_path):
    stage = {"stage": "preference_responses", "num_samples": 2, "sampling": {"temperature": 1.0, "max_tokens": 5}}
    found = annotate(data, [stage, "lengths"], server, model="demo", output=tmp_path / "run")
    assert found["instruction_length"][:] == [len(text) for text in TEXTS]
    assert "instruction_tokens" not in found.column_names


def test_a_rubric_with_a_prefill_is_refused_before_anything_is_sent(server, data, tmp_path):
    rubric = {
        "name": "short",
        "task": "Rate it.",
        "prefill": "{",
        "schema": {"type": "object", "properties": {"a": {"type": "string"}}},
    }
    before = len(server.record.entries)
    with pytest.raises(MagpieError, match="cannot continue the beginning of a reply"):
        annotate(data, [{"stage": "rubric", "rubric": rubric}], server, judge="demo", output=tmp_path / "run")
    assert len(server.record.entries) == before


def test_a_run_with_a_chat_judge_is_explained_and_its_card_names_the_judge_and_no_address(server, data, tmp_path):
    data.to_parquet(tmp_path / "rows.parquet")
    judge = {"model": "gpt-99", "engine": {"kind": "chat", "endpoint": server.url, "served_model_name": "demo"}}
    recipe = {"dataset": str(tmp_path / "rows.parquet"), "judge": judge, "stages": ["quality"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    magpie_hf.run(tmp_path / "mine.yaml", output=tmp_path / "run")
    assert "from the cache" in here("explain", tmp_path / "run")
    card = magpie_hf.write_card(tmp_path / "run", tmp_path / "card.md", license="mit").read_text("utf-8")
    assert "gpt-99" in card
    assert str(server.port) not in card


def test_a_model_that_is_not_on_the_hub_can_judge(server, data, tmp_path):
    found = annotate(data, ["quality"], server, judge="gpt-99", served_model_name="demo", output=tmp_path / "run")
    assert found["quality_generator"][0] == "gpt-99"


def test_a_missing_key_is_an_error_before_anything_runs(server, data, tmp_path):
    with pytest.raises(MagpieError, match="'NO_SUCH_KEY', named by api_key_env, is not set"):
        annotate(data, ["quality"], server, judge="demo", api_key_env="NO_SUCH_KEY", output=tmp_path / "run")
