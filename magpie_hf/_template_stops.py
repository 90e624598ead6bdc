"""Where a generation ends: tokens and texts that stop an instruction or a response, read off the template's frame."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ._reasoning import THINK_TAGS
from ._template_probe import Frame


@dataclass(frozen=True)
class Stops:
    """What ends a text, the likeliest first.

    `texts`: all of them as text, for servers that stop on texts only. `token_ids`: tokens. `plain_texts`: those texts
    that no token stands for (templates without special tokens): all that is left to an engine that stops on tokens.
    """

    texts: tuple[str, ...]
    token_ids: tuple[int, ...]
    plain_texts: tuple[str, ...] = ()


# Marks that look like special tokens but are plain text to some tokenizers: <|user|>, [INST], <<SYS>>
_MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?[A-Z_]{3,40}\]|</?s>")
_THINK = {tag for tags in THINK_TAGS for tag in tags}


class Vocabulary:
    """A tokenizer's added tokens: which texts they are, which are special."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.text_of = {int(i): str(token) for i, token in added.items()}
        self.special = {str(token) for token in added.values() if token.special}
        self.special.update(str(token) for token in tokenizer.all_special_tokens)
        self.marks = {i: t for i, t in self.text_of.items() if len(t.strip()) > 1 and t not in _THINK}

    def marks_in(self, text: str) -> list[int]:
        """Return the added tokens in a text of the template, in order; neither white space nor think tags."""
        if not text:
            return []
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        # The literal must be there too: some tokenizers list their byte tokens (<0x5B>) among the added ones
        return [i for i in ids if i in self.marks and self.marks[i].strip() in text]

    def literal(self, token_id: int) -> str:
        """Return a token as text."""
        known = self.text_of.get(token_id)
        return known if known is not None else str(self.tokenizer.decode([token_id]))

    def special_pattern(self, frame: Frame) -> re.Pattern[str] | None:
        """Return what finds special tokens and the template's own marks in a text."""
        texts = {t for t in self.special if t.strip()}
        for part in (frame.after_user, frame.after_answer):
            texts.update(_MARK.findall(part), (self.marks[i] for i in self.marks_in(part)))
        texts -= _THINK
        return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None


def instruction_stops(vocabulary: Vocabulary, frame: Frame, generation_config: Any) -> Stops:
    """Return what ends a user's message: what follows it, the end of sequence, and every mark that opens a turn."""
    ids = [
        *vocabulary.marks_in(frame.after_user),
        *end_ids(vocabulary, generation_config),
        *vocabulary.marks_in(frame.after_answer),
        *vocabulary.marks_in(frame.before_answer),
    ]
    plain = _MARK.findall(frame.after_user + frame.after_answer)
    return stops_of(vocabulary, ids, plain, first=_plain_end(vocabulary, frame.after_user))


def response_stops(vocabulary: Vocabulary, frame: Frame, generation_config: Any) -> Stops:
    """Return what ends an answer: what follows it in a conversation, and the end of sequence.

    Where the model writes marks of its own header, an answer is several messages (gpt-oss's Harmony: its analysis,
    then the final one), and what ends or opens a message does not end it: only what no past message has does.
    """
    ends = end_ids(vocabulary, generation_config)
    last, between = vocabulary.marks_in(frame.at_end), vocabulary.marks_in(frame.after_answer)
    if not vocabulary.marks_in(frame.header_rest):
        return stops_of(vocabulary, [*last, *ends, *between], _MARK.findall(frame.after_answer))
    inside = {*between, *vocabulary.marks_in(frame.before_answer)}
    return stops_of(vocabulary, [*(i for i in last if i not in inside), *ends], ())


def end_ids(vocabulary: Vocabulary, generation_config: Any) -> list[int]:
    given = generation_config
    ends = given.get("eos_token_id") if isinstance(given, Mapping) else getattr(given, "eos_token_id", None)
    listed = ends if isinstance(ends, (list, tuple)) else [ends]
    tokenizer = vocabulary.tokenizer
    return [int(i) for i in (tokenizer.eos_token_id, *listed, tokenizer.bos_token_id) if i is not None]


def _plain_end(vocabulary: Vocabulary, after_user: str) -> list[str]:
    """Return the text that ends a user's message where no token does: "### Response:", "ASSISTANT:", "[/INST]"."""
    line = next((part for part in after_user.splitlines() if part.strip()), "").strip()
    if not line or any(line.startswith(mark) for mark in vocabulary.marks.values()):
        return []
    if mark := _MARK.match(line):
        return [mark[0]]
    leading = after_user[: len(after_user) - len(after_user.lstrip())]
    if not line[0].isalpha() or (line.isupper() and not line.isalpha()):
        return [line]
    # An ordinary word ("Assistant:") may stand in a text; at the start of a line, as the template has it, hardly
    if "\n" not in leading or line.isalpha():
        return []
    return [leading.lstrip(" ") + line]


def stops_of(vocabulary: Vocabulary, ids: Iterable[int], plain: Iterable[str], first: Iterable[str] = ()) -> Stops:
    tokens = tuple(dict.fromkeys(ids))
    literals = [vocabulary.literal(i) for i in tokens]
    taken = {*vocabulary.text_of.values(), *literals}
    ends = [text for text in first if text not in taken]
    rest = [text for text in plain if text not in taken]
    texts = tuple(dict.fromkeys([*ends, *literals, *rest]))
    return Stops(texts, tokens, tuple(dict.fromkeys([*ends, *rest])))
