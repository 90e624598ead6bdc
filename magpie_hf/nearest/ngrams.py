"""Overlap by word n-grams: the benchmark prompts that a row contains completely or to a large extent.

The default of 13 words is that of GPT-3's search for test sets in training data (arXiv:2005.14165, appendix C).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple


WORDS = 13
_WORD = re.compile(r"\w+")


class Overlap(NamedTuple):
    """The prompt with the largest overlap: its index (-1: none), and the share of its n-grams in the text, 0 to 1."""

    prompt: int
    share: float


def words_of(text: str) -> list[str]:
    """Return a text's words, normalized (NFKC) and casefolded."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams_of(text: str, size: int) -> set[int]:
    """Return the hashes of a text's word n-grams; a text with fewer words is one n-gram."""
    words = words_of(text)
    if not words:
        return set()
    spans = [words] if len(words) < size else [words[at : at + size] for at in range(len(words) - size + 1)]
    return {_hash(" ".join(span)) for span in spans}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


class NgramIndex:
    """The n-grams of benchmark prompts.

    A prompt with fewer than `size` words only matches a text with exactly the same words: otherwise a short prompt would
    match many texts by chance.
    """

    def __init__(self, prompts: Iterable[str | None], size: int = WORDS) -> None:
        self.size = size
        self.counts: list[int] = []
        self.holders: dict[int, list[int]] = {}
        self.lengths: set[int] = set()
        for number, prompt in enumerate(prompts):
            words = len(words_of(prompt or ""))
            grams = ngrams_of(prompt or "", size)
            self.counts.append(len(grams))
            if grams:
                self.lengths.add(min(words, size))
            for gram in grams:
                self.holders.setdefault(gram, []).append(number)

    def overlap(self, text: str | None) -> Overlap:
        """Return the prompt with the largest share of its n-grams in the text."""
        words = words_of(text or "")
        seen: set[int] = set()
        for size in self.lengths:
            if size < self.size and len(words) != size:
                continue
            for at in range(len(words) - size + 1):
                gram = _hash(" ".join(words[at : at + size]))
                if gram in self.holders:
                    seen.add(gram)
        shared = Counter(number for gram in seen for number in self.holders[gram])
        if not shared:
            return Overlap(-1, 0.0)
        number = min(shared, key=lambda n: (-shared[n] / self.counts[n], n))
        return Overlap(number, shared[number] / self.counts[number])

    def overlaps(self, texts: Sequence[str | None]) -> list[Overlap]:
        """Return `overlap` of each text."""
        return [self.overlap(text) for text in texts]
