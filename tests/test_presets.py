"""Presets by name: what they resolve to, what is sent to the model, and what a probe measures."""

from __future__ import annotations

import pytest

import magpie_hf
from magpie_hf.api.recipes import synthesis_recipe
from magpie_hf.errors import RecipeError
from magpie_hf.judging.rubric import load_rubric
from magpie_hf.recipe.preset import all_presets, find_preset
from magpie_hf.recipe.schema import load_recipe
from magpie_hf.session.probe import _share, probe_model
from tests.end_to_end.harness import here
from tests.stages.conftest import make, null  # noqa: F401 (fixtures)


CATEGORIES = (
    "information-seeking reasoning planning editing coding math role-playing data-analysis creative-writing "
    "advice-seeking brainstorming"
).split()
NAMES = [*CATEGORIES, "code", "translation", "multilingual:de", "multilingual:sw"]


def recipe(**settings):
    return load_recipe({"model": "demo", **settings})


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_the_recipe_with_its_system_prompt_and_sampling(name):
    preset = find_preset(name)
    resolved = recipe(preset=name)
    plain = recipe(system_prompt=preset.system_prompt, sampling=list(preset.sampling))
    assert resolved.hash == plain.hash
    assert resolved.grid == plain.grid
    assert "preset" not in resolved.raw
    assert load_recipe(resolved.raw).hash == resolved.hash
    assert {point.system_prompt for point in resolved.grid} == {preset.system_prompt}


@pytest.mark.parametrize("name", ["math", "translation", "multilingual:zh"])
def test_the_system_prompt_of_a_preset_is_sent_for_instructions_only(name, make, null):  # noqa: F811
    make(preset=name, num_rows=8)
    words = find_preset(name).system_prompt
    prompts = [prompt for prompt, _ in null.log]
    instructions = [prompt for prompt in prompts if words in prompt]
    assert 8 <= len(instructions) < len(prompts)
    assert all("What is the meaning of" in prompt for prompt in prompts if prompt not in instructions)


def test_given_sampling_takes_precedence_over_that_of_the_preset():
    assert {p.sampling.temperature for p in recipe(preset="math").grid} == {1.0, 0.8}
    (point,) = recipe(preset="math", sampling={"temperature": 0.5}).grid
    assert (point.sampling.temperature, point.system_prompt) == (0.5, find_preset("math").system_prompt)
    grid = recipe(preset="math", sampling=[{"temperature": 0.3}, {"temperature": 0.4}]).grid
    assert [p.sampling.temperature for p in grid] == [0.3, 0.4]


def test_points_of_a_grid_can_name_presets_and_then_each_row_says_which():
    grid = recipe(sampling=[{"preset": "math", "share": 3}, {"preset": "coding"}, {"temperature": 0.7}]).grid
    shares = {}
    for point in grid:
        shares[point.system_prompt_key] = shares.get(point.system_prompt_key, 0) + point.share
    assert shares == {"math": 3.0, "coding": 1.0, None: 1.0}
    assert grid[0].system_prompt == find_preset("math").system_prompt


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preset": "maths"}, ["preset: Unknown preset 'maths'", '"math"']),
        ({"preset": "math:de"}, ["Unknown preset 'math:de'", '"math"']),
        ({"preset": 3}, ["preset: Unknown preset '3'"]),
        ({"preset": "multilingual"}, ["needs a language", "multilingual:de"]),
        ({"preset": "multilingual:xx"}, ["unknown language 'xx'", "ISO 639-1"]),
        ({"preset": "multilingual:German"}, ["unknown language 'German'", '"multilingual:de"']),
        ({"preset": "math", "system_prompt": "Hi"}, ["system_prompt: a preset has a system prompt", "Remove one"]),
        ({"preset": "math", "sampling": [{"system_prompt": "Hi"}]}, ["sampling[0].system_prompt: a preset"]),
        ({"preset": "math", "sampling": {"preset": "code"}}, ["sampling.preset: a preset"]),
        ({"sampling": [{}, {"preset": "cod"}]}, ["sampling[1].preset: Unknown preset 'cod'", '"code"']),
        ({"sampling": [{"preset": "math"}, {"preset": "code", "share": -1}]}, ["sampling[1].share: share = '-1.0'"]),
        ({"sampling": [{"preset": "math"}, {"top_p": 2}]}, ["sampling[1].top_p"]),
        ({"sampling": {"preset": "math", "system_prompt": ""}}, ["sampling.system_prompt: a preset"]),
    ],
)
def test_what_is_wrong_with_a_preset_is_said_with_its_key_and_the_next_name(settings, words):
    with pytest.raises(RecipeError) as caught:
        recipe(**settings)
    said = f"{caught.value}"
    assert [word for word in words if word not in said] == []


