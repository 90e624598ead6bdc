"""Separate a model's reasoning from its answer in a generated text.

The text around reasoning and answer is derived from the chat template (`templates.answer`). In templates and in
vocabularies, tags are recognized by their names (think, thought, reasoning, …), and come in pairs. In a generated text the
name is not sufficient, because an answer may contain XML such as `<thinking_steps>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple


# <think>, </think>, <seed:think>, [THINK], <|START_THINKING|>, <|thought_end|>, <|inner_prefix|>, ◁think▷
TAG = re.compile(
    r"<\|/?[\w:-]*(?:think|thought|reasoning|inner)[\w:-]*\|>|</?[\w:-]*(?:think|thought)[\w:-]*>|\[/?THINK(?:ING)?\]|"
    r"◁/?think▷|<\|channel>thought|<channel\|>",
    re.IGNORECASE,
)
# Tags of released models, recognized in the text of any model: an answer rarely begins with one of them
_RELEASED = re.compile(
    r"<think>|<thought>|<(?:seed|mm):think>|\[THINK\]|◁think▷|<\|channel>thought|"
    r"<\|[\w:-]*(?:think|thought|reasoning|inner)[\w:-]*\|>",
    re.IGNORECASE,
)
_PARTNERS = (("start", "end"), ("begin", "end"), ("prefix", "suffix"), ("open", "close"))
# Phrases used instead of tags; the template only has them in a system prompt or generation prompt: Apriel, Granite 3.2.
_PHRASES = (
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    ("Here is my thought process:", "Here is my response:"),
)
# Marks around a whole answer that models generate but templates do not print: Hunyuan, Apriel.
_ANSWER_MARKS = (("<answer>", "</answer>"), ("<response>", "</response>"), ("", "[END FINAL RESPONSE]"))
_HARMONY_PART = re.compile(
    r"<\|channel\|>\s*(?P<channel>\w+)(?P<more>(?:(?!<\|message\|>).)*?)<\|message\|>"
    r"(?P<text>.*?)(?=<\|end\|>|<\|return\|>|<\|call\|>|<\|start\|>|<\|channel\|>|\Z)",
    re.DOTALL,
)


class Tags(NamedTuple):
    """The texts that open and close reasoning; differences in white space are ignored."""

    opens: str
    closes: str


class Split(NamedTuple):
    """The two parts of a generated text. `reasoning`: None without one. `answer`: "" if the text ended before it."""

    reasoning: str | None
    answer: str


def is_tag(text: str) -> bool:
    """Return whether a token or text has the form of a reasoning tag.

    >>> is_tag("</think>"), is_tag("<|START_THINKING|>"), is_tag("<|im_start|>")
    (True, True, False)
    """
    return TAG.fullmatch(text.strip()) is not None


def closing_tag(opens: str) -> str | None:
    """Return the closing tag for the opening tag `opens`, or None if it is not an opening tag.

    >>> closing_tag("<seed:think>"), closing_tag("<|START_THINKING|>"), closing_tag("</think>")
    ('</seed:think>', '<|END_THINKING|>', None)
    """
    if "/" in opens or not is_tag(opens):
        return None
    if opens == "<|channel>thought":
        return "<channel|>"
    for start, end in _PARTNERS:
        if found := re.search(start, opens, re.IGNORECASE):
            return opens.replace(found[0], end.upper() if found[0].isupper() else end)
    return re.sub(r"^(<\||<|\[|◁)", r"\1/", opens)


def known_tags(template: str, tokens: Iterable[str] = ()) -> tuple[Tags, ...]:
    """Return the pairs of tags among a tokenizer's added tokens, or mentioned in a template's source."""
    have = {*(t.strip() for t in tokens if is_tag(t)), *TAG.findall(template)}
    # One tag of a pair is enough: some templates never print the closing tag, others only split past messages at it
    opening = {*have, *(tag.replace("/", "", 1) for tag in have)}
    pairs = [Tags(opens, closes) for opens in sorted(opening) if (closes := closing_tag(opens))]
    pairs = [pair for pair in pairs if pair.closes in have or not pair.closes.startswith("<|/")]
    phrases = [Tags(*pair) for pair in _PHRASES if pair[0] in template or pair[1] in template]
    return tuple(dict.fromkeys([*pairs, *phrases]))


def opened_tags(generation_prompt: str, known: Iterable[Tags]) -> Tags | None:
    """Return the tags that a generation prompt opens and does not close, or None."""
    return next((t for t in known if generation_prompt.rfind(t.opens) > generation_prompt.rfind(t.closes)), None)


def is_closed(generation_prompt: str, known: Iterable[Tags]) -> bool:
    """Return whether a generation prompt closes the reasoning, so that the answer comes next."""
    return any(
        is_tag(t.closes) and generation_prompt.rfind(t.closes) > generation_prompt.rfind(t.opens) for t in known
    )


@lru_cache(maxsize=1024)
def whitespace_pattern(text: str) -> str:
    """Return a pattern for a text that allows any white space around marks and between words."""
    words = re.split(r"\s+|(?<=[>\]▷])(?=\S)|(?<=\S)(?=[<\[◁])", text.strip())
    return r"\s*".join(re.escape(word) for word in words if word)


def is_harmony(template: str) -> bool:
    """Return whether a template uses the Harmony format of gpt-oss, which splits a response into channels."""
    return "<|channel|>" in template and "<|message|>" in template and "<|start|>" in template


def split_harmony(text: str) -> Split:
    """Split a Harmony generation: the final channel is the answer, all others are reasoning.

    The text "analysis…assistantfinal…" from servers that remove special tokens is also supported.
    """
    parts = [(m["channel"], m["text"].strip()) for m in _HARMONY_PART.finditer(text)]
    if parts:
        answer = "\n\n".join(t for channel, t in parts if channel == "final" and t)
        reasoning = "\n\n".join(t for channel, t in parts if channel != "final" and t)
        return Split(reasoning or None, answer)
    if re.match(r"analysis\S", text) or (text.startswith("analysis") and "assistantfinal" in text):
        reasoning, _, answer = text.removeprefix("analysis").partition("assistantfinal")
        return Split(reasoning.strip() or None, answer.strip())
    return Split(None, text)


def split_tags(text: str, opened: Tags | None, known: Sequence[Tags], closing: Sequence[Tags] = ()) -> Split | None:
    """Split a text that begins with reasoning into reasoning and answer; None if it does not begin with reasoning.

    Tags of released models are recognized for any model if the text has the opening and the closing tag. Tags in the
    middle of an answer are ignored.

    Args:
        text: The generated text.
        opened: Tags that the prompt opened: the text up to the closing tag is reasoning, or the whole text without one.
        known: Tags of the template or its tokenizer, recognized at the beginning of the text.
        closing: Tags of which the closing tag is sufficient, because some servers remove the opening tag.
    """
    start = text.lstrip()
    for tags in (*_own_tags(start, known), *([opened] if opened else [])):
        found = re.match(whitespace_pattern(tags.opens), start)
        return _split_at_close(start[found.end() :] if found else start, tags.closes)
    for tags in closing:
        if is_tag(tags.closes) and tags.closes in text and tags.opens not in text.partition(tags.closes)[0]:
            return _split_at_close(start, tags.closes)
    return None


def _own_tags(start: str, known: Sequence[Tags]) -> list[Tags]:
    """Return the tags that the text begins with: one pair, or an empty list."""
    for tags in known:
        if tags.opens and re.match(whitespace_pattern(tags.opens), start):
            return [tags]
    found = _RELEASED.match(start)
    closes = closing_tag(found[0]) if found else None
    if found and closes and (closes in start or found[0] == "<think>"):
        return [Tags(found[0], closes)]
    return []


def _split_at_close(body: str, closes: str) -> Split:
    found = re.search(whitespace_pattern(closes), body)
    reasoning = body[: found.start()] if found else body
    return Split(reasoning.strip() or None, body[found.end() :].strip() if found else "")


def without_answer_marks(answer: str, template: str) -> str:
    """Remove marks around the whole answer if the source of the template contains them."""
    text = answer.strip()
    for opens, closes in _ANSWER_MARKS:
        if closes in template and text.startswith(opens) and text.endswith(closes):
            return text.removeprefix(opens).removesuffix(closes).strip()
    return answer
