"""Rows with the columns of the releases: their names, order and types, so that both can be joined."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from datasets import Dataset, Features, Value, concatenate_datasets

from magpie_hf.columns import Column
from magpie_hf.errors import ArgumentError, DatasetError
from magpie_hf.hub.layouts import LAYOUTS, layout_of, recipes_of
from magpie_hf.hub.released import released
from magpie_hf.recipe.schema import load_recipe
from tests.conftest import REPOSITORY


FACTS: dict[str, Any] = yaml.safe_load((REPOSITORY / "tests" / "releases" / "facts.yaml").read_text("utf-8"))
PUBLISHED = {
    "llama-3": "first",
    "llama-3-filtered": "first_filtered",
    "llama-3-dpo": "preference",
    "qwen2": "second_extract_input",
    "llama-3.1": "second_pre_query",
    "llama-3.1-mt": "turns_500k",
    "llama-3.1-mt-filtered": "turns_300k",
    "reasoning-v1": "reasoning_v1",
    "reasoning-v1-cot": "reasoning_v1_cot",
    "magpielm-dpo": "preference_magpielm",
}
"""Our layouts, and their names in the table of facts. Of Reasoning V2, only the first columns are published."""
MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4."}]
GREEDY = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 64, "repetition_penalty": 1.0, "output_generator": "demo"}
ROW: dict[str, Any] = {
    "uuid": "a", "model": "demo", "instruction": "What is 2 + 2?", "response": "4.", "messages": MESSAGES,
    "gen_input_configs": {"temperature": 1.0, "top_p": 0.9, "input_generator": "demo", "seed": 7,
                          "pre_query_template": "<user>"},
    "gen_response_configs": {**GREEDY, "system_prompt": None},
    "gen_responses_configs": {"temperature": 0.8, "top_p": 1.0, "max_tokens": 64, "output_generator": "demo"},
    "task_category": "Math", "other_task_category": ["Reasoning"], "task_category_generator": "demo",
    "difficulty": "easy", "intent": "To add.", "knowledge": "Sums.", "difficulty_generator": "demo",
    "input_quality": "good", "quality_explanation": "Clear.", "quality_generator": "demo", "llama_guard_2": "safe",
    "reward_model": "demo", "instruct_reward": 1.5, "min_neighbor_distance": 0.25, "repeat_count": 0,
    "min_similar_uuid": None, "instruction_length": 14, "response_length": 2, "language": "EN",
    "base_response": "5.", "base_reward": 0.5, "reward_difference": 1.0, "instruction_2": "And 3 + 3?",
    "response_2": "6.", "responses": ["4.", "5."], "preference_rewards": [1.5, None], "chosen": MESSAGES,
    "rejected": MESSAGES,
}  # fmt: skip


def ours() -> Dataset:
    """Return a row as stages write it; the entries of the register are stored in its features."""
    rows = Dataset.from_list([ROW])
    features = Features({**rows.features, "min_similar_uuid": Value("string")})
    features["difficulty"] = Column("difficulty", "label", ("easy", "hard")).feature()
    features["task_category"] = Column("task_category", "label").feature()
    return rows.cast(features)


def request(instruction: str, system_prompt: str | None) -> dict[str, object]:
    return {"prompt": f"<user>{instruction}", "stop_tokens": ["<end>"], "engine": "vllm", "repetition_penalty": 1.0}


def published(name: str) -> Features:
    """Return the features of a release as `load_dataset` reads them from its card."""
    return Features({column: feature(kind) for column, kind in FACTS["columns"][PUBLISHED[name]].items()})


def feature(kind: Any) -> Any:
    if isinstance(kind, dict):
        return {name: feature(inner) for name, inner in kind.items()}
    return [feature(kind[0])] if isinstance(kind, list) else Value(kind)


def test_the_layouts_are_those_of_the_table_of_facts():
    assert {*LAYOUTS} == {*PUBLISHED, "reasoning-v2"}
    for name, key in PUBLISHED.items():
        assert dict(LAYOUTS[name].columns) == FACTS["columns"][key], name
        assert list(LAYOUTS[name].columns) == list(FACTS["columns"][key]), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_can_be_joined_with_those_of_the_release(name):
    features = published(name)
    theirs = Dataset.from_list([dict.fromkeys(features)] * 2, features=features)
    made = released(ours(), LAYOUTS[name], request_of=request)
    assert list(made.features) == list(features)
    assert made.features == features
    joined = concatenate_datasets([made, theirs])
    assert len(joined) == 3
    assert joined.features == features
    assert concatenate_datasets([theirs, made])[2] == made[0]


def test_default_rows_cannot_be_joined_with_a_release_without_this():
    features = published("llama-3.1")
    theirs = Dataset.from_list([dict.fromkeys(features)], features=features)
    with pytest.raises(ValueError, match="align"):
        concatenate_datasets([ours(), theirs])


def test_values_are_those_of_our_columns_under_their_released_names():
    row = released(ours(), LAYOUTS["llama-3"])[0]
    turns = [{"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": "4."}]
    assert row["conversations"] == turns
    assert (row["input"], row["output"], row["base_output"]) == ("What is 2 + 2?", "4.", "5.")
    assert (row["input_length"], row["output_length"]) == (14, 2)
    assert row["gen_input_config"] == {"temperature": 1.0, "top_p": 0.9}


def test_the_field_of_the_template_has_its_released_name_and_the_seed_is_null():
    for name, key in (("qwen2", "extract_input"), ("llama-3.1", "pre_query_template")):
        configs = released(ours(), LAYOUTS[name])[0]["gen_input_configs"]
        assert (configs[key], configs["seed"]) == ("<user>", None)


def test_requests_of_responses_are_described_as_in_the_release():
    row = released(ours(), LAYOUTS["reasoning-v1-cot"], request_of=request)[0]
    assert row["gen_response_configs"] == {
        "prompt": "<user>What is 2 + 2?",
        "temperature": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "max_tokens": 64,
        "stop_tokens": ["<end>"],
        "output_generator": "demo",
        "engine": "vllm",
    }
    pair = released(ours(), LAYOUTS["llama-3-dpo"], request_of=request)[0]
    assert pair["gen_response_configs"]["temperature"] == 0.8
    assert pair["rewards_armorm"] == [{"score": 1.5}, {"score": None}]
    assert pair["chosen"] == [{"content": turn["content"], "role": turn["role"]} for turn in MESSAGES]


def test_rows_that_already_have_released_columns_keep_them():
    """E.g., the CoT versions answer the instructions of a release anew."""
    first = released(ours(), LAYOUTS["reasoning-v1"], request_of=request)
    again = released(first, LAYOUTS["reasoning-v1"])
    assert again.to_list() == first.to_list()
    other = released(first.add_column("model", ["m"]), LAYOUTS["reasoning-v1"])
    assert other[0]["gen_input_configs"]["extract_input"] == "<user>"


def test_rows_of_a_release_keep_their_ids_although_they_get_a_uuid_of_their_own():
    first = released(ours(), LAYOUTS["reasoning-v2"], request_of=request)
    again = released(first.add_column("uuid", ["computed"]), LAYOUTS["reasoning-v2"])
    assert again.to_list() == first.to_list()


def test_the_two_halves_of_a_release_and_the_recipe_that_joins_them_have_its_columns():
    name = "magpie-reasoning-v2-250k"
    for recipe in (name, f"{name}-llama-3.1", f"{name}-llama-3.3"):
        assert layout_of("released", recipe) == LAYOUTS["reasoning-v2"]


def test_null_texts_and_conversations_stay_null_and_no_rows_have_the_same_columns():
    rows = ours().map(lambda row: {"response": None, "messages": None, "gen_response_configs": None})
    row = released(rows, LAYOUTS["reasoning-v1"], request_of=request)[0]
    assert (row["response"], row["conversations"], row["gen_response_configs"]) == (None, None, None)
    empty = released(ours().select([]), LAYOUTS["llama-3"])
    assert len(empty) == 0
    assert empty.features == published("llama-3")


def test_a_value_that_the_released_type_cannot_hold_is_an_error_that_names_the_column():
    rows = ours().map(lambda row: {"gen_response_configs": {**row["gen_response_configs"], "temperature": 0.6}})
    with pytest.raises(DatasetError, match=r"gen_response_configs.*0\.6 is not a whole number"):
        released(rows, LAYOUTS["reasoning-v1"])
    with pytest.raises(DatasetError, match="base_response"):
        released(ours().remove_columns("base_response"), LAYOUTS["llama-3"])


def test_every_recipe_of_a_layout_makes_its_columns():
    """Recipes that annotate a dataset are checked when its columns are known."""
    from magpie_hf.recipe.schema import bundled_recipes

    bundled = {*bundled_recipes()}
    for name in LAYOUTS:
        for recipe in bundled & {*recipes_of(name)}:
            assert load_recipe(recipe, {"output.columns": "released"}).output_columns == LAYOUTS[name]


def test_an_unknown_layout_is_an_error_with_the_known_ones():
    with pytest.raises(ArgumentError) as caught:
        layout_of("llama-3-dp", "mine")
    assert 'Did you mean "llama-3-dpo"?' in caught.value.hint
    with pytest.raises(ArgumentError, match="the recipe 'mine' has no layout of released columns"):
        layout_of("released", "mine")
