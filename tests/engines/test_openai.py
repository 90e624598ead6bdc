from __future__ import annotations

import json

import pytest

from magpie_hf.engines.base import Prompt, Request, Served
from magpie_hf.engines.remote.openai import OpenAIEngine
from magpie_hf.errors import ArgumentError, CapabilityError, EngineError, ModelMismatchError, PromptMismatchError
from magpie_hf.models import ModelRef
from magpie_hf.sampling import SamplingParams

from .scripted import Scripted


BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"
KEY = "sk-not-a-real-key-0123456789"
SCHEMA = '{"type": "object", "properties": {"a": {"type": "string"}}}'


def engine(*servers, **settings):
    quick = {
        "backoff_s": (0.001, 0.02),
        "startup_timeout_s": 5.0,
        "ref": ModelRef("org/model", "org/model", None, None),
        "max_n": 8,
    }
    return OpenAIEngine("org/model", endpoints=[s.url for s in servers], **(quick | settings))


def requests(n, prompt, first=0, **sampling):
    params = SamplingParams(**({"max_tokens": 12} | sampling))
    return [Request(first + i, prompt, params.with_seed(first + i)) for i in range(n)]


def results(engine, requests):
    return {g.key: (g.text, g.finish_reason) for g in engine.generate(requests) if g.failure is None}


class Server:
    """A script for a `/v1/completions` server with the abilities named; its texts are a function of the request."""

    def __init__(self, *, ids=True, n=True, seeded=True, unknown="ignored", honours=(), models=None, choice=None):
        self.ids, self.n, self.seeded, self.unknown, self.honours = ids, n, seeded, unknown, honours
        self.models = [{"id": "org/model", "max_model_len": 99}] if models is None else models
        self.choice = choice or {}
        self.calls = 0

    KNOWN = ("model", "prompt", "max_tokens", "temperature", "top_p", "n", "seed", "stop")

    def __call__(self, arrived, number):
        if arrived.path == "/v1/models":
            return {"object": "list", "data": self.models}
        if arrived.path != "/v1/completions":
            return 404, {"detail": "Not Found"}
        body = arrived.body
        unknown = set(body) - set(self.KNOWN) - set(self.honours)
        if unknown and self.unknown == "refused":
            return 422, {"detail": f"Unexpected fields in the request: {unknown}"}
        if not isinstance(body["prompt"], str) and not self.ids:
            return 400, {"detail": "prompt must be a string."}
        return self.complete(body)

    def complete(self, body):
        self.calls += 1
        n = body.get("n", 1) if self.n else 1
        texts = [self.text(body, i) for i in range(n)]
        choices = [{"index": i, "text": t, "finish_reason": "stop", **self.choice} for i, t in enumerate(texts)]
        prompt_tokens = len(body["prompt"]) if isinstance(body["prompt"], list) else len(body["prompt"].split())
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 3 * n + 1}
        return {"model": body["model"], "choices": choices[::-1], "usage": usage}

    def text(self, body, i):
        if "logit_bias" in body and "logit_bias" in self.honours:
            (token,) = body["logit_bias"]
            return SPECIAL[int(token)] if "skip_special_tokens" in self.honours else ""
        if "response_format" in self.honours and "response_format" in body:
            schema = body["response_format"]["json_schema"]["schema"]
            return json.dumps(schema.get("enum", [{}])[0])
        if body.get("temperature") == 0 or ("top_k" in self.honours and body.get("top_k") == 1):
            penalty = body.get("repetition_penalty", 1.0) if "repetition_penalty" in self.honours else 1.0
            return f"greedy {penalty}"
        return f"seed {body['seed'] + i}" if self.seeded and "seed" in body else f"call {self.calls}.{i}"


TWO = Prompt("two words", [5, 6])
SPECIAL = {7: "<|begin|>", 8: "<|end|>"}


