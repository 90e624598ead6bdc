"""Texts held to JSON schemas by the local engine, on real models; and how vLLM is asked for the same."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import types

import numpy as np
import pytest
import torch

from magpie_hf.engines.base import Prompt, Request
from magpie_hf.engines.local.hf import TransformersEngine
from magpie_hf.engines.local.padded import PaddedRunner
from magpie_hf.engines.local.schemas import SPACING, Schemas, can_hold, is_available, unpacked
from magpie_hf.engines.local.vllm import VllmWorker, _schema_backend, _structured
from magpie_hf.errors import ArgumentError, CapabilityError, DependencyError
from magpie_hf.models import ModelRef
from magpie_hf.sampling import SamplingParams
from tests.engines.tiny import END, VOCAB, make_model


pytest.importorskip("llguidance")

LABELS = ["very poor", "poor", "average", "good", "excellent"]


def _object(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _is_text(value, most):
    return isinstance(value, str) and len(value) <= most


def _is_whole(value, low, high):
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


SCHEMAS = {
    "enum": (_object(label={"enum": LABELS}), lambda v: v["label"] in LABELS),
    "string": (_object(why={"type": "string", "maxLength": 12}), lambda v: _is_text(v["why"], 12)),
    "integer": (_object(n={"type": "integer", "minimum": -3, "maximum": 250}), lambda v: _is_whole(v["n"], -3, 250)),
    "array of enums": (
        _object(tags={"type": "array", "items": {"enum": ["a", "b", 3]}, "maxItems": 3}),
        lambda v: len(v["tags"]) <= 3 and all(tag in ("a", "b", 3) for tag in v["tags"]),
    ),
    "nested": (
        _object(z=_object(why={"type": "string", "maxLength": 9}, good={"type": "boolean"}), a={"enum": LABELS}),
        lambda v: (
            list(v["z"]) == ["why", "good"]
            and _is_text(v["z"]["why"], 9)
            and isinstance(v["z"]["good"], bool)
            and v["a"] in LABELS
        ),
    ),
}
NESTED = json.dumps(SCHEMAS["nested"][0])
LONG = json.dumps(_object(why={"type": "string", "minLength": 200}))


@pytest.fixture(scope="module")
def demo(demo_model_dir):
    with TransformersEngine(str(demo_model_dir), device="cpu", deterministic=True, batch_size=16) as opened:
        yield opened


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Give an engine on a model of random weights: it writes any bytes at all."""
    model = make_model(tmp_path_factory.mktemp("gqa"), "gqa")
    with TransformersEngine(model, device="cpu", deterministic=True, batch_size=16) as opened:
        yield opened


def _prompt(engine, text="How are you?"):
    return Prompt("", engine._tokenizer(text)["input_ids"])


def _run(engine, requests):
    return {g.key: g for g in engine.generate(iter(requests))}


def _one(engine, **params):
    (generation,) = engine.generate([Request(0, _prompt(engine), SamplingParams(**params))])
    return generation


def _check(name, generation):
    schema, is_valid = SCHEMAS[name]
    assert (generation.failure, generation.finish_reason) == (None, "stop")
    value = json.loads(generation.text)
    assert list(value) == list(schema["properties"])
    assert is_valid(value), value


# What is written


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("temperature", [0, 1.0, 2.0], ids=["greedy", "sampled", "hot"])
@pytest.mark.parametrize("model", ["demo", "tiny"])
def test_texts_parse_and_are_valid_under_every_schema(request, model, name, temperature):
    engine = request.getfixturevalue(model)
    count = 1 if temperature == 0 else 12
    requests = [
        Request(
            key,
            _prompt(engine),
            SamplingParams(
                temperature=temperature,
                top_p=(1, 0.9)[key % 2],
                top_k=(None, 20)[key % 3 == 0],
                repetition_penalty=(1, 1.3)[key % 4 == 0],
                max_tokens=200,
                seed=key,
                json_schema=json.dumps(SCHEMAS[name][0]),
            ),
        )
        for key in range(count)
    ]
    found = _run(engine, requests)
    assert len(found) == count
    for generation in found.values():
        _check(name, generation)
        if "\\" not in generation.text and "-0" not in generation.text:  # the same in more than one way
            assert generation.text == json.dumps(json.loads(generation.text), ensure_ascii=False)


