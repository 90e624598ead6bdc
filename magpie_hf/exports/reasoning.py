"""Put reasoning back into assistant messages in the form that a chat template prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, did_you_mean, quoted
from ..models import resolve_model
from ..templates.load import find_template, load_tokenizer
from ..templates.reasoning import Tags, is_harmony, known_tags
from .rows import Message


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEYS = ("reasoning_content", "thinking", "reasoning")
FORMS = ("auto", *KEYS, "content", "drop")
"""A key of the message, the content between tags, or no reasoning; auto: what the chat template of the model prints."""
THINK = Tags("<think>", "</think>")
_USER, _REASONING, _ANSWER = (f"MagpieExport{n}Qx" for n in range(3))


@dataclass(frozen=True)
class Form:
    """How reasoning is written: `name` is one of FORMS; None: not known, which is an error in rows with reasoning."""

    name: str | None
    tags: Tags = THINK

    def put(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages with their reasoning in this form.

        Raises:
            ArgumentError: a message has reasoning, and the form is not known.
        """
        return [self._put(message) for message in messages]

    def _put(self, message: Message) -> Message:
        rest = dict(message)
        reasoning = rest.pop("reasoning", None)
        if reasoning is None or self.name == "drop":
            return rest
        if self.name is None:
            raise ArgumentError(
                "The rows have reasoning, but the form that the chat template of your model prints is not known.",
                hint=f"Give the model that you train (model=…, --model), or set reasoning to one of {', '.join(FORMS[1:])}.",
                key="reasoning",
            )
        if self.name != "content":
            return {**rest, self.name: reasoning}
        return {**rest, "content": with_tags(reasoning, rest["content"], self.tags)}


def with_tags(reasoning: str, answer: str, tags: Tags = THINK) -> str:
    """Return reasoning and answer as one text, as DeepSeek-R1 and Qwen3 write it."""
    return f"{tags.opens}\n{reasoning}\n{tags.closes}\n\n{answer}"


def form_of(reasoning: str, model: str | None, chat_template: str | None, allowed: Sequence[str], target: str) -> Form:
    """Return the form for the setting `reasoning`.

    `allowed`: the forms that the target's loader reads; the first one is the default of a target that reads one only.

    Raises:
        ArgumentError: the form is unknown, or the target does not read it, or the template of the model prints no form.
        ModelError, TemplateError: the tokenizer or its template cannot be loaded.
    """
    if reasoning not in FORMS:
        raise ArgumentError(f"Invalid value reasoning = {quoted(reasoning, 60)}.", hint=did_you_mean(reasoning, FORMS))
    if reasoning != "auto":
        if reasoning not in (*allowed, "drop"):
            raise ArgumentError(
                f'The target "{target}" does not read reasoning as "{reasoning}".',
                hint=f"It reads {', '.join(allowed)}.",
                key="reasoning",
            )
        return Form(reasoning)
    if len(allowed) == 1 and model is None:
        return Form(allowed[0])
    if model is None:
        return Form(None)
    return printed_form(*_template_of(model, chat_template), model, allowed)


def _template_of(model: str, chat_template: str | None) -> tuple[PreTrainedTokenizerBase, str]:
    ref = resolve_model(model)
    tokenizer = load_tokenizer(ref.source, ref.load_revision, ref.name)
    return tokenizer, find_template(tokenizer, ref, chat_template)


def printed_form(
    tokenizer: PreTrainedTokenizerBase, template: str, model: str, allowed: Sequence[str] = (*KEYS, "content")
) -> Form:
    """Return the first of the allowed forms in which a chat template prints reasoning before the answer.

    Raises:
        ArgumentError: the template prints it in no form, e.g., because it removes the reasoning of past turns.
    """
    keys = [name for name in allowed if name in KEYS]
    if is_harmony(template):  # the key that the template of gpt-oss reads, also where other keys are accepted
        keys.sort(key=lambda name: name != "thinking")
    forms = [Form(name) for name in keys]
    if "content" in allowed:
        own = known_tags(template)
        forms += [Form("content", tags) for tags in dict.fromkeys([*(t for t in (THINK,) if t in own), *own, THINK])]
    for form in forms:
        if _prints(tokenizer, template, form):
            return form
    raise ArgumentError(
        f"The chat template of {quoted(model, 80)} prints no reasoning in any form that this target reads, so a model "
        "would be trained on the answers alone.",
        hint="Give a template for training (chat_template=…, --chat-template), set reasoning to the form that your trainer "
        "reads, or to drop.",
        key="reasoning",
    )


def _prints(tokenizer: PreTrainedTokenizerBase, template: str, form: Form) -> bool:
    answer: Mapping[str, Any] = {"role": "assistant", "content": _ANSWER, "reasoning": _REASONING}
    messages = form.put([{"role": "user", "content": _USER}, dict(answer)])
    try:
        text = str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False))
    except Exception:  # noqa: BLE001 (templates raise any exception for message formats that they do not support)
        return False
    after = text.partition(_USER)[2]
    whole = form.name != "content" or (form.tags.opens in after and form.tags.closes in after)
    return whole and -1 < after.find(_REASONING) < after.find(_ANSWER)
