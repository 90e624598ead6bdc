from __future__ import annotations

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.errors import RecipeError
from magpie_hf.recipe.schema import KEYS, bundled_recipes, load_recipe


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
        ("num_rows: 50", "num_rows: 50\nnum_rows: 60", 3, ["num_rows", "already set in line 2"]),
        ("temperature: 1.2", "temperture: 1.2", 5, ["sampling[1].temperture: unknown key", '"temperature"']),
        ("top_p: 0.99", "top_p: 0", 5, ["sampling[1].top_p", "(0, 1]"]),
        ("share: 3", "share: 0", 4, ["sampling[0].share"]),
        ("max_tokens: 64", "max_token: 64", 9, ["stages[1].sampling.max_token: unknown key", '"max_tokens"']),
        ("stage: responses", "stage: response", 8, ["stages[1].stage", '"responses"']),
        ("  - lengths", "  - length", 10, ["stages[2].stage", '"lengths"']),
        ("  - lengths", "  - {stage: lengths, token: 1}", 10, ["stages[2].token: unknown key", '"tokens"']),
        ("  - instructions\n", "", 7, ["stages[0]", 'first stage must be "instructions"']),
        ("  - lengths", "  - instructions", 10, ["appears twice"]),
        ("model: demo", "model: demo\nengine: vlm", 2, ["engine.kind", '"vllm"']),
        ("model: demo", "model: demo\nengine: {kind: tgi}", 2, ["engine.endpoint", "needs the URL"]),
        ("model: demo", "model: demo\nengine: {endpoint: 'http://x'}", 2, ["does not use an endpoint"]),
        ("model: demo", "model: demo\nengine: {kind: tgi, endpoint: 'localhost'}", 2, ["http://"]),
        ("model: demo", "model: demo\nengine: {batch_sise: 4}", 2, ["engine.batch_sise", '"batch_size"']),
        ("model: demo", "model: demo\norder: fast", 2, ["order", "paper, lean"]),
        ("model: demo", "model: demo\nbudget: {max_cost: 5}", 2, ["price_per_gpu_hour"]),
        ("model: demo", "model: demo\nname: a/b", 2, ["name", "letters"]),
        ("num_rows: 50", "num_rows: 0", 2, ["num_rows", "1 or more"]),
        ("num_rows: 50", "num_rows: .inf", 2, ["num_rows", "a whole number"]),
        ("num_rows: 50", "num_rows: .nan", 2, ["num_rows", "a whole number"]),
        ("num_rows: 50", "num_rows: [5]", 2, ["num_rows", "a whole number"]),
        ("num_rows: 50", "num_rows:", 2, ["num_rows", "a whole number"]),
        ("num_rows: 50", "seed: -1", 2, ["seed", "0 or more"]),
        ("model: demo", "model: 5", 1, ["model", "not a model name"]),
        ("model: demo", "model: demo\nrevision: 5", 2, ["revision", "text or null"]),
        ("model: demo", "model: demo\nsystem_prompt: [x]", 2, ["system_prompt", "text or null"]),
        ("model: demo", "model: demo\nengine: [vllm]", 2, ["engine", "neither a name nor a mapping"]),
        ("model: demo", "model: demo\nengine: {kind: [vllm]}", 2, ["engine.kind", "Unknown engine"]),
        ("model: demo", "model: demo\nengine:\n  kind: tgi\n  endpoints: 5", 4, ["engine.endpoints[0]"]),
        ("model: demo", "model: demo\nengine: {kind: tgi, endpoint: 'ftp://x'}", 2, ["http://HOST:PORT"]),
        ("model: demo", "model: demo\nengine: {kind: tgi, endpoint: 'http://x?key=1'}", 2, ["Invalid endpoint URL"]),
        ("model: demo", "model: demo\nengine: {batch_size: many}", 2, ["engine.batch_size", "a whole number"]),
        ("model: demo", "model: demo\nengine: {ref: x}", 2, ["engine.ref: unknown key"]),
        ("model: demo", "model: demo\nengine: {kind: tgi, endpoint: 'http://x', api_key: s}", 2, ['"api_key_env"']),
        ("model: demo", "model: demo\ntemplate: {kwargs: 5}", 2, ["template.kwargs", "not a mapping"]),
        ("model: demo", "model: demo\ntemplate: {date: today}", 2, ["template.date", "2026-01-31"]),
        ("model: demo", "model: demo\ntemplate: {dates: 1}", 2, ["template.dates: unknown key", '"date"']),
        ("model: demo", "model: demo\noutput: {format: csv}", 2, ["output.format", "parquet"]),
        ("model: demo", "model: demo\noutput: [x]", 2, ["output", "not a mapping"]),
        ("model: demo", "model: demo\nbudget: {max_hours: .nan}", 2, ["budget.max_hours"]),
        ("model: demo", "model: demo\nbudget: {max_hours: 0}", 2, ["budget", "above 0"]),
        ("temperature: 1.2", "temperature: hot", 5, ["sampling[1].temperature", "a number"]),
        ("temperature: 1.2", "temperature: true", 5, ["sampling[1].temperature", "a number"]),
        ("temperature: 1.2", "seed: 5", 5, ["sampling[1].seed: unknown key"]),
        ("share: 3", "share: .inf", 4, ["sampling[0].share"]),
        ("max_tokens: 64", "max_tokens: 0", 9, ["stages[1].sampling.max_tokens", "1 or more"]),
        ("max_tokens: 64", "share: 3", 9, ["stages[1].sampling.share: unknown key"]),
        ("max_tokens: 64", "stop: [5]", 9, ["stages[1].sampling.stop[0]", "text"]),
        ("stage: responses", "stage: [responses]", 8, ["stages[1].stage", "unknown stage"]),
        ("stage: responses", "system_prompt: x", 8, ["stages[1]: the key `stage` is missing", "Add `stage:`"]),
        ("  - lengths", "  - 5", 10, ["stages[2]", "neither a name nor a mapping"]),
        ("  - lengths", "  - {stage: turns, turns: 1}", 10, ["stages[2]", "2 or more"]),
        ("  - lengths", "  - {stage: turns, attempts: 0}", 10, ["stages[2]", "1 or more"]),
        ("  - instructions\n", "  - {stage: instructions, banned_starts: ['']}\n", 7, ["stages[0]", "every text"]),
        ("  - instructions\n", "  - {stage: instructions, max_scripts: 0}\n", 7, ["stages[0]", "1 or more"]),
        ("  - instructions\n", "  - {stage: instructions, reject: [emtpy]}\n", 7, ["stages[0]", "'emtpy'", '"empty"']),
        ("  - instructions\n", "  - {stage: instructions, grid: []}\n", 7, ["stages[0].grid: unknown key"]),
        ("stages:\n  - instructions\n  - stage", "stages:\n  - stage", 7, ["stages[0]", "first stage"]),
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
        ("", "mapping"),
        ("demo", "mapping"),
        ("a: &a [*a]", "contains itself"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("model: demo\n? [a, b]\n: c", "line 2, column 3"),
        ("model: demo\n---\nmodel: demo", "line 2"),
        ("model: demo\nengine: *nothing", "line 2, column 9"),
        ("model: !!python/name:os.system", "line 1"),
        ("model: !!python/object/new:os.system [echo]", "line 1"),
        ("model: !custom x", "line 1"),
        ("model: demo\n1: x", "1: unknown key"),
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
        ("stages[1].sampling.top_k", 5, lambda r: r.stages[1].sampling.top_k == 5),
        ("stages", ["instructions"], lambda r: [s.name for s in r.stages] == ["instructions"]),
        ("sampling", {"top_p": 0.5}, lambda r: [p.sampling.top_p for p in r.grid] == [0.5]),
        ("sampling.stop", "END", lambda r: r.grid[0].sampling.stop == ("END",)),
        ("output.format", "arrow", lambda r: r.output == {"format": "arrow"}),
        ("system_prompt", "x", lambda r: [p.system_prompt for p in r.grid] == ["x", "x"]),
        ("num_rows", np.int64(9), lambda r: r.num_rows == 9),
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


def test_a_setting_of_a_stage_that_the_recipe_does_not_have_names_the_stages_that_it_has(tmp_path):
    with pytest.raises(RecipeError, match="no stage 'preference'") as caught:
        load_recipe(written(tmp_path, GOOD), {"stages.preference.x": 1})
    assert caught.value.where == "--set stages.preference.x"
    assert caught.value.hint == "Known: instructions, lengths, responses."


def test_bundled_recipes_are_valid_and_found_by_name():
    assert "quickstart" in bundled_recipes()
    for name in bundled_recipes():
        assert load_recipe(name).description
    with pytest.raises(RecipeError, match="Unknown recipe") as caught:
        load_recipe("quickstrat")
    assert '"quickstart"' in caught.value.hint


def test_every_key_is_explained():
    assert all(text.endswith(".") for text in KEYS.values())


def test_an_alias_bomb_is_refused_at_once(tmp_path):
    levels = ["model: demo", f"a0: &a0 [{', '.join('x' * 9)}]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(RecipeError, match="more than 20,000 keys"):
        load_recipe(written(tmp_path, "\n".join(levels)))


def test_aliases_and_merges_can_be_used(tmp_path):
    text = "model: demo\nsampling:\n  - &one {temperature: 1.0, top_p: 0.9}\n  - {<<: *one, temperature: 1.2}\n"
    grid = load_recipe(written(tmp_path, text)).grid
    assert [(p.sampling.temperature, p.sampling.top_p) for p in grid] == [(1.0, 0.9), (1.2, 0.9)]


def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"model: \xff")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "mine.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "nowhere.yaml")
    (tmp_path / "directory.yaml").mkdir()
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "directory.yaml")
    for name in ("x" * 5000, "a\0b", "directory"):
        with pytest.raises(RecipeError, match="Unknown recipe"):
            load_recipe(name)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sampling[1].temperature", 99, "--set sampling[1].temperature: temperature"),
        ("sampling", {"temperature": 99}, "--set sampling: sampling.temperature"),
        ("stages", ["instructions", {"stage": "responses", "sampling": {"top_p": 0}}], "--set stages: stages[1]"),
        ("stages.responses.sampling.top_p", 0, "--set stages.responses.sampling.top_p: stages[1].sampling.top_p"),
        ("budget.max_hours", -1, "budget"),
        ("name.x", 1, "--set name.x: name"),
        ("[0]", 1, "--set [0]"),
        ("..", 1, "invalid key"),
    ],
)
def test_the_origin_of_an_overridden_value_is_the_override_and_no_line(tmp_path, key, value, said):
    text = GOOD + "name: mine\n"
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, text), {key: value})
    assert said in str(caught.value)
    if said.startswith("--set"):
        assert "line" not in str(caught.value).splitlines()[0]


