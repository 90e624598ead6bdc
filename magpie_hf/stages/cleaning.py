"""Extract the instruction from the text that the model generated as the user, or return why it is unusable.

`clean` removes what is not part of the instruction (a leading label or number, quotes around it, an answer after it). It
never cuts at the first "?" or newline: context, code and follow-up questions are kept. `rejection` returns why a text is
unusable. Both depend on the text only, and take time in proportion to its length: no pattern skips line breaks at the start of
a line, which would make a search through many of them quadratic.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from bisect import bisect
from collections import Counter
from collections.abc import Iterator

from .voice import is_assistant, requests


REASONS = ("empty", "think_tag", "repeated", "fragment", "assistant_voice", "mixed_script")
MIN_LETTERS = 2
MIN_CHARACTERS = 3
MAX_SCRIPTS = 2
_SCRIPT_SHARE = 0.05
_MOST_ANSWERS = 50

_WORDS = {  # what datasets in the languages of most models print before a question and before an answer
    "label": "question|instruction|prompt|query|request|problem|task|user|user query|user question|human|input|exercise|"
    "frage|aufgabe|pregunta|domanda|pergunta|вопрос|задача|问题|問題|题目|質問|질문|문제",
    "answer": "a(?=:)|answer|solution|response|explanation|the answer is|correct answer|assistant|model answer|step 1|"
    "antwort|lösung|respuesta|solución|réponse|risposta|soluzione|resposta|ответ|решение|答案|答|解答|回答|정답|답",
}
_LABELS = _WORDS["label"]
_NUMBER = r"(?:[ \t]{0,3}(?:no\.?|number|\#)?[ \t]{0,3}\d{1,3})?"
_LEADING_LABEL = re.compile(
    rf"""(?:\#{{1,6}}[ \t]*)?(?:\*\*|__)?      # heading or bold
        (?:(?:{_LABELS}){_NUMBER}|Q[ \t]{{0,3}}\d{{0,3}})[ \t]*
        (?:(?:[:：]|[.)]\s)\s*(?:\*\*|__)?|(?:\*\*|__)\s*(?::|\n)|(?<=\w)[ \t]*\n)\s*""",
    re.IGNORECASE | re.VERBOSE,
)
_INNER_LABEL = re.compile(
    rf"^[ \t]*(?:\#{{1,6}}[ \t]*)?(?:\*\*|__)?(?:{_LABELS}|q|context|passage|document|text|code|example|note|options?|"
    rf"constraints?|output|data){_NUMBER}(?:\*\*|__)?[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
_FIRST_ITEM = re.compile(r"(?:1[.)]|[Aa]\))[ \t]+(?=\S)")
_SECOND_ITEM = re.compile(r"(?<!\w)(?:2[.)]|[Bb]\))\s")
_ANSWER_LINE = re.compile(
    rf"^[ \t]*(?:#{{1,6}}[ \t]*)?(?:\*\*|__)?(?:{_WORDS['answer']})(?:[ \t]*\d{{1,2}})?(?:\*\*|__)?[ \t]*(?:[:：]|\n|$)",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_SENTENCE = re.compile(
    r"(?:^|(?<=[.?!。？！)])[ \t])[ \t]*+(?:\*\*|__)?(?:(?:so|thus|hence|therefore),?[ \t]++)?"
    r"the (?:(?:correct|right)[ \t]answer[ \t]is|(?:final[ \t])?answer[ \t]is(?=[ \t]*(?::|\$|\\boxed|\*\*)))",
    re.IGNORECASE | re.MULTILINE,
)
_PAIR = re.compile(rf"[ \t]*(?!(?:{_LABELS}|{_WORDS['answer']}|[a-z]\b))\w[\w .-]{{0,30}}:[ \t]*\S", re.IGNORECASE)
"""A line of data, "name: Ann". Not a label of a question or an answer, and not an option, "B: …"."""
_LEFT_OPEN = re.compile(r"[ \t]*(?:\.{2,}|…|_{2,}|\[[^\]\n]*\]|<[^>\n]*>|\{[^}\n]*\})")
"""A place for an answer in a format that the text asks for: "…", "[your answer]"."""
_BOXED = re.compile(r"^[ \t]*\$*\\boxed\{", re.MULTILINE)
_NEXT_OPTION = re.compile(r"^[ \t]*B[:.)]", re.MULTILINE | re.IGNORECASE)
_HEADING = re.compile(r"[ \t]*(?:#{1,6}[ \t]|\*\*[^*\n]+\*\*:?[ \t]*$)")
_MARKED = re.compile(r"[:：#*_]")
_SENTENCE_ENDS = (*"?.!)\"'”。？！؟।",)
_FENCE = re.compile(r"```|^[ \t]*~~~", re.MULTILINE)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」"}

_TAG = (
    r"(?:</?(?:think|thinking|thoughts?|reason|reasoning|seed:think)>|\[/?think\]|◁/?think▷|"
    r"<\|(?:channel|(?:begin|end)_of_thought|(?:start|end)_thinking)\|>)"
)
_THINK = re.compile(
    rf"(?:^|[.?!…][\"')\]]?)[ \t]*{_TAG}(?!(?-i:[ \t]+[a-z]))|{_TAG}(?=\w)", re.IGNORECASE | re.MULTILINE
)
"""A tag that a model wrote to mark its thoughts: it begins a line, follows a sentence, or touches the next word.

