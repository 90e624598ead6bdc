"""`flags`: patterns in the text that suggest dropping a row; without a model.

The patterns are ours, for typical phrases of chat models; they are designed to avoid false positives, and miss some cases.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from ..stage import Batch, BatchFunction, BatchStage, Columns, Context, Values
from .cleaning import scripts


HEAD = 400
"""Characters of a response that are searched for a refusal: refusals are at the beginning."""
SCANNED = 20_000
"""Characters of a text that are examined: longer texts show problems in their first part."""
REPEATED_SHARE = 0.3
REPEATED_WORDS = 4
REPEATED_LINES = 4
FLAGS = tuple("refusal identity_talk cutoff_talk repetition unfinished mixed_script placeholder special_token".split())

_REFUSAL = re.compile(
    r"^\W*(?:(?:i(?:'|’)?m|i am) (?:really |very |so )?sorry,? (?:but )?(?:i|as)\b[^.\n]{0,80}\b(?:can(?:no|')t|cannot|unable|not able)"
    r"|sorry,? (?:but )?i (?:can(?:no|'|’)t|cannot|am (?:not able|unable)|won(?:'|’)t)"
    r"|i (?:can(?:'|’)t|cannot|can not|won(?:'|’)t|will not|must decline to) (?:help|assist|provide|fulfill|fulfil|comply|create|write|generate|do that|engage|support|discuss|share|answer)"
    r"|i(?:'|’)?m (?:unable|not able) to (?:help|assist|provide|fulfill|comply|create|write|generate|engage|answer)"
    r"|no,? i (?:will not|won(?:'|’)t|cannot|can(?:'|’)t) help"
    r"|i apologi[sz]e,? but i\b[^.\n]{0,60}\b(?:can(?:'|’)t|cannot|unable)"
    r"|es tut mir leid,? aber ich kann\b[^.\n]{0,60}\bnicht|ich kann (?:dir|ihnen) dabei nicht helfen"
    r"|je suis désolée?,? mais je ne peux pas|je ne peux pas vous aider"
    r"|lo siento,? pero no puedo|no puedo ayudar"
    r"|(?:很抱歉|抱歉|对不起)[，,]?\s*(?:但)?我?(?:不能|无法))",
    re.IGNORECASE,
)
_IDENTITY = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)(?: (?:language )?model| assistant)?\s*,?\s+(?:i\b|developed|created|trained)"
    r"|\bi(?:'|’)?m (?:just |only )?an? (?:ai|artificial intelligence|(?:large )?language model)\b(?! (?:researcher|engineer|student|developer|enthusiast))"
    r"|\bi am (?:just |only )?an? (?:ai|artificial intelligence|(?:large )?language model)\b(?! (?:researcher|engineer|student|developer|enthusiast))"
    r"|\bi(?:'|’)?(?:m| am) (?:chatgpt|gpt-?4|claude|llama|qwen|gemini|gemma|mistral|bard|copilot)\b"
    r"|\b(?:trained|created|developed|made) by (?:openai|anthropic|meta ai|google deepmind|alibaba cloud|mistral ai)\b"
    r"|作为一(?:个|名)(?:人工智能|ai|语言模型)|我是(?:一个)?(?:人工智能|语言模型|通义千问)",
    re.IGNORECASE,
)
_CUTOFF = re.compile(
    r"\b(?:my|the) (?:knowledge|training(?: data)?)(?:'s)? (?:cut-?\s?off|was cut off|only goes|ends|extends)"
    r"|\bas of my (?:last|latest|most recent|knowledge|training)\b|\bmy (?:last|latest) (?:training|knowledge) update\b"
    r"|\bi (?:don(?:'|’)t|do not|cannot|can(?:'|’)t) (?:have (?:access to )?|access |browse )(?:real-?time|the internet|current (?:data|information|events))"
    r"|截至(?:我|知识)[^。\n]{0,12}(?:更新|截止)",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"\[(?:insert|your|add|enter)\b[^\]\n]{0,60}\]"
    r"|(?<![`\w])\[(?:name|date|company|topic|city|product|recipient|sender|link|url|x{2,})(?: [a-z]{1,20}){0,2}\]"
    r"|<(?:insert|your|add|enter)\b[^>\n]{0,60}>|\{\{\s*\w{1,40}\s*\}\}|\blorem ipsum\b|\bTODO:|\bX{4,}\b",
    re.IGNORECASE,
)
_SPECIAL = re.compile(
    r"<\|[a-z0-9_▁]{2,40}\|>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>|<<SYS>>|<｜[^｜\n]{2,40}｜>|</?(?:bos|eos|pad|unk)>",
    re.IGNORECASE,
)
_PAIRS = (("```", "```"), ("“", "”"), ("「", "」"))
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Flags(BatchStage):
    """Adds `flags`, a struct of booleans; a flag is null if the text it examines is missing.

    - `refusal`, `identity_talk` ("As an AI …"), `cutoff_talk` (knowledge cut-off): of the response.
    - `repetition` (stuck in a loop), `mixed_script` (more than two scripts), `placeholder` ("[insert name]"),
      `special_token` (a chat template's marks): of either text.
    - `unfinished`: the instruction ends with ":" or in an open fence or quote, or the response reached the token limit.
    """

    name: ClassVar[str] = "flags"
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("instruction",)
    optional: ClassVar[tuple[str, ...]] = ("response", "response_finish_reason")

    def features(self) -> Values:
        """Return the struct."""
        from datasets import Value

        return {"flags": {name: Value("bool") for name in FLAGS}}

    def bind(self, context: Context) -> BatchFunction:
        """Return the function that examines a batch."""

        def look(batch: Batch) -> Columns:
            instructions = batch["instruction"]
            responses = batch["response"] if "response" in batch else [None] * len(instructions)
            finishes = (
                batch["response_finish_reason"] if "response_finish_reason" in batch else [None] * len(instructions)
            )
            return {"flags": [flags_of(*row) for row in zip(instructions, responses, finishes, strict=True)]}

        return look


def flags_of(
    instruction: str | None, response: str | None = None, finish_reason: str | None = None
) -> dict[str, bool | None]:
    """Return the flags of one row."""
    question, answer = (None if text is None else text[:SCANNED] for text in (instruction, response))
    either = [text for text in (question, answer) if text is not None]
    return {
        "refusal": None if answer is None else bool(_REFUSAL.match(answer[:HEAD])),
        "identity_talk": None if answer is None else bool(_IDENTITY.search(answer)),
        "cutoff_talk": None if answer is None else bool(_CUTOFF.search(answer)),
        "repetition": any(map(is_repetitive, either)) if either else None,
        "unfinished": None if instruction is None else is_unfinished(instruction) or finish_reason == "length",
        "mixed_script": any(not text.isascii() and len(scripts(text)) > 2 for text in either) if either else None,
        "placeholder": any(_PLACEHOLDER.search(text) for text in either) if either else None,
        "special_token": any(_SPECIAL.search(text) for text in either) if either else None,
    }


def is_unfinished(text: str) -> bool:
    """Return whether a text stops too early: with a colon, or inside a code fence or a quote."""
    end = text.rstrip()
    if end.endswith((":", "：")):
        return True
    fences = end.count("```")
    return fences % 2 == 1 or any(end.count(opened) > end.count(closed) for opened, closed in _PAIRS[1:])


def is_repetitive(text: str) -> bool:
    """Return whether a text is stuck in a loop: repeated lines, or one word sequence that makes up much of it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    run = 1
    for before, line in itertools.pairwise(lines):
        run = run + 1 if line == before and len(line) > 1 else 1
        if run >= REPEATED_LINES:
            return True
    words = _WORD.findall(text)
    if len(words) < 8 * REPEATED_WORDS:
        words = list(text.replace(" ", "")) if len(words) * 4 < len(text) else words  # scripts without spaces
    if len(words) < 8 * REPEATED_WORDS:
        return False
    grams = Counter(zip(*(words[n:] for n in range(REPEATED_WORDS)), strict=False))
    most = max(grams.values())
    return most >= 5 and most * REPEATED_WORDS / len(words) > REPEATED_SHARE
