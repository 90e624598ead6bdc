"""Prompts for base models: plain text, one BOS, no chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..engines.base import Prompt
from ..models import resolve_model
from .load import generation_config_of, load_tokenizer
from .special_tokens import in_answers
from .stops import Stops, end_ids, stops_of
from .tokens import Coder
from .vocabulary import Vocabulary


if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


class PlainTemplate:
    """Replaces ChatTemplate for models that receive plain text.

    Attributes: `tokenizer`, `bos` (the BOS token that the tokenizer adds itself, or ""), `hash` and `date` (None),
    `instruction_stops` and `response_stops` (the end-of-sequence token).
    """

    hash: str | None = None
    date: str | None = None

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        generation_config: GenerationConfig | Mapping[str, object] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._coder = Coder(tokenizer)
        self.bos = self._coder.bos if self._coder.adds_bos else ""
        vocabulary = Vocabulary(tokenizer)
        self.response_stops: Stops = stops_of(vocabulary, end_ids(vocabulary, generation_config), ())
        self.instruction_stops = self.response_stops
        self._special = in_answers(vocabulary, (), "")

    @classmethod
    def load(cls, model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PlainTemplate:
        """Load the tokenizer of a Hub id, a local directory or "demo". Raises ModelError."""
        ref = resolve_model(model, revision)
        tokenizer = load_tokenizer(ref.source, ref.load_revision, ref.name, trust_remote_code=trust_remote_code)
        return cls(tokenizer, generation_config_of(ref.source, ref.load_revision, ref.name))

    def plain(self, text: str) -> Prompt:
        """Return a text as a prompt; it begins with the BOS if the tokenizer adds one."""
        return Prompt(self.bos + text, encode=self._coder.encode, bos=self.bos)

    def response(self, messages: Sequence[Mapping[str, str]], system_prompt: str | None = None) -> Prompt:
        """Return the last message's text as a prompt; used to compare token counts with a server."""
        return self.plain(messages[-1]["content"])

    def find_special(self, text: str, token_ids: Sequence[int] | None = None) -> str | None:
        """Return the first special token in a generated text, or None; compares token ids if they are known."""
        return self._special.find(text, token_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones visible."""
        return self._coder.decode(ids)
