from __future__ import annotations

import argparse

import pytest
import yaml

import magpie_hf
from magpie_hf.api.recipes import annotation_recipe, synthesis_recipe
from magpie_hf.api.synthesis import output_path
from magpie_hf.cli.parse import overrides_of
from magpie_hf.engines import ENGINES
from magpie_hf.errors import ArgumentError, RecipeError
from magpie_hf.sampling import GridPoint, SamplingParams
from tests.end_to_end.harness import here
from tests.null_engine import NullEngine


@pytest.fixture(autouse=True)
def null(monkeypatch):
    monkeypatch.setitem(ENGINES, "null", "tests.null_engine:NullEngine")
    NullEngine.reset()


@pytest.mark.parametrize(
    "sampling",
    [
        None,
        {"temperature": 1.0},
        SamplingParams(),
        [{"temperature": 1.0, "share": 1}],
        [SamplingParams()],
        GridPoint(SamplingParams(), 2),
    ],
    ids=["default", "mapping", "params", "list of mappings", "list of params", "grid point"],
)
def test_every_way_to_say_the_same_sampling_makes_the_same_rows(tiny_model_dir, tmp_path, sampling):
    dataset = magpie_hf.synthesize(
        str(tiny_model_dir), num_rows=5, engine="null", sampling=sampling, output=tmp_path / "a"
    )
    other = magpie_hf.synthesize(str(tiny_model_dir), num_rows=5, engine="null", output=tmp_path / "b")
    assert dataset["instruction"] == other["instruction"]


def test_a_recipe_object_takes_overrides_too(tiny_model_dir, tmp_path):
    recipe = magpie_hf.load_recipe({"model": str(tiny_model_dir), "num_rows": 5, "engine": "null"})
    assert len(magpie_hf.run(recipe, output=tmp_path / "a")) == 5
    assert len(magpie_hf.run(recipe, {"num_rows": 3}, output=tmp_path / "b")) == 3


def test_without_an_output_the_run_is_in_the_cache_and_is_found_again(tiny_model_dir):
    call = {"num_rows": 4, "engine": "null", "turns": 2, "response_sampling": {"temperature": 0.5, "max_tokens": 9}}
    first = magpie_hf.synthesize(str(tiny_model_dir), **call)
    asked = len(NullEngine.log)
    again = magpie_hf.synthesize(str(tiny_model_dir), **call)
    assert again.to_list() == first.to_list()
    assert len(NullEngine.log) == asked
    assert first[0]["gen_turns_configs"]["response_temperature"] == 0.5


def test_a_larger_run_shares_the_place_of_the_smaller_and_other_settings_do_not():
    recipe = {"model": "demo", "num_rows": 5}
    place = output_path(magpie_hf.load_recipe(recipe))
    assert output_path(magpie_hf.load_recipe(recipe | {"num_rows": 50})) == place
    assert output_path(magpie_hf.load_recipe(recipe | {"seed": 1})) != place


