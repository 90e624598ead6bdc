"""Prompts for guards: Llama Guard's own chat template renders the whole check; other models are asked in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ._template_load import generation_config_of, load_tokenizer
from ._template_probe import reason_of
from ._template_stops import Stops, Vocabulary, end_ids, stops_of
from .engines.base import Prompt
from .errors import TemplateError, quoted
from .models import resolve_model
from .prompts import guard_prompt
from .rundir import stable_hash
from .templates import ChatTemplate


_MARK = "unsafe"
"""A word that a guard's own chat template has: it says how to answer (Llama Guard 2 and 3)."""


class GuardTemplate:
    """What stands in a ChatTemplate's place for a guard: `conversation(messages)` gives the prompt of the check.

    Attributes: `tokenizer`, `has_own` (whether the model's chat template is a guard's), `response_stops`.
    """

    def __init__(self, tokenizer: Any, chat: ChatTemplate | None, text: str, generation_config: Any = None) -> None:
        self.tokenizer = tokenizer
        self.text = text
        self._chat = chat
        self.has_own = chat is None
        if chat is None:
            vocabulary = Vocabulary(tokenizer)
            self.response_stops: Stops = stops_of(vocabulary, end_ids(vocabulary, generation_config), ())
        else:
            self.response_stops = chat.response_stops
        self.instruction_stops = self.response_stops

    @classmethod
    def load(
        cls, model: str, *, revision: str | None = None, chat: Any = None, override: str | None = None
    ) -> GuardTemplate:
        """Load the tokenizer of a guard; `chat` gives the ChatTemplate for a model whose template is no guard's.

        Raises:
            ModelError: the tokenizer cannot be loaded.
            TemplateError: there is no template, or it cannot be rendered.
        """
        ref = resolve_model(model, revision)
        tokenizer = load_tokenizer(ref.source, ref.load_revision, ref.name)
        text = override or getattr(tokenizer, "chat_template", None)
        if not isinstance(text, str) or _MARK not in text:
            return cls(tokenizer, chat(), text if isinstance(text, str) else "")
        tokenizer.chat_template = text
        return cls(tokenizer, None, text, generation_config_of(ref.source, ref.load_revision, ref.name))

    @property
    def hash(self) -> str:
        """A short hash of the template's text."""
        return stable_hash(self.text, 16) if self._chat is None else self._chat.hash

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> Prompt:
        """Return the prompt that checks a conversation's last message.

        Raises:
            TemplateError: the guard's template refuses the conversation.
        """
        if self._chat is not None:
            return self._chat.response([{"role": "user", "content": guard_prompt(messages)}])
        try:
            text = str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        except Exception as error:
            raise TemplateError(
                f"The guard's chat template cannot be rendered: {quoted(reason_of(error))}.",
                hint="Check that the model is a guard for conversations of user and assistant.",
            ) from error
        bos = str(getattr(self.tokenizer, "bos_token", None) or "")
        bos = bos if bos and text.startswith(bos) else ""
        return Prompt(text, encode=self._encode, bos=bos)

    def response(self, messages: Sequence[Mapping[str, str]], system_prompt: str | None = None) -> Prompt:
        """Return the prompt that checks these messages: what the check of the token counts sends."""
        return self.conversation(messages)

    def split_reasoning(self, text: str) -> tuple[str | None, str]:
        """Return (reasoning, answer) of the guard's reply."""
        return (None, text) if self._chat is None else self._chat.split_reasoning(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones visible."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))
