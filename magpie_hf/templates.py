"""The prompts of the Magpie method, derived from a tokenizer's own chat template.

A template is rendered with a word of ours in the user's place and cut there: what stands before it is the pre-query
prompt (or, after a conversation, the prompt for the next user turn). A response prompt is the plain rendering of the
conversation with the assistant's header. What comes right after the user's words tells where an instruction ends.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ._answer_reader import Answer, AnswerReader
from ._template_answer import AnswerFrame, find_answer_frame
from ._template_load import generation_config_of, load_tokenizer, template_beside, template_text
from ._template_probe import (
    Frame,
    Message,
    Renderer,
    Slot,
    find_frame,
    find_slot,
    split_at_slot,
)
from ._template_stops import Stops, Vocabulary, instruction_stops, response_stops
from .engines.base import Generation, Prompt
from .errors import ArgumentError, TemplateError, quoted
from .models import resolve_model


__all__ = ["ChatTemplate", "Stops"]

_RESERVED = {
    "conversation",
    "messages",
    "chat_template",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
}
_CACHED_SYSTEM_PROMPTS = 4096
_A_TURN = ({"role": "user", "content": "Hi there."}, {"role": "assistant", "content": "Hello! How can I help?"})


class ChatTemplate:
    """A model's chat template, as Magpie uses it.

    Attributes: `name` (the model's, for messages), `tokenizer`, `text` (the Jinja source), `template_kwargs`, `date`
    (what to record so that another day sends the same bytes: an ISO date, or None if no date is printed), `hash`
    (short, over text and arguments: provenance), `bos` (the literal, or ""), `tokenizer_adds_bos` (to plain text, so
    that servers which tokenize text add it too), `instruction_stops`, `response_stops`, `frame`.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str = "",
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        template_date: dt.date | str | None = None,
        generation_config: Any = None,
    ) -> None:
        """Study the template.

        `chat_template`: Jinja text, a file of it, or the name of one of the tokenizer's templates. `template_date`:
        the day that templates print as today; None is today. `generation_config`: its `eos_token_id` end texts too.

        Raises:
            TemplateError: there is no template, it raises on a lone user message, or it has no open user slot.
            ArgumentError: an argument cannot be used.
        """
        self.name = name or str(getattr(tokenizer, "name_or_path", "") or "the model")
        self.tokenizer = tokenizer
        self.text = template_text(tokenizer, chat_template, self.name)
        self.template_kwargs = _checked_kwargs(template_kwargs)
        day = _as_date(template_date)
        if template_date is not None and "strftime_now" not in self.text and re.search(r"\bdate_string\b", self.text):
            # Llama 3.1's form: a constant date unless this argument is given, in this format
            self.template_kwargs.setdefault("date_string", day.strftime("%d %b %Y"))
        prints_date = "strftime_now" in self.text or "date_string" in self.template_kwargs
        self.date = day.isoformat() if prints_date else None
        self._render = Renderer(tokenizer, self.text, self.template_kwargs, day, self.name)
        self._vocabulary = Vocabulary(tokenizer)
        self._render.settle()
        self.bos, self.tokenizer_adds_bos = self._find_bos()
        self._prompts: dict[str | None, Prompt] = {}
        self._systems: dict[str, list[Message]] = {}
        self._turn_slots: dict[str | None, Slot] = {}
        self.frame: Frame = find_frame(self._render)
        self.answer_frame: AnswerFrame = find_answer_frame(self._render, self._vocabulary, self.frame)
        self._reader = AnswerReader(self.text, self._vocabulary, self.frame, self.answer_frame)
        self.is_harmony, self.opened_think = self._reader.is_harmony, self._reader.opened
        self.instruction_stops = instruction_stops(self._vocabulary, self.frame, generation_config)
        self.response_stops = response_stops(self._vocabulary, self.frame, self.answer_frame, generation_config)
        self._special = self._vocabulary.special_pattern(self.frame)
        self.pre_query_slot: Slot
        self.pre_query()

    @classmethod
    def load(
        cls,
        model: str,
        *,
        revision: str | None = None,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        template_date: dt.date | str | None = None,
        trust_remote_code: bool = False,
    ) -> ChatTemplate:
        """Load the tokenizer of a Hub id, a local directory or "demo", and study its template.

        Raises:
            ModelError: the model or its tokenizer cannot be loaded.
            TemplateError: see the constructor.
        """
        ref = resolve_model(model, revision)
        tokenizer = load_tokenizer(ref.source, ref.load_revision, ref.name, trust_remote_code=trust_remote_code)
        if chat_template is None and not getattr(tokenizer, "chat_template", None):
            chat_template = template_beside(ref.source, ref.load_revision)
        return cls(
            tokenizer,
            name=ref.name,
            chat_template=chat_template,
            template_kwargs=template_kwargs,
            template_date=template_date,
            generation_config=generation_config_of(ref.source, ref.load_revision, ref.name),
        )

    @property
    def stops(self) -> Stops:
        """What ends an instruction; a response may need others (see `response_stops`)."""
        return self.instruction_stops

    @cached_property
    def hash(self) -> str:
        """A short hash of the template's text and arguments."""
        given = json.dumps([self.text, self.template_kwargs], sort_keys=True, default=str, ensure_ascii=False)
        return hashlib.blake2b(given.encode(), digest_size=8).hexdigest()

    def pre_query(self, system_prompt: str | None = None) -> Prompt:
        """Return the prompt after which the model writes a user's first message.

        The same object each time, so that engines see which requests share it. `system_prompt`: None leaves the
        template's default; "" asks for none, where the template has a way to say so.

        Raises:
            TemplateError: the template takes no system prompt, or drops it.
        """
        known = self._prompts.get(system_prompt)
        if known is not None:
            return known
        system = self._system(system_prompt)
        what = "a system prompt" if system else "a lone user message"
        slot = find_slot(self._render, self._complete, self._encode, system, what)
        self._check_shown(system, slot)
        prompt = Prompt(slot.text, slot.token_ids, encode=self._encode, bos=self._bos_of(slot.text))
        if len(self._prompts) >= _CACHED_SYSTEM_PROMPTS:
            self._prompts = {None: self._prompts[None]}
            self._turn_slots.clear()
        self._prompts[system_prompt] = prompt
        if system_prompt is None:
            self.pre_query_slot = slot
        return prompt

    @property
    def takes_parts(self) -> bool:
        """Whether contents are given to the template as lists of parts."""
        return self._render.as_parts

    @property
    def can_think(self) -> bool:
        """Whether the template knows think blocks or channels."""
        return bool(self._reader.known) or self.is_harmony or "enable_thinking" in self.text

    def next_user(self, messages: Sequence[Message], system_prompt: str | None = None) -> Prompt:
        """Return the prompt after which the model writes the user's next message.

        `messages`: the conversation so far, ending with the assistant's; empty for the first turn.

        Raises:
            TemplateError: the template refuses the conversation or the system prompt.
        """
        if not messages:
            return self.pre_query(system_prompt)
        if messages[-1].get("role") != "assistant":
            raise ArgumentError("The conversation does not end with the assistant's message.", key="messages")
        slot = self._turn_slot(system_prompt)
        history = self._conversation(messages, system_prompt)
        before = self._complete(split_at_slot(self._render, history, "this conversation")[0])
        if not before.endswith(slot.tail_text + slot.dropped):
            slot = find_slot(self._render, self._complete, self._encode, history, "this conversation")
            return Prompt(slot.text, slot.token_ids, encode=self._encode, bos=self._bos_of(slot.text))
        text = before.removesuffix(slot.dropped)
        return Prompt(text, encode=_tail_encoder(self._encode, slot), bos=self._bos_of(text))

    def response(self, messages: Sequence[Message], system_prompt: str | None = None) -> Prompt:
        """Return the prompt after which the model answers the last message, which is the user's.

        Raises:
            TemplateError: the template refuses the conversation or the system prompt.
        """
        if not messages or messages[-1].get("role") != "user":
            raise ArgumentError("The conversation does not end with a user's message.", key="messages")
        conversation = self._conversation(messages, system_prompt)
        text = self._complete(self._render.or_refuse(conversation, "this conversation"))
        return Prompt(text, encode=self._encode, bos=self._bos_of(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones visible."""
        return self._vocabulary.decode(ids)

    def find_special(self, text: str) -> str | None:
        """Return the first special token, or mark of the template, found in a generated text."""
        found = self._special.search(text) if self._special else None
        return found[0] if found else None

    def split_reasoning(self, text: str) -> tuple[str | None, str]:
        """Return (reasoning, answer) of a response; reasoning is None if there is none, answer "" if it never came."""
        return self._reader.split(text)

    def read_answer(self, generation: Generation) -> Answer:
        """Return a response's answer with its reasoning apart, and the special token that is left in it, if any."""
        return self._reader.read(generation)

    def describe(self, system_prompt: str | None = None) -> dict[str, Any]:
        """Return all that is sent, for people to read: prompts as text and ids, stops, BOS, notes; JSON-ready."""
        from ._template_notes import describe

        return describe(self, system_prompt)

    # What follows: how messages, BOS and tokens are put together.

    def _find_bos(self) -> tuple[str, bool]:
        """Return the text that the tokenizer puts before a text by itself (or its BOS), and whether it does."""
        bare, full = self._encode("a"), self.tokenizer("a")["input_ids"]
        literal = str(getattr(self.tokenizer, "bos_token", None) or "")
        for count in range(1, len(full) - len(bare) + 1):
            if list(full[count : count + len(bare)]) == list(bare):
                return self.decode(full[:count]), True
        return literal, False

    def _complete(self, text: str) -> str:
        """Put the BOS in front where the tokenizer would and the template has not."""
        return self.bos + text if self.tokenizer_adds_bos and not text.lstrip().startswith(self.bos) else text

    def _bos_of(self, text: str) -> str:
        return self.bos if text.startswith(self.bos) else ""

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _conversation(self, messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
        if system_prompt is None:
            return list(messages)
        self.pre_query(system_prompt)
        rest = messages[1:] if messages[0].get("role") == "system" else messages
        return [*self._system(system_prompt), *rest]

    def _system(self, system_prompt: str | None) -> list[Message]:
        """Return the system message to begin with; none for "" where the template refuses it."""
        if system_prompt is None:
            return []
        message = [{"role": "system", "content": system_prompt}]
        if system_prompt.strip():
            return list(message)
        if system_prompt not in self._systems:
            try:
                split_at_slot(self._render, message, "an empty system prompt")
            except TemplateError:
                message = []
            self._systems[system_prompt] = list(message)
        return self._systems[system_prompt]

    def _check_shown(self, system: Sequence[Message], slot: Slot) -> None:
        wanted = "".join(str(m["content"]).strip() for m in system)
        if wanted and wanted not in slot.text + slot.dropped:
            raise TemplateError(
                f"The chat template of {quoted(self.name)} drops or rewrites the system prompt.",
                hint="Leave the system prompt out, or give another template (chat_template=…).",
                template=self.name,
            )

    def _turn_slot(self, system_prompt: str | None) -> Slot:
        known = self._turn_slots.get(system_prompt)
        if known is None:
            history = self._conversation(_A_TURN, system_prompt)
            known = find_slot(self._render, self._complete, self._encode, history, "this conversation")
            self._turn_slots[system_prompt] = known
        return known


def _tail_encoder(encode: Any, slot: Slot) -> Any:
    if not slot.tail_ids:
        return encode

    def encoded(text: str) -> list[int]:
        ids = encode(text.removesuffix(slot.tail_text))
        return [*ids, *slot.tail_ids] if text.endswith(slot.tail_text) else ids

    return encoded


def _as_date(given: dt.date | str | None) -> dt.date:
    if given is None:
        return dt.datetime.now().astimezone().date()
    if isinstance(given, dt.datetime):
        return given.date()
    if isinstance(given, dt.date):
        return given
    try:
        return dt.date.fromisoformat(given)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"template_date = {quoted(given)} is no date.", hint="Write it as 2026-01-31.", key="template_date"
        ) from None


def _checked_kwargs(given: Mapping[str, Any] | None) -> dict[str, Any]:
    kwargs = dict(given or {})
    for key in kwargs:
        if not isinstance(key, str) or key in _RESERVED:
            raise ArgumentError(
                f"template_kwargs: {quoted(key)} cannot be set.",
                hint="Give arguments that the template itself reads, such as enable_thinking.",
                key="template_kwargs",
            )
    return kwargs
