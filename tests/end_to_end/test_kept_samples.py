"""Raw recipes: with `reject: []`, every sample that the model writes is a row, and goes through all stages."""

from __future__ import annotations

import dataclasses

import pytest

import magpie_hf
from magpie_hf.engines.local.hf import TransformersEngine


EMPTY = (1, 4, 10)
CUT = 6
STAGES = [
    {"stage": "instructions", "clean": False, "reject": []},
    {"stage": "responses", "sampling": {"temperature": 0, "max_tokens": 24}},
    {"stage": "turns", "clean": False, "reject": [], "response_sampling": {"temperature": 0, "max_tokens": 24}},
    "quality", "difficulty", "category",
    {"stage": "language", "languages": ["EN", "DE", "ES", "FR"], "low_memory": True},
    {"stage": "neighbors", "embeddings": True},
    "flags",
    "safety",
    "reward",
    {"stage": "base_responses", "sampling": {"temperature": 0, "max_tokens": 24}},
    "reward_difference",
    {"stage": "preference_responses", "num_samples": 2, "sampling": {"temperature": 0.8, "max_tokens": 24}},
    "preference",
    "lengths",
]  # fmt: skip


@pytest.fixture
def raw_samples(monkeypatch):
    """Let the demo model write two empty samples, and one that ends at its maximum length."""
    generate = TransformersEngine.generate

    def changed(self, requests):
        first = {}

        def seen(requests):
            for request in requests:
                if request is not None and request.prompt.text.endswith("user<|end_header_id|>\n\n"):
                    first[request.key] = len(first)
                yield request

        for generation in generate(self, seen(requests)):
            number = first.get(generation.key)
            if number in EMPTY:
                generation = dataclasses.replace(generation, text="", token_ids=[])
            elif number == CUT:
                generation = dataclasses.replace(generation, finish_reason="length")
            yield generation

    monkeypatch.setattr(TransformersEngine, "generate", changed)


@pytest.mark.slow
def test_empty_and_unfinished_samples_are_rows_and_pass_through_every_stage(raw_samples, tmp_path):
    recipe = {"model": "demo", "num_rows": 8, "stages": STAGES, "judge": "combined"}
    ds = magpie_hf.run(recipe, output=tmp_path / "run")
    assert len(ds) == 8
    reasons = ds["rejection_reason"][:]
    assert [reasons[number] for number in (*EMPTY[:2], CUT)] == ["empty", "empty", "unfinished"]
    assert reasons.count(None) == 5
    for row in (ds[number] for number in EMPTY[:2]):
        assert (row["instruction"], row["instruction_length"], row["instruction_tokens"]) == ("", 0, 0)
        assert row["response"]
        assert row["messages"][0] == {"role": "user", "content": ""}
        assert row["messages"][1] == {"role": "assistant", "content": row["response"]}
        assert None not in (row["input_quality"], row["difficulty"], row["task_category"], row["safety"])
        assert None not in (row["instruct_reward"], row["base_reward"], row["reward_margin"])
        assert (row["language"], row["repeat_count"], row["group_id"]) == (None, 0, row["uuid"])
    assert "" in ds["instruction_2"][:]
    assert len(magpie_hf.select(ds, "instruction_length == 0 and reward > -100", one_per_group=True)) == 2


@pytest.mark.slow
def test_a_raw_run_resumes_with_the_same_samples(tmp_path):
    stages = [{"stage": "instructions", "clean": False, "reject": []}]
    small = magpie_hf.run({"model": "demo", "num_rows": 4, "stages": stages}, output=tmp_path / "run")
    larger = magpie_hf.run({"model": "demo", "num_rows": 6, "stages": stages}, output=tmp_path / "run")
    assert larger["uuid"][:4] == small["uuid"][:]
    assert [row["sample_index"] for row in larger["gen_input_configs"]] == list(range(6))
