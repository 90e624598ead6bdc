import ast
import random
import re
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.demo.grammar import CATEGORIES, DIFFICULTIES, FORMS, conversations, sample_exchange, system_prompt
from tools.demo.grammar.code import FUNCTIONS, function_source
from tools.demo.grammar.general import to_you
from tools.demo.grammar.math import addition_steps


def drawn(seed, count=300, **options):
    return list(islice(conversations(seed, **options), count))


def test_equal_seeds_give_equal_conversations_and_other_seeds_others():
    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_every_form_writes_labelled_exchanges_without_surrounding_space(name):
    rng = random.Random(0)
    for _ in range(60):
        exchange = FORMS[name].write(rng)
        for part in (exchange, *exchange.follow_ups):
            assert part.category in CATEGORIES
            assert part.difficulty in DIFFICULTIES
            assert part.topic
            assert part.instruction == part.instruction.strip() != ""
            assert part.answer == part.answer.strip() != ""
            assert "<|" not in part.instruction + part.answer
            assert ";;" not in part.answer
            assert "\\n" not in part.answer


def test_all_categories_occur():
    assert {conversation.exchanges[0].category for conversation in drawn(0, 2000)} == set(CATEGORIES)


def test_instructions_are_mostly_distinct():
    first = [conversation.exchanges[0].instruction for conversation in drawn(0, 2000) if conversation.system is None]
    assert len(set(first[:1000])) > 900


def test_some_instructions_have_several_lines_and_some_hold_code():
    texts = [conversation.exchanges[0].instruction for conversation in drawn(0, 2000)]
    assert sum("\n" in text for text in texts) > 100
    assert sum("```" in text for text in texts) > 30


_CALCULATION = re.compile(r"(?<![\d*/+-] )(?<!\d)(\d+) ([+*/-]) (\d+) = (\d+)(?!\d)")


@pytest.mark.parametrize("name", sorted(name for name, entry in FORMS.items() if entry.domain == "math"))
def test_calculations_in_answers_are_right(name):
    rng = random.Random(1)
    for _ in range(200):
        exchange = FORMS[name].write(rng)
        for part in (exchange, *exchange.follow_ups):
            for first, sign, second, result in _CALCULATION.findall(part.answer):
                value = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}[sign]
                assert value(int(first), int(second)) == int(result), part.answer


@given(st.integers(0, 99), st.integers(0, 99))
def test_addition_by_tens_and_ones_ends_with_the_sum(first, second):
    assert addition_steps(first, second).endswith(f"{first} + {second} = {first + second}")


def test_follow_ups_on_a_sum_work_on_its_result():
    exchange = FORMS["sum_of_two"].write(random.Random(2))
    value = int(exchange.answer.rstrip(".").split()[-1])
    answers = {follow_up.instruction: follow_up.answer for follow_up in exchange.follow_ups}
    assert answers["Now double it."].endswith(f"= {2 * value}")


@pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row[1])
def test_functions_in_the_table_return_the_documented_values(row):
    _, name, arguments, body, _, call, result = row
    scope = {}
    exec(function_source(name, arguments, body), scope)
    assert eval(call, scope) == ast.literal_eval(result)


def test_what_a_snippet_prints_is_what_python_prints(capsys):
    rng = random.Random(3)
    for _ in range(100):
        exchange = FORMS["what_prints"].write(rng)
        code = re.search(r"```python\n(.*)\n```", exchange.instruction, re.DOTALL).group(1)
        exec(code, {})
        printed = ", ".join(capsys.readouterr().out.split())
        assert exchange.answer.startswith(f"It prints {printed}, because")


def test_corrected_code_compiles_and_the_buggy_code_differs():
    rng = random.Random(4)
    for _ in range(50):
        exchange = FORMS["fix_bug"].write(rng)
        wrong = re.search(r"```python\n(.*)\n```", exchange.instruction, re.DOTALL).group(1)
        right = re.search(r"```python\n(.*)\n```", exchange.answer, re.DOTALL).group(1)
        compile(right, "answer", "exec")
        assert wrong != right


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(["math", "code", "translation", "writing", "es", "de", "fr"]))
def test_a_steered_domain_has_a_system_prompt_and_its_own_forms(seed, domain):
    rng = random.Random(seed)
    assert len(system_prompt(rng, domain)) > 10
    exchange = sample_exchange(rng, domain)
    assert FORMS[exchange.form].domain == domain
    assert exchange.language == (domain if len(domain) == 2 else "en")


def test_messages_alternate_after_an_optional_system_prompt():
    for conversation in drawn(5):
        roles = [message["role"] for message in conversation.messages()]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)


def test_long_conversations_occur_when_asked_for():
    assert max(len(conversation.exchanges) for conversation in drawn(6, 100, long_share=0.3)) >= 12
    assert max(len(conversation.exchanges) for conversation in drawn(6, 100, long_share=0.0)) <= 4


def test_to_you_swaps_first_and_second_person():
    assert to_you("keep my desk tidy") == "keep your desk tidy"
