"""Where a generation ends: tokens and texts that stop an instruction or a response, from the template's frame."""

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
    """What ends a text, the likeliest first.

    `texts`: all of them as text, for servers that stop on texts only. `token_ids`: tokens. `plain_texts`: those texts
    that no token stands for (templates without special tokens): all that is left to an engine that stops on tokens.
    """

    texts: tuple[str, ...]
    token_ids: tuple[int, ...]
    plain_texts: tuple[str, ...] = ()


def instruction_stops(
    vocabulary: Vocabulary, frame: Frame, generation_config: GenerationConfig | Mapping[str, object] | None
) -> Stops:
    """Return what ends a user's message: what follows it, the end of sequence, and every mark that opens a turn."""
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
    """Return what ends an answer: what follows it in a conversation, and the end of sequence.

    Marks that the model writes before its answer ends do not end it: those of its own header, and those between its
    reasoning and its answer. Where a last answer ends otherwise than a past one, an answer may be several messages, and
    what ends or opens a past message does not end it either.
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
    r"""Return the text that begins the next user's turn where no mark ends an answer: "### User:", "\nUser:"."""
    return [] if vocabulary.holds_mark(after_answer) else _plain_end(vocabulary, after_answer)


def end_ids(vocabulary: Vocabulary, generation_config: GenerationConfig | Mapping[str, object] | None) -> list[int]:
    """Return the end-of-sequence token ids of a generation config."""
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
    if mark := MARK.match(line):
        return [mark[0]]
    leading = after_user[: len(after_user) - len(after_user.lstrip())]
    if not line[0].isalpha() or (line.isupper() and not line.isalpha()):
        return [line]
    # An ordinary word ("Assistant:") may stand in a text; at the start of a line, as the template has it, hardly
    if "\n" not in leading or line.isalpha():
        return []
    return [leading.lstrip(" ") + line]


def stops_of(vocabulary: Vocabulary, ids: Iterable[int], plain: Iterable[str], first: Iterable[str] = ()) -> Stops:
    """Return stop ids with their texts, and stop strings, in order."""
    tokens = tuple(dict.fromkeys(ids))
    literals = [vocabulary.literal(i) for i in tokens]
    taken = {*vocabulary.text_of.values(), *literals}
    ends = [text for text in first if text not in taken]
    rest = [text for text in plain if text not in taken]
    texts = tuple(dict.fromkeys([*ends, *literals, *rest]))
    return Stops(texts, tokens, tuple(dict.fromkeys([*ends, *rest])))
