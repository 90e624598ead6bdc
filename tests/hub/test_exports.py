"""Exported rows are published as a config of their own, next to the rows of the run."""

from __future__ import annotations

from datasets import load_dataset

import magpie_hf
from tests.exports.shapes import REASONING, SINGLE, WORSE, chats, pairs


def test_an_export_is_a_config_beside_the_rows_it_was_made_from(hub):
    rows = pairs((SINGLE, WORSE))
    magpie_hf.push_to_hub(rows, "me/mine", license="mit")
    magpie_hf.push_to_hub(magpie_hf.export(rows, "trl-dpo"), "me/mine", config_name="dpo", license="mit")
    loaded = load_dataset("me/mine", "dpo", split="train")
    assert loaded.to_list() == [{"prompt": SINGLE[:1], "chosen": SINGLE[1:], "rejected": WORSE[1:]}]
    assert "messages" in load_dataset("me/mine", split="train").column_names


def test_published_messages_with_reasoning_have_no_added_nulls(hub):
    made = magpie_hf.export(chats(SINGLE, SINGLE, reasoning=[REASONING, None]), "trl-sft", reasoning="thinking")
    magpie_hf.push_to_hub(made, "me/thinking", license="mit")
    assert load_dataset("me/thinking", split="train").to_list() == made.to_list()
    assert made[1]["messages"] == SINGLE