# What a server can do


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (Server(), {"token_ids": True, "max_n": 8, "seeded": True, "json_schema": False}),
        (Server(ids=False), {"token_ids": False}),
        (Server(n=False), {"max_n": 1, "seeded": True}),
        (Server(seeded=False), {"seeded": False, "max_n": 8}),
        (Server(honours=("response_format",)), {"json_schema": True}),
        (Server(unknown="refused"), {"token_ids": True, "max_n": 8, "json_schema": False}),
    ],
    ids=["all", "text only", "no n", "seeds ignored", "grammar", "unknown fields refused"],
)
def test_what_a_server_can_do_is_found_out_at_the_start(server, expected):
    with Scripted(server) as s, engine(s) as e:
        found = e.capabilities()
        assert {name: getattr(found, name) for name in expected} == expected
        assert found.max_context == 99


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (Server(), False),
        (Server(honours=("logit_bias",)), False),
        (Server(honours=("logit_bias", "skip_special_tokens")), True),
        (Server(choice={"token_ids": [5, 6]}), True),
        (Server(unknown="refused"), False),
    ],
    ids=["unknown fields ignored", "hidden", "shown", "ids", "unknown fields refused"],
)
def test_whether_special_tokens_can_be_seen_is_found_out_by_forcing_some(server, expected):
    with Scripted(server) as s, engine(s, token_texts=SPECIAL) as e:
        assert e.capabilities().special_tokens is expected
    with Scripted(server) as s, engine(s) as e:
        assert e.capabilities().special_tokens


def test_replicas_are_used_for_what_all_of_them_can_do():
    with Scripted(Server()) as a, Scripted(Server(ids=False, n=False)) as b, engine(a, b) as e:
        assert not e.capabilities().token_ids
        assert e.capabilities().max_n == 1


def test_an_n_whose_choices_are_not_the_samples_of_the_next_seeds_is_not_called_seeded():
    class OwnSeeds(Server):
        def text(self, body, i):
            return super().text(body, 1000 * i)

    with Scripted(OwnSeeds()) as s:
        with engine(s) as e:
            assert e.capabilities().max_n == 8
            assert not e.capabilities().seeded
        with engine(s, max_n=1) as e:
            assert e.capabilities().seeded


def test_a_chat_only_server_is_an_error_that_says_why():
    def script(arrived, number):
        if arrived.path == "/v1/chat/completions":
            return 400, {"error": {"message": "messages is empty"}}
        return Server()(arrived, number) if arrived.path == "/v1/models" else (404, {"detail": "Not Found"})

    with (
        Scripted(script) as s,
        pytest.raises(CapabilityError, match=r"only supports chat completions.*raw prompts") as caught,
    ):
        engine(s).open()
    assert s.url in str(caught.value)


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_that_is_something_else_is_an_error(status):
    with Scripted(lambda a, n: (status, b"<html>")) as s, pytest.raises(CapabilityError, match="no /v1/completions"):
        engine(s).open()


def test_a_wrong_model_is_an_error_with_both_names():
    models = [{"id": "org/other"}, {"id": "third"}]
    with Scripted(Server(models=models)) as s:
        with pytest.raises(ModelMismatchError, match=r"'org/other', 'third', not 'org/model'") as caught:
            engine(s).open()
        assert "served_model_name" in caught.value.hint
        with engine(s, allow_model_mismatch=True) as e:
            results(e, requests(1, TWO))
        assert s.posts[-1].body["model"] == "org/other"


@pytest.mark.parametrize(
    ("models", "settings", "sent", "served"),
    [
        ([{"id": "x"}, {"id": "Org/Model", "owned_by": "vllm"}], {}, "Org/Model", Served("Org/Model")),
        ([{"id": "alias", "root": "/data/model"}], {}, "alias", Served("/data/model")),
        ([{"id": "gpt-x"}], {"served_model_name": "gpt-x"}, "gpt-x", Served("gpt-x")),
        ([{"id": "a"}], {"served_model_name": "hidden"}, "hidden", None),
        ([], {}, "org/model", None),
    ],
    ids=["by id", "by root", "by the given name", "by a name that is not listed", "nothing listed"],
)
def test_the_servers_name_for_the_model_is_used(models, settings, sent, served):
    with Scripted(Server(models=models)) as s, engine(s, **settings) as e:
        (g,) = e.generate(requests(1, TWO))
        assert s.posts[-1].body["model"] == sent
        assert g.served == e.served == served


