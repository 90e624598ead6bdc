"""The tokens and texts that stop the generation of an instruction or a response, derived from the template's frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .answer import AnswerFrame
from .probe import Frame
from .vocabulary import MARK, Vocabulary


if TYPE_CHECKING:
    from transformers import GenerationConfig


@dataclass(frozen=True)
class Stops:
    """The stops of a text, the most likely first.

    Attributes:
        texts: All stops as text, for servers that do not support stop token ids.
        token_ids: The stops that are tokens.
        plain_texts: The stops that are not tokens (in templates without special tokens). Engines that stop at
            `token_ids` need these in addition.
    """

    texts: tuple[str, ...]
    token_ids: tuple[int, ...]
    plain_texts: tuple[str, ...] = ()


def instruction_stops(
    vocabulary: Vocabulary, frame: Frame, generation_config: GenerationConfig | Mapping[str, object] | None
) -> Stops:
    """Return the stops of a user's message: the marks after it, the end of sequence, and all marks that open a turn."""
    ids = [
        *vocabulary.marks_in(frame.after_user),
        *end_ids(vocabulary, generation_config),
        *vocabulary.marks_in(frame.after_answer),
        *vocabulary.marks_in(frame.before_answer),
    ]
    plain = MARK.findall(frame.after_user + frame.after_answer)
    return stops_of(vocabulary, ids, plain, first=_plain_end(vocabulary, frame.after_user))


def response_stops(
    vocabulary: Vocabulary,
    frame: Frame,
    answer: AnswerFrame,
    generation_config: GenerationConfig | Mapping[str, object] | None,
) -> Stops:
    """Return the stops of an answer: the marks after it in a conversation, and the end of sequence.

    Marks that the model generates before the end of an answer are not stops: the marks of its header, and those between
    reasoning and answer. If the last answer of a conversation ends differently from past ones, an answer may consist of
    several messages: then the marks between past messages are not stops either.
    """
    ends = end_ids(vocabulary, generation_config)
    last, between = vocabulary.marks_in(frame.at_end), vocabulary.marks_in(frame.after_answer)
    inside = {i for part in answer.inside for i in vocabulary.marks_in(part)}
    if inside and last[:1] != between[:1]:
        between = []
    plain = [*MARK.findall(frame.after_answer), *_plain_user(vocabulary, frame.after_answer)]
    ids = [*(i for i in last if i not in inside), *ends, *(i for i in between if i not in inside)]
    return stops_of(vocabulary, ids, () if inside else plain)


def _plain_user(vocabulary: Vocabulary, after_answer: str) -> list[str]:
    r"""Return the text that begins the next user's turn, e.g., "\nUser:"; [] if a mark ends the answer."""
    return [] if vocabulary.holds_mark(after_answer) else _plain_end(vocabulary, after_answer)


def end_ids(vocabulary: Vocabulary, generation_config: GenerationConfig | Mapping[str, object] | None) -> list[int]:
    """Return the end-of-sequence ids of the tokenizer and the generation config, and the BOS id."""
    given = generation_config
    ends = given.get("eos_token_id") if isinstance(given, Mapping) else getattr(given, "eos_token_id", None)
    listed = ends if isinstance(ends, (list, tuple)) else [ends]
    tokenizer = vocabulary.tokenizer
    return [int(i) for i in (tokenizer.eos_token_id, *listed, tokenizer.bos_token_id) if i is not None]


def _plain_end(vocabulary: Vocabulary, after_user: str) -> list[str]:
    """Return the text that ends a user's message, e.g., "### Response:" or "[/INST]"; [] if a token ends it."""
    line = next((part for part in after_user.splitlines() if part.strip()), "").strip()
    if not line or any(line.startswith(mark) for mark in vocabulary.marks.values()):
        return []
    if mark := MARK.match(line):
        return [mark[0]]
    leading = after_user[: len(after_user) - len(after_user.lstrip())]
    if not line[0].isalpha() or (line.isupper() and not line.isalpha()):
        return [line]
    # A word such as "Assistant:" may occur within a text, but rarely at the start of a line: it must have a line break
    if "\n" not in leading or line.isalpha():
        return []
    return [leading.lstrip(" ") + line]


def stops_of(vocabulary: Vocabulary, ids: Iterable[int], plain: Iterable[str], first: Iterable[str] = ()) -> Stops:
    """Return the stops: `first` texts, then the tokens `ids`, then `plain` texts, without duplicates."""
    tokens = tuple(dict.fromkeys(ids))
    literals = [vocabulary.literal(i) for i in tokens]
    taken = {*vocabulary.text_of.values(), *literals}
    ends = [text for text in first if text not in taken]
    rest = [text for text in plain if text not in taken]
    texts = tuple(dict.fromkeys([*ends, *literals, *rest]))
    return Stops(texts, tokens, tuple(dict.fromkeys([*ends, *rest])))
