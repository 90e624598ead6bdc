"""Encode text with one BOS, as tokenizers and servers do, and decode it with special tokens visible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of tokens, special ones visible."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


class Coder:
    """Encodes rendered texts with exactly one BOS.

    Servers insert the BOS before the token ids of a text. If the BOS were part of the text instead, SentencePiece
    tokenizers with `legacy: false` would encode the first word as a continuation of the BOS, with other tokens. So a BOS
    that the template does not print is inserted before the ids here, too.

    Attributes:
        bos: The text of the tokens that the tokenizer adds before a text, or else its BOS token, or "".
        adds_bos: Whether the tokenizer adds tokens before a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._template_prints_bos = False
        self._bos_ids = self._ids_before_text()
        self.adds_bos = bool(self._bos_ids)
        self.bos = self.decode(self._bos_ids) or str(getattr(tokenizer, "bos_token", None) or "")

    def detect_bos(self, rendered: str) -> None:
        """Detect, from a rendered conversation, whether the template prints the BOS."""
        self._template_prints_bos = bool(self.bos) and rendered.lstrip().startswith(self.bos)

    def complete(self, text: str) -> str:
        """Return a rendered text with the BOS: added if the tokenizer would add it and the template did not print it."""
        return self.bos + text if self.adds_bos and not text.lstrip().startswith(self.bos) else text

    def bos_of(self, text: str) -> str:
        """Return the BOS that a completed text begins with, or ""."""
        return self.bos if text.startswith(self.bos) else ""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a completed text; no special tokens are added."""
        if self.adds_bos and not self._template_prints_bos and text.startswith(self.bos):
            return [*self._bos_ids, *self._encode(text.removeprefix(self.bos))]
        return self._encode(text)

    def encodes_like_servers(self, text: str) -> bool:
        """Whether a server that adds the BOS itself computes the same token ids from a completed text."""
        return not self.adds_bos or list(self.tokenizer(text.removeprefix(self.bos))["input_ids"]) == self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones visible."""
        return decode(self.tokenizer, ids)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _ids_before_text(self) -> list[int]:
        """Return the ids that the tokenizer adds before those of a text."""
        bare, full = self._encode("a"), list(self.tokenizer("a")["input_ids"])
        for count in range(1, len(full) - len(bare) + 1):
            if full[count : count + len(bare)] == bare:
                return full[:count]
        return []