def test_replicas_with_other_names_for_the_model_are_an_error():
    with (
        Scripted(Server()) as a,
        Scripted(Server(models=[{"id": "alias", "root": "org/model"}])) as b,
        pytest.raises(ModelMismatchError, match=r"different names for the model: 'alias', 'org/model'"),
    ):
        engine(a, b).open()


def test_a_list_of_models_that_fails_is_done_without():
    def script(arrived, number):
        return (500, b"no cache") if arrived.path == "/v1/models" else Server()(arrived, number)

    with Scripted(script) as s, engine(s) as e:
        assert len(results(e, requests(2, TWO))) == 2
        assert e.served is None


def test_a_name_that_the_server_does_not_know_is_an_error():
    def script(arrived, number):
        if arrived.path == "/v1/models":
            return {"data": []}
        return 404, {"error": {"message": "The model `org/model` does not exist.", "type": "NotFoundError"}}

    with Scripted(script) as s, pytest.raises(ModelMismatchError, match="has no model 'org/model'"):
        engine(s).open()


def test_a_model_that_changes_in_mid_run_is_seen_in_the_rows():
    class Swapped(Server):
        def complete(self, body):
            now = super().complete(body)
            return now | {"model": "org/new", "system_fingerprint": "fp_2"} if body.get("seed") == 3 else now

    with Scripted(Swapped()) as s, engine(s, max_n=1) as e:
        served = {g.key: g.served for g in e.generate(requests(5, TWO))}
    assert served.pop(3) == Served("org/new", fingerprint="fp_2")
    assert set(served.values()) == {Served("org/model")}


def test_an_overloaded_server_is_tried_again_while_it_is_being_asked():
    class Busy(Server):
        def complete(self, body):
            answer = super().complete(body)
            return (429, {"error": "busy"}) if self.calls % 3 == 1 else answer

    with Scripted(Busy()) as s, engine(s) as e:
        assert e.capabilities().token_ids
        assert e.capabilities().max_n == 8


def test_a_server_that_never_completes_anything_is_an_error():
    class Broken(Server):
        def complete(self, body):
            return 503, {"error": "loading"}

    with Scripted(Broken()) as s, pytest.raises(EngineError, match="no completion request"):
        engine(s).open()


# What is sent


def test_every_default_is_sent_where_the_server_takes_it():
    with Scripted(Server()) as s, engine(s) as e:
        results(e, requests(1, TWO))
        assert s.posts[-1].body == {
            "model": "org/model",
            "prompt": [5, 6],
            "max_tokens": 12,
            "temperature": 1.0,
            "top_p": 1.0,
            "seed": 0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": [],
            "skip_special_tokens": False,
            "return_token_ids": True,
        }


def test_fields_that_a_server_refuses_are_left_out():
    server = Server(unknown="refused", honours=("top_k",))
    with Scripted(server) as s, engine(s) as e:
        results(e, requests(1, TWO))
        assert set(s.posts[-1].body) == {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "top_k"}


@pytest.mark.parametrize(
    ("server", "sampling", "words"),
    [
        (Server(), {"top_k": 5}, "top_k = 5: it ignores"),
        (Server(unknown="refused"), {"top_k": 5}, "top_k = 5: it refuses"),
        (Server(), {"repetition_penalty": 1.2}, "repetition_penalty = 1.2: it ignores"),
        (Server(unknown="refused"), {"repetition_penalty": 1.2}, "repetition_penalty = 1.2: it refuses"),
        (Server(), {"json_schema": SCHEMA}, "JSON schema"),
        (Server(), {"banned_first_token_ids": (1,)}, "banned_first_token_ids"),
        (Server(), {"stop_token_ids": (9,)}, r"stop at token ids \(\[9\]\)"),
    ],
    ids=lambda v: "" if isinstance(v, Server) else str(v),
)
def test_what_a_server_cannot_do_is_an_error_at_the_first_use(server, sampling, words):
    with Scripted(server) as s, engine(s) as e, pytest.raises(CapabilityError, match=words):
        results(e, requests(1, TWO, **sampling))


