"""What a run lacks is said before its first row, and the error names the stage."""

from __future__ import annotations

import builtins
import json

import pytest
from datasets import Dataset

import magpie_hf
from magpie_hf.engines import ENGINES
from magpie_hf.errors import ArgumentError, DatasetError, DependencyError, MagpieError, RecipeError
from magpie_hf.recipe.schema import load_recipe
from tests.null_engine import NullEngine
from tests.scripted_engine import ScriptedEngine


GOOD = json.dumps({"explanation": "Clear.", "input_quality": "good"})


@pytest.fixture
def judge(monkeypatch, tiny_model_dir):
    monkeypatch.setitem(ENGINES, "scripted", "tests.scripted_engine:ScriptedEngine")
    ScriptedEngine.reset()
    ScriptedEngine.answer = staticmethod(lambda request, number: GOOD)
    return {"model": str(tiny_model_dir), "engine": "scripted"}


@pytest.fixture
def null(monkeypatch):
    monkeypatch.setitem(ENGINES, "null", "tests.null_engine:NullEngine")
    NullEngine.reset()
    return NullEngine


PAIRS = Dataset.from_dict({"instruction": ["What is 2+2?", "Why?"], "response": ["4", None]})


def test_lengths_without_a_tokenizer_are_characters_whoever_judges(judge, tmp_path):
    ds = magpie_hf.annotate(PAIRS, ["quality", "lengths"], judge=judge, output=tmp_path / "run")
    assert ds["instruction_length"][:] == [12, 4]
    assert ds["response_length"][:] == [1, None]
    assert "instruction_tokens" not in ds.column_names
    alone = magpie_hf.annotate(PAIRS, [{"stage": "lengths"}], output=tmp_path / "alone")
    assert alone["instruction_length"][:] == [12, 4]


def test_lengths_with_a_tokenizer_count_its_tokens_too(tiny_model_dir, tmp_path):
    ds = magpie_hf.annotate(PAIRS, ["lengths"], tokenizer=str(tiny_model_dir), output=tmp_path / "run")
    assert ds["instruction_tokens"][0] > 0


def test_tokens_that_nothing_can_count_are_an_error_of_the_recipe():
    with pytest.raises(RecipeError, match=r"stages\[0\]: Counting tokens requires the tokenizer of a model"):
        load_recipe({"dataset": "rows.jsonl", "stages": [{"stage": "lengths", "tokens": True}]})


def test_a_last_stage_without_its_package_is_refused_before_anything_is_asked(judge, monkeypatch, tmp_path):
    real = builtins.__import__

    def without_lingua(name, *args, **kwargs):
        if name == "lingua":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_lingua)
    with pytest.raises(DependencyError, match=r'stage "language": .*lingua'):
        magpie_hf.annotate(PAIRS, ["quality", "language"], judge=judge, output=tmp_path / "run")
    assert ScriptedEngine.asked == []


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"stage": "reward", "model": "./nowhere"}, 'stage "reward": Model directory'),
        (
            {"stage": "reward", "model": "demo", "endpoint": "http://127.0.0.1:9", "api_key_env": "NO_SUCH_KEY"},
            "NO_SUCH_KEY",
        ),
        ({"stage": "neighbors", "model": "./nowhere"}, 'stage "neighbors": Model directory'),
        ({"stage": "decontamination", "model": "demo"}, 'stage "decontamination": .*needs at least one benchmark'),
        ({"stage": "novelty", "model": "demo", "against": ["no/such.jsonl"]}, 'stage "novelty": .*cannot be loaded'),
    ],
    ids=["reward model", "key", "embedder", "benchmark", "other dataset"],
)
def test_what_a_last_stage_lacks_is_said_before_anything_is_asked(judge, tmp_path, stage, words):
    with pytest.raises(MagpieError, match=words):
        magpie_hf.annotate(PAIRS, ["quality", stage], judge=judge, output=tmp_path / "run")
    assert ScriptedEngine.asked == []