def test_one_request_by_python_command_line_and_yaml_is_one_run(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    model = str(tiny_model_dir)
    first = magpie_hf.synthesize(model, num_rows=4, engine="null")
    asked = len(NullEngine.log)
    here("synthesize", "--model", model, "--num-rows", 4, "--engine", "null", "--rows", 0)
    spelled_out = {
        "stages": [
            "instructions",
            {"sampling": {"temperature": 0}, "stage": "responses"},
            {"stage": "lengths", "tokens": True},
        ],
        "sampling": [{"top_p": 1, "temperature": 1, "max_tokens": 1024, "share": 2, "system_prompt": None}],
        "seed": 0,
        "order": "paper",
        "revision": None,
        "template": {"kwargs": {}, "date": None},
        "responder": {"model": model},
        "engine": {"kind": "null", "window": 8},
        "num_rows": 4,
        "model": model,
        "description": "Another text.",
    }
    path = tmp_path / "recipe.yaml"
    for changed in ({}, {"description": "Another text, one letter more."}):
        path.write_text(yaml.safe_dump({**spelled_out, **changed}, sort_keys=False))
        here("run", path, "--rows", 0)
        assert magpie_hf.run(path)["instruction"] == first["instruction"]
    assert len(NullEngine.log) == asked
    assert [place.name for place in (tmp_path / "magpie").iterdir()] == [output_path(synthesis_recipe(model)).name]


def test_one_annotation_by_python_command_line_and_yaml_is_one_run(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Why?", "response": "So."}\n')
    recipe = {"stages": [{"tokenizer": str(tiny_model_dir), "stage": "lengths"}, "flags"], "dataset": str(rows)}
    magpie_hf.annotate(rows, ["lengths", "flags"], tokenizer=str(tiny_model_dir))
    magpie_hf.run(recipe)
    here("annotate", rows, "lengths,flags", "--tokenizer", tiny_model_dir)
    assert len(list((tmp_path / "magpie").iterdir())) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"model": "x/y"},
        {"revision": "v2"},
        {"system_prompt": "Be curious."},
        {"template": {"kwargs": {"enable_thinking": False}}},
        {"turns": 2},
        {"sampling": [{"temperature": 1.0}, {"temperature": 0.5}]},
        {"response_sampling": {"temperature": 0.5}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_request_is_another_run(changed):
    assert synthesis_recipe(**{"model": "demo", **changed}).hash != synthesis_recipe("demo").hash


def test_rows_can_be_turned_into_arrow_on_disk(tiny_model_dir, tmp_path):
    from datasets import load_from_disk

    dataset = magpie_hf.run(
        {"model": str(tiny_model_dir), "num_rows": 4, "engine": "null", "output": {"format": "arrow"}}, output=tmp_path
    )
    assert load_from_disk(str(tmp_path / "dataset")).to_list() == dataset.to_list()


def test_without_a_model_the_demo_is_named_and_not_run():
    with pytest.raises(ArgumentError, match="No model is given") as caught:
        magpie_hf.synthesize(num_rows=3)
    assert '"demo"' in caught.value.hint


@pytest.mark.parametrize("name", ["temperature", "top_p", "max_tokens"])
def test_a_sampling_setting_among_the_engines_is_told_where_it_goes(name):
    with pytest.raises(RecipeError, match="not an engine setting") as caught:
        magpie_hf.synthesize("demo", **{name: 0.5})
    assert f"sampling={{'{name}': …}}" in caught.value.hint
    assert f"stages.responses.sampling.{name}" in caught.value.hint


ROW = [{"instruction": "Why?", "response": "So."}]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda to: magpie_hf.select(ROW, "", quotas="abc"), "quotas = 'abc'"),
        (
            lambda to: magpie_hf.select(ROW, "", quotas={"difficulty": {"easy": "all"}}),
            "quotas of 'difficulty': not all",
        ),
        (lambda to: magpie_hf.select(ROW, "", longest="5"), "longest = '5'"),
        (lambda to: magpie_hf.select(ROW, "", sample="5"), "sample = '5'"),
        (lambda to: magpie_hf.select(ROW, "", shuffle="5"), "shuffle = '5'"),
        (lambda to: magpie_hf.select(ROW, 5), "Invalid selection '5'"),
        (lambda to: magpie_hf.report(ROW, to, compare="x"), "compare = 'x'"),
        (lambda to: magpie_hf.annotate(ROW, "quality", engine=5, output=to), "engine = '5'"),
        (lambda to: magpie_hf.annotate(ROW, "safety", guard=["a"], output=to), "guard = "),
        (lambda to: magpie_hf.annotate(ROW, 5, output=to), "'5' is not a list of annotations"),
        (lambda to: magpie_hf.synthesize("demo", num_row=5, output=to), "synthesize has no argument 'num_row'"),
        (lambda to: magpie_hf.annotate(ROW, "quality", judgemode="combined"), "annotate has no argument 'judgemode'"),
        (lambda to: magpie_hf.synthesize("demo", engine={"kind": "vllm"}, output=to), "is not the name of an engine"),
        (lambda to: magpie_hf.synthesize("demo", sampling="hot", output=to), "'hot' is not a sampling setting"),
        (lambda to: magpie_hf.synthesize("demo", sampling=[5], output=to), "'5' is not a sampling setting"),
        (
            lambda to: magpie_hf.synthesize("demo", response_sampling="hot", output=to),
            "'hot' is not a sampling setting",
        ),
    ],
)
def test_an_argument_of_another_type_is_named_with_its_value(tmp_path, call, words):
    with pytest.raises(ArgumentError) as caught:
        call(tmp_path / "out")
    assert words in caught.value.message
    assert caught.value.hint


