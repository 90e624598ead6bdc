"""Prompts for servers that apply the chat template themselves: they remain messages, and no tokenizer is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

from ..engines.base import Generation, Prompt
from ..errors import ArgumentError, TemplateError
from ..judging.prompts import guard_prompt
from ..messages import system, user
from .answer_reader import Answer
from .reasoning import Split, Tags, split_tags
from .stops import Stops


_CLOSING = (Tags("<think>", "</think>"),)
"""Servers without a reasoning parser omit the opening tag if the template prints it in the generation prompt."""
_LLAMA_GUARD = re.compile(r"llama[-_ ]?guard", re.IGNORECASE)


class ChatServerTemplate:
    """Replaces ChatTemplate and GuardTemplate for engines that send messages (`Engine.takes_messages`).

    The server adds the stops of its template itself. Token counts are those that it reports; before a request, the number
    of tokens of a prompt is not known.

    Attributes: `name`; `has_own` (the server's template is that of a guard: it renders the whole check); `hash` and
    `date` (None), `hidden_close` (None), `instruction_stops` and `response_stops` (empty).
    """

    hash: str | None = None
    date: str | None = None
    hidden_close: str | None = None
    bos = ""
    instruction_stops = response_stops = Stops((), ())

    def __init__(self, name: str) -> None:
        self.name = name
        self.has_own = _LLAMA_GUARD.search(name) is not None

    def response(
        self, messages: Sequence[Mapping[str, str]], system_prompt: str | None = None, *, prefill: str = ""
    ) -> Prompt:
        """Return the prompt after which the model responds to the last message, which must be the user's.

        `system_prompt`: replaces a system message; "" removes it.

        Raises:
            TemplateError: `prefill` is given.
        """
        if prefill:
            raise TemplateError(
                "A chat API cannot continue the beginning of a reply (prefill).",
                hint="Use an engine that sends raw prompts (transformers, vllm, tgi, openai), or rubrics without a prefill, e.g., "
                "rubrics: default instead of rubrics: reference.",
            )
        if not messages or messages[-1].get("role") != "user":
            raise ArgumentError("The conversation does not end with a user's message.", key="messages")
        return _prompt(_with_system(messages, system_prompt))

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> Prompt:
        """Return the prompt that checks a conversation's last message.

        Llama Guard receives the conversation, as its template renders the check; other models receive a written question.
        """
        return _prompt(messages) if self.has_own else self.response([user(guard_prompt(messages))])

    def split_reasoning(self, text: str) -> tuple[str | None, str]:
        """Return (reasoning, answer) of a text that contains the tags of released reasoning models."""
        return split_tags(text, None, (), _CLOSING) or Split(None, text)

    def read_answer(self, generation: Generation) -> Answer:
        """Return a response's answer and its reasoning, which most servers report separately."""
        reasoning, answer = self.split_reasoning(generation.text)
        return Answer(generation.reasoning or reasoning, answer)

    def find_special(self, text: str, token_ids: Sequence[int] | None = None) -> str | None:
        """Return None: chat APIs remove special tokens from texts."""
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """Return "": the tokens are not known."""
        return ""

    def pre_query(self, system_prompt: str | None = None) -> NoReturn:
        """Raise TemplateError: a chat API has no raw prompts."""
        raise TemplateError(RAW_PROMPTS, hint=RAW_HINT, template=self.name)

    def next_user(self, messages: Sequence[Mapping[str, str]], system_prompt: str | None = None) -> NoReturn:
        """Raise TemplateError: a chat API has no raw prompts."""
        raise TemplateError(RAW_PROMPTS, hint=RAW_HINT, template=self.name)


RAW_PROMPTS = (
    "A chat API applies the chat template to every prompt, so the model can only respond: it cannot write the user's "
    "message, which requires a raw prompt."
)
RAW_HINT = "Use an engine that sends raw prompts: transformers, vllm, tgi or openai."


def _with_system(messages: Sequence[Mapping[str, str]], system_prompt: str | None) -> list[Mapping[str, str]]:
    if system_prompt is None:
        return list(messages)
    rest = messages[1:] if messages[0].get("role") == "system" else messages
    return [*([system(system_prompt)] if system_prompt.strip() else []), *rest]


def _prompt(messages: Sequence[Mapping[str, str]]) -> Prompt:
    return Prompt("\n\n".join(message["content"] for message in messages), messages=messages)
