"""The columns and the test split that a recipe asks for: in the run directory, as a return value, and after resuming."""

from __future__ import annotations

import logging
import random

import pytest
import yaml
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

import magpie_hf
from magpie_hf.errors import DatasetError, RecipeError
from magpie_hf.recipe.schema import load_recipe
from magpie_hf.session.maintenance import merge_runs
from magpie_hf.session.splits import held_out
from magpie_hf.storage.loading import load_rows, run_splits
from tests.conftest import REPOSITORY
from tests.end_to_end.harness import here
from tests.stages import conftest as runs


null, make = runs.null, runs.make
SHARED = {"model": "demo", "num_rows": 8}
LONG_ROWS = {"stage": "select", "where": "response_length >= 0"}


def some(count=50, copies=1):
    texts = [f"text {n // copies}" for n in range(count)]
    return Dataset.from_dict({"uuid": [str(n) for n in range(count)], "instruction": texts})


def in_test(rows, share=0.1, seed=0):
    return {rows[int(n)]["uuid"] for n in held_out(rows, share, seed)}


# Which rows are in the test split


@pytest.mark.parametrize(("count", "share", "size"), [(50, 0.1, 5), (50, 0.02, 1), (51, 0.02, 2), (100, 0.07, 7)])
def test_the_split_has_its_share_of_the_rows_rounded_up(count, share, size):
    assert len(held_out(some(count), share, 0)) == size


def test_the_order_of_rows_does_not_decide_which_rows_are_in_the_split_but_the_seed_does():
    rows = some()
    shuffled = rows.select(random.Random(1).sample(range(50), 50))
    assert in_test(shuffled) == in_test(rows)
    assert in_test(rows, seed=1) != in_test(rows)
    assert list(held_out(shuffled, 0.2, 0)) == sorted(held_out(shuffled, 0.2, 0))


@pytest.mark.parametrize("column", ["instruction", "group_id"])
def test_copies_of_one_instruction_are_never_in_different_splits(column):
    rows = some(60, copies=3)
    if column == "group_id":
        rows = rows.add_column("group_id", rows["instruction"][:])
        rows = rows.remove_columns("instruction").add_column("instruction", [str(n) for n in range(60)])
    test = in_test(rows, 0.2)
    assert len(test) == 12
    groups = [{row["uuid"] for row in rows if row[column] == text} for text in {*rows[column]}]
    assert all(group <= test or not group & test for group in groups)


def test_a_group_that_is_larger_than_the_split_is_left_in_train():
    rows = Dataset.from_dict({"uuid": list("abcdef"), "instruction": ["x"] * 4 + ["y", None]})
    for seed in range(8):
        assert len(in_test(rows, 0.1, seed) & {*"abcd"}) == 0
    assert len(held_out(some(1), 0.5, 0)) == 0
    assert len(held_out(some(0), 0.5, 0)) == 0


# Runs


def test_a_run_with_a_test_split_is_read_by_datasets_and_by_us(make, tmp_path):
    whole = make("whole", num_rows=40)
    made = make(num_rows=40, output={"test_size": 0.1})
    assert isinstance(made, DatasetDict)
    assert {name: len(rows) for name, rows in made.items()} == {"train": 36, "test": 4}
    assert sorted([*made["train"]["uuid"], *made["test"]["uuid"]]) == sorted(whole["uuid"])
    assert [uuid for uuid in whole["uuid"] if uuid in {*made["test"]["uuid"]}] == made["test"]["uuid"][:]
    read = load_dataset(str(tmp_path / "run"))
    assert {name: rows.to_list() for name, rows in read.items()} == {n: rows.to_list() for n, rows in made.items()}
    assert load_rows(str(tmp_path / "run")).to_list() == made["train"].to_list()
    assert load_rows(str(tmp_path / "run"), split="test").to_list() == made["test"].to_list()
    with pytest.raises(DatasetError, match="no split 'dev'") as caught:
        load_rows(str(tmp_path / "run"), split="dev")
    assert "train, test" in caught.value.hint


def test_a_run_that_is_saved_to_disk_has_both_splits_too(make, tmp_path):
    made = make(output={"test_size": 0.1, "format": "arrow"})
    read = load_from_disk(str(tmp_path / "run" / "dataset"))
    assert {name: rows.to_list() for name, rows in read.items()} == {n: rows.to_list() for n, rows in made.items()}
    assert run_splits(tmp_path / "run")["test"].to_list() == made["test"].to_list()
    make(output={"format": "arrow"})
    assert len(load_from_disk(str(tmp_path / "run" / "dataset"))) == 40
    make(output={"test_size": 0.1})
    assert not (tmp_path / "run" / "dataset").exists()


def test_a_killed_run_has_the_same_rows_in_the_same_splits_when_it_is_resumed(make, null, tmp_path):
    made = make("whole", output={"test_size": 0.1})
    null.die_after = 30
    with pytest.raises(KeyboardInterrupt):
        make(output={"test_size": 0.1})
    null.die_after = None
    again = make(output={"test_size": 0.1})
    assert {n: rows.to_list() for n, rows in again.items()} == {n: rows.to_list() for n, rows in made.items()}


