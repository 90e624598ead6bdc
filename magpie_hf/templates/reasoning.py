"""Separate a model's reasoning from its answer in a generated text.

The text around reasoning and answer is derived from the chat template (`templates.answer`). In templates and among
tokens, tags are recognized by their form: they are named after thinking and come in pairs. In a text the form does not
suffice: an answer may hold XML of its own (`<thinking_steps>`).
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
# Tags of released models, which count in any model's text; an answer does not begin with one of them by chance
_RELEASED = re.compile(
    r"<think>|<thought>|<(?:seed|mm):think>|\[THINK\]|◁think▷|<\|channel>thought|"
    r"<\|[\w:-]*(?:think|thought|reasoning|inner)[\w:-]*\|>",
    re.IGNORECASE,
)
_PARTNERS = (("start", "end"), ("begin", "end"), ("prefix", "suffix"), ("open", "close"))
# Words in place of tags, which stand in the system prompt or the generation prompt only: Apriel; Granite 3.2.
_WORDED = (
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    ("Here is my thought process:", "Here is my response:"),
)
# Marks that stand around a whole answer in the model's text only, so that no rendering shows them: Hunyuan, Apriel.
_ANSWER_MARKS = (("<answer>", "</answer>"), ("<response>", "</response>"), ("", "[END FINAL RESPONSE]"))
_HARMONY_PART = re.compile(
    r"<\|channel\|>\s*(?P<channel>\w+)(?P<more>(?:(?!<\|message\|>).)*?)<\|message\|>"
    r"(?P<text>.*?)(?=<\|end\|>|<\|return\|>|<\|call\|>|<\|start\|>|<\|channel\|>|\Z)",
    re.DOTALL,
)


class Tags(NamedTuple):
    """What opens and what closes reasoning, as text; white space within does not matter."""

    opens: str
    closes: str


class Split(NamedTuple):
    """A generated text in two; `reasoning` is None if there is none, `answer` is "" if it was not reached."""

    reasoning: str | None
    answer: str


def is_tag(text: str) -> bool:
    """Return whether a token or text is a reasoning tag by its form.

    >>> is_tag("</think>"), is_tag("<|START_THINKING|>"), is_tag("<|im_start|>")
    (True, True, False)
    """
    return TAG.fullmatch(text.strip()) is not None


def partner_of(opens: str) -> str | None:
    """Return the tag that closes the reasoning which `opens` opens, or None if `opens` opens none.

    >>> partner_of("<seed:think>"), partner_of("<|START_THINKING|>"), partner_of("</think>")
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
    # One of the two is enough: some templates open the reasoning and never print its end, others only cut at its end
    opening = {*have, *(tag.replace("/", "", 1) for tag in have)}
    pairs = [Tags(opens, closes) for opens in sorted(opening) if (closes := partner_of(opens))]
    pairs = [pair for pair in pairs if pair.closes in have or not pair.closes.startswith("<|/")]
    worded = [Tags(*pair) for pair in _WORDED if pair[0] in template or pair[1] in template]
    return tuple(dict.fromkeys([*pairs, *worded]))


def opened_tags(generation_prompt: str, known: Iterable[Tags]) -> Tags | None:
    """Return the tags that a generation prompt leaves open, or None."""
    return next((t for t in known if generation_prompt.rfind(t.opens) > generation_prompt.rfind(t.closes)), None)


def is_closed(generation_prompt: str, known: Iterable[Tags]) -> bool:
    """Return whether a generation prompt closes the reasoning, so that the answer comes next."""
    return any(
        is_tag(t.closes) and generation_prompt.rfind(t.closes) > generation_prompt.rfind(t.opens) for t in known
    )


@lru_cache(maxsize=1024)
def loose(text: str) -> str:
    """Return a pattern for a text that allows other white space around marks and between words."""
    words = re.split(r"\s+|(?<=[>\]▷])(?=\S)|(?<=\S)(?=[<\[◁])", text.strip())
    return r"\s*".join(re.escape(word) for word in words if word)


def is_harmony(template: str) -> bool:
    """Return whether a template uses the Harmony format of gpt-oss, where an answer comes in channels."""
    return "<|channel|>" in template and "<|message|>" in template and "<|start|>" in template


def split_harmony(text: str) -> Split:
    """Split a Harmony generation: the final channel is the answer, all others are reasoning.

    Servers that drop special tokens leave "analysis…assistantfinal…", without a space: understood too.
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
    """Split a text that may begin with reasoning; None if it does not.

    `opened`: tags that the prompt already opened: then everything up to the closing one is reasoning, all of it if
    there is none (the generation was cut). `known`: tags of the template or its tokenizer, which count where the text
    begins with them. `closing`: those of which the closing one alone is enough, as some servers drop the opening one.
    Tags of released models count for any model if the text opens and closes them; tags in mid-answer never do.
    """
    start = text.lstrip()
    for tags in (*_own_tags(start, known), *([opened] if opened else [])):
        found = re.match(loose(tags.opens), start)
        return _at_close(start[found.end() :] if found else start, tags.closes)
    for tags in closing:
        if is_tag(tags.closes) and tags.closes in text and tags.opens not in text.partition(tags.closes)[0]:
            return _at_close(start, tags.closes)
    return None


def _own_tags(start: str, known: Sequence[Tags]) -> list[Tags]:
    """Return the tags that a text begins with."""
    for tags in known:
        if tags.opens and re.match(loose(tags.opens), start):
            return [tags]
    found = _RELEASED.match(start)
    closes = partner_of(found[0]) if found else None
    if found and closes and (closes in start or found[0] == "<think>"):
        return [Tags(found[0], closes)]
    return []


def _at_close(body: str, closes: str) -> Split:
    found = re.search(loose(closes), body)
    reasoning = body[: found.start()] if found else body
    return Split(reasoning.strip() or None, body[found.end() :].strip() if found else "")


def without_answer_marks(answer: str, template: str) -> str:
    """Remove the marks around a whole answer that the source of the template mentions."""
    text = answer.strip()
    for opens, closes in _ANSWER_MARKS:
        if closes in template and text.startswith(opens) and text.endswith(closes):
            return text.removeprefix(opens).removesuffix(closes).strip()
    return answer
