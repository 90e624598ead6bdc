import math

import pytest
from datasets import Dataset, Features, Value
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.columns import SCALES
from magpie_hf.errors import ArgumentError, DatasetError
from magpie_hf.selection.expressions import parse


FEATURES = Features(
    {
        "input_quality": Value("string"),
        "difficulty": Value("string"),
        "language": Value("string"),
        "instruction": Value("string"),
        "response": Value("string"),
        "instruct_reward": Value("float64"),
        "repeat_count": Value("int64"),
        "flags": {"refusal": Value("bool"), "unfinished": Value("bool")},
        "uuid": Value("string"),
        "group_id": Value("string"),
    }
)
ROWS = [
    ("good", "easy", "EN", "List three things:", "a\nb\nc", 1.5, 0, {"refusal": False, "unfinished": True}, "a", "a"),
    ("poor", "hard", "ZH", "你好", "Sorry", -3.0, 2, {"refusal": True, "unfinished": False}, "b", "a"),
    ("excellent", "very hard", None, "Hi", None, None, None, {"refusal": None, "unfinished": False}, "c", "c"),
    (None, None, "EN", None, "", math.nan, 5, None, "d", "d"),
    ("very poor", "medium", "en", "What is 2+2?", "4", 0.0, 1, {"refusal": False, "unfinished": False}, "e", None),
]
DATA = Dataset.from_dict({name: [row[n] for row in ROWS] for n, name in enumerate(FEATURES)}, features=FEATURES)


@pytest.mark.parametrize(
    ("text", "kept", "nulls"),
    [
        ("quality >= good", "10100", 1),
        ("good <= quality", "10100", 1),
        ("quality < average", "01001", 1),
        ("quality != 'good'", "01101", 1),
        ("not quality >= good", "01001", 1),
        ("easy < difficulty <= hard", "01001", 1),
        ("quality in [good, 'very poor']", "10001", 1),
        ("quality not in [good]", "01101", 1),
        ("language == 'EN'", "10010", 1),
        ("lower(language) == 'en'", "10011", 1),
        ("language is None", "00100", 0),
        ("language is not None and language != 'ZH'", "10011", 0),
        ("reward > 0", "10000", 2),
        ("reward * 2 - 1 > 1", "10000", 2),
        ("-reward >= 3", "01000", 2),
        ("reward / repeat_count > 0", "00000", 3),
        ("reward > 0 or language == 'EN'", "10010", 1),
        ("reward > 0 and quality == poor", "00000", 1),
        ("endswith(instruction, ':')", "10000", 1),
        ("not endswith(instruction, ':')", "01101", 1),
        ("contains(response, 'orr') or startswith(instruction, 'What')", "01001", 2),
        ("len(instruction) <= 2", "01100", 1),
        ("words(instruction) == 3", "10001", 1),
        ("lines(response) >= 2", "10000", 1),
        ("flags.refusal", "01000", 2),
        ("not flags.refusal", "10001", 2),
        ("flags.unfinished == True", "10000", 1),
        ("is_survivor()", "10110", 1),
        ("repeat_count in [0, 5]", "10010", 1),
        ("repeat_count in []", "00000", 0),
        ("True", "11111", 0),
        ("1 < 2", "11111", 0),
        ("None is None", "11111", 0),
    ],
)
def test_an_expression_keeps_these_rows(text, kept, nulls):
    found = parse(text).evaluate(DATA)
    assert "".join("01"[int(k)] for k in found.keep) == kept
    assert found.nulls == nulls


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("quality >= goood", ArgumentError, ["'goood'", 'Did you mean "good"?', "^"]),
        ("quality >= 'superb'", ArgumentError, ["not a label of input_quality", "excellent"]),
        ("qualty >= good", (ArgumentError, DatasetError), ["'qualty >= good'", 'Did you mean "quality"?']),
        ("qualty >= good and langage == 'EN'", DatasetError, ['"qualty"', '"langage"', '"language" for "langage"']),
        ("qualty >= gud", DatasetError, ['"qualty"', '"quality" for "qualty"']),
        (
            "reward_difference > 0",
            DatasetError,
            ['Run magpie_hf.annotate(ds, ["reward_difference"]) first.', "In a recipe, put"],
        ),
        ("min_neighbor_distance > 0", DatasetError, ['["neighbors"]']),
        ("languag == 'EN'", DatasetError, ['Did you mean "language"?']),
        ("language > 3", ArgumentError, ["text", "a number"]),
        ("quality > 3", ArgumentError, ["a label of input_quality", "a number"]),
        ("quality >= difficulty", ArgumentError, ["a label of input_quality", "a label of difficulty"]),
        ("language", ArgumentError, ["must be true or false"]),
        ("flags.refused", ArgumentError, ["Unknown field", 'Did you mean "refusal"?']),
        ("language.x == 'EN'", ArgumentError, ["Unknown field"]),
        ("leng(instruction) > 2", ArgumentError, ["Unknown function", "len"]),
        ("len(repeat_count) > 2", ArgumentError, ["text"]),
        ("endswith(instruction, response)", ArgumentError, ["in quotes"]),
        ("endswith(instruction)", ArgumentError, ["takes 2"]),
        ("quality >=", ArgumentError, ["invalid syntax", "^"]),
        ("reward in 3", ArgumentError, ["list"]),
        ("reward is 3", ArgumentError, ["only be used with None"]),
        ("", ArgumentError, ["Empty condition"]),
    ],
)
def test_a_mistake_is_shown_with_its_place_and_what_was_meant(text, error, words):
    with pytest.raises(error) as caught:
        parse(text).evaluate(DATA)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "(lambda: 1)()",
        "[x for x in (1,)]",
        "quality.__class__",
        "flags.__init__",
        "().__class__.__bases__",
        "open('/etc/passwd')",
        "f'{quality}'",
        "x := 3",
        "2 ** 99999999 > 1",
        "1 << 60 > 1",
        "len(instruction, *[1])",
        "lower(text=instruction)",
        "{'a': 1}['a'] == 1",
        "quality if True else difficulty",
        "9" * 5000 + " > 1",
        "1e999 > 1",
        "b'x' == instruction",
        "await reward",
        "(" * 300 + "True" + ")" * 300 + " + +",
        "not " * 200 + "True",
        "a" * 20_000,
        "reward > 0\nimport os",
        "\0",
    ],
    ids=range(24),
)
def test_what_is_not_in_the_language_is_refused_and_never_run(text):
    with pytest.raises(ArgumentError):
        parse(text).evaluate(DATA)