def test_another_form_of_the_dataset_generates_nothing_again_and_leaves_no_file(make, null, tmp_path):
    make()
    asked = len(null.log)
    plain = make(output={"columns": "llama-3-filtered"})
    assert plain.column_names == ["conversations", "uuid"]
    assert [*plain.features] == [*load_dataset(str(tmp_path / "run"), split="train").features]
    split = make(output={"columns": ["uuid", "instruction"], "test_size": 0.1})
    assert split["test"].column_names == ["uuid", "instruction"]
    back = make()
    assert len(null.log) == asked
    assert [path.name for path in (tmp_path / "run" / "data").iterdir()] == ["train-00000-of-00001.parquet"]
    assert not list((tmp_path / "run" / "stages" / "shared").glob("output-*"))
    assert {"messages", "gen_input_configs"} <= {*back.column_names}


def test_what_is_written_already_is_left_alone_and_a_damaged_split_is_written_again(make, tmp_path):
    output = {"test_size": 0.1, "columns": "llama-3-filtered"}
    made = make(output=output)
    train, test = (tmp_path / "run" / "data" / f"{name}-00000-of-00001.parquet" for name in ("train", "test"))
    before = train.stat().st_mtime_ns
    assert make(output=output)["test"].to_list() == made["test"].to_list()
    assert train.stat().st_mtime_ns == before
    test.write_bytes(b"damaged")
    make(output=output)
    assert load_dataset(str(tmp_path / "run"), split="test").to_list() == made["test"].to_list()


def test_shards_keep_all_columns_and_the_merged_run_has_the_form_of_a_straight_one(make, tmp_path):
    wanted = {"num_rows": 20, "output": {"columns": "llama-3-filtered", "test_size": 0.2}}
    for part in range(2):
        rows = make(f"part{part}", shard=f"{part}/2", **wanted)
        assert isinstance(rows, Dataset)
        assert "gen_input_configs" in rows.column_names
    merge_runs([tmp_path / "part0", tmp_path / "part1"], tmp_path / "merged")
    merged, straight = make("merged", **wanted), make("straight", **wanted)
    assert {n: rows.to_list() for n, rows in merged.items()} == {n: rows.to_list() for n, rows in straight.items()}
    assert len(merged["test"]) == 4


def test_a_single_row_is_in_train(make, caplog):
    assert len(make(num_rows=1, output={"test_size": 0.5})) == 1
    assert "1 rows cannot be divided" in caplog.text


def test_the_command_line_writes_the_columns_of_the_release_and_shows_its_rows(tmp_path):
    place = tmp_path / "run"
    said = here("run", "magpie-air-300k-filtered", "--model", "demo", "--num-rows", 8, "--output", place, "--set",
                "output.columns=released", "--set", "output.test_size=0.5", "--set", "stages=[instructions, responses]")  # fmt: skip
    assert "USER: " in said
    assert "train: 4 rows, test: 4 rows" in said
    assert load_dataset(str(place), split="test").column_names == ["conversations", "uuid"]


def test_the_card_and_the_report_of_a_run_describe_all_columns_and_both_splits(tmp_path):
    stages = ["instructions", "responses", "language", "lengths"]
    output = {"test_size": 0.25, "columns": "llama-3-filtered"}
    magpie_hf.run({**SHARED, "stages": stages, "output": output}, output=tmp_path / "run")
    card = magpie_hf.write_card(tmp_path / "run", license="mit").read_text("utf-8")
    assert "8 rows (train 6, test 2; statistics of all splits)." in card
    assert "language:\n- en" in card
    page = magpie_hf.report(tmp_path / "run", tmp_path / "report.html").read_text("utf-8")
    assert "Instruction length, characters" in page


# Errors before the first row

STAGES = ["instructions", "responses"]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"output": {"columns": "llama-3"}}, ["output.columns", '"llama-3" include', '"base_output"', "reward_difference"]),
        ({"output": {"columns": "llama-3.1-mt"}}, ['"instruction_2"', "turns"]),
        ({"output": {"columns": "released"}}, ["the recipe 'synthesize' has no layout", "llama-3-filtered"]),
        ({"output": {"columns": "llama3"}}, ["names no columns", 'Did you mean "llama-3"']),
        ({"output": {"columns": ["uuid", "qualty"]}}, ['"qualty"', "output.columns"]),
        ({"output": {"columns": ["uuid", "uuid"]}}, ["list of different column names"]),
        ({"output": {"columns": 5}}, ["list of different column names"]),
        ({"output": {"columns": []}}, ["list of different column names"]),
        ({"output": {"test_size": 0}}, ["output.test_size", "between 0 and 1"]),
        ({"output": {"test_size": 2}}, ["output.test_size", "between 0 and 1"]),
        ({"output": {"test_size": "half"}}, ["output.test_size"]),
    ],
)  # fmt: skip
def test_a_form_that_the_stages_cannot_make_is_an_error_of_the_recipe(recipe, said):
    with pytest.raises(RecipeError) as caught:
        load_recipe({"model": "demo", "stages": STAGES, **recipe})
    for words in said:
        assert words in str(caught.value), words


