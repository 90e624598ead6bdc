from __future__ import annotations

import pytest
import yaml

from magpie_hf.errors import RecipeError
from magpie_hf.recipe import KEYS, bundled_recipes, load_recipe


GOOD = """\
model: demo
num_rows: 50
sampling:
  - {temperature: 1.0, share: 3}
  - {temperature: 1.2, top_p: 0.99}
stages:
  - instructions
  - stage: responses
    sampling: {temperature: 0, max_tokens: 64}
  - lengths
"""


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_a_recipe_is_read_with_its_grid_and_stages(tmp_path):
    recipe = load_recipe(written(tmp_path, GOOD))
    assert [(p.sampling.temperature, p.sampling.top_p, p.share) for p in recipe.grid] == [
        (1.0, 1.0, 3.0),
        (1.2, 0.99, 1.0),
    ]
    assert [stage.name for stage in recipe.stages] == ["instructions", "responses", "lengths"]
    assert recipe.stages[1].sampling.max_tokens == 64


def test_a_recipe_survives_being_written_and_read(tmp_path):
    recipe = load_recipe(written(tmp_path, GOOD), {"num_rows": 7, "sampling.top_p": 0.5})
    again = load_recipe(yaml.safe_load(recipe.dump()))
    assert (again.grid, again.stages, again.num_rows, again.hash) == (recipe.grid, recipe.stages, 7, recipe.hash)


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("num_rows: 50", "num_row: 50", 2, ["num_row: unknown key", '"num_rows"']),
        ("num_rows: 50", "num_rows: -1", 2, ["num_rows", "1 or more"]),
        ("num_rows: 50", "num_rows: 1.5", 2, ["num_rows", "a whole number"]),
        ("num_rows: 50", "num_rows: true", 2, ["num_rows", "a whole number"]),
        ("num_rows: 50", "num_rows: many", 2, ["num_rows", "'many'"]),
        ("num_rows: 50", "num_rows: 50\nnum_rows: 60", 3, ["num_rows", "given twice, first in line 2"]),
        ("temperature: 1.2", "temperture: 1.2", 5, ["sampling[1].temperture: unknown key", '"temperature"']),
        ("top_p: 0.99", "top_p: 0", 5, ["sampling[1].top_p", "(0, 1]"]),
        ("share: 3", "share: 0", 4, ["sampling[0].share"]),
        ("max_tokens: 64", "max_token: 64", 9, ["stages[1].sampling.max_token: unknown key", '"max_tokens"']),
        ("stage: responses", "stage: response", 8, ["stages[1].stage", '"responses"']),
        ("  - lengths", "  - length", 10, ["stages[2].stage", '"lengths"']),
        ("  - lengths", "  - {stage: lengths, token: 1}", 10, ["stages[2].token: unknown key", '"tokens"']),
        ("  - instructions\n", "", 7, ["stages[0]", 'first stage is "instructions"']),
        ("  - lengths", "  - instructions", 10, ["second time"]),
        ("model: demo", "model: demo\nengine: vlm", 2, ["engine.kind", '"vllm"']),
        ("model: demo", "model: demo\nengine: {kind: tgi}", 2, ["engine.endpoint", "needs an address"]),
        ("model: demo", "model: demo\nengine: {endpoint: 'http://x'}", 2, ["takes no address"]),
        ("model: demo", "model: demo\nengine: {kind: tgi, endpoint: 'localhost'}", 2, ["http://"]),
        ("model: demo", "model: demo\nengine: {batch_sise: 4}", 2, ["engine.batch_sise", '"batch_size"']),
        ("model: demo", "model: demo\norder: fast", 2, ["order", "paper, lean"]),
        ("model: demo", "model: demo\nbudget: {max_cost: 5}", 2, ["price_per_gpu_hour"]),
        ("model: demo", "model: demo\nname: a/b", 2, ["name", "letters"]),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(tmp_path, old, new, line, parts):
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, GOOD.replace(old, new, 1)))
    message = str(caught.value)
    for part in [f"mine.yaml, line {line}:", *parts]:
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model: [demo", "line"),
        ("model:\tdemo\n\tx: 1", "line 1, column 7"),
        ("- demo", "mapping"),
        ("num_rows: 3", "needs a model"),
        ("model: !!python/object/apply:os.system ['true']", "line 1"),
        ("\x00", "mine.yaml"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, part):
    with pytest.raises(RecipeError, match=part):
        load_recipe(written(tmp_path, text))


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("num_rows", 9, lambda r: r.num_rows == 9),
        ("sampling.temperature", 0.5, lambda r: [p.sampling.temperature for p in r.grid] == [0.5, 0.5]),
        ("sampling[1].temperature", 0.5, lambda r: [p.sampling.temperature for p in r.grid] == [1.0, 0.5]),
        ("stages.responses.sampling.max_tokens", 5, lambda r: r.stages[1].sampling.max_tokens == 5),
        ("stages.lengths.tokens", False, lambda r: r.stages[2].tokens is False),
        ("stages.instructions.early_stop_newline", True, lambda r: r.stages[0].early_stop_newline),
        ("engine.kind", "vllm", lambda r: r.engine.kind == "vllm"),
        ("engine.batch_size", 4, lambda r: r.engine.options == {"batch_size": 4}),
        ("template.kwargs.enable_thinking", False, lambda r: r.template["kwargs"] == {"enable_thinking": False}),
        ("budget.max_hours", 2, lambda r: r.budget.max_hours == 2),
    ],
)
def test_a_dotted_key_sets_what_it_names(tmp_path, key, value, found):
    assert found(load_recipe(written(tmp_path, GOOD), {key: value}))


@pytest.mark.parametrize(
    "key", ["sampling.temperture", "nothing", "stages.responses.x", "num_rows.x", "sampling[7].top_p"]
)
def test_a_wrong_override_is_named_as_such(tmp_path, key):
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(written(tmp_path, GOOD), {key: 1})


def test_bundled_recipes_are_valid_and_found_by_name():
    assert "quickstart" in bundled_recipes()
    for name in bundled_recipes():
        assert load_recipe(name).description
    with pytest.raises(RecipeError, match="no recipe") as caught:
        load_recipe("quickstrat")
    assert '"quickstart"' in caught.value.hint


def test_every_key_is_explained():
    assert all(text.endswith(".") for text in KEYS.values())