def test_what_stands_beside_an_override_keeps_its_line(tmp_path):
    with pytest.raises(RecipeError, match="line 9: stages"):
        load_recipe(written(tmp_path, GOOD.replace("64", "0")), {"stages.responses.sampling.top_p": 0.5})


def test_short_forms_keep_their_meaning_under_overrides():
    recipe = load_recipe({"model": "demo", "output": "place", "engine": "transformers"}, {"output.format": "arrow"})
    assert recipe.output == {"path": "place", "format": "arrow"}
    recipe = load_recipe(
        {"model": "demo", "engine": "vllm", "sampling": None}, {"sampling.top_p": 0.5, "engine.dtype": "x"}
    )
    assert (recipe.engine.kind, recipe.grid[0].sampling.top_p) == ("vllm", 0.5)
    recipe = load_recipe("magpielm-sft-550k", {"responder.engine.kind": "transformers"})
    assert recipe.role("responder").model == "google/gemma-2-9b-it"
    assert recipe.role("responder").engine.kind == "transformers"
    combined = {"model": "demo", "judge": "combined", "stages": ["instructions", "quality", "difficulty"]}
    assert load_recipe(combined, {"judge.rubrics": "default"}).stages == load_recipe(combined).stages


def test_an_address_given_at_the_command_line_replaces_the_recipes():
    recipe = {"model": "demo", "engine": {"kind": "tgi", "endpoint": "http://old:80"}}
    engine = load_recipe(recipe, {"engine.endpoints": ["http://a:80", "https://b/path"]}).engine
    assert engine.endpoints == ("http://a:80", "https://b/path")
    assert engine.options == {}


