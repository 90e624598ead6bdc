from __future__ import annotations

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from magpie_hf.errors import ArgumentError
from magpie_hf.stage import Context
from magpie_hf.stages.language import Language, relevant_text


CODES = ("EN", "DE", "FR", "ES", "ZH", "JA", "RU")


def judged(texts, **settings):
    context = Context(lambda: pytest.fail("no template is needed"), 0, "none")
    return Language(**{"languages": CODES, "low_memory": True, **settings}).bind(context)({"instruction": texts})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("What is the capital of France and how many people live there?", "EN"),
        ("Wie heißt du, und woher kommst du eigentlich?", "DE"),
        ("Quelle est la capitale de l'Allemagne et pourquoi ?", "FR"),
        ("¿Cuál es la capital de Italia y cuántas personas viven allí?", "ES"),
        ("请帮我写一首关于春天的诗。", "ZH"),
        ("東京の天気はどうですか。教えてください。", "JA"),
        ("Напишите, пожалуйста, короткий рассказ о море.", "RU"),
    ],
)
def test_languages_are_recognised(text, code):
    found = judged([text])
    assert found["language"] == [code]
    assert 0 < found["language_confidence"][0] <= 1


def test_rows_without_words_have_no_language_and_rows_stay_in_order():
    found = judged(
        [
            None,
            "",
            "  ",
            "123 + 456 = ?",
            "Where is the nearest station, please?",
            "Wo ist der nächste Bahnhof, bitte?",
        ]
    )
    assert found["language"] == [None, None, None, None, "EN", "DE"]
    assert found["language_confidence"][:4] == [None] * 4


def test_code_says_nothing_where_there_is_other_text():
    text = "Warum geht dieses kleine Programm nicht?\n```python\nfor value in range(10):\n    print(value and the_other)\n```"
    assert "print" not in relevant_text(text)
    assert judged([text])["language"] == ["DE"]
    assert relevant_text("```\nprint(1)\n```") != ""


def test_a_least_confidence_leaves_doubtful_rows_without_language():
    sure, unsure = "This is an ordinary English sentence about the weather in spring.", "hotel"
    found = judged([sure, unsure], min_confidence=0.95)
    assert found["language"][0] == "EN"
    assert found["language"][1] is None
    assert found["language_confidence"][1] is not None


def test_a_long_text_is_judged_by_its_beginning():
    assert len(relevant_text("word " * 100_000)) == 2000
    assert judged(["This is a sentence in English. " * 4000])["language"] == ["EN"]


@settings(max_examples=30)
@given(st.lists(st.text(max_size=40), max_size=5))
def test_any_text_is_taken(texts):
    found = judged(texts)
    assert all(code in (*CODES, None) for code in found["language"])


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"languages": ("EN", "XX")}, "'XX'"),
        ({"languages": ("EN",)}, "one language"),
        ({"min_confidence": 2.0}, "min_confidence"),
    ],
)
def test_settings_that_cannot_be_used_are_errors(settings_, words):
    with pytest.raises(ArgumentError, match=words):
        judged(["a"], **settings_)


def test_columns_are_those_of_the_releases():
    from datasets import Features

    data = Dataset.from_dict(
        {k: v for k, v in judged(["Hello, how are you today?"]).items()}, features=Features(Language().features())
    )
    assert data[0]["language"] == "EN"