Users mention a tag inside a sentence, which continues with a small letter.
"""
_CLOSING = re.compile(r"[\s.…%]*(?:[,;:)\]}](?=\s|$)|['’]s\s|[?!](?=\s|$))")
_SUM = re.compile(r"\d\s*[-+*/^×÷=<>]\s*\d")
_LOOP_PIECE, _LOOP_TIMES, _LOOP_CHARACTERS = 200, 4, 40


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
        current = _unquote(_cut_answer(_strip_item(_strip_label(current)))).strip()
    return current


def _strip_label(text: str) -> str:
    """Remove "Question:", "**Task 1:**", "## Problem" and similar labels, unless the text has more labels after it."""
    match = _LEADING_LABEL.match(text)
    if not match or _INNER_LABEL.search(text[match.end() :]):
        return text
    end = 0
    while match:  # several labels at once, so that a loop of labels is read once
        end, match = match.end(), _LEADING_LABEL.match(text, match.end())
    return text[end:] if text[end:].strip() else text


def _unquote(text: str) -> str:
    """Remove quotes around the whole text."""
    if len(text) < 3 or text[0] not in _QUOTES or text[-1] != _QUOTES[text[0]]:
        return text
    inside = text[1:-1]
    opened, closed = text[0], text[-1]
    is_wrapped = opened not in inside and closed not in inside and inside.strip() != ""
    return inside if is_wrapped else text


def _strip_item(text: str) -> str:
    """Remove "1." or "A)" before a request, unless the text has a second item."""
    match = _FIRST_ITEM.match(text)
    if not match or _SECOND_ITEM.search(text, match.end()) or not requests(text[match.end() :]):
        return text
    return text[match.end() :]


def _cut_answer(text: str) -> str:
    """Cut before an answer ("Answer: …", "## Solution", "The answer is: …"), if there is a question before it.

    Not inside a code fence, and not if the text asks for that part: a colon or another heading is before it, a place is left
    for it ("Answer: …"), or the text ends with a question or a colon.
    """
    fences = [match.start() for match in _FENCE.finditer(text)]
    for match in _answers(text):
        head = text[: match.start()].rstrip()
        if bisect(fences, match.start()) % 2 == 0 and _has_words(head) and not _is_asked_for(text, head, match):
            return head
    return text


def _answers(text: str) -> Iterator[re.Match[str]]:
    """Yield the places where an answer may begin, the first ones only: a text with many of them is a list."""
    found = itertools.chain(
        *(itertools.islice(one.finditer(text), _MOST_ANSWERS) for one in (_ANSWER_LINE, _ANSWER_SENTENCE, _BOXED))
    )
    return iter(sorted(found, key=lambda match: match.start()))


def _has_words(head: str) -> bool:
    return sum(c.isalpha() for c in head) >= MIN_LETTERS


def _is_asked_for(text: str, head: str, match: re.Match[str]) -> bool:
    """Return whether the text asks for the part that begins at a match."""
    before = head.rpartition("\n")[2]
    if match.re is _ANSWER_LINE and (_LEFT_OPEN.match(text, match.end()) or _is_in_data(text, match)):
        return True
    if head.endswith((":", "：", ",")) or _HEADING.match(before) or text.rstrip().endswith(("?", ":")):
        return True
    if match[0].lstrip().lower().startswith("a:") and _NEXT_OPTION.search(text, match.end()):
        return True
    # a bare word in a list of headings, not the heading of an answer
    return match.re is _ANSWER_LINE and not _MARKED.search(match[0]) and not head.endswith(_SENTENCE_ENDS)


def _is_in_data(text: str, match: re.Match[str]) -> bool:
    """Return whether an answer is a line among others of data, "name: Ann", directly before and after it."""
    before = text.rfind("\n", 0, max(0, match.start() - 1)) + 1
    after = text.find("\n", match.end()) + 1
    return after > 0 and _PAIR.match(text, before) is not None and _PAIR.match(text, after) is not None


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
    if is_loop(text):
        yield "repeated"
    if is_fragment(text):
        yield "fragment"
    if is_assistant(text):
        yield "assistant_voice"
    if not text.isascii() and len(scripts(text)) > max_scripts:
        yield "mixed_script"


def is_fragment(text: str) -> bool:
    """Return whether a text is too short to be a request, or begins in the middle of a sentence."""
    stripped = text.strip()
    letters = sum(c.isalpha() for c in stripped)
    if any(ord(c) > 0x2E7F and c.isalpha() for c in stripped[:200]):
        return letters < MIN_LETTERS  # a CJK instruction can be two characters long
    if letters < MIN_LETTERS and not any(c.isdigit() for c in stripped):
        return True
    if len(stripped) < MIN_CHARACTERS and not _SUM.search(stripped):
        return True
    begins = _CLOSING.match(stripped)
    if not begins or not begins[0].endswith(("?", "!")):
        return bool(begins)
    return not stripped[begins.end() :].lstrip()[:1].islower()  # "? is a wildcard in SQL" is about the mark


def is_loop(text: str) -> bool:
    """Return whether the second half of a text consists of one short piece, over and over."""
    end = text.strip()
    end = end[len(end) // 2 :]
    if len(end) < _LOOP_CHARACTERS:
        return False
    longest = min(_LOOP_PIECE, len(end) // _LOOP_TIMES)
    return any(end.startswith(end[size:]) for size in range(1, longest + 1))


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
