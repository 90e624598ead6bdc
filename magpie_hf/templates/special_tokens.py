"""Find the special tokens, and the template's own marks, that are left in a generated text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from .probe import Frame
from .reasoning import is_tag
from .vocabulary import Vocabulary


# <filename>, <fim_prefix>, [IMG]: special tokens that look like a placeholder or markup
_PLACEHOLDER = re.compile(r"</?[\w -]+>|\[/?[A-Za-z]+\]")


class SpecialTokens:
    """Finds tokens and marks by their ids where these are known, else by their texts.

    A model writes `<s>` or `<filename>` about HTML or a command too, in ordinary tokens, and only the ids tell the
    difference. Without ids, a text counts if it can hardly be anything else, or if the template has it.
    """

    def __init__(self, vocabulary: Vocabulary, texts: Iterable[str], shown: Collection[str], template: str) -> None:
        """Take the `texts` to look for, those that the template prints (`shown`), and its source."""
        self._ids: dict[str, set[int]] = {}
        for token_id, text in vocabulary.text_of.items():
            self._ids.setdefault(text.strip(), set()).add(token_id)
        every = {*texts, *shown}
        self._sure = {
            text
            for text in every
            if not is_ordinary(text)
            and (text in shown or text in template or not _PLACEHOLDER.fullmatch(text.strip()))
        }
        self._every_text, self._sure_text = _any_of(every), _any_of(self._sure)

    def find(self, text: str, token_ids: Sequence[int] | None = None) -> str | None:
        """Return the first that is left in a text, or None. `token_ids`: those of the whole generation, if known."""
        if not token_ids:
            found = self._sure_text.search(text) if self._sure_text else None
            return found[0] if found else None
        for match in self._every_text.finditer(text) if self._every_text else ():
            ids = self._ids.get(match[0].strip())
            if match[0] in self._sure if ids is None else not ids.isdisjoint(token_ids):
                return match[0]
        return None


def in_instructions(vocabulary: Vocabulary, frame: Frame, template: str) -> SpecialTokens:
    """Return what finds special tokens and the template's own marks in an instruction; reasoning tags are left out."""
    special = {t for t in vocabulary.special if t.strip() and not is_tag(t)}
    shown = vocabulary.marks_shown((frame.after_user, frame.after_answer))
    return SpecialTokens(vocabulary, special, shown, template)


def in_answers(vocabulary: Vocabulary, parts: Iterable[str], template: str) -> SpecialTokens:
    """Return what finds special tokens, and the marks that a template prints (`parts`), in an answer.

    Reasoning tags that are ordinary tokens are left out: an answer may mention them.
    """
    special = {t for t in vocabulary.special if len(t.strip()) > 1}
    return SpecialTokens(vocabulary, special, vocabulary.marks_shown(parts), template)


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    listed = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, listed))) if listed else None


# Names of tokens that ordinary texts hold: <s> strikes out in HTML, <pad> and [MASK] are in every text on tokenizers
_ORDINARY = re.compile(r"</?s>|<(?:unk|pad|bos|eos|mask|cls|sep)>|\[(?:unk|pad|bos|eos|mask|cls|sep)\]", re.IGNORECASE)


def is_ordinary(text: str) -> bool:
    """Return whether a token's text is one that ordinary texts hold too.

    >>> is_ordinary("</s>"), is_ordinary("<|eot_id|>")
    (True, False)
    """
    return _ORDINARY.fullmatch(text.strip()) is not None
