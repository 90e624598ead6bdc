"""Every value of a release's recipe has a source: paper, card, script, inferred, or our choice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from magpie_hf.cli.main import main
from magpie_hf.errors import RecipeError
from magpie_hf.recipe.schema import bundled_recipes, load_recipe
from magpie_hf.recipe.value_sources import SOURCE_KINDS
from tests.conftest import REPOSITORY

from .test_facts import RELEASES, TABLE


HERE = REPOSITORY / "tests" / "releases"
OPEN = [
    line
    for line in (HERE / "without_sources.txt").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
]
"""Recipes that do not have all sources yet."""
RECIPE = """\
model: some/model
num_rows: 50
sampling:
  - {temperature: 1.0, share: 3, max_tokens: 9}
  - {temperature: 1.2, top_p: 0.99, max_tokens: 9}
judge: {model: some/judge, engine: {kind: vllm}}
stages:
  - {stage: instructions, early_stop_newline: true}
  - {stage: responses, sampling: {temperature: 0, max_tokens: 64}}
  - quality
  - {stage: select, where: quality >= good, longest: 20}
sources:
  model: "script: the list of releases"
  num_rows: card
  sampling: "paper: Table 7"
  sampling.max_tokens: script
  judge: script
  stages: paper
  stages.instructions.early_stop_newline: script
  stages.responses.sampling: "paper: appendix E.1"
  stages.select: our choice
rehearsal:
  stages.select.where: quality >= average
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def test_each_value_is_shown_with_the_source_of_the_longest_key_that_covers_it(recipe_file: Path) -> None:
    found = {entry.key: (entry.value, entry.source) for entry in load_recipe(recipe_file).sources}
    assert found == {
        "model": ("some/model", "script: the list of releases"),
        "num_rows": (50, "card"),
        "sampling": (
            [{"temperature": 1.0, "share": 3}, {"temperature": 1.2, "top_p": 0.99}],
            "paper: Table 7",
        ),
        "sampling.max_tokens": (9, "script"),
        "judge": ({"model": "some/judge", "engine": {"kind": "vllm"}}, "script"),
        "stages": (["instructions", "responses", "quality"], "paper"),
        "stages.instructions.early_stop_newline": (True, "script"),
        "stages.responses.sampling": ({"temperature": 0, "max_tokens": 64}, "paper: appendix E.1"),
        "stages.select": ({"stage": "select", "where": "quality >= good", "longest": 20}, "our choice"),
    }


def test_a_value_without_a_source_is_shown_as_such(recipe_file: Path) -> None:
    recipe_file.write_text(RECIPE.replace("  num_rows: card\n", "").replace("  judge: script\n", ""))
    assert [(e.key, e.value) for e in load_recipe(recipe_file).sources if e.source is None] == [
        ("num_rows", 50),
        ("judge.model", "some/judge"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("num_rows: card", "num_rows: a friend", 14, "sources.num_rows: 'a friend' does not begin with a kind of source"),
        ("num_rows: card", 'num_rows: "card:"', 14, "sources.num_rows: 'card:' does not begin"),
        ("num_rows: card", "num_rows: papers", 14, "sources.num_rows: 'papers' does not begin"),
        ("num_rows: card", "num_row: card", 14, 'sources.num_row: the recipe sets no value.*Did you mean "num_rows"'),
        ("stages.select:", "stages.subset:", 21, "sources.stages.subset: the recipe sets no value"),
        ("sampling.max_tokens:", "sampling[2]:", 16, r"sources.sampling\[2\]: the recipe sets no value"),
        ("stages.select.where:", "stages.subset.where:", 23, r"rehearsal\.stages\.subset\.where: .* no stage 'subset'"),
        ("stages.select.where:", "stage.select.where:", 23, r"rehearsal\.stage\.select\.where: unknown key.*\"stages\""),
        ("rehearsal:\n", "rehearsal:\n  model: mine\n", 23, r"rehearsal\.model: a rehearsal has the demo model"),
        ("rehearsal:\n", "rehearsal: 5\nbudget:\n", 22, "rehearsal: '5' is"),
    ],
)  # fmt: skip
def test_a_wrong_source_or_rehearsal_is_named_with_file_and_line(
    recipe_file: Path, old: str, new: str, line: int, message: str
) -> None:
    recipe_file.write_text(RECIPE.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file)
    assert f"mine.yaml, line {line}" in str(caught.value)
    assert re.search(message, str(caught.value), re.DOTALL)


def test_sources_and_rehearsal_do_not_change_the_hash() -> None:
    raw = yaml.safe_load(RECIPE)
    plain = {key: value for key, value in raw.items() if key not in ("sources", "rehearsal")}
    assert load_recipe(raw).hash == load_recipe(plain).hash


def test_a_rehearsal_counts_with_the_demo_model_only_and_an_override_counts_more(recipe_file: Path) -> None:
    assert load_recipe(recipe_file).stages[-1].where == "quality >= good"
    demo = load_recipe(recipe_file, {"model": "demo"})
    assert demo.stages[-1].where == "quality >= average"
    assert "rehearsal" not in demo.raw
    own = load_recipe(recipe_file, {"model": "demo", "stages.select.where": "quality >= poor"})
    assert own.stages[-1].where == "quality >= poor"


def test_an_overridden_value_loses_the_source_that_it_had_in_the_file(recipe_file: Path) -> None:
    changed = load_recipe(recipe_file, {"sampling[1].temperature": 0.9, "num_rows": 50})
    sources = {entry.key: entry.source for entry in changed.sources}
    assert sources["sampling[1].temperature"] is None
    assert sources["num_rows"] == "card"
    assert sources["sampling.max_tokens"] == "script"
    assert load_recipe(changed.raw).sources == changed.sources


def test_the_command_prints_each_value_with_its_source(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", str(recipe_file), "--sources"]) == 0
    shown = capsys.readouterr().out
    assert "sampling.max_tokens: 9\n    script\n" in shown
    assert "stages.select.where: quality >= average\n    only with --model demo\n" in shown
    assert main(["recipes", "--sources"]) == 1
    assert "--sources needs a recipe" in capsys.readouterr().err


def _open_or_not(name: str) -> object:
    marks = [pytest.mark.xfail(strict=True, reason="without_sources.txt")] if name in OPEN else []
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [_open_or_not(name) for name in RELEASES if name in bundled_recipes()])
def test_every_value_of_a_release_has_a_source(name: str) -> None:
    recipe = load_recipe(name)
    assert [entry.key for entry in recipe.sources if entry.source is None] == []
    for entry in recipe.sources:
        assert entry.source is None or entry.source.startswith(SOURCE_KINDS)
    for stage in recipe.raw["stages"]:  # the source of the list of stages is not that of their settings
        settings = {key for key in stage if key != "stage"} if isinstance(stage, dict) else ()
        keys = [entry.key for entry in recipe.sources if entry.key.startswith("stages.")]
        assert not settings or any(key.startswith(f"stages.{stage['stage']}") for key in keys), stage


@pytest.mark.parametrize("name", TABLE["own"])
def test_every_value_of_a_recipe_of_our_own_has_a_source(name: str) -> None:
    if name in OPEN:
        pytest.xfail("without_sources.txt")
    assert [entry.key for entry in load_recipe(name).sources if entry.source is None] == []