def test_models_in_the_librarys_own_cache_are_held_too(tmp_path):
    with TransformersEngine(make_model(tmp_path, "bloom"), device="cpu", deterministic=False, batch_size=4) as engine:
        assert isinstance(engine._runner, PaddedRunner)
        requests = [
            Request(key, _prompt(engine), SamplingParams(max_tokens=200, seed=key, json_schema=NESTED))
            for key in range(6)
        ]
        for generation in _run(engine, requests).values():
            _check("nested", generation)


def test_rows_of_several_grammars_and_of_none_run_together_as_they_do_alone(demo):
    rng, grammars = random.Random(0), [json.dumps(schema) for schema, _ in SCHEMAS.values()]
    requests = [
        Request(
            key,
            _prompt(demo, rng.choice(["How are you?", "Add 2 and 3.", "Write a list of animals, please."])),
            SamplingParams(
                temperature=rng.choice([0, 0.8, 1.2]),
                top_p=rng.choice([1, 0.9]),
                repetition_penalty=rng.choice([1, 1, 1.2]),
                max_tokens=rng.choice([9, 40]),
                seed=key,
                json_schema=rng.choice([None, None, *grammars]),
            ),
        )
        for key in range(40)
    ]
    mixed = _run(demo, requests)
    free = [request for request in requests if request.sampling.json_schema is None]
    assert 5 < len(free) < 35
    only_free = _run(demo, free)
    for request in requests:
        alone = _run(demo, [request])[request.key]
        assert mixed[request.key].token_ids == alone.token_ids
        assert mixed[request.key].finish_reason == alone.finish_reason
    assert all(mixed[key].token_ids == generation.token_ids for key, generation in only_free.items())


@torch.inference_mode()
def test_logits_of_rows_without_a_grammar_keep_their_bits(demo):
    grammars = demo._compiled_schemas()
    logits = torch.randn(5, 2048)
    before = logits.clone()
    stops = np.array([[3, -1], [3, 4]])
    grammars.restrict(logits, np.array([1, 3]), [grammars.matcher(NESTED), grammars.matcher(NESTED)], stops)
    assert torch.equal(logits[[0, 2, 4]], before[[0, 2, 4]])
    for row in (1, 3):
        kept = ~logits[row].isneginf()
        assert torch.equal(logits[row][kept], before[row][kept])
        assert {demo._decode([int(token)])[0] for token in kept.nonzero()} == {"{"}


def test_an_unbound_text_that_outgrows_the_limit_ends_by_length(demo):
    found = _one(demo, temperature=0, max_tokens=15, json_schema=LONG)
    assert (found.finish_reason, found.completion_tokens) == ("length", 15)
    assert found.text.startswith('{"why": "')


# Stop tokens


def test_stop_tokens_are_allowed_when_the_grammar_is_complete_and_not_before(demo):
    texts = {i: demo._decode([i]) for i in range(demo._tokenizer.vocab_size)}
    words = tuple(i for i, text in texts.items() if text[0] == " " and text[1:].isalpha())
    assert len(words) > 300
    for seed in range(8):
        asked = {"seed": seed, "max_tokens": 60, "stop_token_ids": words}
        _check("string", _one(demo, json_schema=json.dumps(SCHEMAS["string"][0]), **asked))
        assert _one(demo, **asked).completion_tokens < 60


def test_a_stop_token_that_the_grammar_cannot_do_without_is_a_failure_and_no_broken_text(demo):
    key = demo._tokenizer("why")["input_ids"]
    found = _one(demo, temperature=0, max_tokens=60, json_schema=LONG, stop_token_ids=key)
    assert (found.failure.code, found.text) == ("json_schema", "")


@pytest.mark.parametrize("stop", [(), (11,), (END,)], ids=["the model's", "another", "the model's, asked for"])
def test_a_complete_object_ends_with_a_stop_token_that_is_counted_but_not_text(tiny, stop):
    (found,) = tiny.generate(
        [Request(0, _prompt(tiny), SamplingParams(max_tokens=90, seed=3, stop_token_ids=stop, json_schema=NESTED))]
    )
    _check("nested", found)
    assert found.completion_tokens == len(found.token_ids) + 1


