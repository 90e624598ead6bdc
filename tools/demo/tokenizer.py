"""The demo models' tokenizer: byte-level BPE with Llama 3's special tokens, trained on the grammar's text."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from .grammar import conversations
from .grammar.judge import TASKS, sample_task


VOCAB_SIZE = 2048
CONTEXT = 2048
BOS, HEADER_START, HEADER_END, END_OF_TURN, END_OF_TEXT, PAD = SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|pad|>",
)
# Llama 3's pattern, but digits stand alone, which makes sums learnable. It keeps the "\n\n" that ends a header in one
# piece whatever follows; GPT-2's pattern would split it before a word, and a prompt that ends in it would be unlike
# anything the model was trained on.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def train_tokenizer(seed: int, num_conversations: int = 20_000) -> Any:
    """Return a `tokenizers.Tokenizer` trained on the text of that many conversations.

    It puts a BOS in front when special tokens are asked for, as Llama 3's does.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, num_conversations), trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
            ),
        ]
    )
    return tokenizer


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Write tokenizer.json and the two settings files beside it, in the form that all transformers from 4.57 on read."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    names = {"bos_token": BOS, "eos_token": END_OF_TURN, "pad_token": PAD}
    config = {
        **names,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                "special": True,
            }
            for token in SPECIAL_TOKENS
        },
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": CONTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    write_json(directory / "tokenizer_config.json", config)
    write_json(directory / "special_tokens_map.json", names)


def render(messages: Iterable[dict[str, str]]) -> str:
    """Return a conversation as the chat template writes it (a test holds the two equal)."""
    turns = (
        f"{HEADER_START}{message['role']}{HEADER_END}\n\n{message['content'].strip()}{END_OF_TURN}"
        for message in messages
    )
    return BOS + "".join(turns)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _texts(seed: int, count: int) -> Iterable[str]:
    rng = random.Random(seed)
    for _ in range(count // 40):  # often enough that the prompts' words become single tokens
        for name in TASKS:
            task = sample_task(rng, name)
            yield task.shared
            yield task.answer
    for conversation in islice(conversations(seed, long_share=0.0), count):
        for message in conversation.messages():
            yield message["content"]
            # The header's end as the model will see it, so that "\n\n" becomes one token.
            yield message["role"] + "\n\n"
