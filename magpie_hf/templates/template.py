"""The prompts of the Magpie method, derived from a tokenizer's own chat template.

A template is rendered with a placeholder as the user's message. The text before the placeholder is the pre-query prompt
(or, after a conversation, the prompt for the next user turn); the text after it contains the stops of an instruction. A
response prompt is the usual rendering of the conversation with the generation prompt.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ..engines.base import Generation, Prompt
from ..errors import ArgumentError, TemplateError, quoted
from ..messages import assistant, system, user
from ..models import resolve_model
from .answer import AnswerFrame, find_answer_frame
from .answer_reader import Answer, AnswerReader
from .dates import checked_kwargs, dated_renderer
from .load import find_template, generation_config_of, load_tokenizer, template_text
from .probe import Encode, Frame, Message, Slot, find_frame, find_slot, split_at_answer, split_at_slot
from .special_tokens import in_instructions
from .stops import Stops, instruction_stops, response_stops
from .tokens import Coder
from .vocabulary import Vocabulary


if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


__all__ = ["ChatTemplate", "Stops"]

_CACHED_SYSTEM_PROMPTS = 4096
_A_TURN = (user("Hi there."), assistant("Hello! How can I help?"))


class ChatTemplate:
    """The chat template of a model, and the prompts and stops that Magpie derives from it.

    Attributes:
        name: The model's name, for messages.
        tokenizer: The tokenizer.
        text: The Jinja source.
        template_kwargs: The template's arguments.
        date: The fixed date that the template prints, as ISO text; None if it prints none.
        hash: A short hash of text and arguments, for provenance.
        bos: The BOS as text, or "".
        tokenizer_adds_bos: Whether the tokenizer adds the BOS to plain text, as servers do.
        frame: The text around messages.
        answer_frame: The text around an assistant's reasoning and answer.
        instruction_stops, response_stops: The stops of an instruction and of a response.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "",
        chat_template: str | None = None,
        template_kwargs: Mapping[str, object] | None = None,
        template_date: dt.date | str | None = None,
        generation_config: GenerationConfig | Mapping[str, object] | None = None,
    ) -> None:
        """Derive prompts and stop tokens from the template.

        Args:
            tokenizer: The model's tokenizer.
            name: The model's name, for messages.
            chat_template: Jinja text, the path of a template file, or the name of one of the tokenizer's templates.
            template_kwargs: Arguments of the template, e.g., `enable_thinking`.
            template_date: The day that the template prints as today. Default: today.
            generation_config: The model's; its `eos_token_id` are stop tokens, too.

        Raises:
            TemplateError: the template is missing, rejects a single user message, or has no open user slot.
            ArgumentError: an argument is invalid.
        """
        self.name = name or str(getattr(tokenizer, "name_or_path", "") or "the model")
        self.tokenizer = tokenizer
        self.text = template_text(tokenizer, chat_template, self.name)
        self._render = dated_renderer(tokenizer, self.text, checked_kwargs(template_kwargs), template_date, self.name)
        self.template_kwargs = self._render.kwargs
        self._vocabulary = Vocabulary(tokenizer)
        self._render.choose_format()
        self.date = self._render.printed_date()
        self._coder = Coder(tokenizer)
        self._coder.detect_bos(split_at_slot(self._render, [], "a lone user message")[0])
        self.bos, self.tokenizer_adds_bos = self._coder.bos, self._coder.adds_bos
        self._encode, self._complete, self._bos_of = self._coder.encode, self._coder.complete, self._coder.bos_of
        self._prompts: dict[str | None, Prompt] = {}
        self._systems: dict[str, list[Message]] = {}
        self._turn_slots: dict[str | None, Slot] = {}
        self.frame: Frame = find_frame(self._render)
        self.answer_frame: AnswerFrame = find_answer_frame(self._render, self._vocabulary, self.frame)
        self._reader = AnswerReader(self.text, self._vocabulary, self.frame, self.answer_frame)
        self.is_harmony, self.opened_think = self._reader.is_harmony, self._reader.opened
        self.instruction_stops = instruction_stops(self._vocabulary, self.frame, generation_config)
        self.response_stops = response_stops(self._vocabulary, self.frame, self.answer_frame, generation_config)
        self._special = in_instructions(self._vocabulary, self.frame, self.text)
        self.pre_query_slot: Slot
        self.pre_query()

    @classmethod
    def load(
        cls,
        model: str,
        *,
        revision: str | None = None,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, object] | None = None,
        template_date: dt.date | str | None = None,
        trust_remote_code: bool = False,
    ) -> ChatTemplate:
        """Load the tokenizer of a Hub id, a local directory or "demo", and read its template.

        Raises:
            ModelError: the model or its tokenizer cannot be loaded.
            TemplateError: see the constructor.
        """
        ref = resolve_model(model, revision)
        tokenizer = load_tokenizer(ref.source, ref.load_revision, ref.name, trust_remote_code=trust_remote_code)
        return cls(
            tokenizer,
            name=ref.name,
            chat_template=find_template(tokenizer, ref, chat_template),
            template_kwargs=template_kwargs,
            template_date=template_date,
            generation_config=generation_config_of(ref.source, ref.load_revision, ref.name),
        )

    @property
    def stops(self) -> Stops:
        """The stops of an instruction; those of a response are `response_stops`."""
        return self.instruction_stops

    @cached_property
    def hash(self) -> str:
        """A short hash of the template's text and arguments."""
        given = json.dumps([self.text, self.template_kwargs], sort_keys=True, default=str, ensure_ascii=False)
        return hashlib.blake2b(given.encode(), digest_size=8).hexdigest()

    def pre_query(self, system_prompt: str | None = None) -> Prompt:
        """Return the prompt after which the model writes a user's first message.

        The same object is returned each time, so that engines can group requests by prompt. `system_prompt`: None keeps
        the template's default; "" removes it, and changes nothing if the template has no default.

        Raises:
            TemplateError: the template rejects or drops a system prompt, or prints nothing before the user message.
        """
        known = self._prompts.get(system_prompt)
        if known is not None:
            return known
        system = self._system(system_prompt)
        what = "a system prompt" if system else "a lone user message"
        slot = find_slot(self._render, self._complete, self._encode, system, what)
        self._check_shown(system, slot)
        self._check_header(slot)
        prompt = self._slot_prompt(slot)
        if len(self._prompts) >= _CACHED_SYSTEM_PROMPTS:
            self._prompts = {None: self._prompts[None]}
            self._turn_slots.clear()
        self._prompts[system_prompt] = prompt
        if system_prompt is None:
            self.pre_query_slot = slot
        return prompt

    @property
    def needs_parts(self) -> bool:
        """Whether the template receives message contents as lists of parts."""
        return self._render.as_parts

    def encodes_like_servers(self) -> bool:
        """Return whether a server that adds the BOS itself computes the same token ids from the text."""
        return self._coder.encodes_like_servers(self.pre_query().text)

    @property
    def needs_tools(self) -> bool:
        """Whether the template is rendered with an empty list of tools, because it fails without one."""
        return self._render.empty_tools

    @property
    def can_think(self) -> bool:
        """Whether the template has think blocks or channels."""
        return bool(self._reader.known) or self.is_harmony or "enable_thinking" in self.text

    @property
    def hidden_close(self) -> str | None:
        """The text that closes the reasoning, if it consists of special tokens, which some servers omit from texts."""
        return self._reader.hidden_close

    def next_user(self, messages: Sequence[Message], system_prompt: str | None = None) -> Prompt:
        """Return the prompt after which the model writes the user's next message.

        `messages`: the conversation so far, ending with the assistant's; empty for the first turn.

        Raises:
            TemplateError: the template rejects the conversation or the system prompt.
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
            return self._slot_prompt(slot)
        text = before.removesuffix(slot.dropped)
        encode = _tail_encoder(self._encode, slot)
        return Prompt(text, encode=encode, decode=self._coder.decode, bos=self._bos_of(text), dropped=slot.dropped)

    def response(self, messages: Sequence[Message], system_prompt: str | None = None, *, prefill: str = "") -> Prompt:
        """Return the prompt after which the model responds to the last message, which must be the user's.

        `prefill`: the beginning of the answer, which the model continues. It follows everything that the template prints
        before an answer, e.g., an empty block of reasoning.

        Raises:
            TemplateError: the template rejects the conversation or the system prompt, or has no place for the prefill.
        """
        if not messages or messages[-1].get("role") != "user":
            raise ArgumentError("The conversation does not end with a user's message.", key="messages")
        conversation = self._conversation(messages, system_prompt)
        if prefill:
            before = split_at_answer(self._render, conversation)
        else:
            before = self._render.render_or_raise(conversation, "this conversation")
        text = self._complete(before) + prefill
        return Prompt(text, encode=self._encode, decode=self._coder.decode, bos=self._bos_of(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones visible."""
        return self._coder.decode(ids)

    def find_special(self, text: str, token_ids: Sequence[int] | None = None) -> str | None:
        """Return the first special token or template mark in a generated text, or None; compares ids if they are known."""
        return self._special.find(text, token_ids)

    def split_reasoning(self, text: str) -> tuple[str | None, str]:
        """Return (reasoning, answer) of a response; reasoning is None without one, answer "" if the text ended before it."""
        return self._reader.split(text)

    def read_answer(self, generation: Generation) -> Answer:
        """Return a response's answer and its reasoning, and the first special token in them, if any."""
        return self._reader.read(generation)

    # The messages of a conversation

    def _conversation(self, messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
        if system_prompt is None:
            return list(messages)
        self.pre_query(system_prompt)
        rest = messages[1:] if messages[0].get("role") == "system" else messages
        return [*self._system(system_prompt), *rest]

    def _system(self, system_prompt: str | None) -> list[Message]:
        """Return a list with the system message; for "", only if it removes a default system prompt."""
        if system_prompt is None:
            return []
        message: list[Message] = [system(system_prompt)]
        if system_prompt.strip():
            return message
        if system_prompt not in self._systems:
            self._systems[system_prompt] = message if self._blanks_default(message) else []
        return self._systems[system_prompt]

    def _blanks_default(self, message: Sequence[Message]) -> bool:
        """Return whether an empty system message shortens the prompt, rather than adding an empty block."""
        try:
            blank = split_at_slot(self._render, message, "an empty system prompt")[0]
        except TemplateError:
            return False
        return len(blank) < len(split_at_slot(self._render, [], "a lone user message")[0])

    def _check_shown(self, system: Sequence[Message], slot: Slot) -> None:
        wanted = "".join(str(m["content"]).strip() for m in system)
        if wanted and wanted not in slot.text + slot.dropped:
            raise TemplateError(
                f"The chat template of {quoted(self.name)} drops or rewrites the system prompt.",
                hint="Leave the system prompt out, or give another template (chat_template=…).",
                template=self.name,
            )

    def _slot_prompt(self, slot: Slot) -> Prompt:
        bos = self._bos_of(slot.text)
        return Prompt(
            slot.text, slot.token_ids, encode=self._encode, decode=self._coder.decode, bos=bos, dropped=slot.dropped
        )

    def _check_header(self, slot: Slot) -> None:
        if not slot.text.removeprefix(self.bos).strip():
            raise TemplateError(
                f"The chat template of {quoted(self.name)} prints nothing before the user's message.",
                hint="Magpie sends that text as the prompt. Set the template that the model was trained with "
                "(chat_template=…), or another model.",
                template=self.name,
            )

    def _turn_slot(self, system_prompt: str | None) -> Slot:
        known = self._turn_slots.get(system_prompt)
        if known is None:
            history = self._conversation(_A_TURN, system_prompt)
            known = find_slot(self._render, self._complete, self._encode, history, "this conversation")
            self._turn_slots[system_prompt] = known
        return known


def _tail_encoder(encode: Encode, slot: Slot) -> Encode:
    if not slot.tail_ids:
        return encode

    def encoded(text: str) -> Sequence[int]:
        ids = encode(text.removesuffix(slot.tail_text))
        return [*ids, *slot.tail_ids] if text.endswith(slot.tail_text) else ids

    return encoded
