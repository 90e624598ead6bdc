"""Small templates in the form of the families', and small tokenizers with the families' habits."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast


_TEXTS = [
    "How do I sort a list? Use the sorted function, which gives a new list.",
    "You are a helpful assistant. The user asks, the system answers. User: Assistant: USER: ASSISTANT: INST SYS",
    "### Instruction:\n\nWrite a haiku about spring.\n\n### Response:\nThe quick brown fox\n",
    "def f(x):\n    return x + 1\n\n2024 was a leap year; 3 + 4 = 7.",
    "你好，世界。 Привет, мир! éclair",
    "A text that ends in two newlines.\n\n",
] * 4
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def template(family: str) -> str:
    """Return the Jinja of a family."""
    return (Path(__file__).parent / f"{family}.jinja").read_text(encoding="utf-8")


@functools.cache
def _trained(kind: str) -> str:
    if kind in ("llama3", "gpt2"):
        tokenizer = Tokenizer(models.BPE())
        pattern = Regex(_LLAMA3 if kind == "llama3" else _GPT2)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(_TEXTS, trainer)
        return tokenizer.to_str()
    # SentencePiece's habits: pieces never cross words while training, spaces become part of the text when encoding
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\n"]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=pieces, show_progress=False)
    tokenizer.train_from_iterator(_TEXTS, trainer)
    tokenizer = _without_added_tokens(tokenizer)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces] if kind == "spm" else [spaces])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)][
            : 4 if kind == "spm" else 3
        ]
    )
    if kind == "spm-first":
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer.to_str()


def _merging(content: str, before: str) -> str:
    """Add pieces of `before` with a letter after it, as large vocabularies have them from texts of code."""
    if not before:
        return content
    found = json.loads(content)
    vocabulary, merges = found["model"]["vocab"], found["model"]["merges"]
    vocabulary.setdefault(before, len(vocabulary))
    for letter in [text for text in vocabulary if len(text) == 1 and text.isalpha()]:
        vocabulary.setdefault(before + letter, len(vocabulary))
        merges.insert(0, [before, letter])
    return json.dumps(found)


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Make the trainer's special tokens (bytes, newline) plain pieces, as SentencePiece has them."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] == "<unk>"]
    return Tokenizer.from_str(json.dumps(content))


def make_tokenizer(
    kind: str,
    *,
    bos: str | None,
    eos: str,
    special: str = "",
    added: str = "",
    adds_bos: bool = False,
    rstrip: bool = False,
    merged: str = "",
    chat_template: Any = None,
) -> PreTrainedTokenizerFast:
    """Build a tokenizer.

    `kind`: "llama3" and "gpt2" (byte-level, by their patterns), "spm" (a space put in front), "spm-first" (in front of
    the first word only, as SentencePiece with `legacy: false`) or "gemma" (none).
    `special`, `added`: further special and other added tokens, separated by spaces. `rstrip`: special tokens swallow
    the white space after them, as Phi-3's do. `merged`: a character that is one piece with each letter after it.
    """
    backend = Tokenizer.from_str(_merging(_trained(kind), merged))
    wanted = dict.fromkeys([*([bos] if bos else []), eos, *special.split()])
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False, rstrip=rstrip) for t in wanted])
    backend.add_tokens([AddedToken(t, normalized=False) for t in added.split()])
    if adds_bos and bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    made.chat_template = chat_template
    return made