def test_a_password_in_an_address_is_refused_and_not_repeated():
    addresses = (
        "http://me:s3cret@host:80",
        "s3cret@host",
        "http://s3cret@",
        "http://host/v1?key=s3cret",
        "host/#s3cret",
    )
    for address in addresses:
        for part in (
            {"engine": {"kind": "tgi", "endpoint": address}},
            {"judge": {"model": "a/b", "engine": {"kind": "openai", "endpoint": address}}},
            {"stages": ["instructions", "responses", {"stage": "reward", "endpoint": address}]},
        ):
            with pytest.raises(RecipeError) as caught:
                load_recipe({"model": "demo", **part})
            assert "s3cret" not in str(caught.value)


def test_the_mapping_given_is_left_as_it_was():
    recipe = {"model": "demo", "stages": ["instructions", "responses", "lengths"], "sampling": {"top_p": 0.5}}
    load_recipe(recipe, {"stages.lengths.tokens": False, "sampling.top_p": 0.9, "num_rows": 3})
    assert recipe == {"model": "demo", "stages": ["instructions", "responses", "lengths"], "sampling": {"top_p": 0.5}}


def test_a_text_that_no_file_could_hold_is_refused():
    with pytest.raises(RecipeError, match="is not valid Unicode") as caught:
        load_recipe({"model": "demo", "system_prompt": "a\udcff"})
    assert caught.value.data["key"] == "system_prompt"