def test_the_whole_temperature_of_reasoning_v1_is_checked_before_anything_is_generated():
    changed = {"output.columns": "released", "stages.responses.sampling.temperature": 0.6}
    with pytest.raises(RecipeError, match=r"whole number as the temperature of responses, not 0\.6"):
        load_recipe("magpie-reasoning-v1-150k", changed)


def test_the_rows_that_a_recipe_annotates_are_checked_before_anything_is_generated(null, tiny_model_dir, tmp_path):
    recipe = {
        "model": str(tiny_model_dir),
        "engine": {"kind": "null"},
        "dataset": {"fingerprint": None, "path": str(tmp_path / "rows.jsonl")},
        "stages": ["responses"],
        "output": {"columns": "magpielm-dpo"},
    }
    some(3).to_json(tmp_path / "rows.jsonl")
    with pytest.raises(magpie_hf.errors.MagpieError, match='"chosen" and "rejected"') as caught:
        magpie_hf.run(recipe, output=tmp_path / "run")
    assert "preference" in caught.value.hint
    assert null.opened == 0


def test_rows_of_a_release_that_are_answered_anew_have_the_columns_of_the_new_release(null, tiny_model_dir, tmp_path):
    """As the CoT versions of the Reasoning sets."""
    facts = yaml.safe_load((REPOSITORY / "tests" / "releases" / "facts.yaml").read_text("utf-8"))["columns"]
    row = {name: [] if isinstance(kind, list) else None for name, kind in facts["reasoning_v1"].items()}
    configs = {"temperature": 1.0, "top_p": 1.0, "input_generator": "q", "seed": None, "extract_input": "<user>"}
    row |= {"uuid": "a", "instruction": "Why?", "response": "So.", "intent": "To know.", "gen_input_configs": configs}
    Dataset.from_list([row]).to_parquet(str(tmp_path / "rows.parquet"))
    recipe = {
        "model": str(tiny_model_dir),
        "engine": {"kind": "null"},
        "dataset": str(tmp_path / "rows.parquet"),
        "stages": ["responses"],
        "output": {"columns": "reasoning-v1-cot"},
    }
    made = magpie_hf.run(recipe, output=tmp_path / "run")
    assert made.column_names == list(facts["reasoning_v1_cot"])
    assert made[0]["gen_input_configs"] == configs
    assert made[0]["intent"] == "To know."
    assert made[0]["conversations"][1] == {"from": "gpt", "value": made[0]["response"]}
    assert "Why?" in made[0]["gen_response_configs"]["prompt"]
    assert made[0]["response"] != "So."


def test_annotations_of_an_earlier_response_are_dropped_with_it(null, tiny_model_dir, tmp_path, caplog):
    caplog.set_level(logging.INFO, "magpie_hf")
    about = {
        "instruct_reward": 1.0,
        "llama_guard_2": "safe",
        "response_length": 3,
        "reward_difference": 0.5,
        "num_turns": 2,
    }
    pairs = {"rewards_armorm": [{"score": 1.0}], "chosen": [{"role": "user", "content": "Why?"}], "reward_margin": 1.0}
    kept = {"uuid": "a", "instruction": "Why?", "intent": "To know.", "instruction_length": 4, "base_response": "No."}
    Dataset.from_list([{**kept, "response": "So.", **about, **pairs}]).to_parquet(str(tmp_path / "rows.parquet"))
    for stage, outdated in (("responses", about), ("preference_responses", pairs)):
        recipe = {
            "model": str(tiny_model_dir),
            "engine": {"kind": "null"},
            "dataset": str(tmp_path / "rows.parquet"),
            "stages": [{"stage": "select", "where": "reward > 0"}, stage],
        }
        caplog.clear()
        made = magpie_hf.run(recipe, output=tmp_path / stage, show_progress=False)
        assert len(made) == 1
        assert all(name in caplog.text for name in ("outdated columns", *outdated))
        assert not {*outdated} & {*made.column_names}
        assert {name: made[0][name] for name in kept} == kept


def test_all_rows_of_a_run_can_be_read_again_by_the_names_of_its_splits(make, tmp_path):
    made = make("run", num_rows=20, output={"test_size": 0.1})
    ids = {name: made[name]["uuid"][:] for name in made}
    for form in ("parquet", "arrow"):
        make("run", num_rows=20, output={"test_size": 0.1, "format": form})
        both = load_rows(str(tmp_path / "run"), split="train+test")
        assert both["uuid"][:] == [*ids["train"], *ids["test"]]
    with pytest.raises(DatasetError, match="no split 'dev'"):
        load_rows(str(tmp_path / "run"), split="train+dev")


def test_reading_a_run_without_naming_a_split_says_that_its_test_split_is_left_out(make, tmp_path, caplog):
    make("run", num_rows=20, output={"test_size": 0.1})
    caplog.clear()
    assert len(load_rows(str(tmp_path / "run"))) == 18
    assert "Only the split train" in caplog.text
    caplog.clear()
    magpie_hf.report(tmp_path / "run", tmp_path / "report.html")
    assert len(load_rows(str(tmp_path / "run"), split="train")) == 18
    assert caplog.text == ""
