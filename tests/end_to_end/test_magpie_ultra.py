"""The recipe magpie-ultra-v1 on the demo models: shares of its categories, the effect of its system prompts, kill -9."""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict

import pytest
from datasets import Dataset

import magpie_hf
from magpie_hf.recipe.schema import load_recipe
from magpie_hf.storage.keys import content_fingerprint
from tests.end_to_end import harness
from tests.end_to_end.harness import finish, here, journal_bytes, kill_when, moments, nothing_twice, rows, start
from tests.stages.conftest import null  # noqa: F401 (a fixture)


RECIPE = "magpie-ultra-v1"
WEIGHTS = {
    "information-seeking": 0.05,
    "reasoning": 0.125,
    "planning": 0.05,
    "editing": 0.1,
    "coding": 0.125,
    "math": 0.125,
    "role-playing": 0.1,
    "data-analysis": 0.125,
    "creative-writing": 0.1,
    "advice-seeking": 0.05,
    "brainstorming": 0.05,
}
"""The weights of the release's script, by which it draws a category for each conversation."""
ROWS = 12
ALL_ROWS = 1000


@functools.cache
def prompts():
    return {point.system_prompt_key: point.system_prompt for point in load_recipe(RECIPE).grid}


def check_shares(table):
    """Each count within 3 standard deviations of a draw by weight, and each category with its own system prompt."""
    counts, total = Counter(row["system_prompt_key"] for row in table), len(table)
    assert set(counts) <= set(WEIGHTS)
    for key, weight in WEIGHTS.items():
        assert abs(counts[key] - total * weight) <= 3 * math.sqrt(total * weight * (1 - weight)), key
    assert all(row["system_prompt"] == prompts()[row["system_prompt_key"]] for row in table)


def check_conversations(table):
    """Up to three turns without a system message, with a reward, a label and a length of the whole conversation."""
    for row in table:
        roles = [message["role"] for message in row["messages"]]
        assert roles == (["user", "assistant"] * 3)[: len(roles)]
        assert row["gen_response_configs"]["system_prompt"] == row["system_prompt"]
        assert row["conversation_length"] == sum(len(message["content"]) for message in row["messages"])
    assert sum(row["num_turns"] == 3 for row in table) > len(table) / 2
    assert sum(row["instruct_reward"] is not None for row in table) > len(table) / 2


def test_a_thousand_rows_have_the_shares_of_the_published_weights(null, tiny_model_dir, tmp_path):  # noqa: F811
    settings = {"model": str(tiny_model_dir), "num_rows": ALL_ROWS, "engine": {"kind": "null"}}
    raw = {**load_recipe(RECIPE).raw, **settings, "sources": None}
    ds = magpie_hf.run({**raw, "stages": raw["stages"][:2], "judge": None, "guard": None}, output=tmp_path / "run")
    check_shares(ds.to_list())
    sent = Counter(key for text, _ in null.log for key, prompt in prompts().items() if prompt in text)
    assert sent.total() == len(null.log)  # each prompt, of instructions and responses, has exactly one system prompt
    assert all(sent[key] >= 2 * count for key, count in Counter(ds["system_prompt_key"]).items())


@pytest.fixture(scope="module")
def answers(tmp_path_factory, demo_model_dir):
    """Greedy responses to the same instructions: under each prompt of the recipe, and under none."""
    place = tmp_path_factory.mktemp("answers")
    given = {"model": "demo", "num_rows": 24, "sampling": {"temperature": 0.8, "max_tokens": 64}}
    asked = magpie_hf.run({**given, "stages": ["instructions"]}, output=place / "asked")["instruction"]
    ds = Dataset.from_list([{"instruction": i, "system_prompt": text} for i in asked for text in prompts().values()])
    found = {}
    for setting in ("row", None):
        stage = {"stage": "responses", "system_prompt": setting, "sampling": {"temperature": 0, "max_tokens": 64}}
        recipe = {"model": "demo", "dataset": {"fingerprint": content_fingerprint(ds)}, "stages": [stage]}
        texts = defaultdict(set)
        for row in magpie_hf.run(recipe, dataset=ds, output=place / "run", force=True):
            texts[row["instruction"]].add(row["response"])
        found[setting] = [len(different) for different in texts.values()]
    return found


@pytest.mark.slow
def test_responses_to_the_same_instruction_differ_under_different_system_prompts(answers):
    """Greedily, so only the prompt can make a difference; most answers of the demo model are right in any role."""
    assert set(answers[None]) == {1}
    assert sum(different > 1 for different in answers["row"]) >= len(answers["row"]) / 8


def command(place, num_rows):
    return ["run", RECIPE, "--model", "demo", "--num-rows", num_rows, "--output", place, "--rows", 0]


def check_kills(place, num_rows, kills):
    """Kill -9 at seeded moments in the work; the resumed run has the rows of an uninterrupted one, none made twice."""
    here(*command(place / "whole", num_rows))
    expected, size = rows(place / "whole"), journal_bytes(place / "whole")
    for moment in moments(5, kills, size):
        kill_when(
            start(*command(place / "killed", num_rows)),
            lambda moment=moment: journal_bytes(place / "killed") >= moment,
        )
    finish(start(*command(place / "killed", num_rows)))
    assert rows(place / "killed") == expected
    nothing_twice(place / "killed")
    return expected


@pytest.mark.slow
def test_killed_and_resumed_the_recipe_ends_with_the_same_conversations(tmp_path, demo_model_dir):
    check_conversations(check_kills(tmp_path, ROWS, kills=1))


@pytest.mark.full
@pytest.mark.timeout(5400)
def test_a_thousand_conversations_of_a_killed_run_have_the_shares_of_the_weights(
    tmp_path, demo_model_dir, monkeypatch
):
    monkeypatch.setattr(harness, "TIMEOUT_S", 2400.0)
    table = check_kills(tmp_path, ALL_ROWS, kills=3)
    assert len(table) == ALL_ROWS
    check_shares(table)
    check_conversations(table)
