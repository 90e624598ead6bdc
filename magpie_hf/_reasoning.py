"""Tell a model's reasoning from its answer, in the forms that thinking models write it."""

from __future__ import annotations

import re


# (opens, closes) as released: most models; Mistral's reasoning models; Seed-OSS; MiniMax; EXAONE Deep; Cohere; Gemma 4;
# Apriel; Granite 3.2.
THINK_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<thought>", "</thought>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    ("Here is my thought process:", "Here is my response:"),
)
_ANSWER_MARKS = (
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<response>", "</response>"),
    ("", "[END FINAL RESPONSE]"),
)
_HARMONY_PART = re.compile(
    r"<\|channel\|>\s*(?P<channel>\w+)(?P<more>(?:(?!<\|message\|>).)*?)<\|message\|>"
    r"(?P<text>.*?)(?=<\|end\|>|<\|return\|>|<\|call\|>|<\|start\|>|<\|channel\|>|\Z)",
    re.DOTALL,
)


def opened_tags(generation_prompt: str) -> tuple[str, str] | None:
    """Return the think tags that a generation prompt leaves open, or None."""
    for opens, closes in THINK_TAGS:
        if generation_prompt.rfind(opens) > generation_prompt.rfind(closes):
            return opens, closes
    return None


def known_tags(template: str) -> tuple[tuple[str, str], ...]:
    """Return the think tags that a template mentions."""
    return tuple(tags for tags in THINK_TAGS if tags[0] in template or tags[1] in template)


def is_harmony(template: str) -> bool:
    """Whether a template speaks gpt-oss's Harmony format, where an answer comes in channels."""
    return "<|channel|>" in template and "<|message|>" in template and "<|start|>" in template


def split_harmony(text: str) -> tuple[str | None, str]:
    """Return (reasoning, answer) of a Harmony generation: the text of its analysis and of its final channel.

    Servers that drop special tokens leave "analysis…assistantfinal…": understood too.
    """
    parts = [(m["channel"], m["text"].strip()) for m in _HARMONY_PART.finditer(text)]
    if parts:
        answer = "\n\n".join(t for channel, t in parts if channel == "final" and t)
        reasoning = "\n\n".join(t for channel, t in parts if channel != "final" and t)
        return reasoning or None, answer
    if text.startswith("analysis"):
        reasoning, _, answer = text.removeprefix("analysis").partition("assistantfinal")
        return reasoning.strip() or None, answer.strip()
    return None, text


def split_think(
    text: str, opened: tuple[str, str] | None, known: tuple[tuple[str, str], ...]
) -> tuple[str | None, str]:
    """Return (reasoning, answer) of a generation that may begin with a think block.

    `opened`: tags that the prompt already opened: then everything up to the closing one is reasoning, all of it if
    there is none (the generation was cut). `known`: tags whose closing one alone is enough (some servers drop the
    opening one). A block that the text itself opens counts whatever the model; one in mid-answer never does.
    """
    start = text.lstrip()
    own = next((tags for tags in THINK_TAGS if start.startswith(tags[0])), None)
    tags = own or opened or next((t for t in known if t[1] in text and t[0] not in text.partition(t[1])[0]), None)
    if tags is None:
        return None, text
    body = start.removeprefix(tags[0])
    reasoning, closed, answer = body.partition(tags[1])
    if not closed:
        return reasoning.strip() or None, ""
    return reasoning.strip() or None, _without_marks(answer.strip())


def _without_marks(answer: str) -> str:
    """Take off the marks that some models put around the answer after their reasoning."""
    for opens, closes in _ANSWER_MARKS:
        if answer.startswith(opens) and (opens or answer.endswith(closes)):
            return answer.removeprefix(opens).removesuffix(closes).strip()
    return answer
