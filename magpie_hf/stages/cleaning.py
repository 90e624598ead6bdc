"""Extract the instruction from the text that the model generated as the user, or return why it is unusable.

`clean` removes what is not part of the instruction (a leading label, quotes around it, an answer after it). It never
cuts at the first "?" or newline: context, code and follow-up questions are kept. `rejection` returns why a text is
unusable. Both depend on the text only.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator


REASONS = ("empty", "think_tag", "fragment", "assistant_voice", "mixed_script")
MIN_LETTERS = 2
MIN_CHARACTERS = 4
MAX_SCRIPTS = 2
_SCRIPT_SHARE = 0.05

_LABELS = r"question|instruction|prompt|query|request|problem|task|user|user query|user question|input|exercise"
_NUMBER = r"(?:\s*(?:no\.?|number|\#)?\s*\d{1,3})?"
_LEADING_LABEL = re.compile(
    rf"""^\s*(?:\#{{1,6}}\s*)?(?:\*\*|__)?      # heading or bold
        (?:(?:{_LABELS}){_NUMBER}|Q\s*\d{{0,3}})\s*
        (?:(?::|\.\s)\s*(?:\*\*|__)?|(?:\*\*|__)\s*(?::|\n)|(?<=\w)\s*\n(?=\s*\S))\s*""",
    re.IGNORECASE | re.VERBOSE,
)
_INNER_LABEL = re.compile(
    rf"^\s*(?:\#{{1,6}}\s*)?(?:\*\*|__)?(?:{_LABELS}|context|passage|document|text|code|example|note|options?|"
    rf"constraints?|output|data){_NUMBER}(?:\*\*|__)?\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_LINE = re.compile(
    r"^\s*(?:#{1,6}\s*)?(?:\*\*|__)?(?:answer|solution|response|explanation|the answer is|correct answer|"
    r"assistant|model answer|step 1)(?:\s*\d{1,2})?(?:\*\*|__)?\s*(?::|\n|$)",
    re.IGNORECASE | re.MULTILINE,
)
_MARKED = re.compile(r"[:#*_]")
_SENTENCE_ENDS = (*"?.!)\"'”。？！؟।",)
_FENCE = re.compile(r"```|^\s*~~~", re.MULTILINE)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」"}

_ASSISTANT_VOICE = re.compile(
    r"^\s*(?:sure[,!.]|certainly[,!.]|of course[,!.]|absolutely[,!.]|i'?d be (?:happy|glad) to (?:help|assist)|"
    r"i'?m (?:happy|glad|here) to (?:help|assist)|(?:hello|hi|hey|welcome)\b[^.!?\n]{0,40}[.!,]?\s*how (?:can|may) i "
    r"(?:help|assist)(?: you|\s*\?|\s+today)|how (?:can|may) i (?:help|assist) you|"
    # "As an AI researcher, …" is a user
    r"as an ai(?: language)?(?: model| assistant)?\s*,?\s+i\b|i(?:'?m| am) an ai(?: language)?(?: model| assistant)?\s*[,.!]|"
    # "Here is my code: … Why does it fail?" is a user too
    r"i'?m sorry,? but (?:i|as)|here(?:'s| is| are) (?:a|an|the|some) [^.?\n]{0,80}:\s*$(?![^?]*\?)|"
    r"it (?:seems|looks) like you (?:have|haven't|didn't|forgot|meant|want)|"
    r"what would you like (?:me to|to (?:know|do|ask|discuss|talk|chat|explore|learn))\b|"
    r"is there (?:anything|something) (?:else (?:i|you)\b|(?:specific |in particular )?you(?:'d| would| want| need)))",
    re.IGNORECASE | re.MULTILINE,
)
_THINK = re.compile(
    r"</?(?:think|thinking|thought|reasoning|seed:think)>|<\|(?:channel|begin_of_thought)\|>", re.IGNORECASE
)
_FRAGMENT_START = re.compile(r"^[\s,.;:!?)\]}…%&/\\|+=]*(?:[,;:?)\]}…]|!(?!\w))")


_SCRIPT_OF = dict.fromkeys("CJK HIRAGANA KATAKANA IDEOGRAPHIC BOPOMOFO HALFWIDTH".split(), "CJK") | dict.fromkeys(
    "MICRO FEMININE MASCULINE MODIFIER ANGSTROM SCRIPT DOUBLE MATHEMATICAL FULLWIDTH SUPERSCRIPT KELVIN OHM "
    "PLANCK".split(),
    "LATIN",
)
"""First words of Unicode character names that belong to another writing system."""
_LONE_GREEK = re.compile(r"(?<![\u0370-\u03ff])[\u0370-\u03ff](?![\u0370-\u03ff])")


def without_header_end(text: str, end: str) -> str | None:
    """Remove the end of the user's header from a generation that begins with it; None if it does not.

    `end`: characters that the prompt leaves out because they merge with the first word into one token, e.g., the ">" of
    "<|prompt|>". White space is removed if present: tokenizers drop and add it when they decode.
    """
    if text.startswith(end):
        return text.removeprefix(end)
    mark, start = end.strip(), text.lstrip()
    if not mark:
        return text
    return start.removeprefix(mark).removeprefix(end[len(end.rstrip()) :]) if start.startswith(mark) else None


def clean(text: str) -> str:
    """Return the instruction in a raw text; cleaning a clean text changes nothing."""
    before = None
    current = text.strip()
    while current != before:
        before = current
        current = _unquote(_cut_answer(_strip_label(current))).strip()
    return current


def _strip_label(text: str) -> str:
    """Remove "Question:", "**Task 1:**", "## Problem" and similar labels, unless the text has more labels after it."""
    match = _LEADING_LABEL.match(text)
    if not match:
        return text
    rest = text[match.end() :]
    return rest if rest.strip() and not _INNER_LABEL.search(rest) else text


def _unquote(text: str) -> str:
    """Remove quotes around the whole text."""
    if len(text) < 3 or text[0] not in _QUOTES or text[-1] != _QUOTES[text[0]]:
        return text
    inside = text[1:-1]
    opened, closed = text[0], text[-1]
    is_wrapped = opened not in inside and closed not in inside and inside.strip() != ""
    return inside if is_wrapped else text


def _cut_answer(text: str) -> str:
    """Cut before a line that begins an answer ("Answer: …", "## Solution"), if there is a question before it.

    Not inside a code fence, and not if the text before it asks for that part ("…in this format:").
    """
    for match in _ANSWER_LINE.finditer(text):
        head = text[: match.start()].rstrip()
        if len(_FENCE.findall(head)) % 2 or head.endswith((":", ",")):
            continue
        if not _MARKED.search(match[0]) and not head.endswith(_SENTENCE_ENDS):
            continue  # a bare word in a list of headings, not the heading of an answer
        if sum(c.isalpha() for c in head) >= MIN_LETTERS:
            return head
    return text


def rejection(text: str, *, max_scripts: int = MAX_SCRIPTS) -> str | None:
    """Return the first reason of `REASONS` why a cleaned text is not a usable instruction, or None if it is one."""
    return next(rejections(text, max_scripts=max_scripts), None)


def rejections(text: str, *, max_scripts: int = MAX_SCRIPTS) -> Iterator[str]:
    """Yield every reason why a cleaned text is not a usable instruction, in the order of `REASONS`."""
    if not text.strip():
        yield "empty"
        return
    if _THINK.search(text):
        yield "think_tag"
    if is_fragment(text):
        yield "fragment"
    if _ASSISTANT_VOICE.match(text):
        yield "assistant_voice"
    if not text.isascii() and len(scripts(text)) > max_scripts:
        yield "mixed_script"


def is_fragment(text: str) -> bool:
    """Return whether a text is too short to be a request, or begins in the middle of a sentence."""
    stripped = text.strip()
    letters = sum(c.isalpha() for c in stripped)
    if any(ord(c) > 0x2E7F and c.isalpha() for c in stripped[:200]):
        return letters < MIN_LETTERS  # a CJK instruction can be two characters long
    if len(stripped) < MIN_CHARACTERS or (letters < MIN_LETTERS and not any(c.isdigit() for c in stripped)):
        return True
    return bool(_FRAGMENT_START.match(stripped))


def scripts(text: str) -> set[str]:
    """Return the writing systems that make up at least 5 % of a text's letters.

    Japanese scripts count as CJK; single Greek letters are mathematical symbols and are not counted.
    """
    counts: Counter[str] = Counter()
    for character in _LONE_GREEK.sub("", text[:4000]):
        if character.isascii():
            counts["LATIN"] += character.isalpha()
        elif character.isalpha():
            counts[_script(character)] += 1
    total = sum(counts.values())
    return {name for name, count in counts.items() if count >= max(1, total * _SCRIPT_SHARE)}


def _script(character: str) -> str:
    try:
        name = unicodedata.name(character).split(" ", 1)[0].split("-", 1)[0]
    except ValueError:
        return "UNKNOWN"
    return _SCRIPT_OF.get(name, name)
