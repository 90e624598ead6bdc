from __future__ import annotations

import argparse

import pytest

import magpie_hf
from magpie_hf.api.synthesis import output_path
from magpie_hf.cli.parse import overrides_of
from magpie_hf.engines import ENGINES
from magpie_hf.errors import ArgumentError, RecipeError
from magpie_hf.sampling import GridPoint, SamplingParams
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


def test_without_an_output_the_run_lies_in_the_cache_and_is_found_again(tiny_model_dir):
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


def test_rows_can_be_turned_into_arrow_on_disk(tiny_model_dir, tmp_path):
    from datasets import load_from_disk

    dataset = magpie_hf.run(
        {"model": str(tiny_model_dir), "num_rows": 4, "engine": "null", "output": {"format": "arrow"}}, output=tmp_path
    )
    assert load_from_disk(str(tmp_path / "dataset")).to_list() == dataset.to_list()


def test_without_a_model_the_demo_is_named_and_not_run():
    with pytest.raises(ArgumentError, match="No model is named") as caught:
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
            "'difficulty' are not all numbers",
        ),
        (lambda to: magpie_hf.select(ROW, "", longest="5"), "longest = '5'"),
        (lambda to: magpie_hf.select(ROW, "", sample="5"), "sample = '5'"),
        (lambda to: magpie_hf.select(ROW, "", shuffle="5"), "shuffle = '5'"),
        (lambda to: magpie_hf.select(ROW, 5), "Invalid selection '5'"),
        (lambda to: magpie_hf.report(ROW, to, compare="x"), "compare = 'x'"),
        (lambda to: magpie_hf.annotate(ROW, "quality", engine=5, output=to), "engine = '5'"),
        (lambda to: magpie_hf.annotate(ROW, "safety", guard=["a"], output=to), "guard = "),
        (lambda to: magpie_hf.annotate(ROW, 5, output=to), "'5' is not a list of annotations"),
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
