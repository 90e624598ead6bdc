import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.judging.answers import find_object, read_answer
from magpie_hf.judging.rubric import load_rubric


QUALITY = load_rubric("quality")
DIFFICULTY = load_rubric("difficulty")
CATEGORY = load_rubric("category")
GOOD = {"explanation": "Clear.", "input_quality": "good"}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        json.dumps(GOOD, indent=2),
        f"```json\n{json.dumps(GOOD)}\n```",
        f"Here is my answer:\n\n{json.dumps(GOOD)}\n\nI hope this helps! {{}}",
        '{"explanation": "Clear.", "input_quality": "good",}',
        "{'explanation': 'Clear.', 'input_quality': 'good'}",
        '{explanation: "Clear.", input_quality: "good"}',
        '{"explanation": "Clear.", "input_quality": "Good."}',
        '{"input_quality": "GOOD", "explanation": "Clear."}',
        '{"explanation": "Clear.", "input_quality": good}',
        '{"explanation": "Clear.",\n "input_quality": "**good**"',
        'Let me think {about it}. {"explanation": "Clear.", "input_quality": "good"}',
    ],
    ids=[
        "plain", "indented", "fenced", "talk around", "trailing comma", "single quotes", "bare keys", "label with a dot",
        "other order", "bare label", "no end, bold label", "other braces first",
    ],
)  # fmt: skip
def test_an_answer_is_read_however_it_is_wrapped(text):
    values, code = read_answer(text, QUALITY)
    assert (values["input_quality"], code) == ("good", "ok")
    assert values["explanation"] == "Clear."


def test_braces_and_quotes_inside_a_text_are_part_of_it():
    given = {"explanation": 'A set {1, 2} and "x" } {', "input_quality": "poor"}
    assert read_answer(json.dumps(given), QUALITY).values == given
    loose = '{"explanation": "He said "hello {you}" to me", "input_quality": "poor"}'
    values, code = read_answer(loose, QUALITY)
    assert (values["input_quality"], code) == ("poor", "ok")
    assert values["explanation"] == 'He said "hello {you}" to me'


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "unparsable"),
        ("good", "unparsable"),
        ("{" * 500, "unparsable"),
        ('{"explanation": "It goes on and on', "unparsable"),
        ('{"explanation": "Clear.", "input_quality": "superb"}', "unknown_label"),
        ('{"explanation": "Clear.", "input_quality": null}', "unparsable"),
        ('{"explanation": "Clear.", "input_quality": ["good"]}', "unparsable"),
        ('{"input_quality": "good"}', "unparsable"),
        ("[" * 100_000, "unparsable"),
        ('{"a":' * 50_000, "unparsable"),
    ],
    ids=[
        "empty",
        "a word",
        "braces",
        "cut",
        "off the list",
        "null",
        "a list",
        "a key missing",
        "deep",
        "deep objects",
    ],
)
def test_what_cannot_be_read_is_named_and_nothing_is_invented(text, code):
    reading = read_answer(text, QUALITY)
    assert reading.code == code
    assert reading.values["input_quality"] in (None, "good")


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ("Other", "Others"), ("others", "Others"), ("Coding and Debugging", "Coding & Debugging"),
        ("coding & debugging", "Coding & Debugging"), ("Information-seeking", "Information seeking"),
        ("role_playing", "Role playing"), ("'Math'", "Math"),
    ],
)  # fmt: skip
def test_labels_are_recognised_in_other_spellings(given, label):
    reading = read_answer(json.dumps({"primary_tag": given, "other_tags": []}), CATEGORY)
    assert (reading.values["primary_tag"], reading.code) == (label, "ok")


def test_tags_off_the_list_are_left_out_and_named():
    reading = read_answer(
        '{"primary_tag": "Math", "other_tags": ["Reasoning", "Cooking", "Math", "Reasoning"]}', CATEGORY
    )
    assert reading.values["other_tags"] == ["Reasoning", "Math"]
    assert reading.code == "unknown_label"
    assert read_answer('{"primary_tag": "Math", "other_tags": "Reasoning, Math"}', CATEGORY).values["other_tags"] == [
        "Reasoning",
        "Math",
    ]


def test_numbers_and_truth_are_read_as_the_schema_says():
    rubric = load_rubric(
        {
            "name": "mine",
            "task": "Rate.",
            "schema": {
                "type": "object",
                "properties": {
                    "score": {"type": "integer", "minimum": 1, "maximum": 5},
                    "share": {"type": "number"},
                    "fine": {"type": "boolean"},
                },
            },
        }
    )
    assert read_answer('{"score": "4", "share": 0.5, "fine": "yes"}', rubric) == (
        {"score": 4, "share": 0.5, "fine": True},
        "ok",
    )
    for wrong in ("9", "4.5", "1e400", "NaN", '"many"', "true"):
        assert read_answer(f'{{"score": {wrong}, "share": 1, "fine": false}}', rubric).values["score"] is None


@given(st.text(max_size=300))
def test_reading_never_raises_and_gives_labels_of_the_list_or_null(text):
    for rubric, key in ((QUALITY, "input_quality"), (DIFFICULTY, "difficulty"), (CATEGORY, "primary_tag")):
        reading = read_answer(text, rubric)
        assert reading.values[key] in (None, *rubric.properties[key]["enum"])
        assert set(reading.values) == set(rubric.properties)


@given(st.text(max_size=60), st.sampled_from(["very poor", "poor", "average", "good", "excellent"]), st.data())
def test_damage_to_the_json_gives_the_label_or_null_and_never_another(explanation, label, data):
    text = json.dumps({"explanation": explanation, "input_quality": label}, ensure_ascii=data.draw(st.booleans()))
    at = data.draw(st.integers(0, len(text)))
    kind = data.draw(st.sampled_from(["cut", "drop", "insert", "double"]))
    broken = {
        "cut": text[:at],
        "drop": text[:at] + text[at + 1 :],
        "insert": text[:at] + data.draw(st.sampled_from(list('{}[]",:\\\n'))) + text[at:],
        "double": text + text[at:],
    }[kind]
    found = read_answer(broken, QUALITY).values["input_quality"]
    possible = {None, label}
    if label == "very poor":
        possible.add("poor")  # what is left when "very " was cut is a label of its own
    # An explanation may itself speak of a label in JSON's words.
    if not any(word in explanation for word in ("poor", "average", "good", "excellent")):
        assert found in possible


@given(
    st.dictionaries(
        st.sampled_from(["explanation", "input_quality"]),
        st.one_of(st.none(), st.text(), st.integers(), st.lists(st.text())),
    )
)
def test_every_json_object_is_found_as_json_reads_it(given):
    text = f"Well: {json.dumps(given)} Done."
    if given:
        assert find_object(text, QUALITY.properties) == given
