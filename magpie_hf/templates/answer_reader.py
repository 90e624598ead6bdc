"""Read the answer from a generation: split off the reasoning, remove the template's marks, find special tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from . import reasoning as _reasoning
from .answer import AnswerFrame, ending_pattern
from .reasoning import Split, Tags, whitespace_pattern
from .special_tokens import in_answers
from .tokens import decode


if TYPE_CHECKING:
    from ..engines.base import Generation
    from .probe import Frame
    from .vocabulary import Vocabulary


class Answer(NamedTuple):
    """The answer of a generation.

    `special`: the first special token or mark of the template that remains in the text, or None. `misses`: the words
    with which every answer to the user must begin in this template, if they are missing (e.g., because the model
    addressed a tool); otherwise "".
    """

    reasoning: str | None
    text: str
    special: str | None = None
    misses: str = ""


class AnswerReader:
    """Reads generations made with one template; see the module's docstring.

    Attributes: `known` (reasoning tags that the template prints or mentions), `opened` (the tags whose opening tag is in
    the generation prompt, or None), `is_harmony`.
    """

    def __init__(self, template: str, vocabulary: Vocabulary, frame: Frame, answer: AnswerFrame) -> None:
        self._template = template
        self._vocabulary = vocabulary
        self._frame = answer
        self.is_harmony = _reasoning.is_harmony(template)
        own = () if answer.tags is None else (answer.tags,)
        self.known: tuple[Tags, ...] = (*own, *_reasoning.known_tags(template))
        is_open = answer.opened and answer.tags is not None
        self._every = every = (*self.known, *_reasoning.known_tags("", vocabulary.text_of.values()))
        self.opened = answer.tags if is_open else _reasoning.opened_tags(frame.after_user, every)
        self._closing = () if _reasoning.is_closed(frame.after_user, every) else self.known
        self._head, self._behind = _head_pattern(answer.head), _head_pattern(answer.after_reasoning)
        self._ending = ending_pattern(answer.ending)
        shown = (frame.after_user, frame.before_answer, frame.after_answer, frame.at_end, *answer.inside)
        self._special = in_answers(vocabulary, shown, template)

    @property
    def hidden_close(self) -> str | None:
        """The text that closes the reasoning, if it consists of special tokens only: some servers remove them."""
        tags = self.opened or self._frame.tags
        if tags is None or self.is_harmony:
            return None
        bare = tags.closes
        for token in self._vocabulary.special:
            bare = bare.replace(token, "") if token.strip() else bare
        return None if bare.strip() else tags.closes

    def split(self, text: str) -> Split:
        """Split into reasoning (None without one) and answer ("" if the text ended before it), without template marks."""
        if self.is_harmony:
            return _reasoning.split_harmony(text)
        found = _reasoning.split_tags(text, self.opened, self._every, self._closing)
        if found is None:
            return Split(None, self._without_marks(text, (self._head, self._behind)))
        return Split(found.reasoning, self._without_marks(found.answer, (self._behind, self._head)))

    def read(self, generation: Generation) -> Answer:
        """Return the answer of a generation; `special` and `misses` say why an answer is invalid."""
        text = self._visible(generation)
        reasoning, answer = self.split(text)
        ids = generation.token_ids
        special = self._special.find(answer, ids) or self._special.find(reasoning or "", ids)
        headed = reasoning is not None or self._head is None or self._head.match(text) is not None
        return Answer(reasoning, answer, special, "" if headed or not answer.strip() else self._frame.words)

    def _without_marks(self, answer: str, heads: Sequence[re.Pattern[str] | None]) -> str:
        """Remove the template's text between the assistant's header and the answer, and the text after the answer."""
        for head in heads:
            if found := head.match(answer) if head else None:
                answer = answer[found.end() :].rstrip()
                break
        found = self._ending.search(answer) if self._ending else None
        answer = answer[: found.start()].rstrip() if found else answer
        return _reasoning.without_answer_marks(answer, self._template)

    def _visible(self, generation: Generation) -> str:
        """Return a generation's text with special tokens; decoded from the token ids if the server removed them."""
        ids, special = generation.token_ids or (), self._vocabulary.special_text
        if any(special[i] not in generation.text for i in special.keys() & set(ids)):
            return decode(self._vocabulary.tokenizer, ids)
        return generation.text


def _head_pattern(head: str) -> re.Pattern[str] | None:
    """Return a pattern that matches `head` at the beginning of a text.

    White space after a mark may differ. A head that ends with a word must be followed by the same boundary as in the
    template, because an answer may begin with the same word.
    """
    words = head.rstrip()
    if not words:
        return None
    after = head[len(words) :]
    end = r"(?=\s*\n|\s*\Z)" if "\n" in after else r"(?!\w)"
    return re.compile(rf"\s*{whitespace_pattern(words)}{end if words[-1].isalnum() else ''}\s*")