def test_python_and_the_command_line_make_the_same_recipe():
    from magpie_hf.cli.main import build_parser
    from magpie_hf.cli.parse import overrides_of

    in_python = synthesis_recipe("demo", preset="multilingual:fr", num_rows=5)
    assert in_python.grid[0].system_prompt == find_preset("multilingual:FR").system_prompt
    assert in_python.hash == recipe(preset="multilingual:fr").hash
    options = build_parser().parse_args(["synthesize", "--model", "demo", "--preset", "multilingual:fr"])
    assert options.preset == "multilingual:fr"
    assert (
        load_recipe({"model": "demo"}, {"preset": "multilingual:fr", **overrides_of(options)}).hash == in_python.hash
    )


def test_the_command_lists_every_preset_with_its_check():
    said = here("presets")
    assert all(name.partition(":")[0] in said for name in NAMES)
    assert "check: category is Math" in said
    assert "check: language is CODE" in said


def test_every_check_is_a_label_that_its_stage_gives():
    labels = load_rubric("category").schema["properties"]["primary_tag"]["enum"]
    checks = {preset.name: (preset.stage, preset.label) for preset in all_presets()}
    assert checks.pop("multilingual:CODE") == ("language", "{code}")
    assert all(stage == "category" and label in labels for stage, label in checks.values())
    assert {label for _, label in checks.values()} == set(labels) - {"Others"}


def test_there_is_a_language_for_each_that_the_stage_language_detects():
    lingua = pytest.importorskip("lingua")
    differing = {"nb": "Norwegian Bokmål", "nn": "Norwegian Nynorsk"}
    for language in lingua.Language.all():
        code = str(language.iso_code_639_1.name)
        preset = find_preset(f"multilingual:{code}")
        assert preset.label == code
        if code.lower() not in ("de", "es", "fr", "it", "pt", "zh"):
            assert differing.get(code.lower(), language.name.title()) in preset.system_prompt


def test_the_interval_of_a_share_is_that_of_wilson():
    share = _share(8, 10)
    assert share.share == 0.8
    assert (round(share.low, 3), round(share.high, 3)) == (0.490, 0.943)
    assert _share(0, 16).low == 0.0
    assert 0.15 < _share(0, 16).high < 0.25
    assert _share(0, 0) is None


@pytest.mark.slow
def test_a_probe_measures_the_share_of_the_language_and_that_without_the_system_prompt():
    pytest.importorskip("lingua")
    *asked, plain = probe_model("demo", num_samples=16, preset="multilingual:de")
    assert [setting.system_prompt for setting in asked] == [find_preset("multilingual:de").system_prompt] * 2
    assert plain.system_prompt is None
    assert asked[0].in_preset.share > 0.8 > 0.5 > plain.in_preset.share
    assert asked[0].in_preset.low > plain.in_preset.high


@pytest.mark.slow
def test_a_probe_measures_the_share_of_a_category_as_the_judge_gives_it():
    found = probe_model("demo", num_samples=24, preset="math")
    assert [setting.system_prompt is None for setting in found] == [False, False, True]
    best = found[0]
    rows = [{"instruction": text} for text in best.texts]
    labels = magpie_hf.annotate(rows, "category", judge="demo", show_progress=False)["task_category"]
    share = sum(label == "Math" for label in labels) / len(best.texts)
    assert best.in_preset.share == share > 0
    assert best.in_preset.low < share < best.in_preset.high


def test_the_command_prints_the_share_with_its_interval(capsys):
    said = here("probe", "demo", "--preset", "multilingual:en", "--num-samples", "4")
    assert said.count("meets the check of the preset: ") == 3
    assert "(95 % interval: " in said