def test_a_grammar_without_any_token_that_could_end_the_text_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "_end_ids", lambda: ())
    with pytest.raises(ArgumentError, match="ends the text"):
        _one(tiny, json_schema=NESTED)
    _check("nested", _one(tiny, seed=1, max_tokens=200, json_schema=NESTED, stop_token_ids=(11,)))


def test_banned_first_tokens_stay_away_unless_the_grammar_leaves_no_other(demo):
    quotes = tuple(i for i in range(demo._tokenizer.vocab_size) if demo._decode([i]).startswith('"'))
    asked = {"temperature": 0, "max_tokens": 20, "banned_first_token_ids": quotes}
    assert _one(demo, json_schema='{"enum": ["good", 3]}', **asked).text == "3"
    assert _one(demo, json_schema='{"enum": ["good", "poor"]}', **asked).text in ('"good"', '"poor"')


# What cannot be held


@pytest.mark.parametrize(
    "grammar",
    ["not json", "[1]", "true", '{"type": "nonsense"}', '{"enum": []}', '{"$ref": "#/nowhere"}', '{"not": {}}'],
    ids=["text", "list", "bool", "unknown type", "impossible", "lost reference", "unsupported"],
)
def test_a_schema_that_cannot_be_used_is_an_error_at_the_first_request(demo, grammar):
    with pytest.raises(ArgumentError, match=r"json_schema.*JSON schema"):
        _one(demo, json_schema=grammar)
    assert _one(demo, temperature=0, max_tokens=3).failure is None


def test_a_reference_to_another_machine_is_not_followed(demo):
    with pytest.raises(ArgumentError, match="json_schema"):  # and the test fails if a connection is tried
        _one(demo, json_schema='{"$ref": "https://schemas.invalid/a.json"}')


def test_a_schema_cannot_change_how_it_is_read(demo):
    schema = SCHEMAS["enum"][0] | {"x-guidance": {"whitespace_flexible": True, "lenient": True}}
    assert _one(demo, temperature=2.0, seed=1, max_tokens=60, json_schema=json.dumps(schema)).text.startswith(
        '{"label": "'
    )


def test_a_row_whose_grammar_fails_on_the_way_is_a_failure_and_not_a_text(demo):
    grammars = demo._compiled_schemas()
    broken = grammars.matcher(NESTED)
    assert not broken.consume_token(demo._tokenizer("x")["input_ids"][-1])
    grammars._compiled["broken"] = broken
    requests = [
        Request(key, _prompt(demo), SamplingParams(temperature=0, max_tokens=80, json_schema=grammar))
        for key, grammar in enumerate([NESTED, "broken", None])
    ]
    found = _run(demo, requests)
    del grammars._compiled["broken"]
    assert (found[1].failure.code, found[1].failure.transient, found[1].text) == ("json_schema", False, "")
    _check("nested", found[0])
    assert found[2].failure is None


