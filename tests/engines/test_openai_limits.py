"""Limits on `n`, counts and fingerprints, on a scripted server."""

from __future__ import annotations

import json

import pytest

from magpie_hf.engines.base import Prompt, Served
from magpie_hf.engines.remote.openai_features import sizes_below
from magpie_hf.engines.remote.servers import is_about_n

from .scripted import Scripted
from .test_openai import TWO, Server, bodies, engine, requests, results


REFUSALS = {
    "llama.cpp": "Field 'n': Value must be between 1 <= value <= {most}, but got {n}",
    "vllm": "n must be at most {most}, got {n}. To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable.",
    "pydantic": "body.n: Input should be less than or equal to {most}",
    "no words": "bad request",
}


class Limited(Server):
    """Takes `n` up to `most`; `usage` counts one choice only."""

    def __init__(self, most, words="llama.cpp", **abilities):
        super().__init__(**abilities)
        self.most, self.words = most, words

    def complete(self, body):
        n = body.get("n", 1)
        if n > self.most:
            return 400, {"error": {"code": 400, "message": REFUSALS[self.words].format(most=self.most, n=n)}}
        answer = super().complete(body)
        answer["usage"]["completion_tokens"] = 3
        return answer


@pytest.mark.parametrize("words", REFUSALS)
@pytest.mark.parametrize(("most", "wish", "found"), [(4, 64, 4), (32, 64, 32), (64, 64, 64), (1, 64, 1), (9, 6, 6)])
def test_the_largest_n_that_a_server_takes_is_found_out_at_the_start(words, most, wish, found):
    with Scripted(Limited(most, words)) as s, engine(s, max_n=wish) as e:
        assert e.capabilities().max_n == found
        assert s.num_posts < 30
        before = s.num_posts
        assert len(results(e, requests(2 * found + 1, TWO))) == 2 * found + 1
        assert max(n for _, n in bodies(s, before)) == found


def test_a_limit_that_is_no_power_of_two_is_read_off_the_refusal():
    assert sizes_below(64, "n must be at most 12, got 64") == [32, 16, 12, 8, 4, 2]
    assert sizes_below(2, "n must be at most 1, got 2") == []
    with Scripted(Limited(12)) as s, engine(s, max_n=64) as e:
        assert e.capabilities().max_n == 12


def test_replicas_are_asked_for_the_smallest_of_their_limits():
    with Scripted(Limited(16)) as a, Scripted(Limited(4)) as b, engine(a, b, max_n=64) as e:
        assert e.capabilities().max_n == 4


@pytest.mark.parametrize("words", REFUSALS)
def test_a_limit_that_falls_while_it_runs_loses_no_sample(words):
    server = Limited(16, words)
    with Scripted(server) as s, engine(s, max_n=16) as e:
        server.most = 3
        before = s.num_posts
        got = list(e.generate(requests(50, TWO)))
        assert [g.failure for g in got] == [None] * 50
        assert {g.key: g.text for g in got} == {i: f"seed {i}" for i in range(50)}
        if words != "no words":
            assert e.capabilities().max_n == 2
            before = s.num_posts
            assert len(results(e, requests(6, TWO))) == 6
            assert [n for _, n in bodies(s, before)] == [2, 2, 2]


def test_a_prompt_that_is_refused_fails_alone_and_leaves_n_as_it_is():
    class Picky(Server):
        def complete(self, body):
            if body["prompt"] == [7]:
                return 400, {"error": {"message": "Token id out of vocabulary"}}
            return super().complete(body)

    with Scripted(Picky()) as s, engine(s, max_n=8) as e:
        got = list(e.generate([*requests(8, Prompt("seven", [7])), *requests(8, TWO, first=8)]))
        assert {g.key: g.failure and g.failure.code for g in got} == dict.fromkeys(range(8), "validation") | (
            dict.fromkeys(range(8, 16))
        )
        assert e.capabilities().max_n == 8


def test_what_is_said_of_n_is_told_from_other_refusals():
    assert all(is_about_n(text.format(most=4, n=8)) for words, text in REFUSALS.items() if words != "no words")
    for other in ("body.model: Field required", "temperature must be non-negative", "Token id out of vocabulary", "n"):
        assert not is_about_n(other)


def test_tokens_are_counted_here_where_usage_counts_one_choice_only():
    prompt = Prompt("two words", [5, 6], encode=str.split)
    with Scripted(Limited(4)) as s, engine(s, max_n=4) as e:
        got = sorted(e.generate(requests(5, prompt)), key=lambda g: g.key)
        assert [g.completion_tokens for g in got] == [3, 3, 3, 3, 3], "two words and the stop each"
        cut = Scripted(Limited(4, choice={"finish_reason": "length"}))
        with cut as s2, engine(s2, max_n=4) as other:
            assert [g.completion_tokens for g in other.generate(requests(2, prompt))] == [2, 2]
        unknown = sorted(e.generate(requests(4, TWO)), key=lambda g: g.key)
        assert [g.completion_tokens for g in unknown] == [None] * 4


def test_who_lists_the_model_is_no_version_and_a_fingerprint_is_kept_with_each_row():
    class Fingerprinted(Server):
        def complete(self, body):
            return super().complete(body) | {"system_fingerprint": "vllm-0.32.0-f5870391"}

    models = [{"id": "org/model", "owned_by": "vllm", "max_model_len": 99}]
    with Scripted(Fingerprinted(models=models)) as s, engine(s) as e:
        assert e.served == Served("org/model")
        (g,) = e.generate(requests(1, TWO))
        assert g.served == Served("org/model", fingerprint="vllm-0.32.0-f5870391")


def test_llama_cpps_context_is_read_from_its_own_field():
    models = [{"id": "/models/model.gguf", "owned_by": "llamacpp", "meta": {"n_ctx": 77, "n_ctx_train": 2048}}]
    with Scripted(Server(models=models)) as s, engine(s) as e:
        assert e.capabilities().max_context == 77
        results(e, requests(1, TWO))
        assert s.posts[-1].body["model"] == "/models/model.gguf"


@pytest.mark.parametrize("field", ["response_format", "json_schema"])
def test_a_schema_goes_into_the_field_that_the_server_honors(field):
    class Constrained(Server):
        def text(self, body, i):
            if field not in body:
                return super().text(body, i)
            schema = body[field] if field == "json_schema" else body[field]["json_schema"]["schema"]
            # A weak model: white space until the length ends, wherever white space is allowed.
            return json.dumps(schema["enum"][0]) if "enum" in schema else '{"ok": true' + "\n" * 50

    schema = '{"type":"object","properties":{"ok":{"type":"boolean"}}}'
    with Scripted(Constrained()) as s, engine(s) as e:
        assert e.capabilities().json_schema
        results(e, requests(1, TWO, json_schema=schema))
        assert {"response_format", "json_schema"} & set(s.posts[-1].body) == {field}
