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
    """A tokenizer that knows where its BOS goes.

    Servers put the BOS in front of the ids of a text. Written into the text, it would be encoded with it, and
    SentencePiece tokenizers with `legacy: false` then take the first word for one that continues the BOS and give it
    other tokens. So a BOS that the template does not write itself is put in front of the ids here too.

    Attributes: `bos` (what the tokenizer puts before a text by itself, as text, else its BOS token, or ""),
    `adds_bos` (whether it does).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._is_written = False
        self._bos_ids = self._added_ids()
        self.adds_bos = bool(self._bos_ids)
        self.bos = self.decode(self._bos_ids) or str(getattr(tokenizer, "bos_token", None) or "")

    def note(self, rendered: str) -> None:
        """Note from a rendered conversation whether the template writes the BOS itself."""
        self._is_written = bool(self.bos) and rendered.lstrip().startswith(self.bos)

    def complete(self, text: str) -> str:
        """Return a rendered text with the BOS in front where the tokenizer would add it and the template did not."""
        return self.bos + text if self.adds_bos and not text.lstrip().startswith(self.bos) else text

    def bos_of(self, text: str) -> str:
        """Return the BOS that a completed text begins with, or ""."""
        return self.bos if text.startswith(self.bos) else ""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a completed text; nothing is added to it."""
        if self.adds_bos and not self._is_written and text.startswith(self.bos):
            return [*self._bos_ids, *self._encode(text.removeprefix(self.bos))]
        return self._encode(text)

    def is_served_alike(self, text: str) -> bool:
        """Whether a server that puts the BOS in front by itself makes the same ids of a completed text."""
        return not self.adds_bos or list(self.tokenizer(text.removeprefix(self.bos))["input_ids"]) == self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones visible."""
        return decode(self.tokenizer, ids)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _added_ids(self) -> list[int]:
        """Return the ids that the tokenizer puts before those of a text."""
        bare, full = self._encode("a"), list(self.tokenizer("a")["input_ids"])
        for count in range(1, len(full) - len(bare) + 1):
            if full[count : count + len(bare)] == bare:
                return full[:count]
        return []
