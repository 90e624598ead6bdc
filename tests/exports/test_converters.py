"""What axolotl and LLaMA-Factory read from exports, recorded from their own converters by `make test-trainers`.

A recording is valid as long as `export` writes the files that it was made from, which is compared first.
"""

from __future__ import annotations

import functools
import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.exports.shapes import CALL, REASONING
from tests.exports.trainers import CASES, RECORDINGS, SHAPES, TRAINERS, make, template_of


MASKED = -100
SFT = [(trainer, shape) for trainer, shape in CASES if shape != "preference"]
PLAIN = [(trainer, shape) for trainer, shape in SFT if shape not in ("reasoning", "tools")]


@functools.cache
def recorded(trainer):
    return json.loads((RECORDINGS / f"{trainer}.json").read_text("utf-8"))["cases"]


def read_by(trainer, shape):
    return recorded(trainer)[shape]["read"]


@pytest.fixture(scope="module")
def tokenizers(demo_model_dir):
    """Give the tokenizer of a case."""

    def find(trainer, shape):
        tokenizer = AutoTokenizer.from_pretrained(str(demo_model_dir))
        template = template_of(trainer, shape)
        if template is not None:
            tokenizer.chat_template = template.read_text("utf-8")
        return tokenizer

    return find


def trained_parts(labels, tokenizer):
    spans, before = [], MASKED
    for label in labels:
        if label != MASKED:
            spans += [[]] if before == MASKED else []
            spans[-1].append(label)
        before = label
    return [tokenizer.decode(span) for span in spans]


def expected_parts(messages, tokenizer, **more):
    def render(count, **also):
        return tokenizer.apply_chat_template(messages[:count], tokenize=False, **more, **also)

    ends = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    return [render(at + 1).removeprefix(render(at, add_generation_prompt=True)) for at in ends]


@pytest.mark.parametrize(("trainer", "shape"), CASES)
def test_the_recording_was_made_from_the_files_that_export_writes(trainer, shape, tmp_path):
    made, files = make(trainer, shape, tmp_path / shape)
    assert files == recorded(trainer)[shape]["files"]
    assert len(read_by(trainer, shape)) == len(made) == len(SHAPES[shape])  # no row is dropped


@pytest.mark.parametrize(("trainer", "shape"), PLAIN)
def test_tokens_are_the_chat_template_and_labels_the_responses(trainer, shape, tokenizers):
    tokenizer = tokenizers(trainer, shape)
    for row, messages in zip(read_by(trainer, shape), SHAPES[shape]["messages"], strict=True):
        assert tokenizer.decode(row["input_ids"]) == tokenizer.apply_chat_template(messages, tokenize=False)
        assert trained_parts(row["labels"], tokenizer) == expected_parts(messages, tokenizer)


def test_axolotl_reads_reasoning_from_the_key_of_the_template(tokenizers):
    tokenizer = tokenizers("axolotl", "reasoning")
    row, without = read_by("axolotl", "reasoning")
    messages = SHAPES["reasoning"][0]["messages"]
    with_key = [messages[0], {**messages[1], "reasoning_content": REASONING}]
    assert tokenizer.decode(row["input_ids"]) == tokenizer.apply_chat_template(with_key, tokenize=False)
    assert trained_parts(row["labels"], tokenizer) == expected_parts(with_key, tokenizer)
    assert "<think>" not in tokenizer.decode(without["input_ids"])


def test_llamafactory_reads_reasoning_between_tags(tokenizers):
    tokenizer = tokenizers("llamafactory", "reasoning")
    row, without = read_by("llamafactory", "reasoning")
    answer = f"<think>\n{REASONING}\n</think>\n\n2 + 3 = 5."
    assert trained_parts(row["labels"], tokenizer) == [f"{answer}<|eot_id|>"]
    assert trained_parts(without["labels"], tokenizer) == ["2 + 3 = 5.<|eot_id|>"]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_tool_calls_are_trained_and_results_of_tools_are_not(trainer, tokenizers):
    tokenizer = tokenizers(trainer, "tools")
    called, answered = trained_parts(read_by(trainer, "tools")[0]["labels"], tokenizer)
    assert json.dumps(CALL["function"]["arguments"]) in called
    assert answered == "It is sunny.<|eot_id|>"


def test_axolotl_shows_the_tools_to_the_chat_template(tokenizers):
    text = tokenizers("axolotl", "tools").decode(read_by("axolotl", "tools")[0]["input_ids"])
    assert '"name": "weather"' in text
    assert '"properties": {}' in text
    assert "null" not in text


def sides_of(trainer, row, tokenizer):
    """Return the whole texts of a preference pair, and of its responses."""
    if trainer == "axolotl":
        return {side: (row["prompt"] + row[side], row[side]) for side in ("chosen", "rejected")}
    return {
        side: (tokenizer.decode(row[f"{side}_input_ids"]), *trained_parts(row[f"{side}_labels"], tokenizer))
        for side in ("chosen", "rejected")
    }


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_preference_pair_has_one_prompt_and_two_responses(trainer, tokenizers):
    tokenizer = tokenizers(trainer, "preference")
    for row, source in zip(read_by(trainer, "preference"), SHAPES["preference"], strict=True):
        for side, (whole, response) in sides_of(trainer, row, tokenizer).items():
            assert whole == tokenizer.apply_chat_template(source[side], tokenize=False)
            assert response == expected_parts(source[side], tokenizer)[-1]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_model_finds_the_responses_likely(trainer, demo_model_dir):
    import torch

    model = AutoModelForCausalLM.from_pretrained(str(demo_model_dir))
    row = read_by(trainer, "one-turn")[0]
    given = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}
    with torch.no_grad():
        assert float(model(**given).loss) < 1.0
