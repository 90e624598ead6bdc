"""Lengths of whole conversations, and selections by them."""

from __future__ import annotations

import pytest
from datasets import Dataset

import magpie_hf
from magpie_hf.messages import conversation, system


LONG = conversation(("Hi", "Hello!"), ("And you?", "Fine."))
ROWS = {
    "instruction": ["Hi"] * 5,
    "response": ["Hello!"] * 5,
    "messages": [
        LONG,
        [{"role": "system", "content": "Be brief. " * 9}, *LONG[:2]],
        LONG[:3],
        [],
        [system("Be brief.")],
    ],
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny_model_dir):
    stage = [{"stage": "lengths", "conversation": True}]
    place = tmp_path_factory.mktemp("lengths") / "run"
    return magpie_hf.annotate(Dataset.from_dict(ROWS), stage, tokenizer=str(tiny_model_dir), output=place)


def test_a_conversation_has_its_turns_and_its_length_without_the_system_message(measured):
    assert measured["num_turns"][:] == [2, 1, 1, None, 0]
    assert measured["conversation_length"][:] == [21, 8, 16, None, 0]
    assert measured["conversation_tokens"][0] > measured["conversation_tokens"][1] > 0
    assert measured["conversation_tokens"][1] == measured["instruction_tokens"][1] + measured["response_tokens"][1]
    assert measured["conversation_tokens"][3:] == [None, 0]


def test_conversations_are_measured_only_if_asked(tiny_model_dir, tmp_path):
    ds = magpie_hf.annotate(Dataset.from_dict(ROWS), ["lengths"], tokenizer=str(tiny_model_dir), output=tmp_path / "r")
    assert not {"conversation_length", "conversation_tokens", "num_turns"} & {*ds.column_names}


@pytest.mark.parametrize(("setting", "kept"), [("longest", [0, 2]), ("shortest", [1, 2])])
@pytest.mark.parametrize("source", ["measured", "messages"])
def test_the_longest_and_shortest_conversations_are_those_by_length_or_by_messages(setting, kept, source, measured):
    ds = (measured if source == "measured" else Dataset.from_dict(ROWS)).select(range(3))
    chosen = magpie_hf.select(ds.add_column("n", [*range(3)]), length_column="conversation_length", **{setting: 2})
    assert chosen["n"][:] == kept