def test_columns_and_conjuncts_are_told():
    expression = parse("quality >= good and (reward > 0 or language == 'EN') and not flags.refusal and is_survivor()")
    assert expression.columns == {"input_quality", "instruct_reward", "language", "flags", "group_id", "uuid"}
    assert [part.text for part in expression.conjuncts] == [
        "quality >= good",
        "reward > 0 or language == 'EN'",
        "not flags.refusal",
        "is_survivor()",
    ]


def test_an_empty_dataset_is_checked_too():
    empty = DATA.select([])
    assert parse("quality >= good").evaluate(empty).keep.tolist() == []
    with pytest.raises(DatasetError):
        parse("reward_difference > 0").evaluate(empty)


ATOMS = st.sampled_from(
    [
        ("quality >= good", lambda r: None if r[0] is None else SCALES["input_quality"].index(r[0]) >= 3),
        ("language == 'EN'", lambda r: None if r[2] is None else r[2] == "EN"),
        ("reward > 0", lambda r: None if r[5] is None or math.isnan(r[5]) else r[5] > 0),
        ("repeat_count <= 2", lambda r: None if r[6] is None else r[6] <= 2),
        ("language is None", lambda r: r[2] is None),
    ]
)


def _not(part):
    def truth(row):
        value = part[1](row)
        return None if value is None else not value

    return f"(not {part[0]})", truth


def _and(a, b):
    def truth(row):
        x, y = a[1](row), b[1](row)
        if x is False or y is False:
            return False
        return None if x is None or y is None else True

    return f"({a[0]} and {b[0]})", truth


def _or(a, b):
    def truth(row):
        x, y = a[1](row), b[1](row)
        if x or y:
            return True
        return None if x is None or y is None else False

    return f"({a[0]} or {b[0]})", truth


TREES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(inner.map(_not), st.builds(_and, inner, inner), st.builds(_or, inner, inner)),
    max_leaves=8,
)


@given(TREES)
def test_truth_has_three_values_as_in_sql(tree):
    text, truth = tree
    found = parse(text).evaluate(DATA)
    wanted = [truth(row) for row in ROWS]
    assert found.keep.tolist() == [value is True for value in wanted]
    assert found.nulls == sum(value is None for value in wanted)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("not flags.refusal", DatasetError, '["flags"]'),
        ("gen_input_configs.temperature > 1", DatasetError, "gen_input_configs"),
        ("language == ['EN', 'ZH']", ArgumentError, "only after `in`"),
        ("quality in [[good]]", ArgumentError, "only after `in`"),
        ("len([1]) > 1", ArgumentError, "only after `in`"),
        ("easy < hard <= difficulty", ArgumentError, "neither a column nor a label"),
    ],
)
def test_what_cannot_be_evaluated_is_an_error_of_ours(text, error, words):
    data = DATA.remove_columns(["flags"]) if "refusal" in text else DATA
    with pytest.raises(error) as caught:
        parse(text).evaluate(data)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["language == 'EN'", "quality >= good", "reward > 0", "language in ['EN']"])
def test_a_column_without_any_value_is_unknown_everywhere(text):
    data = Dataset.from_list([{"language": None, "input_quality": None, "instruct_reward": None}] * 3)
    found = parse(text).evaluate(data)
    assert (found.keep.tolist(), found.nulls) == ([False] * 3, 3)