def test_a_synthesis_is_checked_to_its_last_stage_too(null, tiny_model_dir, tmp_path):
    stages = ["instructions", "responses", {"stage": "reward", "model": "./nowhere"}]
    recipe = {"model": str(tiny_model_dir), "num_rows": 3, "engine": "null", "stages": stages}
    with pytest.raises(MagpieError, match='stage "reward"'):
        magpie_hf.run(recipe, output=tmp_path / "run")
    assert null.log == []


def test_a_judge_without_a_chat_template_is_refused_before_any_instruction(null, tiny_model_dir, tmp_path):
    recipe = {
        "model": str(tiny_model_dir),
        "num_rows": 3,
        "engine": "null",
        "judge": {"model": str(tiny_model_dir), "engine": "null", "template": {"chat_template": "{{ oops("}},
        "stages": ["instructions", "responses", "quality"],
    }
    with pytest.raises(MagpieError, match='stage "quality"'):
        magpie_hf.run(recipe, output=tmp_path / "run")
    assert null.log == []


def test_missing_columns_are_named_all_at_once_with_who_reads_them(judge, tmp_path):
    stages = ["quality", "safety", {"stage": "select", "where": "reward > 0 and min_neighbor_distance > 0"}]
    with pytest.raises(DatasetError) as caught:
        magpie_hf.annotate(PAIRS.remove_columns("response"), stages, judge=judge, guard=judge, output=tmp_path / "run")
    text = str(caught.value)
    for part in ('"response" (read by the stage "safety")', '"instruct_reward"', '"min_neighbor_distance"'):
        assert part in text
    assert 'annotate(ds, ["reward", "neighbors"])' in text
    assert ScriptedEngine.asked == []


def test_a_recipe_names_the_line_of_the_stage_that_lacks_columns(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: demo\nstages:\n- instructions\n- reward_difference\n- select:\n")
    with pytest.raises(RecipeError):
        load_recipe(path)
    path.write_text(
        "model: demo\nstages:\n- instructions\n- responses\n- reward_difference\n- {stage: select, where: qualty > 1}\n"
    )
    with pytest.raises(RecipeError, match=r"line 6: stages\[3\]: .*qualty"):
        load_recipe(path)


def test_a_finished_stage_is_not_checked_again(tmp_path, monkeypatch):
    made = magpie_hf.annotate(PAIRS, ["language"], output=tmp_path / "run")
    monkeypatch.setattr(
        "magpie_hf.stages.language.known_languages", lambda codes: pytest.fail("the rows are in the cache")
    )
    assert magpie_hf.annotate(PAIRS, ["language"], output=tmp_path / "run").to_list() == made.to_list()


def test_a_finished_stage_is_checked_again_where_there_are_more_rows(judge, tmp_path):
    bench = tmp_path / "bench.jsonl"
    bench.write_text('{"prompt": "How far is the moon from here on a clear night?"}\n')
    stages = ["quality", {"stage": "decontamination", "benchmarks": [str(bench)], "model": "demo"}]
    magpie_hf.annotate(PAIRS.select([0]), stages, judge=judge, output=tmp_path / "run")
    bench.unlink()
    asked = len(ScriptedEngine.asked)
    with pytest.raises(MagpieError, match=r"decontamination.*bench"):
        magpie_hf.annotate(PAIRS, stages, judge=judge, output=tmp_path / "run")
    assert len(ScriptedEngine.asked) == asked


def test_a_key_that_is_not_set_is_said_of_the_judge_before_the_generator_is_asked(null, tiny_model_dir, tmp_path):
    judge = {"kind": "openai", "endpoint": "http://127.0.0.1:9", "api_key_env": "NO_SUCH_KEY"}
    recipe = {
        "model": str(tiny_model_dir),
        "num_rows": 3,
        "engine": "null",
        "judge": {"model": str(tiny_model_dir), "engine": judge},
        "stages": ["instructions", "responses", "quality"],
    }
    with pytest.raises(ArgumentError, match=r'stage "quality": .*NO_SUCH_KEY'):
        magpie_hf.run(recipe, output=tmp_path / "run")
    assert null.log == []
