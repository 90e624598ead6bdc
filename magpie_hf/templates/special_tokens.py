"""Find special tokens and marks of the template in a generated text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from .probe import Frame
from .reasoning import is_tag
from .vocabulary import Vocabulary


# <filename>, <fim_prefix>, [IMG]: special tokens that look like a placeholder or markup
_PLACEHOLDER = re.compile(r"</?[\w -]+>|\[/?[A-Za-z]+\]")


class SpecialTokens:
    """Finds special tokens and marks by their ids if these are known, otherwise by their texts.

    A text about HTML or a shell command may contain `<s>` or `<filename>` as ordinary tokens: only the ids distinguish
    them from special tokens. Without ids, a text is found only if it is unlikely in an ordinary text, or if the template
    contains it.
    """

    def __init__(self, vocabulary: Vocabulary, texts: Iterable[str], shown: Collection[str], template: str) -> None:
        """Compile the patterns. `texts`: to look for; `shown`: those that the template prints; `template`: its source."""
        self._ids: dict[str, set[int]] = {}
        for token_id, text in vocabulary.text_of.items():
            self._ids.setdefault(text.strip(), set()).add(token_id)
        every = {*texts, *shown}
        self._certain = {
            text
            for text in every
            if not is_ordinary(text)
            and (text in shown or text in template or not _PLACEHOLDER.fullmatch(text.strip()))
        }
        self._every_pattern, self._certain_pattern = _any_of(every), _any_of(self._certain)

    def find(self, text: str, token_ids: Sequence[int] | None = None) -> str | None:
        """Return the first special token or mark in a text, or None. `token_ids`: of the whole generation, if known."""
        if not token_ids:
            found = self._certain_pattern.search(text) if self._certain_pattern else None
            return found[0] if found else None
        for match in self._every_pattern.finditer(text) if self._every_pattern else ():
            ids = self._ids.get(match[0].strip())
            if match[0] in self._certain if ids is None else not ids.isdisjoint(token_ids):
                return match[0]
        return None


def in_instructions(vocabulary: Vocabulary, frame: Frame, template: str) -> SpecialTokens:
    """Return the `SpecialTokens` for instructions: special tokens and the template's marks, without reasoning tags."""
    special = {t for t in vocabulary.special if t.strip() and not is_tag(t)}
    shown = vocabulary.marks_shown((frame.after_user, frame.after_answer))
    return SpecialTokens(vocabulary, special, shown, template)


def in_answers(vocabulary: Vocabulary, parts: Iterable[str], template: str) -> SpecialTokens:
    """Return the `SpecialTokens` for answers: special tokens, and the marks in the template texts `parts`.

    Reasoning tags that are not special tokens are not included: an answer may mention them.
    """
    special = {t for t in vocabulary.special if len(t.strip()) > 1}
    return SpecialTokens(vocabulary, special, vocabulary.marks_shown(parts), template)


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    listed = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, listed))) if listed else None


# Special tokens that ordinary texts also contain: <s> is an HTML tag, texts about tokenizers contain <pad> and [MASK]
_ORDINARY = re.compile(r"</?s>|<(?:unk|pad|bos|eos|mask|cls|sep)>|\[(?:unk|pad|bos|eos|mask|cls|sep)\]", re.IGNORECASE)


def is_ordinary(text: str) -> bool:
    """Return whether the text of a special token also occurs in ordinary texts.

    >>> is_ordinary("</s>"), is_ordinary("<|eot_id|>")
    (True, False)
    """
    return _ORDINARY.fullmatch(text.strip()) is not None
