from __future__ import annotations

import ast
from pathlib import Path

import pytest
from datasets import Value

import magpie_hf
from magpie_hf.messages import conversation
from magpie_hf.sampling import SamplingParams
from magpie_hf.stages.provenance import Provenance
from magpie_hf.stages.responses import Responses


SOURCES = sorted(Path(magpie_hf.__file__).parent.rglob("*.py"))


class Run:
    model, revision = "some/model", "abc"

    class template:
        hash = "1234"


def test_provenance_names_the_model_the_sampling_and_the_template_in_the_order_of_its_fields():
    provenance = Provenance(
        "temperature top_k output_generator revision served_model seeds template_hash stage_version"
    )
    values = provenance.values(
        Responses(), Run(), SamplingParams(temperature=0.5, top_k=7), {"served": {"model": "m"}}, seeds=[1, 2]
    )
    assert list(values) == list(provenance.feature()) == provenance.names.split()
    assert list(values.values()) == [0.5, 7, "some/model", "abc", "m", [1, 2], "1234", Responses.version]


def test_provenance_of_a_sampling_is_stored_in_numbers():
    feature = Provenance("temperature response_temperature max_tokens seeds system_prompt").feature()
    assert feature == {
        "temperature": Value("float64"),
        "response_temperature": Value("float64"),
        "max_tokens": Value("int64"),
        "seeds": [Value("int64")],
        "system_prompt": Value("string"),
    }


def test_a_field_that_neither_run_nor_stage_gives_is_an_error():
    with pytest.raises(KeyError, match="seed"):
        Provenance("seed").values(Responses(), Run(), SamplingParams(), {})


def test_missing_texts_give_no_message():
    assert conversation(("Hello", "Hi"), ("And you?", None)) == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "And you?"},
    ]


def test_stages_scoring_and_templates_write_messages_and_served_in_one_place_only():
    for path in SOURCES:
        if path.parent.name not in ("stages", "scoring", "session", "templates") or path.name == "provenance.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            keys = [getattr(key, "value", None) for key in node.keys] if isinstance(node, ast.Dict) else []
            assert "role" not in keys or None in keys, path  # {"role": …, **message} adds a field
            assert "template_hash" not in keys, path
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "generation.served._asdict"), path
