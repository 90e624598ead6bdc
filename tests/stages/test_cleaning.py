from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.stages.cleaning import clean, rejection


PIECES = st.sampled_from(
    [
        "Question: ",
        "**Task 1:** ",
        "## Problem\n",
        "Q1. ",
        "Answer: ",
        "\n\n## Step 1: ",
        '"',
        "“",
        "”",
        "?",
        "\n",
        "```",
        "```py\n",
        *("What is 2 + 2", "Write a poem", " ", "Context: ", "because", "## Solution\n", "翻译", "x = 1"),
    ]
)
TEXTS = st.text(max_size=80) | st.lists(PIECES, max_size=12).map("".join)


@given(TEXTS)
def test_cleaning_a_clean_text_changes_nothing(text):
    assert clean(clean(text)) == clean(text)


@given(TEXTS)
def test_cleaning_only_takes_away(text):
    assert clean(text) in text


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("Question: What is 2+2?", "What is 2+2?"),
        ("**Question 1:** Why is the sky blue?\nAnswer: Because of Rayleigh.", "Why is the sky blue?"),
        ("## Problem\nFind x if 2x = 4.", "Find x if 2x = 4."),
        ("Q: Who wrote Faust?", "Who wrote Faust?"),
        ('"How do I cook rice?"', "How do I cook rice?"),
        ("What is 5 - 3?\n\n## Step 1: Subtract", "What is 5 - 3?"),
        ("Name a river.\n**Answer:** The Rhine", "Name a river."),
    ],
)
def test_what_is_not_the_instruction_is_taken_off(raw, cleaned):
    assert clean(raw) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "What is the capital of France? And of Spain? I need both for a quiz.",
        "I have this code. Why does it fail?\n\n```python\nx = [1, 2]\nprint(x[2])\n```\nPlease explain.",
        "Context: Anna has 3 cats.\nQuestion: How many legs do they have?",
        "Task: Summarize this.\nText: The fox jumped.",
        "What does this print?\n```\nAnswer: 3\n```\nExplain.",
        'He said "yes" and she said "no". Who was right?',
        "Reply in this format:\nAnswer: <number>\nWhat is 3 * 4?",
        "Problem solving is hard for me. How do I get better?",
        "First line?\nSecond line.\nThird line?",
    ],
)
def test_context_code_and_further_questions_stay(text):
    assert clean(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "Translate 'good morning' into Japanese: おはよう or こんばんは?",
        "什么是机器学习？",
        "日本の首都はどこですか？カタカナで答えてください。",
        "한국어로 시를 써 주세요.",
        "Какой город столица Франции?",
        "ما هي عاصمة مصر؟",
        "भारत की राजधानी क्या है?",
        "Translate 'Привет' to English.",
        "Solve $\\int_0^1 x^2 dx$ and show α, β ≤ π.",
        "def f(x): return x  # what does this do?",
        "12 * 7 = ?",
        "Why? 😀",
        "Summarize:\n- a\n- b",
        "¿Cómo se dice 'dog' en español?",
        "Is 7 a prime number?",
        "(a) What is a noun? (b) What is a verb?",
        "Surely there is a better way to sort. Which?",
        "Of course we need rain, but how much?",
    ],
)
def test_real_instructions_are_accepted(text):
    assert rejection(clean(text)) is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty"),
        ("  \n ", "empty"),
        ("hi", "fragment"),
        (", and then the rest of it", "fragment"),
        ("??", "fragment"),
        ("<think>\nThe user wants", "think_tag"),
        ("What? </think>", "think_tag"),
        ("Sure, here is a list of ideas.", "assistant_voice"),
        ("Hello! How can I help you today?", "assistant_voice"),
        ("I'd be happy to help with that.", "assistant_voice"),
        ("As an AI language model, I cannot", "assistant_voice"),
        ("Hola мир 中文 what is это", "mixed_script"),
    ],
)
def test_what_is_no_instruction_is_rejected_with_its_reason(text, code):
    assert rejection(clean(text)) == code
