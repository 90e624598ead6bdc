"""A tokenizer's added tokens, and the marks that a chat template prints: special tokens or texts that look like them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .reasoning import TAG, is_tag


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Marks that look like special tokens but are plain text to some tokenizers: <|user|>, [INST], <<SYS>>
MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?[A-Z_]{3,40}\]|</?s>")


class Vocabulary:
    """A tokenizer's added tokens: their texts, and which of them are special."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.text_of = {int(i): str(token) for i, token in added.items()}
        self.special = {str(token) for token in added.values() if token.special}
        self.special.update(str(token) for token in tokenizer.all_special_tokens)
        self.marks = {i: t for i, t in self.text_of.items() if len(t.strip()) > 1 and not is_tag(t)}
        self._mark_texts = {t.strip() for t in (*self.text_of.values(), *self.special) if len(t.strip()) > 1}
        self.special_text = {i: t for i, t in self.text_of.items() if t in self.special and t.strip()}

    def marks_in(self, text: str) -> list[int]:
        """Return the added tokens in a text of the template, in order, except for white space and reasoning tags."""
        if not text:
            return []
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        # The text must contain the token's text: some tokenizers have byte tokens (<0x5B>) among the added tokens
        return [i for i in ids if i in self.marks and self.marks[i].strip() in text]

    def literal(self, token_id: int) -> str:
        """Return a token as text."""
        known = self.text_of.get(token_id)
        return known if known is not None else str(self.tokenizer.decode([token_id]))

    def pieces(self, text: str) -> list[str]:
        """Split a text of the template at its marks: added tokens, texts that look like them, reasoning tags."""
        found = (t for t in self._mark_texts if t in text)
        known = [re.escape(t) for t in sorted(found, key=len, reverse=True)]
        return [p for p in re.split("(" + "|".join([*known, MARK.pattern, f"(?i:{TAG.pattern})"]) + ")", text) if p]

    def holds_mark(self, text: str) -> bool:
        """Return whether a text of the template contains a mark."""
        pieces = self.pieces(text)
        return len(pieces) > 1 or (bool(pieces) and self._is_mark(pieces[0]))

    def _is_mark(self, piece: str) -> bool:
        return piece.strip() in self._mark_texts or is_tag(piece) or MARK.fullmatch(piece) is not None

    def marks_shown(self, parts: Iterable[str]) -> set[str]:
        """Return the marks in texts of the template, as text, without reasoning tags."""
        texts: set[str] = set()
        for part in parts:
            texts.update(MARK.findall(part), (self.marks[i] for i in self.marks_in(part)))
        return {text for text in texts if not is_tag(text)}