def test_what_a_server_heeds_is_sent():
    server = Server(honours=("top_k", "repetition_penalty", "response_format"))
    with Scripted(server) as s, engine(s) as e:
        sampling = {"top_k": 5, "repetition_penalty": 1.2, "json_schema": SCHEMA}
        assert len(results(e, requests(3, TWO, **sampling))) == 3
        body = s.posts[-1].body
        before = s.num_posts
        assert len(results(e, requests(3, TWO, **sampling))) == 3
        assert s.num_posts == before + 1
    assert (body["top_k"], body["repetition_penalty"]) == (5, 1.2)
    assert body["response_format"]["json_schema"]["schema"] == json.loads(SCHEMA)


def test_a_server_that_is_always_greedy_is_refused_for_sampling_only():
    class Greedy(Server):
        def text(self, body, i):
            return "the same"

    with Scripted(Greedy()) as s, engine(s) as e:
        assert not e.capabilities().seeded
        assert len(results(e, requests(2, TWO, temperature=0))) == 2
        with pytest.raises(CapabilityError, match="cannot sample"):
            results(e, requests(2, TWO))


def test_stop_tokens_go_as_texts_where_ids_are_not_heeded():
    with Scripted(Server()) as s, engine(s, token_texts={9: EOT, 8: "<|end|>"}) as e:
        results(e, requests(1, TWO, stop_token_ids=(9, 8), stop=("\n", "a", "b")))
        assert s.posts[-1].body["stop"] == [EOT, "<|end|>", "\n", "a"]


# Samples that share a request


def bodies(server, before):
    return [(p.body.get("seed"), p.body.get("n", 1)) for p in server.posts[before:]]


def test_samples_whose_seeds_count_up_share_a_request_and_keep_their_places():
    with Scripted(Server()) as s, engine(s, max_n=10) as e:
        before = s.num_posts
        got = results(e, requests(25, TWO, first=100))
        assert bodies(s, before) == [(100, 10), (110, 10), (120, 5)]
    assert got == {i: (f"seed {i}", "stop") for i in range(100, 125)}


def different(what):
    a, b = requests(2, TWO)
    if what == "prompt":
        b = Request(b.key, Prompt("two words", [5, 6]), b.sampling)
    elif what == "sampling":
        b = Request(b.key, b.prompt, SamplingParams(max_tokens=13, seed=1))
    elif what == "seed":
        b = Request(b.key, b.prompt, b.sampling.with_seed(2))
    elif what == "greedy":
        return requests(2, TWO, temperature=0)
    elif what == "no seed":
        b = Request(b.key, b.prompt, b.sampling.with_seed(None))
    return [a, b]


@pytest.mark.parametrize("what", ["prompt", "sampling", "seed", "greedy", "no seed"])
def test_other_samples_do_not(what):
    with Scripted(Server()) as s, engine(s) as e:
        before = s.num_posts
        assert len(results(e, different(what))) == 2
        assert [n for _, n in bodies(s, before)] == [1, 1]


def test_a_pause_in_the_stream_ends_a_group():
    def source():
        yield from requests(2, TWO)
        yield None
        yield from requests(2, TWO, first=2)

    with Scripted(Server()) as s, engine(s) as e:
        before = s.num_posts
        assert len(results(e, source())) == 4
        assert bodies(s, before) == [(0, 2), (2, 2)]


def test_tokens_of_a_shared_request_add_up():
    with Scripted(Server()) as s, engine(s) as e:
        got = sorted(e.generate(requests(5, TWO)), key=lambda g: g.key)
    assert [g.completion_tokens for g in got] == [4, 3, 3, 3, 3]
    assert [g.prompt_tokens for g in got] == [2, 0, 0, 0, 0]
    assert e.stats.requests == 1


def test_a_failed_group_fails_all_its_samples():
    class TooLong(Server):
        def complete(self, body):
            if body["max_tokens"] == 12:
                return 400, {"error": {"message": "This model's maximum context length is 8 tokens."}}
            return super().complete(body)

    with Scripted(TooLong()) as s, engine(s) as e:
        got = list(e.generate(requests(5, TWO)))
    assert {(g.failure.code, g.failure.transient) for g in got} == {("too_long", False)}
    assert sorted(g.key for g in got) == list(range(5))


# Ends of texts

