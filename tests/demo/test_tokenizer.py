import json
from itertools import islice
from pathlib import Path

import pytest

from tools.demo.grammar import conversations
from tools.demo.measure import PRE_QUERY
from tools.demo.tokenizer import CONTEXT, render


TEXTS = [
    "How do I start?",
    "7 + 5",
    "```python\nx = 1\n```",
    "¿Qué es?",
    "你好",
    " leading space",
    "\n\nnewlines first",
    "(why)",
]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_at_the_end_of_the_template_do_not_depend_on_the_text_after_it(tokenizer, text):
    header = tokenizer(PRE_QUERY, add_special_tokens=False)["input_ids"]
    if not text.startswith("\n"):  # newlines would join the header's, in Llama 3 as here; the template trims them
        assert tokenizer(PRE_QUERY + text, add_special_tokens=False)["input_ids"][: len(header)] == header
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
    assert tokenizer(rendered, add_special_tokens=False)["input_ids"][: len(header)] == header


def test_header_ends_in_one_token_of_two_newlines(tokenizer):
    last = tokenizer(PRE_QUERY, add_special_tokens=False)["input_ids"][-1]
    assert tokenizer.decode([last]) == "\n\n"


def test_template_has_one_bos_no_default_system_block_and_no_date(tokenizer):
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_template_writes_what_the_models_were_trained_on(tokenizer):
    for conversation in islice(conversations(11), 50):
        messages = conversation.messages()
        assert tokenizer.apply_chat_template(messages, tokenize=False) == render(messages)


def test_the_tokenizer_adds_one_bos_only_with_special_tokens(tokenizer):
    assert tokenizer("Hi")["input_ids"].count(tokenizer.bos_token_id) == 1
    assert tokenizer("Hi", add_special_tokens=False)["input_ids"].count(tokenizer.bos_token_id) == 0


@pytest.mark.parametrize("text", TEXTS)
def test_texts_survive_a_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_settings_agree_between_tokenizer_model_and_generation(tokenizer, demo_path):
    config = json.loads((Path(demo_path) / "config.json").read_text())
    generation = json.loads((Path(demo_path) / "generation_config.json").read_text())
    end_of_turn, end_of_text = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    assert generation["eos_token_id"] == [end_of_turn, end_of_text]
    assert config["vocab_size"] == len(tokenizer)
    assert config["pad_token_id"] == tokenizer.pad_token_id == generation["pad_token_id"]
    assert tokenizer.pad_token_id not in (end_of_turn, end_of_text)
    assert tokenizer.model_max_length == config["max_position_embeddings"] == CONTEXT
