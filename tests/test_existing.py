"""Which recipes continue the run of a directory, and which are refused because they would replace its dataset."""

from __future__ import annotations

import shutil

import pytest
from datasets import Dataset, load_dataset

import magpie_hf
from magpie_hf.errors import ArgumentError
from magpie_hf.session.maintenance import merge_runs
from magpie_hf.session.status import run_status
from magpie_hf.storage.rundir import RunDir
from tests.end_to_end.harness import here
from tests.stages import conftest as runs


null, make = runs.null, runs.make


@pytest.fixture
def other_model(tiny_model_dir, tmp_path):
    return str(shutil.copytree(tiny_model_dir, tmp_path / "another-model"))


def saved(tmp_path):
    return load_dataset(str(tmp_path / "run"), split="train").to_list()


def test_another_recipe_is_refused_and_the_run_that_is_there_is_named(make, null, other_model, tmp_path):
    make(name="mine")
    before = saved(tmp_path)
    null.reset()
    with pytest.raises(ArgumentError, match="another run: recipe 'mine'") as caught:
        make(name="theirs", model=other_model, num_rows=7)
    said = str(caught.value)
    for part in (
        "stages instructions, responses, lengths",
        "40 rows",
        "last used 20",
        "name 'theirs'",
        "another-model",
    ):
        assert part in said
    assert "--force" in caught.value.hint
    assert null.opened == 0
    assert saved(tmp_path) == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "other", "seed": 3}, "name 'other'"),
        ({"name": "other", "sampling": {"temperature": 0.5}}, "name 'other'"),
        ({"stages": ["instructions", "responses", "language"]}, "stages language instead of lengths"),
    ],
    ids=["name and seed", "name and sampling", "another stage"],
)
def test_a_recipe_is_another_by_its_name_or_its_stages(make, changed, said):
    make(num_rows=3)
    with pytest.raises(ArgumentError, match=said):
        make(num_rows=3, **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"num_rows": 9},
        {"engine": {"window": 3}},
        {"sampling": {"temperature": 0.5}},
        {"seed": 1},
        {"budget": {"max_hours": 5}},
        {"name": "renamed", "description": "nothing else"},
        {"stages": ["instructions", "responses", "language", "lengths"]},
        {"stages": ["instructions", "responses"]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_changed_settings_continue_the_run(make, changed):
    make(num_rows=3)
    assert len(make(**{"num_rows": 3, **changed})) == changed.get("num_rows", 3)


def test_a_model_that_was_moved_is_the_same_model(make, null, tiny_model_dir, tmp_path):
    make(num_rows=3)
    null.reset()
    moved = shutil.copytree(tiny_model_dir, tmp_path / "elsewhere" / tiny_model_dir.name)
    make(num_rows=3, model=str(moved))
    assert null.log == []


def test_force_replaces_the_dataset_and_keeps_the_finished_rows(make, null, other_model, tmp_path, tiny_model_dir):
    make(num_rows=5)
    recipe = {
        "model": other_model,
        "num_rows": 3,
        "engine": "null",
        "stages": ["instructions", "responses", "lengths"],
    }
    assert len(magpie_hf.run(recipe, output=tmp_path / "run", force=True)) == 3
    assert len(saved(tmp_path)) == 3
    null.reset()
    magpie_hf.run({**recipe, "model": str(tiny_model_dir), "num_rows": 5}, output=tmp_path / "run", force=True)
    assert null.log == []


def test_a_run_that_failed_before_its_first_row_is_not_in_the_way(make, other_model, tmp_path):
    with RunDir(tmp_path / "run").own() as run_dir:
        run_dir.state.recipe = {"model": "misspelled", "name": "x"}
        run_dir.save()
    assert len(make(num_rows=2, model=other_model)) == 2


def test_annotations_of_other_rows_are_refused(tmp_path):
    for name in "ab":
        rows = Dataset.from_dict({"instruction": [f"Hello {name}"], "response": ["Hi"]})
        rows.to_parquet(str(tmp_path / f"{name}.parquet"))
    magpie_hf.annotate(str(tmp_path / "a.parquet"), ["flags"], output=tmp_path / "run")
    with pytest.raises(ArgumentError, match=r"dataset 'b\.parquet'|dataset '.*b\.parquet'"):
        magpie_hf.annotate(str(tmp_path / "b.parquet"), ["flags"], output=tmp_path / "run")
    with pytest.raises(ArgumentError, match="stages language instead of flags"):
        magpie_hf.annotate(str(tmp_path / "a.parquet"), ["language"], output=tmp_path / "run")
    more = magpie_hf.annotate(str(tmp_path / "a.parquet"), ["flags", "language"], output=tmp_path / "run")
    assert "language" in more.column_names


def test_shards_are_not_merged_into_another_run(make, other_model, tmp_path):
    make("part", num_rows=5, shard="0/1")
    make("run", num_rows=5, model=other_model)
    with pytest.raises(ArgumentError, match="another run"):
        merge_runs([tmp_path / "part"], tmp_path / "run")
    merge_runs([tmp_path / "part"], tmp_path / "run", force=True)


def test_the_command_line_refuses_and_forces(make, null, other_model, tmp_path):
    make(num_rows=3)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"model: {other_model}\nengine: 'null'\nnum_rows: 2\nstages: [instructions, responses, lengths]\n"
    )
    assert "another run" in here("run", recipe, "--output", tmp_path / "run", code=1)
    here("run", recipe, "--output", tmp_path / "run", "--force", "--rows", 0)
    assert len(saved(tmp_path)) == 2


def damage(*files):
    for file in files:
        file.write_text(file.read_text()[:-200])


def test_a_run_with_a_damaged_state_continues_and_status_shows_it(make, null, tmp_path):
    make()
    before = saved(tmp_path)
    run = tmp_path / "run"
    damage(run / "run.json")
    assert [stage.done for stage in run_status(run).stages[:2]] == [40, 40]
    null.reset()
    make()
    assert null.log == []
    damage(run / "run.json", run / "run.json.bak")
    assert {stage.name: stage.done for stage in run_status(run).stages} == {"instructions": 40, "responses": 40}
    assert "recipe of this run is not known" in here("retry", run, "--errors", "too_long", code=1)
    make()
    assert null.log == [], "all rows are in the journals"
    assert saved(tmp_path) == before
