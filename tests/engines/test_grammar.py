"""The local engine holds what it writes to a JSON schema: on the bundled model, which knows nothing of these schemas."""

from __future__ import annotations

import json

import pytest

from magpie_hf.engines.base import Prompt, Request
from magpie_hf.engines.hf import TransformersEngine
from magpie_hf.errors import ArgumentError
from magpie_hf.sampling import SamplingParams
from magpie_hf.templates import ChatTemplate


SCHEMAS = {
    "enum": {"type": "object", "properties": {"label": {"type": "string", "enum": ["red", "very green"]}}, "required": ["label"], "additionalProperties": False},
    "string": {"type": "object", "properties": {"text": {"type": "string", "maxLength": 12}}, "required": ["text"], "additionalProperties": False},
    "number": {"type": "object", "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 5}, "ok": {"type": "boolean"}}, "required": ["score", "ok"], "additionalProperties": False},
    "array": {"type": "object", "properties": {"tags": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}, "maxItems": 3}}, "required": ["tags"], "additionalProperties": False},
    "nested": {"type": "object", "properties": {"inner": {"type": "object", "properties": {"x": {"type": "string", "enum": ["{", "}"]}}, "required": ["x"], "additionalProperties": False}}, "required": ["inner"], "additionalProperties": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(demo_model_dir):
    with TransformersEngine("demo") as opened:
        yield opened


@pytest.fixture(scope="module")
def template(demo_model_dir):
    return ChatTemplate.load("demo")


def requests(template, grammars, temperature, max_tokens=120):
    stops = template.response_stops.token_ids
    for key, grammar in enumerate(grammars):
        prompt: Prompt = template.response([{"role": "user", "content": f"What is {key} + 2? Say it at length."}])
        text = None if grammar is None else json.dumps(SCHEMAS[grammar])
        yield Request(
            key,
            prompt,
            SamplingParams(
                temperature=temperature, max_tokens=max_tokens, stop_token_ids=stops, grammar=text, seed=key
            ),
        )


def valid(text, schema):
    if schema["type"] == "object":
        found = json.loads(text) if isinstance(text, str) else text
        return list(found) == list(schema["properties"]) and all(
            valid(found[k], s) for k, s in schema["properties"].items()
        )
    if schema["type"] == "array":
        return len(text) <= schema["maxItems"] and all(valid(entry, schema["items"]) for entry in text)
    if schema["type"] == "integer":
        return isinstance(text, int) and schema["minimum"] <= text <= schema["maximum"]
    if schema["type"] == "boolean":
        return isinstance(text, bool)
    return text in schema["enum"] if "enum" in schema else len(text) <= schema["maxLength"]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_every_text_is_valid_whatever_the_model_would_rather_write(engine, template, temperature):
    assert engine.capabilities().grammar
    names = [name for name in SCHEMAS for _ in range(4)]
    found = {g.key: g for g in engine.generate(requests(template, names, temperature))}
    for key, name in enumerate(names):
        assert found[key].finish_reason == "stop", found[key].text
        assert valid(found[key].text, SCHEMAS[name]), found[key].text
        assert (
            found[key].text == json.dumps(json.loads(found[key].text), ensure_ascii=False) or "\\u" in found[key].text
        )


def test_rows_without_a_schema_write_what_they_write_alone(engine, template):
    mixed = ["enum", None, "array", None, None, "string"]
    plain = {g.key: g.text for g in engine.generate(requests(template, [None] * 6, 1.0))}
    beside = {g.key: g.text for g in engine.generate(requests(template, mixed, 1.0))}
    for key, name in enumerate(mixed):
        if name is None:
            assert beside[key] == plain[key]


def test_a_text_that_meets_its_limit_ends_by_length(engine, template):
    (found,) = engine.generate(requests(template, ["string"], 0.0, max_tokens=3))
    assert found.finish_reason == "length"


@pytest.mark.parametrize("grammar", ["not json", '{"type": "strang"}', '{"$ref": "http://127.0.0.1/x"}'])
def test_a_schema_that_cannot_be_followed_is_an_error_and_no_rows_failure(engine, template, grammar):
    prompt = template.response([{"role": "user", "content": "Hi"}])
    with pytest.raises(ArgumentError, match="JSON schema"):
        list(engine.generate([Request(0, prompt, SamplingParams(grammar=grammar, max_tokens=5))]))