REASONS = {
    "a stop token": ({"finish_reason": "stop", "stop_reason": 9}, "stop"),
    "the end of sequence": ({"finish_reason": "stop", "stop_reason": None}, "stop"),
    "a stop text": ({"finish_reason": "stop", "stop_reason": "\n"}, "stop_text"),
    "the text of a stop token": ({"finish_reason": "stop", "stop_reason": EOT}, "stop"),
    "SGLang's stop token": ({"finish_reason": "stop", "matched_stop": 9}, "stop"),
    "SGLang's stop text": ({"finish_reason": "stop", "matched_stop": "\n"}, "stop_text"),
    "a server that does not say": ({"finish_reason": "stop"}, "stop_text"),
    "length": ({"finish_reason": "length", "stop_reason": None}, "length"),
    "TGI": ({"finish_reason": "eos_token", "stop_reason": None}, "stop"),
}


@pytest.mark.parametrize(("choice", "expected"), REASONS.values(), ids=REASONS)
def test_the_reason_of_an_end_is_told_apart(choice, expected):
    with Scripted(Server(choice=choice)) as s, engine(s, token_texts={9: EOT}) as e:
        ((_, reason),) = results(e, requests(1, TWO, stop=("\n",), stop_token_ids=(9,))).values()
    assert reason == expected


def test_without_stop_texts_an_end_is_the_turns_end():
    with Scripted(Server()) as s, engine(s) as e:
        assert results(e, requests(1, TWO)) == {0: ("seed 0", "stop")}


@pytest.mark.parametrize("left", [f"a{EOT}", f"a{EOT} and on", "a\nb"])
def test_a_stop_that_was_left_in_the_text_is_cut(left):
    with Scripted(Server(choice={"text": left})) as s, engine(s, token_texts={9: EOT}) as e:
        e._features = e._features.__class__(token_ids=True)
        ((text, reason),) = results(e, requests(1, TWO, stop=("\n",), stop_token_ids=(9,), temperature=0)).values()
    assert (text, reason) == ("a", "stop" if EOT in left else "stop_text")


def test_an_aborted_choice_is_asked_for_again():
    class Aborting(Server):
        def complete(self, body):
            answer = super().complete(body)
            if body.get("seed") == 0 and self.calls % 2:
                answer["choices"][0]["finish_reason"] = "abort"
            return answer

    with Scripted(Aborting()) as s, engine(s) as e:
        assert results(e, requests(1, TWO)) == {0: ("seed 0", "stop")}


# Prompts as text


def test_the_bos_is_left_out_where_the_server_adds_one():
    class AddsBos(Server):
        def complete(self, body):
            answer = super().complete(body)
            answer["usage"]["prompt_tokens"] += 1
            return answer

    prompt = Prompt(f"{BOS} two words", [0, 5, 6], bos=f"{BOS} ")
    with Scripted(AddsBos(ids=False)) as s, engine(s) as e:
        e.check_prompt(prompt)
        results(e, requests(1, prompt))
        assert s.posts[-1].body["prompt"] == "two words"
        with pytest.raises(PromptMismatchError) as caught:
            e.check_prompt(Prompt("two words", [5]))
    assert caught.value.data == {"server_tokens": 3, "our_tokens": 1}


def test_a_server_that_counts_nothing_is_an_error():
    class Silent(Server):
        def complete(self, body):
            return super().complete(body) | {"usage": None}

    with (
        Scripted(Silent(ids=False)) as s,
        engine(s) as e,
        pytest.raises(CapabilityError, match="does not report the number"),
    ):
        e.check_prompt(TWO)


