"""`dataset:` as a list of existing datasets, and the bundled dataset "demo"."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

import magpie_hf
from magpie_hf.errors import DatasetError, RecipeError
from magpie_hf.recipe.schema import load_recipe
from magpie_hf.storage.loading import load_rows
from tests.end_to_end.harness import here


STAGES = [{"stage": "lengths", "tokens": False}]


def saved(path, rows):
    Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


def pair(name, **more):
    return {"uuid": name, "instruction": f"Say {name}.", "response": f"{name}!", **more}


def test_the_rows_of_a_list_of_datasets_are_concatenated_in_its_order(tmp_path):
    first = saved(tmp_path / "first.parquet", [pair("a", score=1), pair("b", score=2)])
    second = saved(tmp_path / "second.parquet", [{"score": 3, **pair("c")}])
    recipe = {"dataset": [second, {"path": first}], "stages": STAGES}
    ds = magpie_hf.run(recipe, output=tmp_path / "run", show_progress=False)
    assert (ds["uuid"], ds["score"]) == (["c", "a", "b"], [3, 1, 2])
    again = magpie_hf.run(recipe, {"num_rows": 2}, output=tmp_path / "run", show_progress=False)
    assert again["uuid"] == ["c", "a"]


def test_a_recipe_whose_rows_are_needed_first_is_named_without_a_request_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    half = "magpie-reasoning-v2-250k-llama-3.1"
    with pytest.raises(DatasetError, match=f"Run magpie-hf run {half} --output {half}, or set `dataset`"):
        magpie_hf.run("magpie-reasoning-v2-250k", output=tmp_path / "run", show_progress=False)


def test_other_columns_are_an_error_that_names_the_dataset_and_the_columns(tmp_path):
    first = saved(tmp_path / "first.parquet", [pair("a", score=1)])
    second = saved(tmp_path / "second.parquet", [pair("b", grade="A")])
    with pytest.raises(DatasetError, match=r"first\.parquet' has score; only '.*second\.parquet' has grade") as caught:
        magpie_hf.run({"dataset": [first, second], "stages": STAGES}, output=tmp_path / "run")
    assert caught.value.where == second
    third = saved(tmp_path / "third.parquet", [pair("c", score="high")])
    with pytest.raises(DatasetError, match=r"third\.parquet: The column 'score' is string, but int64 in '.*first"):
        magpie_hf.run({"dataset": [first, third], "stages": STAGES}, output=tmp_path / "run")
    with pytest.raises(DatasetError, match="nowhere"):
        magpie_hf.run({"dataset": [first, "./nowhere"], "stages": STAGES}, output=tmp_path / "run")


def test_only_the_named_columns_of_a_dataset_are_kept_so_that_different_datasets_can_be_joined(tmp_path):
    first = saved(tmp_path / "first.parquet", [pair("a", score=1)])
    second = saved(tmp_path / "second.parquet", [pair("b", grade="A")])
    both = [{"path": path, "columns": ["uuid", "instruction", "response"]} for path in (first, second)]
    ds = magpie_hf.run({"dataset": both, "stages": STAGES}, output=tmp_path / "run", show_progress=False)
    assert ds["uuid"] == ["a", "b"]
    assert not {"score", "grade"} & {*ds.column_names}
    both[1]["columns"] = ["uuid", "prompt"]
    with pytest.raises(DatasetError, match=r"second\.parquet.*no column 'prompt'") as caught:
        magpie_hf.run({"dataset": both, "stages": STAGES}, output=tmp_path / "other")
    assert "uuid, instruction, response, grade" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[]", "dataset: the list is empty"),
        ("[a, {split: train}]", r"dataset\[1\]"),
        ("[a, 5]", r"dataset\[1\]: '5' is not a mapping"),
        ("[a, {path: b, splt: x}]", r"dataset\[1\]\.splt: unknown key"),
        ("[a, {path: b, split: 5}]", r"dataset\[1\]\.split"),
        ("{path: b, columns: uuid}", r"dataset\.columns"),
    ],
)
def test_an_invalid_entry_is_named_with_its_line(tmp_path, given, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"stages: [lengths]\ndataset: {given}\n")
    with pytest.raises(RecipeError, match=rf"mine\.yaml, line 2: {message}"):
        load_recipe(path)


def test_the_hash_depends_on_the_datasets_and_their_order():
    hashes = [load_recipe({"dataset": given, "stages": STAGES}).hash for given in (["a", "b"], ["b", "a"], ["a"], "a")]
    assert len({*hashes}) == 3
    assert hashes[2] == hashes[3], "a list with one dataset is that dataset"
    same = load_recipe({"dataset": [{"path": "a"}, "b"], "stages": STAGES}).hash
    assert same == hashes[0]


def test_the_card_names_all_datasets_that_the_rows_come_from(tmp_path):
    paths = [saved(tmp_path / f"{name}.parquet", [pair(name)]) for name in ("first", "second")]
    magpie_hf.run({"dataset": paths, "stages": STAGES}, output=tmp_path / "run", show_progress=False)
    card = magpie_hf.write_card(tmp_path / "run", license="other")
    assert "first.parquet, second.parquet" in card.read_text("utf-8")


def test_the_bundled_dataset_has_conversations_of_the_demo_model():
    ds = load_rows("demo")
    assert len(ds) == 64
    assert {*ds.column_names} == {"uuid", "model", "instruction", "response"}
    assert all(row["instruction"] and row["response"] for row in ds)
    assert len({*ds["uuid"]}) == 64


@pytest.mark.slow
def test_reasoning_v2_joins_the_rows_of_its_two_halves(tmp_path, demo_model_dir):
    """Each half has a generator of its own, which also writes the responses."""
    halves = []
    for key in ("3.1", "3.3"):
        name = f"magpie-reasoning-v2-250k-llama-{key}"
        recipe = load_recipe(name)
        assert f"Llama-{key}-70B" in recipe.model
        assert recipe.role("responder").model == recipe.model
        assert recipe.role("responder").template == {}
        here("run", name, "--model", "demo", "--num-rows", 30, "--output", tmp_path / name, "--rows", 0)
        halves.append(str(tmp_path / name))
    place = tmp_path / "both"
    here("run", "magpie-reasoning-v2-250k", "--set", f"dataset={json.dumps(halves)}", "--output", place, "--rows", 0)
    parts = [load_rows(half) for half in halves]
    assert min(len(part) for part in parts) > 0
    both = load_rows(str(place))
    assert sorted(both["uuid"]) == sorted([*parts[0]["uuid"], *parts[1]["uuid"]])
    assert both.column_names == parts[0].column_names


@pytest.mark.slow
def test_magpielm_joins_a_published_preference_set_with_its_own_half(tmp_path):
    """The published set has the four columns, and others; the half is written with the four columns of the release."""
    half, whole = tmp_path / "half", tmp_path / "whole"
    name = "magpielm-dpo-200k-gemma-2"
    here(
        "run",
        name,
        "--model",
        "demo",
        "--num-rows",
        30,
        "--output",
        half,
        "--rows",
        0,
        "--set",
        "output.columns=released",
    )
    ours = load_rows(str(half))
    assert ours.column_names == ["uuid", "instruction", "chosen", "rejected"]
    published = saved(tmp_path / "published.parquet", [{**ours[0], "uuid": "published", "model": "Llama"}])
    parts = [{"path": path, "columns": ours.column_names} for path in (published, str(half))]
    command = ("run", "magpielm-dpo-200k", "--set", f"dataset={json.dumps(parts)}", "--set", "output.columns=released")
    here(*command, "--output", whole, "--rows", 0)
    splits = [load_rows(str(whole), split=split) for split in ("train", "test")]
    assert splits[0].features == ours.features
    assert sorted(uuid for split in splits for uuid in split["uuid"]) == sorted(["published", *ours["uuid"]])