def test_without_llguidance_a_grammar_is_an_error_with_the_pip_line(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr(demo, "_schemas", None)
    is_available.cache_clear()
    try:
        assert not demo.capabilities().json_schema
        assert _one(demo, temperature=0, max_tokens=3).failure is None
        with pytest.raises(DependencyError, match=r"magpie_hf\[grammar\]"):
            _one(demo, json_schema=NESTED)
    finally:
        monkeypatch.undo()
        is_available.cache_clear()
    assert demo.capabilities().json_schema


def test_a_tokenizer_that_hides_its_bytes_cannot_be_held():
    import tokenizers
    import transformers

    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<end>": 1}, unk_token="a"))
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>")
    assert not can_hold(wrapped)
    plain.decoder = tokenizers.decoders.WordPiece()
    assert not can_hold(transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>"))
    with pytest.raises(CapabilityError, match="JSON schema"):
        Schemas(wrapped, 2, [1])


# The parts


def test_schemas_are_compiled_once_and_the_oldest_are_forgotten(demo):
    grammars = Schemas(demo._tokenizer, 2048, [3])
    grammars.matcher(NESTED)
    first = grammars._compiled[NESTED]
    for number in range(80):
        grammars.matcher(json.dumps({"const": number}))
        grammars.matcher(NESTED)
    assert grammars._compiled[NESTED] is first
    assert len(grammars._compiled) == 64


@pytest.mark.parametrize("width", [VOCAB - 5, VOCAB, VOCAB + 77], ids=["narrower", "equal", "wider"])
def test_logits_may_be_wider_or_narrower_than_the_vocabulary(tiny, width):
    grammars = Schemas(tiny._tokenizer, VOCAB, [END])
    logits = torch.zeros(1, width)
    grammars.restrict(logits, np.array([0]), [grammars.matcher(NESTED)], np.array([[END, 10**6]]))
    (allowed,) = [int(i) for i in (~logits[0].isneginf()).nonzero()]
    assert tiny._decode([allowed]) == "{"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_bits_unpack_alike_on_every_device(device):
    bits = np.random.default_rng(0).integers(0, 256, (3, 40), dtype=np.uint8)
    expected = [[bool(row[i // 8] >> (i % 8) & 1) for i in range(320)] for row in bits]
    assert unpacked(bits, torch.device(device)).tolist() == expected


# vLLM, as far as its names go


@dataclasses.dataclass
class _NewParams:
    json: dict


@dataclasses.dataclass
class _OldParams:
    json: dict


@pytest.fixture(params=["new", "old"])
def vllm_names(request, monkeypatch):
    """Stand in for the names of vLLM 0.11 and later, or of 0.10, which is not installed where tests run."""
    package, sampling_params = types.ModuleType("vllm"), types.ModuleType("vllm.sampling_params")
    package.sampling_params = sampling_params
    config = types.ModuleType("vllm.config")
    config.StructuredOutputsConfig = lambda **given: given
    if request.param == "new":
        sampling_params.StructuredOutputsParams = _NewParams
        args = dataclasses.make_dataclass("EngineArgs", ["model", "structured_outputs_config"])
    else:
        sampling_params.GuidedDecodingParams = _OldParams
        args = dataclasses.make_dataclass("EngineArgs", ["model", "guided_decoding_backend"])
    for name, module in {"": package, ".sampling_params": sampling_params, ".config": config}.items():
        monkeypatch.setitem(sys.modules, f"vllm{name}", module)
    return request.param, args


def test_vllm_is_given_the_schema_and_the_same_white_space_under_its_own_names(vllm_names):
    age, args = vllm_names
    name, kind = {"new": ("structured_outputs", _NewParams), "old": ("guided_decoding", _OldParams)}[age]
    assert _structured(None) == {}
    assert _structured(NESTED) == {name: kind(json=SCHEMAS["nested"][0] | {"x-guidance": SPACING})}
    backend = {
        "new": {"structured_outputs_config": {"backend": "guidance"}},
        "old": {"guided_decoding_backend": "guidance"},
    }
    assert _schema_backend(args, {"model": "m"}) == backend[age]
    assert _schema_backend(args, {"structured_outputs_config": None}) == {}
    with pytest.raises(ArgumentError, match=r"json_schema.*JSON schema"):
        _structured("[1]")


def test_vllm_refuses_a_new_grammar_for_all_rows_and_a_known_one_for_the_row(monkeypatch):
    worker = VllmWorker("m", ref=ModelRef("m", "m", None, None), engine_args={"max_num_seqs": 2})
    worker._max_context = 100
    refused = set()

    class Engine:
        def add_request(self, name, prompt, params):
            if name in refused:
                raise ValueError("cannot compile it")

    worker._engine = Engine()
    package = types.ModuleType("vllm")
    package.TokensPrompt = dict
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setattr(worker, "_sampling_params", lambda request: None)
    held, free = (Request(0, Prompt("", [1]), SamplingParams(json_schema=grammar)) for grammar in (NESTED, None))
    refused |= {"1", "2", "4"}
    assert worker._add(free, {}).failure.code == "validation"
    with pytest.raises(ArgumentError, match=r"json_schema.*cannot compile it"):
        worker._add(held, {})
    assert worker._add(held, {}) is None
    assert worker._add(held, {}).failure.code == "validation"
