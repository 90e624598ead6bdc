"""Prompts for guards: Llama Guard's chat template renders the whole check; other models get a written prompt."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..engines.base import Prompt
from ..errors import TemplateError, quoted
from ..judging.prompts import guard_prompt
from ..messages import assistant, user
from ..models import resolve_model
from .dates import checked_kwargs, dated_renderer
from .load import find_template, generation_config_of, load_tokenizer
from .probe import Message, Renderer, sentinel_for
from .stops import Stops, end_ids, stops_of
from .template import ChatTemplate
from .tokens import Coder
from .vocabulary import Vocabulary


if TYPE_CHECKING:
    from transformers import GenerationConfig


_GUARD_WORD = "unsafe"
"""A word that a guard's template prints after the conversation, in the instructions for the reply (all Llama Guards)."""
_FIRST = sentinel_for(())
_SECOND = sentinel_for((_FIRST,))
_PAIR: tuple[Message, ...] = (user(_FIRST), assistant(_SECOND))
_ROLES = (user, assistant)


class GuardTemplate:
    """The counterpart of ChatTemplate for a guard: `conversation(messages)` returns the prompt of the check.

    Attributes: `tokenizer`, `has_own` (whether the model's chat template is that of a guard), `hash`, `date`,
    `response_stops`.
    """

    def __init__(
        self,
        asked: ChatTemplate | GuardRenderer,
        generation_config: GenerationConfig | Mapping[str, object] | None = None,
    ) -> None:
        self.tokenizer = asked.tokenizer
        self.hash: str | None = asked.hash
        self.date: str | None = asked.date
        self.has_own = isinstance(asked, GuardRenderer)
        self._asked = asked
        if isinstance(asked, GuardRenderer):
            vocabulary = Vocabulary(asked.tokenizer)
            self.response_stops: Stops = stops_of(vocabulary, end_ids(vocabulary, generation_config), ())
        else:
            self.response_stops = asked.response_stops
        self.instruction_stops = self.response_stops

    @classmethod
    def load(
        cls,
        model: str,
        *,
        revision: str | None = None,
        chat: Callable[[], ChatTemplate] | None = None,
        override: str | None = None,
        template_kwargs: Mapping[str, object] | None = None,
        template_date: dt.date | str | None = None,
        trust_remote_code: bool = False,
    ) -> GuardTemplate:
        """Load the tokenizer of a guard; `chat` returns the ChatTemplate of a model that has no guard template.

        Raises:
            ModelError: the tokenizer cannot be loaded.
            TemplateError: the tokenizer has no template, or its prompt does not contain the conversation.
        """
        ref = resolve_model(model, revision)
        tokenizer = load_tokenizer(ref.source, ref.load_revision, ref.name, trust_remote_code=trust_remote_code)
        text = find_template(tokenizer, ref, override)
        render = dated_renderer(tokenizer, text, checked_kwargs(template_kwargs), template_date, ref.name)
        if chat is not None and not is_guard_template(render):
            return cls(chat())
        return cls(GuardRenderer(render), generation_config_of(ref.source, ref.load_revision, ref.name))

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> Prompt:
        """Return the prompt that checks a conversation's last message.

        Raises:
            TemplateError: the guard's template rejects the conversation, or does not show it.
        """
        if isinstance(self._asked, GuardRenderer):
            return self._asked.prompt(messages)
        return self._asked.response([user(guard_prompt(messages))])

    def response(self, messages: Sequence[Mapping[str, str]], system_prompt: str | None = None) -> Prompt:
        """Return the prompt that checks these messages; used to compare token counts with a server."""
        return self.conversation(messages)

    def split_reasoning(self, text: str) -> tuple[str | None, str]:
        """Return (reasoning, answer) of the guard's reply."""
        return (None, text) if isinstance(self._asked, GuardRenderer) else self._asked.split_reasoning(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones visible."""
        return self._asked.decode(ids)


class GuardRenderer:
    """A guard's own chat template, with the message format for which it prints the conversation."""

    def __init__(self, render: Renderer) -> None:
        self.tokenizer = render.tokenizer
        self._render = render
        self._checked = {len(_PAIR)}
        render.choose_format(lambda: _shown(render, _PAIR))
        self.date = render.printed_date()
        self._coder = Coder(render.tokenizer)
        self._coder.detect_bos(render(_PAIR))

    @property
    def hash(self) -> str:
        """A short hash of the template's text and arguments."""
        given = json.dumps([self._render.text, self._render.kwargs], sort_keys=True, default=str, ensure_ascii=False)
        return hashlib.blake2b(given.encode(), digest_size=8).hexdigest()

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> Prompt:
        """Return the prompt of the check, texts and ids; raises TemplateError."""
        if len(messages) not in self._checked:
            _shown(self._render, _alternating(len(messages)))
            self._checked.add(len(messages))
        text = self._coder.complete(self._render.render_or_raise(messages, "this conversation"))
        return Prompt(text, encode=self._coder.encode, bos=self._coder.bos_of(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones visible."""
        return self._coder.decode(ids)


def is_guard_template(render: Renderer) -> bool:
    """Whether a template is that of a guard: after the conversation, it asks for the reply "safe" or "unsafe".

    The word alone is not sufficient: chat templates may have it in a default system prompt, before the conversation.
    """
    if _GUARD_WORD not in render.text.lower():
        return False
    try:
        render.choose_format(lambda: _shown(render, _PAIR))
    except TemplateError:
        # No message format makes the template print the conversation: only a guard still asks for a verdict
        return _GUARD_WORD in _render_without_contents(render).lower()
    return _GUARD_WORD in render(_PAIR).rpartition(_SECOND)[2].lower()


def _render_without_contents(render: Renderer) -> str:
    """Return the prompt if the template prints no message contents; "" if it prints them or raises an error."""
    render.as_parts = render.empty_tools = False
    try:
        pair, one = render(_PAIR), render(_PAIR[:1])
    except Exception:  # noqa: BLE001 (the chat prompts then fail with the same error)
        return ""
    return pair if _FIRST not in pair + one else ""


def _alternating(count: int) -> list[Message]:
    """Return a conversation of `count` messages whose texts all differ."""
    texts: list[str] = []
    while len(texts) < count:
        texts.append(sentinel_for(texts))
    return [_ROLES[number % 2](text) for number, text in enumerate(texts)]


def _shown(render: Renderer, messages: Sequence[Message]) -> str:
    """Render probe messages; raises TemplateError unless the prompt contains all of them."""
    text = render.render_or_raise(messages, "a conversation to check")
    if any(str(message["content"]) not in text for message in messages):
        raise TemplateError(
            f"The chat template of the guard {quoted(render.name)} does not print the conversation that it checks.",
            hint="Message contents were tried as texts and as lists of parts. Give a template that prints the messages "
            "(guard.template.chat_template), or another guard.",
            template=render.name,
        )
    return text
