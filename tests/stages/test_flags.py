from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.stages.flags import FLAGS, Flags, flags_of, is_repetitive
from tools.demo.grammar import conversations


def raised(instruction, response=None, finish=None):
    return {name for name, value in flags_of(instruction, response, finish).items() if value}


@pytest.mark.parametrize(
    ("response", "flags"),
    [
        ("I'm sorry, but I can't assist with that request.", {"refusal"}),
        ("I am sorry, but as an AI language model I cannot do that.", {"refusal", "identity_talk"}),
        ("I cannot help with that. It would harm other people.", {"refusal"}),
        ("Sorry, I can’t provide that.", {"refusal"}),
        ("I’m unable to comply.", {"refusal"}),
        ("Es tut mir leid, aber ich kann dabei nicht helfen.", {"refusal"}),
        ("很抱歉，我无法提供帮助。", {"refusal"}),
        ("Lo siento, pero no puedo ayudarte.", {"refusal"}),
        ("As an AI assistant, I have no feelings.", {"identity_talk"}),
        ("I'm just a language model.", {"identity_talk"}),
        ("I am ChatGPT, a model trained by OpenAI.", {"identity_talk"}),
        ("作为一个人工智能，我没有感情。", {"identity_talk"}),
        ("As of my last update in 2023, it was so.", {"cutoff_talk"}),
        ("My knowledge cutoff is 2021.", {"cutoff_talk"}),
        ("I don't have access to real-time data.", {"cutoff_talk"}),
        ("Dear [Your Name], hello.", {"placeholder"}),
        ("Hello {{ name }}, TODO: more", {"placeholder"}),
        ("Well<|eot_id|>", {"special_token"}),
        ("[INST] again", {"special_token"}),
        ("привет hello 你好 and γειά σου", {"mixed_script"}),
        ("ha " * 80, {"repetition"}),
        ("same line\n" * 5, {"repetition"}),
        ("很好很好很好很好很好很好很好很好很好很好很好很好很好很好很好很好很好很好很好很好", {"repetition"}),
    ],
)
def test_a_response_is_flagged_for_what_it_is(response, flags):
    assert raised("Tell me.", response) == flags


@pytest.mark.parametrize(
    "response",
    [
        "Sorry to hear that you are ill! Drink tea, rest, and see a doctor if it gets worse.",
        "You cannot divide by zero, so the answer is undefined.",
        "Say: I'm sorry for being late. A short apology is enough.",
        "As an AI researcher you should read this paper.",
        "I am an AI engineer, wrote the applicant, and I love tests.",
        "The function returns a list `[name, date]` of its arguments.",
        "x < s and s > y, so <b>bold</b> is HTML.",
        "1. Mix flour.\n2. Mix sugar.\n3. Mix eggs.\n4. Bake it all for forty minutes.",
        "The update of the training data took a day.",
        "Ho ho ho, said Santa Claus.",
        "I can't wait to see you! Let us meet on Friday.",
    ],
)
def test_an_ordinary_response_raises_no_flag(response):
    assert raised("Tell me.", response) == set()


@pytest.mark.parametrize(
    ("instruction", "unfinished"),
    [
        ("Complete this:", True),
        ("Say:\n", True),
        ("Fix ```python\nx", True),
        ("He said “no", True),
        ("Why?", False),
        ("Fix ```x``` please", False),
    ],
)
def test_an_instruction_that_ends_before_its_end_is_unfinished(instruction, unfinished):
    assert flags_of(instruction)["unfinished"] is unfinished
    assert flags_of("Why?", "Because", "length")["unfinished"] is True


def test_flags_of_what_is_not_there_are_null():
    flags = flags_of("Why?")
    assert [name for name, value in flags.items() if value is None] == ["refusal", "identity_talk", "cutoff_talk"]
    assert set(flags_of(None).values()) == {None}


def test_the_demo_grammars_answers_are_refusals_only_where_they_refuse():
    found = {True: 0, False: 0}
    for conversation in islice(conversations(3, long_share=0), 2000):
        first = conversation.exchanges[0]
        refused = flags_of(first.instruction, first.answer)["refusal"]
        if refused:
            assert first.hazard is not None, first.answer
        found[first.hazard is not None] += 1
    assert found[True] > 5


@given(st.one_of(st.none(), st.text(max_size=300)), st.one_of(st.none(), st.text(max_size=300)))
def test_any_text_gives_every_flag_as_truth_or_null(instruction, response):
    flags = flags_of(instruction, response)
    assert tuple(flags) == FLAGS
    assert all(value in (True, False, None) for value in flags.values())


@pytest.mark.parametrize(
    "text",
    [
        "a" * 100_000,
        "[insert " * 12_000,
        "As an AI " * 10_000,
        "i'm sorry, " * 9000,
        "`" * 99_999,
        "\n" * 99_999,
        "“" * 50_000,
        "<|" * 50_000,
    ],
)
def test_long_hostile_texts_are_looked_at_in_linear_time(text):
    flags_of(text, text)


def test_a_list_of_like_lines_is_no_loop():
    assert not is_repetitive("\n".join(f"{n}. Item number {n} of the list is a fruit." for n in range(3)))
    assert is_repetitive("I think that I think that " * 10)


def test_the_stage_takes_rows_without_response():
    function = Flags().bind(None)
    assert function({"instruction": ["Why:"]})["flags"][0]["unfinished"] is True
    found = function({"instruction": ["Why?"], "response": ["x"], "response_finish_reason": ["length"]})
    assert found["flags"][0]["unfinished"] is True