def test_keys_are_sent_where_they_belong_only(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Scripted(Server()) as s:
        with engine(s) as e:
            results(e, requests(3, TWO))
        assert not any("Authorization" in a.headers for a in s.log)
        with engine(s, api_key_env="OPENAI_API_KEY") as e:
            results(e, requests(3, TWO))
        assert s.log[-1].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("address", ["/v1", "/v1/", "/v1/completions", ""])
def test_addresses_may_end_in_the_paths_that_are_added(address):
    with Scripted(Server()) as s:
        e = OpenAIEngine("org/model", endpoints=[s.url + address])
    assert e.addresses == [s.url]


def test_max_n_below_one_is_refused():
    with pytest.raises(ArgumentError, match="max_n"):
        OpenAIEngine("org/model", endpoints=["http://h:1"], max_n=0)


# Real generation: a server in vLLM's manner, and `transformers serve`


@pytest.fixture(scope="module")
def generator(tiny_model_dir):
    from tests.servers.generation import Generator

    generator = Generator(tiny_model_dir)
    yield generator
    generator.close()


@pytest.fixture
def start(tiny_model_dir, generator):
    from tests.servers.completions_server import CompletionsServer

    return lambda **settings: CompletionsServer(
        tiny_model_dir, generator=generator, **({"model_id": "tiny"} | settings)
    )


def tiny(directory, server, **settings):
    quick = {"backoff_s": (0.001, 0.02), "concurrency": 16, "token_texts": {4: EOT}}
    return OpenAIEngine(str(directory), endpoints=[server.url], **(quick | settings))


@pytest.fixture(scope="module")
def prompt(generator):
    text = f"{BOS}<|start_header_id|>user<|end_header_id|>\n\n"
    return Prompt(text, generator.encode(text, add_special_tokens=False), bos=BOS)


def test_ids_or_text_and_alone_or_together_give_the_same_samples(start, tiny_model_dir, prompt):
    found = []
    for settings, max_n in (({}, 8), ({}, 7), ({}, 1), ({"string_only": True}, 1)):
        with start(**settings) as server, tiny(tiny_model_dir, server, max_n=max_n) as e:
            e.check_prompt(prompt)
            assert e.capabilities().seeded
            found.append(results(e, requests(40, prompt, stop_token_ids=(4,))))
    assert all(f == found[0] for f in found)
    assert len(set(found[0].values())) == 40


def test_stop_token_ids_are_proved_and_end_a_text(start, tiny_model_dir, prompt, generator):
    with start() as server, tiny(tiny_model_dir, server) as e:
        free = {g.key: g for g in e.generate(requests(8, prompt))}
        stop = free[0].token_ids[3]
        ended = {g.key: g for g in e.generate(requests(8, prompt, stop_token_ids=(stop,)))}
    kept = list(free[0].token_ids[:3])
    assert (ended[0].finish_reason, list(ended[0].token_ids)) == ("stop", kept)
    assert ended[0].completion_tokens == 4
    assert ended[0].text == generator.decode(kept, skip_special_tokens=False)


def test_top_k_and_repetition_penalty_are_proved_on_a_real_model(start, tiny_model_dir, prompt):
    with start() as server, tiny(tiny_model_dir, server) as e:
        assert len(set(results(e, requests(6, prompt, top_k=1)).values())) == 1
        assert len(results(e, requests(2, prompt, repetition_penalty=1.3))) == 2


@pytest.mark.parametrize("kind", ["overloaded", "status", "reset", "cut", "truncate", "garbage"])
def test_faults_of_the_server_change_no_text(start, tiny_model_dir, prompt, kind):
    from tests.servers.faults import Fault

    with start() as server, tiny(tiny_model_dir, server, max_n=4) as e:
        healthy = results(e, requests(32, prompt))
        server.configure(faults=[Fault(kind, every=3)])
        assert results(e, requests(32, prompt)) == healthy
    assert e.stats.retries > 0


def test_a_real_chat_only_server_is_refused(start, tiny_model_dir):
    with start(chat_only=True) as server, pytest.raises(CapabilityError, match="only supports chat completions"):
        tiny(tiny_model_dir, server).open()


@pytest.mark.slow
def test_transformers_serve_is_asked_in_its_own_way(tiny_model_dir, prompt):
    from tests.servers.transformers_serve import TransformersServe, is_available

    if not is_available():
        pytest.skip("this transformers cannot serve completions")
    with TransformersServe(tiny_model_dir) as server, tiny(tiny_model_dir, server) as e:
        found = e.capabilities()
        assert (found.token_ids, found.max_n, found.seeded, found.json_schema) == (False, 1, False, False)
        e.check_prompt(prompt)
        sampled = list(e.generate(requests(6, prompt, stop_token_ids=(4,), top_k=50, repetition_penalty=1.1)))
        assert {g.prompt_tokens for g in sampled} == {len(prompt.token_ids)}
        assert len({g.text for g in sampled}) == 6
        assert len(set(results(e, requests(3, prompt, temperature=0)).values())) == 1
