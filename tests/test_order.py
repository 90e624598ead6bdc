from __future__ import annotations

import pytest

from magpie_hf.errors import RecipeError
from magpie_hf.recipe.schema import load_recipe


BASE = {"model": "demo", "num_rows": 10, "order": "lean"}


def names(*stages, order="lean", **more):
    recipe = load_recipe({**BASE, "order": order, **more, "stages": ["instructions", *stages]})
    return [stage.label for stage in recipe.stages]


def select(where="", **more):
    return {"stage": "select", "where": where, **more}


def test_what_needs_the_instruction_alone_runs_before_responses():
    stages = [
        "responses",
        "quality",
        "category",
        "neighbors",
        "safety",
        "lengths",
        select("quality >= good and safety == 'safe'"),
    ]
    assert names(*stages) == [
        "instructions", "quality", "category", "neighbors", "select-early", "responses", "safety", "lengths", "select",
    ]  # fmt: skip
    assert names(*stages, order="paper") == ["instructions", *(s if isinstance(s, str) else "select" for s in stages)]


def test_the_early_part_has_the_conditions_on_the_instruction_and_the_late_one_all():
    recipe = load_recipe(
        {**BASE, "stages": ["instructions", "responses", "quality", "language", "neighbors", "reward",
                            select("quality >= good and reward > 0 and language == 'EN'", longest=5, one_per_group=True)]}
    )  # fmt: skip
    early, late = (stage for stage in recipe.stages if stage.name == "select")
    assert early.where == "(quality >= good) and (language == 'EN')"
    assert (early.longest, early.one_per_group) == (None, False)  # a survivor may fall to the reward
    assert (late.longest, late.one_per_group) == (5, True)


def test_survivors_are_chosen_early_where_nothing_later_can_drop_them():
    recipe = load_recipe(
        {
            **BASE,
            "stages": [
                "instructions",
                "responses",
                "quality",
                "neighbors",
                select("quality >= good", one_per_group="quality"),
            ],
        }
    )
    early = next(stage for stage in recipe.stages if stage.name == "select")
    assert early.one_per_group == "input_quality"


def test_base_responses_wait_for_the_conditions_on_the_instruction():
    """They read only the instruction, but generating them for rows that are dropped is what lean is to save."""
    stages = ["responses", "quality", "neighbors", "reward", "reward_difference"]
    where = "quality >= good and reward_difference > 0"
    assert names(*stages, select(where, one_per_group=True, longest=5)) == [
        "instructions", "quality", "neighbors", "select-early", "responses", "reward", "base_responses",
        "reward_difference", "select",
    ]  # fmt: skip


def test_flags_wait_for_the_responses_they_look_at():
    assert names("responses", "quality", "flags", select("quality >= good"))[-3:] == ["responses", "flags", "select"]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (["responses", "reward", select("reward > 0")], "instruct_reward"),
        (["responses"], "No condition can be applied"),
        (["responses", "quality", select(longest=5)], "No condition can be applied"),
        (
            ["responses", "quality", "reward", select("reward > 0"), "neighbors", select("quality >= good")],
            "receive other rows",
        ),
    ],
)
def test_what_lean_cannot_do_is_refused_with_the_reason(stages, words):
    with pytest.raises(RecipeError, match=words) as caught:
        names(*stages)
    assert "order" in str(caught.value)


def test_a_combined_judge_stands_where_the_first_of_its_rubrics_stood():
    assert names("quality", "responses", "difficulty", "lengths", "category", order="paper", judge="combined") == [
        "instructions", "judge", "responses", "lengths",
    ]  # fmt: skip
    assert names("quality", order="paper", judge="combined") == ["instructions", "quality"]


def test_a_stage_that_needs_another_brings_it_and_takes_its_settings():
    recipe = load_recipe(
        {
            "model": "demo",
            "stages": ["instructions", "responses", {"stage": "reward", "max_length": 77}, "reward_difference"],
        }
    )
    assert [stage.name for stage in recipe.stages][2:] == ["reward", "base_responses", "reward_difference"]
    assert recipe.stages[-1].max_length == 77


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"model": "a/b", "stages": ["instructions", "responses", "reward_difference"]}, "base"),
        (
            {"model": "a/b", "engine": {"kind": "tgi", "endpoint": "http://h:1"}, "judge": {"model": "c/d"}},
            "judge.engine",
        ),
        ({"model": "demo", "judge": {"mode": "both"}}, "judge.mode"),
        ({"model": "demo", "guard": {"modl": "x"}}, "guard.modl"),
        (
            {"model": "demo", "stages": ["instructions", "responses", {"stage": "select", "where": "qualty >= good"}]},
            "qualty",
        ),
        ({"model": "demo", "stages": ["instructions", {"stage": "select", "filter": "air-filtr"}]}, "air-filter"),
        ({"model": "demo", "stages": ["instructions", {"stage": "select", "where": "1 <"}]}, "invalid syntax"),
        ({"dataset": "rows.parquet", "stages": ["quality"]}, "judge"),
        ({"dataset": "rows.parquet", "stages": ["instructions"]}, "cannot be used with a dataset"),
        ({"dataset": {"split": "train"}, "stages": ["flags"]}, "dataset.path"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_before_anything_is_made(raw, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe(raw)


def test_roles_have_the_generators_engine_where_nothing_else_is_said():
    recipe = load_recipe({"model": "a/b", "engine": {"kind": "vllm"}, "judge": {"model": "c/d"}, "base": "e/f"})
    assert recipe.role("judge").model == "c/d"
    assert recipe.role("judge").engine.kind == "vllm"
    assert recipe.role("guard").model == "meta-llama/Meta-Llama-Guard-2-8B"
    assert recipe.role("base").model == "e/f"
    same = load_recipe({"model": "a/b", "engine": {"kind": "tgi", "endpoint": "http://h:1"}})
    assert same.role("judge") == same.generator


def test_the_default_guard_of_a_generator_elsewhere_is_loaded_here():
    raw = {
        "model": "a/b",
        "engine": {"kind": "tgi", "endpoint": "http://h:1"},
        "stages": ["instructions", "responses", "safety"],
    }
    guard = load_recipe(raw).role("guard")
    assert (guard.engine.kind, guard.engine.endpoints) == ("transformers", ())
    assert "Guard" in guard.model
