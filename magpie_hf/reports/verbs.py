"""Root verbs of English instructions with their direct nouns, by a simple rule instead of a parser.

The verb is the first word that commonly begins a request ("Write a poem …" gives write, poem), or the question word of
a question ("How do I bake bread?" gives how, bread); the noun is the next word that is not an article or another stop
word. It is often wrong on long sentences, but good enough for the statistics of many instructions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable


_VERBS = frozenset(
    "write create generate make give explain describe tell list name provide find solve calculate compute "
    "translate summarize rewrite correct edit suggest recommend compare analyze convert design develop "
    "build plan organize identify classify discuss define help show imagine act pretend play answer "
    "complete continue improve fix debug implement prove simplify evaluate count sort turn put say draw "
    "rate choose add convert brainstorm outline compose repeat shorten replace read work consider "
    "determine estimate express factor graph prepare propose state use".split()
)
_QUESTIONS = frozenset(
    ["what", "how", "why", "which", "who", "where", "when", "can", "could", "is", "are", "do", "does", "should"]
)
_SKIPPED = frozenset(
    "a an the this that these those my your his her its our their some any of for to in on at by with "
    "from and or me us you i we it is are was be do does did have has can could would should will best "
    "most more new good short long following given two three four five one between about into please way "
    "ways there not if so as up out all".split()
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
_ENGLISH = re.compile(r"\b(?:the|a|an|is|are|of|to|what|how|write|for|and|in)\b", re.IGNORECASE)
MIN_ENGLISH = 0.5


def root_verbs(texts: Iterable[str], most: int = 12, nouns: int = 4) -> list[tuple[str, int, list[tuple[str, int]]]]:
    """Return the most common verbs as (verb, count, most common nouns); empty if most texts are not English."""
    pairs: Counter[tuple[str, str]] = Counter()
    verbs: Counter[str] = Counter()
    total = english = 0
    for text in texts:
        total += 1
        head = text[:300]
        if not _ENGLISH.search(head):
            continue
        english += 1
        words = [word.lower() for word in _WORD.findall(head)]
        at = next((n for n, word in enumerate(words) if word in _VERBS), None)
        asked = next((n for n, word in enumerate(words) if word in _QUESTIONS), None)
        if at is None or (asked is not None and asked < at):
            at = asked
        if at is None:
            continue
        noun = next((word for word in words[at + 1 :] if word not in _SKIPPED and len(word) > 2), "")
        verbs[words[at]] += 1
        if noun:
            pairs[words[at], noun] += 1
    if not total or english < MIN_ENGLISH * total:
        return []
    return [
        (verb, count, [(noun, n) for (v, noun), n in pairs.most_common() if v == verb][:nouns])
        for verb, count in verbs.most_common(most)
    ]
