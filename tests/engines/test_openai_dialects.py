"""The openai engine on servers that answer as vLLM, llama.cpp and `transformers serve` do (see tests/servers/dialects)."""

from __future__ import annotations

import logging

import pytest

import magpie_hf
from magpie_hf.engines.base import Prompt, Request
from magpie_hf.engines.remote.openai import OpenAIEngine
from magpie_hf.errors import ModelMismatchError
from magpie_hf.sampling import SamplingParams
from magpie_hf.storage.rundir import RunDir
from tests.end_to_end.harness import nothing_twice, rows
from tests.servers.completions_server import CompletionsServer
from tests.servers.dialects import DIALECTS


TEXT = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
RECIPE = {
    "model": "demo",
    "num_rows": 12,
    "sampling": {"max_tokens": 16},
    "stages": ["instructions", {"stage": "responses", "sampling": {"temperature": 0, "max_tokens": 16}}],
}


@pytest.fixture
def serve(demo_model_dir, demo_generator):
    def serve(dialect="vllm", **settings):
        settings = {"model_id": "demo"} | settings
        return CompletionsServer(demo_model_dir, generator=demo_generator, dialect=dialect, **settings)

    return serve


@pytest.fixture
def prompt(demo_generator):
    def encode(text):
        return demo_generator.encode(text, add_special_tokens=False)

    return Prompt(TEXT, encode=encode, bos="<|begin_of_text|>")


def engine(server, directory, **settings):
    quick = {"backoff_s": (0.001, 0.02), "concurrency": 128, "token_texts": {3: "<|eot_id|>"}, "max_n": 8}
    quick |= {"served_model_name": "demo"}
    return OpenAIEngine(str(directory), endpoints=[server.url], **(quick | settings))


def samples(n, prompt, **sampling):
    params = SamplingParams(**({"max_tokens": 16, "stop_token_ids": (3,)} | sampling))
    return [Request(i, prompt, params.with_seed(i)) for i in range(n)]


def run(server, place, **more):
    settings = {"kind": "openai", "endpoint": server.url, "served_model_name": "demo", "max_n": 8}
    return magpie_hf.run({**RECIPE, "engine": settings, **more}, output=place)


EXPECTED = {
    "vllm": {"token_ids": True, "max_n": 8, "seeded": True, "json_schema": True, "max_context": 2048},
    "llama.cpp": {"token_ids": True, "max_n": 4, "seeded": True, "json_schema": True, "max_context": 2048},
    "transformers": {"token_ids": False, "max_n": 1, "json_schema": False, "max_context": None},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_each_server_can_do_is_found_out(serve, demo_model_dir, dialect):
    with serve(dialect) as server, engine(server, demo_model_dir) as e:
        found = e.capabilities()
        assert {name: getattr(found, name) for name in EXPECTED[dialect]} == EXPECTED[dialect]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_whole_run_works_on_each_server(serve, tmp_path, dialect):
    with serve(dialect) as server:
        run(server, tmp_path / "run")
    assert len(rows(tmp_path / "run")) == RECIPE["num_rows"]
    assert all(row["response"] for row in rows(tmp_path / "run"))
    nothing_twice(tmp_path / "run")


def test_llama_cpps_tokens_add_up_though_its_usage_counts_one_choice(serve, demo_model_dir, prompt):
    counted = {}
    for dialect in ("vllm", "llama.cpp"):
        with serve(dialect) as server, engine(server, demo_model_dir) as e:
            counted[dialect] = {g.key: (g.text, g.completion_tokens) for g in e.generate(samples(24, prompt))}
    # Texts made anew of tokens may be cut into a few tokens less.
    total = {dialect: sum(n for _, n in found.values()) for dialect, found in counted.items()}
    assert abs(total["vllm"] - total["llama.cpp"]) <= 0.05 * total["vllm"]


def test_an_n_limit_that_falls_in_a_run_finishes_every_row(serve, tmp_path):
    """Another server behind the same address, with fewer slots: refusals of `n` are asked again in smaller groups."""
    refused = []
    with serve("llama.cpp", max_n=8) as server:
        make = server.dialect.read

        def read(given):
            if given.get("n", 1) == 8 and given["max_tokens"] > 1:
                server.dialect.most_n = 3
                refused.append(given["n"])
            return make(given)

        server.dialect.read = read
        run(server, tmp_path / "run", num_rows=40)
    assert len(rows(tmp_path / "run")) == 40
    assert not any(row["response"] is None for row in rows(tmp_path / "run"))
    (first, _) = RunDir.read(tmp_path / "run").state.stages.values()
    assert refused, "a limit that nobody ran into"
    assert "validation" not in first.counts.by_code


def test_a_server_started_again_with_other_settings_goes_on_with_a_warning(serve, tmp_path, caplog):
    with serve(fingerprint="vllm-0.32.0-aaaa") as server:
        run(server, tmp_path / "run", num_rows=8)
    with caplog.at_level(logging.WARNING), serve(fingerprint="vllm-0.33.0-bbbb") as server:
        run(server, tmp_path / "run", num_rows=24)
    assert caplog.text.count('Stage "instructions": replies have different system fingerprints') == 1
    served = next(iter(RunDir.read(tmp_path / "run").state.stages.values())).served
    assert served.fingerprints == ["vllm-0.32.0-aaaa", "vllm-0.33.0-bbbb"]


def test_replicas_with_fingerprints_of_their_own_serve_one_run(serve, tmp_path):
    with serve(fingerprint="vllm-tp2") as a, serve(fingerprint="vllm-tp4") as b:
        settings = {"kind": "openai", "endpoints": [a.url, b.url], "concurrency": 8}
        magpie_hf.run({**RECIPE, "engine": settings}, output=tmp_path / "run")
    served = next(iter(RunDir.read(tmp_path / "run").state.stages.values())).served
    assert sorted(served.fingerprints) == ["vllm-tp2", "vllm-tp4"]


def test_another_model_behind_the_same_fingerprint_still_ends_the_run(serve, tmp_path):
    with serve() as server:
        run(server, tmp_path / "run", stages=["instructions"])
        state = RunDir.read(tmp_path / "run").state.stages
        assert next(iter(state.values())).served.model == "demo"
        reply = server.dialect.reply
        server.dialect.reply = lambda name, *rest: reply(name, *rest) | {"model": "other"}
        with pytest.raises(ModelMismatchError, match="model: demo before, other now"):
            run(server, tmp_path / "run", stages=["instructions"], num_rows=40)
