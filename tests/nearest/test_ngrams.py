from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.nearest.ngrams import NgramIndex, ngrams_of, words_of


PROMPTS = [
    "Write a short story about a lighthouse keeper who finds a message in a bottle one winter morning",
    "What is 2+2?",
    "",
    None,
    "Explain how tides work to a child in simple words and give two examples from daily life please",
]


@pytest.mark.parametrize(
    ("text", "prompt", "share"),
    [
        (PROMPTS[0], 0, 1.0),
        (
            "please: WRITE a short story -- about a lighthouse keeper who finds a message in a bottle one winter morning!",
            0,
            1.0,
        ),
        ("Write a short story about a lighthouse keeper who has nothing to do at all in a box", -1, 0.0),
        ("what is 2 + 2", 1, 1.0),
        ("I wonder, what is 2 + 2?", -1, 0.0),
        ("", -1, 0.0),
        (None, -1, 0.0),
    ],
)
def test_the_prompt_that_a_text_holds_is_found(text, prompt, share):
    found = NgramIndex(PROMPTS).overlap(text)
    assert (found.prompt, round(found.share, 3)) == (prompt, share)


def test_a_part_of_a_prompt_counts_for_its_share():
    words = PROMPTS[0].split()
    found = NgramIndex(PROMPTS, 8).overlap(" ".join(words[:12]))
    assert found.prompt == 0
    assert found.share == pytest.approx(5 / (len(words) - 7))


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=14)


@given(st.lists(WORDS, max_size=6), WORDS, st.integers(1, 6))
def test_shares_are_those_of_a_plain_statement(prompts, text, size):
    texts = [" ".join(words) for words in prompts]

    def grams(words, n):
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    best = 0.0
    for words in prompts:
        n = min(size, len(words))
        if n and (n == size or len(text) == n):
            wanted = grams(words, n)
            best = max(best, len(wanted & grams(text, n)) / len(wanted))
    assert NgramIndex(texts, size).overlap(" ".join(text)).share == pytest.approx(best)


def test_words_are_compared_without_case_and_form():
    assert words_of("Ｆｕｌｌ WIDTH, Straße") == ["full", "width", "strasse"]
    assert ngrams_of("a b", 13) == ngrams_of("A, b!", 13)