def test_a_text_with_a_colon_is_a_text_for_set():
    options = argparse.Namespace(set=["system_prompt=Topic: math", "sampling={temperature: 0.5}", "num_rows=3"])
    assert overrides_of(options) == {
        "system_prompt": "Topic: math", "sampling": {"temperature": 0.5}, "num_rows": 3
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"engine": "Qwen/Qwen2.5-7B-Instruct"}, 'judge="…" (--judge)'),
        ({"engine": {"model": "demo", "kind": "tgi"}}, 'judge={"model": …, "engine": {"kind": "vllm"}}'),
        ({"judge": "combined"}, 'judge_mode="combined" (--judge-mode combined)'),
        ({"model": "demo"}, "judge=… (--judge), and the model whose tokenizer counts tokens as tokenizer=…"),
        (
            {"judge": "demo", "guard": {"model": "demo", "kind": "vllm"}},
            'guard={"model": …, "engine": {"kind": "vllm"',
        ),
        ({"judge": "demo", "tokenizer": "demo"}, 'Add "lengths" to the annotations'),
    ],
    ids=[
        "a model as engine",
        "a mapping as engine",
        "a mode as judge",
        "a judge as model",
        "flat engine",
        "no lengths",
    ],
)
def test_an_old_spelling_of_annotate_is_an_error_that_names_the_new_one(arguments, words):
    with pytest.raises(ArgumentError) as caught:
        magpie_hf.annotate(ROW, ["quality"], **arguments)
    assert words in caught.value.hint


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "demo"], "--judge"),
        (["--judge", "combined"], "--judge-mode combined"),
        (["--engine", "demo-model"], "--judge"),
    ],
)
def test_an_old_flag_of_annotate_names_the_new_one(tmp_path, flags, words):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Why?", "response": "So."}\n')
    assert words in here("annotate", rows, "quality", *flags, code=1)


def test_words_of_annotate_mean_what_they_mean_in_synthesize():
    recipe, rows = annotation_recipe(
        ROW,
        ["quality", "safety", "lengths"],
        judge="me/judge",
        engine="tgi",
        endpoint="http://127.0.0.1:9",
        engine_options={"concurrency": 3},
        tokenizer="me/counts",
    )
    judge, guard = recipe.role("judge"), recipe.role("guard")
    assert (judge.model, judge.engine.kind, judge.engine.endpoints) == ("me/judge", "tgi", ("http://127.0.0.1:9",))
    assert judge.engine.options == {"concurrency": 3}
    assert (guard.engine.kind, recipe.model, len(rows)) == ("transformers", "", 1)
    assert recipe.stages[-1].models("") == {"tokenizer": ("me/counts", None, "model")}


def test_one_endpoint_serves_one_model():
    with pytest.raises(RecipeError, match=r"guard\.engine: this model needs its own engine"):
        annotation_recipe(
            ROW, ["quality", "safety"], judge="me/judge", guard="me/guard", engine="tgi", endpoint="http://127.0.0.1:9"
        )


def test_the_default_engine_of_an_annotation_is_used_by_all_its_roles():
    recipe, _ = annotation_recipe(ROW, ["quality", "safety"], judge="me/judge", engine="vllm")
    assert {recipe.role(name).engine.kind for name in ("judge", "guard")} == {"vllm"}


FLAGS = [
    {"instruction": "a", "flags": {"refusal": True}, "air": 1},
    {"instruction": "b", "flags": {"refusal": False}, "air": 2},
]


@pytest.mark.parametrize("text", ["flags.refusal", "not (air > 1)"])
def test_a_text_is_an_expression_unless_it_is_the_name_of_a_selection(text):
    assert magpie_hf.select(FLAGS, text)["instruction"] == ["a"]


def test_a_column_alone_is_an_expression_too():
    rows = [{"instruction": "a", "kept": True}, {"instruction": "b", "kept": False}]
    assert magpie_hf.select(rows, "kept")["instruction"] == ["a"]


@pytest.mark.parametrize("name", ["air-filtr", "pro-300k-crad", "airfilter"])
def test_a_misspelled_selection_is_named_with_the_one_meant(name):
    with pytest.raises(ArgumentError) as caught:
        magpie_hf.select(FLAGS, name)
    assert "selection" in caught.value.message
    assert "Did you mean" in caught.value.hint
