"""The output of `magpie-hf template show`: every prompt as text and token ids, the stops, and notes on the template."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import TemplateError
from ..messages import assistant, user
from .probe import common_prefix
from .stops import Stops
from .template import ChatTemplate


if TYPE_CHECKING:
    from ..engines.base import Prompt


_INSTRUCTION = "What is the capital of France?"
_ANSWER = "Paris."
_SYSTEM = "You are a patient teacher of mathematics."


def describe(template: ChatTemplate, system_prompt: str | None = None) -> dict[str, object]:
    """Return prompts (as text and token ids), stops, BOS and notes of a template, as JSON-ready values."""
    asked = user(_INSTRUCTION)
    answered = [asked, assistant(_ANSWER)]
    return {
        "model": template.name,
        "hash": template.hash,
        "template_kwargs": template.template_kwargs,
        "date": template.date,
        "prompts": {
            "pre_query": _shown(template.pre_query(system_prompt)),
            "response": _shown(template.response([asked], system_prompt)),
            "next_user": _shown_or_error(lambda: template.next_user(answered, system_prompt)),
            "pre_query_with_system_prompt": _shown_or_error(lambda: template.pre_query(system_prompt or _SYSTEM)),
        },
        "instruction_stops": _stops(template.instruction_stops),
        "response_stops": _stops(template.response_stops),
        "bos": {"text": template.pre_query(system_prompt).bos, "added_by_tokenizer": template.tokenizer_adds_bos},
        "notes": notes(template),
    }


def _shown(prompt: Prompt) -> dict[str, object]:
    return {"text": prompt.text, "token_ids": list(prompt.token_ids)}


def _shown_or_error(make: Callable[[], Prompt]) -> dict[str, object]:
    try:
        return _shown(make())
    except TemplateError as error:
        return {"refused": error.message}


def _stops(stops: Stops) -> dict[str, list[str] | list[int]]:
    return {"texts": list(stops.texts), "token_ids": list(stops.token_ids)}


def notes(template: ChatTemplate) -> list[str]:
    """Return notes on what is special about a template; one string per note."""
    return [text for text in (_bos_note(template), *_prompt_notes(template), *_thinking_notes(template)) if text]


def _bos_note(template: ChatTemplate) -> str:
    if not template.bos:
        return "Prompts have no BOS token: neither the tokenizer nor the template uses one."
    if not template.pre_query().bos:
        return f"Prompts have no BOS token: neither the template nor the tokenizer adds {template.bos}."
    if not template.encodes_like_servers():
        return (
            f"Prompts have one BOS token, {template.bos}, written by the template. A server that adds the BOS itself "
            "tokenizes the first word differently. Use an engine that accepts token ids."
        )
    if template.tokenizer_adds_bos:
        return f"Prompts have one BOS token, {template.bos}. It is not included in the text for servers that add it themselves."
    return f"Prompts have one BOS token, {template.bos}, written by the template; the tokenizer adds none."


def _prompt_notes(template: ChatTemplate) -> list[str]:
    slot = template.pre_query_slot
    return [
        _default_block_note(template),
        f"{slot.dropped!r} at the end is not sent: it merges with the first word of a message into one token. The model "
        "generates it first, and it is removed."
        if slot.dropped
        else "",
        f"{slot.tail_text!r} at the end is tokenized differently before a message than at the end of a text. Use an engine "
        "that accepts token ids."
        if slot.tail_ids
        else "",
        f"The template prints a date; it is fixed to {template.date}." if template.date else "",
        "Message contents are passed as lists of parts, because the template requires it."
        if template.needs_parts
        else "",
        "The template requires tools: an empty list is passed, for which it may print an empty block."
        if template.needs_tools
        else "",
        "No special token ends a message, so the stop sequences are texts."
        if template.instruction_stops.plain_texts
        else "",
    ]


def _default_block_note(template: ChatTemplate) -> str:
    """Return a note if the template prints text before the first message that it does not print before later ones."""
    start, header = template.pre_query().text.removeprefix(template.bos).rstrip(), template.frame.after_answer.rstrip()
    common = common_prefix(start[::-1], header[::-1])
    extra = start[: len(start) - len(common)]
    while found := template.find_special(extra, template.tokenizer.encode(extra, add_special_tokens=False)):
        extra = extra.replace(found, "")
    if not common or not extra.strip():
        return ""
    note = "A default system block is inserted before the user's turn"
    try:
        blank = template.pre_query("").text
    except TemplateError:
        return note + "."
    if blank == template.pre_query().text:
        return f'{note}; system_prompt="" does not remove it.'
    return f'{note}; with system_prompt="", the prompt is {blank!r}.'


def _thinking_notes(template: ChatTemplate) -> list[str]:
    frame, opened = template.answer_frame, template.opened_think
    head = f"Responses begin with {frame.head.strip()!r}, which is removed." if frame.head.strip() else ""
    if template.is_harmony:
        return ["Harmony format: the analysis channel becomes the reasoning, and the final channel the response."]
    if not (opened or template.can_think):
        return [head]
    opens = opened.opens or "reasoning" if opened else "no think block"
    shown = (
        f"The template prints reasoning between {frame.tags.opens!r} and {frame.tags.closes!r}." if frame.tags else ""
    )
    return [
        f"The model can reason; the response prompt opens {opens}. Instructions are generated without reasoning: their "
        "prompts end before the assistant's turn.",
        shown,
        head,
    ]