def test_the_hash_names_what_was_asked_and_not_where_or_how_much():
    base = {"model": "demo", "num_rows": 5}
    same = [{"num_rows": 9}, {"output": "x"}, {"budget": {"max_hours": 2}}, {"engine": {"batch_size": 3}}]
    assert {load_recipe({**base, **more}).hash for more in same} == {load_recipe(base).hash}
    other = [{"seed": 1}, {"sampling": {"top_p": 0.5}}, {"stages": ["instructions"]}, {"model": "x/y"}]
    assert len({load_recipe({**base, **more}).hash for more in other} | {load_recipe(base).hash}) == 5


points = st.fixed_dictionaries(
    {"temperature": st.floats(0, 10)},
    optional={
        "top_p": st.floats(0.01, 1),
        "top_k": st.integers(1, 99),
        "share": st.floats(0.1, 9),
        "stop": st.lists(st.text(min_size=1, max_size=4), max_size=2),
        "system_prompt": st.none() | st.text(max_size=9),
    },
)
recipes = st.fixed_dictionaries(
    {"model": st.sampled_from(["demo", "some/model"]), "num_rows": st.integers(1, 10**6)},
    optional={
        "seed": st.integers(0, 2**40),
        "sampling": points | st.lists(points, min_size=1, max_size=3),
        "system_prompt": st.none() | st.text(max_size=20),
        "stages": st.sampled_from(
            [
                ["instructions"],
                ["instructions", "responses", {"stage": "turns", "turns": 3}],
                ["instructions", "responses", "lengths"],
            ]
        ),
        "budget": st.fixed_dictionaries({}, optional={"max_hours": st.floats(0.1, 99)}),
        "output": st.sampled_from(["somewhere", {"format": "arrow"}]),
    },
)


@given(recipes)
def test_any_recipe_survives_being_written_and_read(raw):
    recipe = load_recipe(raw)
    again = load_recipe(yaml.safe_load(recipe.dump()))
    assert again == recipe
    assert again.hash == recipe.hash
