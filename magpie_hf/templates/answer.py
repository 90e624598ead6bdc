"""Find out what a chat template prints around an assistant's reasoning and answer, and read generated texts by it.

An assistant message is rendered with placeholders as its answer and its reasoning. The text around the two is what the
model writes itself, without what the generation prompt already contains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..messages import user
from .probe import Frame, Message, Renderer, common_prefix
from .reasoning import Tags, is_tag, loose
from .vocabulary import Vocabulary


_USER, _REASONING, _ANSWER = (f"MagpieSlot1Part{n}Qx" for n in range(3))
_FIELDS = ("reasoning_content", "reasoning", "thinking", "thought")
# A template that prints the list of parts itself, as Python or JSON writes it, shows no frame
_RAW_PARTS = re.compile(r"""['"](?:type|text|thinking)['"]\s*:""")


class Shown(NamedTuple):
    """What a rendering shows between the user's message and the reasoning, and between the reasoning and the answer."""

    before: str
    between: str


@dataclass(frozen=True)
class AnswerFrame:
    """The text around an assistant's reasoning and answer, without what the generation prompt contains.

    `tags`: around the reasoning; None if the template shows none. `opened`: the generation prompt opens it.
    `head`: what the model writes before an answer without reasoning. `after_reasoning`: what it writes between the tag
    that closes the reasoning and the answer. `ending`: what follows a last answer, in pieces. `inside`: all texts that
    the model writes before an answer ends. `words`: `head` where it is plain words, so that a text without them
    is not an answer to the user.
    """

    tags: Tags | None = None
    opened: bool = False
    head: str = ""
    after_reasoning: str = ""
    ending: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    words: str = ""


def find_answer_frame(render: Renderer, vocabulary: Vocabulary, frame: Frame) -> AnswerFrame:
    """Return the text around reasoning and answer; empty if the template accepts no assistant message."""
    prompt, past = frame.after_user, frame.before_answer
    ending = tuple(piece for part in vocabulary.pieces(frame.at_end) if (piece := part.strip()))
    head = rest_of(past, prompt, vocabulary)
    shown = _around_reasoning(render)
    if shown is None:
        is_words = bool(head.strip()) and past.startswith(prompt) and not vocabulary.holds_mark(head)
        return AnswerFrame(head=head, ending=ending, inside=(head,), words=head.strip() if is_words else "")
    before, between = shown
    closes, after = _first_mark(between, vocabulary)
    written, beyond = rest_of(before, prompt, vocabulary), rest_of(prompt, before, vocabulary)
    opens = written if written.strip() else rest_of(before, past, vocabulary)
    # Past turns show no reasoning, or an empty block of it: both differ from a header that only leads to the reasoning
    opened = not (written + beyond).strip() and past.split() != before.split()
    opens = opens.strip() or (closes.replace("/", "", 1) if is_tag(closes) else "")
    found = re.search(loose(closes), head)
    head = head[found.end() :] if found else head
    return AnswerFrame(Tags(opens, closes), opened, head, after, ending, (head, written, between))


def rest_of(text: str, other: str, vocabulary: Vocabulary) -> str:
    """Return a text without the prefix that it shares with another; marks are never cut."""
    left, right = _atoms(text, vocabulary), _atoms(other, vocabulary)
    return "".join(left[len(common_prefix(left, right)) :])


def _atoms(text: str, vocabulary: Vocabulary) -> list[str]:
    """Return a text's marks whole and all else character by character."""
    return [a for piece in vocabulary.pieces(text) for a in ([piece] if vocabulary.holds_mark(piece) else piece)]


def _first_mark(between: str, vocabulary: Vocabulary) -> tuple[str, str]:
    """Return what closes the reasoning (up to the first mark, or all words if there is none), and what follows it."""
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
            shown = _shown(_tried(render, conversation).rpartition(_USER)[2])
            if shown is not None:
                return shown
    return None


def _tried(render: Renderer, conversation: Sequence[Message]) -> str:
    try:
        return render(conversation, generation=False)
    except Exception:  # noqa: BLE001 (templates raise what they like on forms that they do not know)
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
    """Return the pattern of an answer's ending, or of the beginning of it, at the end of a text."""
    pattern = ""
    for piece in reversed(ending):
        pattern = loose(piece) + (rf"(?:\s*{pattern})?" if pattern else "")
    return re.compile(rf"{pattern}\s*\Z") if pattern else None
