"""Detect the text that a chat template prints before and after an assistant's reasoning and answer.

An assistant message is rendered with placeholders for its reasoning and its answer. The model generates the text around
these placeholders, except for the part that is already in the generation prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..messages import user
from .probe import Frame, Message, Renderer, common_prefix
from .reasoning import Tags, is_tag, whitespace_pattern
from .vocabulary import Vocabulary


_USER, _REASONING, _ANSWER = (f"MagpieSlot1Part{n}Qx" for n in range(3))
_FIELDS = ("reasoning_content", "reasoning", "thinking", "thought")
# A template may print the list of parts as Python or JSON code: then the text around the placeholders is meaningless
_RAW_PARTS = re.compile(r"""['"](?:type|text|thinking)['"]\s*:""")


class Shown(NamedTuple):
    """The rendered text between the user's message and the reasoning, and between the reasoning and the answer."""

    before: str
    between: str


@dataclass(frozen=True)
class AnswerFrame:
    """The text around an assistant's reasoning and answer, except for the part in the generation prompt.

    Attributes:
        tags: The tags around the reasoning; None if the template prints no reasoning.
        opened: Whether the generation prompt contains the opening tag.
        head: The text that the model generates before an answer without reasoning.
        after_reasoning: The text that the model generates between the closing tag of the reasoning and the answer.
        ending: The text after the last answer of a conversation, split at its marks.
        inside: All template texts that the model generates before the end of an answer.
        words: `head`, if it consists of plain words; a text without these words is not an answer to the user.
    """

    tags: Tags | None = None
    opened: bool = False
    head: str = ""
    after_reasoning: str = ""
    ending: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    words: str = ""


def find_answer_frame(render: Renderer, vocabulary: Vocabulary, frame: Frame) -> AnswerFrame:
    """Return the text around reasoning and answer; all fields are empty if the template rejects assistant messages."""
    prompt, past = frame.after_user, frame.before_answer
    ending = tuple(piece for part in vocabulary.pieces(frame.at_end) if (piece := part.strip()))
    head = without_common_prefix(past, prompt, vocabulary)
    shown = _around_reasoning(render)
    if shown is None:
        is_words = bool(head.strip()) and past.startswith(prompt) and not vocabulary.holds_mark(head)
        return AnswerFrame(head=head, ending=ending, inside=(head,), words=head.strip() if is_words else "")
    before, between = shown
    closes, after = _first_mark(between, vocabulary)
    written, beyond = (
        without_common_prefix(before, prompt, vocabulary),
        without_common_prefix(prompt, before, vocabulary),
    )
    opens = written if written.strip() else without_common_prefix(before, past, vocabulary)
    # If past turns show no reasoning, or an empty block of it, their text differs from the text before the reasoning:
    # then the generation prompt has already opened the reasoning
    opened = not (written + beyond).strip() and past.split() != before.split()
    opens = opens.strip() or (closes.replace("/", "", 1) if is_tag(closes) else "")
    found = re.search(whitespace_pattern(closes), head)
    head = head[found.end() :] if found else head
    return AnswerFrame(Tags(opens, closes), opened, head, after, ending, (head, written, between))


def without_common_prefix(text: str, other: str, vocabulary: Vocabulary) -> str:
    """Return a text without the prefix that it has in common with `other`; a mark is never split."""
    left, right = _atoms(text, vocabulary), _atoms(other, vocabulary)
    return "".join(left[len(common_prefix(left, right)) :])


def _atoms(text: str, vocabulary: Vocabulary) -> list[str]:
    """Split a text into its marks and the single characters between them."""
    return [a for piece in vocabulary.pieces(text) for a in ([piece] if vocabulary.holds_mark(piece) else piece)]


def _first_mark(between: str, vocabulary: Vocabulary) -> tuple[str, str]:
    """Split at the end of the first mark, which closes the reasoning; without a mark, the whole text closes it."""
    pieces = vocabulary.pieces(between.strip())
    for number, piece in enumerate(pieces, 1):
        if vocabulary.holds_mark(piece):
            return "".join(pieces[:number]).strip(), "".join(pieces[number:]).strip()
    return between.strip(), ""


def _around_reasoning(render: Renderer) -> Shown | None:
    """Return the text around the reasoning, from the first message format in which the template shows it."""
    for message in _messages():
        answered: list[Message] = [user(_USER), {"role": "assistant", **message}]
        for conversation in (answered, [*answered, user("Continue.")]):
            shown = _shown(_try_render(render, conversation).rpartition(_USER)[2])
            if shown is not None:
                return shown
    return None


def _try_render(render: Renderer, conversation: Sequence[Message]) -> str:
    try:
        return render(conversation, generation=False)
    except Exception:  # noqa: BLE001 (templates raise any exception for message formats that they do not support)
        return ""


def _shown(rendered: str) -> Shown | None:
    before, _, rest = rendered.partition(_REASONING)
    between, answer, _ = rest.partition(_ANSWER)
    if not answer or not between.strip() or _RAW_PARTS.search(before + between):
        return None
    return Shown(before, between)


def _messages() -> Iterator[dict[str, object]]:
    """Yield the message formats in which templates accept reasoning: fields of the message, then parts of its content."""
    for name in _FIELDS:
        yield {"content": _ANSWER, name: _REASONING}
    text = {"type": "text", "text": _ANSWER}
    yield {"content": [{"type": "thinking", "thinking": _REASONING}, text]}
    yield {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": _REASONING}]}, text]}
    yield {
        "content": {"blocks": [{"type": "thoughts", "text": _REASONING}, {"type": "response", "text": _ANSWER}]},
    }


def ending_pattern(ending: Sequence[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds the ending of an answer, whole or cut off, at the end of a text."""
    pattern = ""
    for piece in reversed(ending):
        pattern = whitespace_pattern(piece) + (rf"(?:\s*{pattern})?" if pattern else "")
    return re.compile(rf"{pattern}\s*\Z") if pattern else None
