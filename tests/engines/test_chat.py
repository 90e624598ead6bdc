"""The engine for chat APIs, on scripted servers that accept and refuse what vLLM and hosted APIs do."""

from __future__ import annotations

import json

import pytest

from magpie_hf.engines.base import Prompt, Request
from magpie_hf.engines.remote.chat import ChatEngine
from magpie_hf.errors import ArgumentError, CapabilityError, EngineError, ModelMismatchError, TemplateError
from magpie_hf.messages import user
from magpie_hf.models import ModelRef, named_model
from magpie_hf.sampling import SamplingParams
from magpie_hf.templates.chat_server import ChatServerTemplate

from .scripted import RESET, Scripted


KEY = "sk-not-a-real-key-0123456789"
SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})
OPENAI = ("model", "messages", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "response_format")
ANYTHING = None


class Api:
    """A script for a chat API.

    `takes`: the fields that it accepts (None: all; unknown ones are ignored); others get a 400 with `param`. `answer`:
    returns the parts of a reply's choice, or a whole (status, body), for all requests except probes.
    """

    def __init__(self, takes=ANYTHING, answer=None, models=("org/model",), schema=True, seeded=True, **whole):
        self.takes, self.answer, self.schema, self.seeded, self.whole = takes, answer, schema, seeded, whole
        self.models, self.calls = models, 0

    def __call__(self, arrived, number):
        if arrived.path.endswith("/models"):
            if self.models is None:
                return 404, {"error": {"message": "not found"}}
            return {"object": "list", "data": [{"id": name} for name in self.models]}
        body = arrived.body
        unknown = [] if self.takes is None else [name for name in body if name not in self.takes]
        if unknown:
            said = f"Unsupported parameter: '{unknown[0]}' is not supported with this model."
            return 400, {"error": {"message": said, "param": unknown[0], "code": "unsupported_parameter"}}
        self.calls += 1
        made = self.answer(body) if self.answer and "random words" not in body["messages"][-1]["content"] else None
        if isinstance(made, tuple):
            return made
        choice = {"index": 0, "message": {"role": "assistant", "content": self.text(body)}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        return {"model": "model-2026-01-01", "choices": [choice | (made or {})], "usage": usage} | self.whole

    def text(self, body):
        if self.schema and "response_format" in body:
            return '{"answer": "yes"}'
        return f"seed {body['seed']}" if self.seeded and body.get("seed") is not None else f"call {self.calls}"


def engine(*servers, **settings):
    quick = {
        "backoff_s": (0.001, 0.02),
        "startup_timeout_s": 5.0,
        "ref": ModelRef("org/model", "org/model", None, None),
    }
    return ChatEngine("org/model", endpoints=[s.url for s in servers], **(quick | settings))


def request(key=0, text="Hello", **sampling):
    prompt = ChatServerTemplate("org/model").response([user(text)])
    return Request(key, prompt, SamplingParams(**({"max_tokens": 20} | sampling)))


def one(engine, *requests):
    (generation,) = engine.generate(requests or [request()])
    return generation


def sent(server):
    """Return the bodies of all requests except probes."""
    return [a.body for a in server.posts if "random words" not in a.body["messages"][-1]["content"]]


# What a server accepts


@pytest.mark.parametrize(
    ("api", "expected"),
    [
        (Api(), {"seeded": True, "json_schema": True}),
        (Api(takes=OPENAI), {"seeded": True, "json_schema": True}),
        (Api(seeded=False), {"seeded": False}),
        (Api(schema=False), {"json_schema": False}),
        (Api(takes=("model", "messages", "max_tokens")), {"seeded": False, "json_schema": False}),
    ],
    ids=["all", "OpenAI", "seeds ignored", "schemas ignored", "the least"],
)
def test_what_a_chat_api_accepts_is_detected_at_the_start(api, expected):
    with Scripted(api) as s, engine(s) as e:
        found = e.capabilities()
        assert {name: getattr(found, name) for name in expected} == expected
        assert (found.first_token_ban, found.first_token_scale, found.max_n) == (False, False, 1)
        assert one(e).text


def test_an_api_that_accepts_everything_is_asked_eight_small_questions():
    with Scripted(Api()) as s, engine(s):
        assert s.num_posts == 8
        assert all(post.body["max_tokens"] <= 64 for post in s.posts)


def test_a_request_has_the_conversation_and_the_fields_that_the_server_accepts():
    with Scripted(Api()) as s, engine(s, extra_body={"reasoning_effort": "low"}) as e:
        one(e, request(temperature=0.5, top_p=0.9, seed=3, stop=tuple("abcdef")))
        assert sent(s) == [
            {
                "model": "org/model",
                "messages": [user("Hello")],
                "reasoning_effort": "low",
                "max_tokens": 20,
                "temperature": 0.5,
                "top_p": 0.9,
                "seed": 3,
                "stop": ["a", "b", "c", "d"],
                "top_k": -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
            }
        ]


def test_the_other_name_of_the_token_limit_is_used_if_the_first_is_refused():
    with Scripted(Api(takes=OPENAI)) as s, engine(s) as e:
        one(e)
        assert sent(s)[0]["max_completion_tokens"] == 20
        assert not {"max_tokens", "top_k", "min_p", "repetition_penalty"} & sent(s)[0].keys()


REASONING_MODEL = ("model", "messages", "max_completion_tokens", "seed", "response_format")


def test_a_refused_temperature_is_left_out_at_its_default_and_otherwise_an_error_that_says_what_to_do():
    with Scripted(Api(takes=REASONING_MODEL)) as s:
        with engine(s) as e:
            assert one(e, request(temperature=1.0, top_p=1.0)).failure is None
            with pytest.raises(CapabilityError, match=r"apply temperature = 0: it refuses") as caught:
                one(e, request(temperature=0))
            assert "omit: [temperature]" in caught.value.hint
        with engine(s, omit=("temperature", "top_p")) as e:
            assert one(e, request(temperature=0, top_p=0.5)).failure is None
            assert not {"temperature", "top_p"} & sent(s)[-1].keys()


def test_what_is_left_out_and_added_is_part_of_the_identity_and_addresses_are_not():
    def identity(url="http://localhost:1", **settings):
        return ChatEngine("org/model", endpoints=[url], ref=named_model("org/model"), **settings).identity()

    same = identity("https://elsewhere/v1", served_model_name="org/model:provider", api_path="/v2", concurrency=3)
    assert same == identity()
    assert identity(omit=("temperature",)) != identity()
    assert identity(extra_body={"reasoning_effort": "low"}) != identity()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"omit": ("max_tokens",)}, "omit = 'max_tokens' is invalid"),
        ({"extra_body": {"stream": True}}, "extra_body contains 'stream'"),
        ({"extra_body": {"a": {1, 2}}}, "not JSON"),
        ({"extra_body": {"api_key": KEY}}, r"(?s)extra_body contains 'api_key', .*published.*api_key_env"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        ChatEngine("org/model", endpoints=["http://localhost:1"], **settings)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"banned_first_token_ids": (1,)}, "A chat API cannot ban first tokens"),
        ({"first_token_scale": 1.2}, "A chat API cannot sample the first token at a temperature of its own"),
        ({"stop_token_ids": (1,)}, "cannot stop at token ids"),
        ({"top_k": 5}, "cannot apply top_k = 5: it ignores the field"),
        ({"repetition_penalty": 1.2}, r"cannot apply repetition_penalty = 1.2: it ignores"),
    ],
)
def test_what_a_chat_api_cannot_do_is_an_error(sampling, message):
    def always(body):
        return {"message": {"content": "one"}}

    with Scripted(Api(answer=always)) as s, engine(s) as e, pytest.raises(CapabilityError, match=message):
        one(e, request(temperature=1.0, **sampling))


def test_a_raw_prompt_is_refused():
    raw = Request(0, Prompt("<|user|>", [1]), SamplingParams())
    with Scripted(Api()) as s, engine(s) as e, pytest.raises(CapabilityError, match="requires messages"):
        one(e, raw)


def test_a_field_of_extra_body_that_the_model_refuses_is_named_in_the_error():
    with Scripted(Api(takes=OPENAI)) as s, pytest.raises(CapabilityError, match="'reasoning_effort' is not supported"):
        engine(s, extra_body={"reasoning_effort": "low"}).open()


# Replies


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "Four.", "reasoning_content": "2+2"}, "Four.", "2+2"),
        ({"content": "Four.", "reasoning": "2+2"}, "Four.", "2+2"),
        ({"content": "Four.", "reasoning": {"odd": 1}}, "Four.", None),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "2+2"}]}, {"type": "text", "text": "Four."}]}, "Four.", "2+2"),
        ({"content": None, "reasoning": "2+2"}, "", "2+2"),
    ],
    ids=["reasoning_content", "reasoning", "of another type", "parts", "reasoning only"],
)  # fmt: skip
def test_reasoning_is_separate_from_the_text(message, text, reasoning):
    with Scripted(Api(answer=lambda body: {"message": message})) as s, engine(s) as e:
        generation = one(e)
        assert (generation.text, generation.reasoning, generation.failure) == (text, reasoning, None)
        answer = ChatServerTemplate("m").read_answer(generation)
        assert (answer.text, answer.reasoning) == (text, reasoning)


@pytest.mark.parametrize("text", ["<think>2+2</think>\n\nFour.", "2+2</think>Four."])
def test_reasoning_inside_of_the_text_is_split_off_by_its_tags(text):
    assert ChatServerTemplate("m").split_reasoning(text) == ("2+2", "Four.")
    assert ChatServerTemplate("m").split_reasoning("Four. <think>") == (None, "Four. <think>")


FLAGGED = {"error": {"code": 403, "message": "flagged", "metadata": {"reasons": ["harm"], "flagged_input": "How …"}}}


@pytest.mark.parametrize(
    ("choice", "code"),
    [
        ({"finish_reason": "content_filter", "message": {"content": None}}, "content_filter"),
        ({"finish_reason": "content_filter", "message": {"content": "Half a"}}, "content_filter"),
        ({"finish_reason": "SAFETY", "message": {}}, "content_filter"),
        ({"finish_reason": "stop", "message": {"content": None, "refusal": "I can't."}}, "refusal"),
        (
            (400, {"error": {"message": "filtered: the prompt", "code": "content_filter", "param": "prompt"}}),
            "content_filter",
        ),
        ({"finish_reason": "content_filter: PROHIBITED_CONTENT", "message": {}}, "content_filter"),
        ((403, FLAGGED), "content_filter"),
        ((200, FLAGGED), "content_filter"),
    ],
    ids=["null", "cut", "Gemini", "refusal", "the prompt", "with its kind", "OpenRouter", "OpenRouter, status 200"],
)
def test_withheld_texts_and_refusals_are_permanent_and_not_sent_again(choice, code):
    with Scripted(Api(answer=lambda body: choice)) as s, engine(s) as e:
        generation = one(e)
        assert (generation.failure.code, generation.failure.transient) == (code, False)
        assert len(sent(s)) == 1
        if isinstance(choice, dict):
            assert (generation.prompt_tokens, generation.completion_tokens) == (7, 3)


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": None}},
        {"finish_reason": "tool_calls", "message": {"content": None, "tool_calls": [{}]}},
    ],
    ids=["null", "a tool call"],
)
def test_a_reply_without_text_is_sampled_again_twice_and_then_ends_the_row(choice):
    with Scripted(Api(answer=lambda body: choice)) as s, engine(s) as e:
        generation = one(e)
        assert (generation.failure.code, generation.failure.transient) == ("no_text", False)
        assert len(sent(s)) == 3
        assert (generation.prompt_tokens, generation.completion_tokens) == (21, 9)


def test_the_tokens_of_replies_without_a_text_count():
    replies = iter([{"message": {"content": None}}, {"finish_reason": "odd"}])
    with Scripted(Api(answer=lambda body: next(replies, None))) as s, engine(s) as e:
        generation = one(e)
        assert generation.text
        assert (generation.prompt_tokens, generation.completion_tokens) == (21, 9)


@pytest.mark.parametrize("reason", ["length", "MAX_TOKENS", "model_length"], ids=["OpenAI", "Gemini", "Mistral"])
def test_a_null_content_at_the_token_limit_is_an_empty_text(reason):
    cut = {"message": {"content": None}, "finish_reason": reason}
    with Scripted(Api(answer=lambda body: cut)) as s, engine(s) as e:
        assert (one(e).text, one(e).finish_reason) == ("", "length")


def test_texts_are_cut_at_stops_beyond_the_fourth():
    with Scripted(Api(answer=lambda body: {"message": {"content": "one two f three"}})) as s, engine(s) as e:
        generation = one(e, request(stop=("q", "x", "y", "z", "f")))
        assert (generation.text, generation.finish_reason) == ("one two ", "stop_text")


@pytest.mark.parametrize(
    ("said", "stop", "reason"),
    [({}, (), "stop"), ({}, ("x",), "stop_text"), ({"stop_reason": None}, ("x",), "stop"), ({"stop_reason": "x"}, ("x",), "stop_text"), ({"stop_reason": 7}, ("x",), "stop")],
)  # fmt: skip
def test_the_finish_reason_is_that_of_the_server_if_it_reports_one(said, stop, reason):
    with Scripted(Api(answer=lambda body: said)) as s, engine(s) as e:
        assert one(e, request(stop=stop)).finish_reason == reason


def test_each_generation_records_model_and_fingerprint_of_its_reply():
    with Scripted(Api(system_fingerprint="fp_1")) as s, engine(s) as e:
        served = one(e).served
        assert (served.model, served.fingerprint) == ("model-2026-01-01", "fp_1")


@pytest.mark.parametrize(
    "broken",
    [{"message": "text"}, {"message": {"content": 5}}, {"finish_reason": ["stop"]}, {"finish_reason": None}],
)
def test_malformed_replies_are_transient(broken):
    with Scripted(Api(answer=lambda body: broken)) as s, engine(s, max_retries=1) as e:
        failure = one(e).failure
        assert failure is not None
        assert failure.transient or failure.code == "no_text"


# Refusals of a request


def test_a_schema_that_the_server_refuses_is_given_up_for_all_requests():
    def answer(body):
        if "response_format" in body:
            return 400, {
                "error": {"message": "Invalid schema for response_format 'answer'", "param": "response_format"}
            }
        return {"message": {"content": "free"}}

    with Scripted(Api(answer=answer)) as s, engine(s) as e:
        made = list(e.generate(request(i, json_schema=SCHEMA) for i in range(6)))
        assert [g.text for g in made] == ["free"] * 6
        assert "response_format" not in sent(s)[-1]


def test_a_limit_that_does_not_fit_the_context_is_left_out():
    def answer(body):
        if "max_tokens" in body:
            said = "This model's maximum context length is 99 tokens. However, you requested 90 output tokens"
            return 400, {"error": {"message": said, "param": "max_tokens"}}
        return {"message": {"content": "fits"}}

    with Scripted(Api(answer=answer)) as s, engine(s) as e:
        assert one(e, request(max_tokens=90)).text == "fits"
        assert len(sent(s)) == 2


@pytest.mark.parametrize(
    "error",
    [
        {"message": "max_tokens is too large: 8192. This model supports at most 4096 tokens.", "param": "max_tokens"},
        {"message": "Invalid max_tokens value, the valid range of max_tokens is [1, 4096]"},
    ],
    ids=["OpenAI", "DeepSeek"],
)
def test_a_limit_above_that_of_the_model_is_left_out_and_the_run_continues(error):
    with (
        Scripted(Api(answer=lambda body: (400, {"error": error}) if body.get("max_tokens", 0) > 4096 else None)) as s,
        engine(s) as e,
    ):
        assert one(e, request(max_tokens=8192)).text
        assert [body.get("max_tokens") for body in sent(s)] == [8192, None]


def test_a_prompt_that_is_too_long_ends_its_row():
    said = {"error": {"message": "maximum context length is 99 tokens", "param": "input_tokens"}}
    with Scripted(Api(answer=lambda body: (400, said))) as s, engine(s) as e:
        assert one(e).failure[:2] == ("too_long", False)
        assert len(sent(s)) == 2


def test_a_refused_sampling_value_ends_the_run_and_no_row():
    said = {"error": {"message": "temperature must be in [0, 2], got 9.0", "param": "temperature"}}
    refuses = pytest.raises(CapabilityError, match="cannot apply this temperature")
    with Scripted(Api(answer=lambda body: (400, said))) as s, engine(s) as e, refuses:
        one(e, request(temperature=9.0))


def test_an_account_without_quota_ends_the_run_at_once():
    said = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    with Scripted(Api(answer=lambda body: (429, said))) as s, engine(s) as e:
        with pytest.raises(EngineError, match="quota of the account is used up"):
            one(e)
        assert len(sent(s)) == 1


@pytest.mark.parametrize(
    "reply",
    [
        (429, {"error": {"type": "insufficient_quota"}}),
        (402, {"error": "no credits left"}),
        (200, {"error": {"code": 402, "message": "no credits left"}}),
    ],
)
def test_an_account_without_quota_is_named_at_the_start_and_later(reply):
    models = 200, {"data": [{"id": "org/model"}]}
    with Scripted(lambda arrived, n: models if arrived.path.endswith("/models") else reply) as s:
        with pytest.raises(EngineError, match=r"quota of the account is used up.\n.*credit"), engine(s):
            pass
        assert s.num_posts == 1
    with Scripted(Api(answer=lambda body: reply)) as s, engine(s) as e:
        with pytest.raises(EngineError, match="quota of the account is used up"):
            one(e)
        assert len(sent(s)) == 1


def test_an_error_with_status_200_is_sent_again_and_its_message_is_kept():
    replies = iter([(200, {"error": {"message": "Provider returned error", "code": 502}})])
    with Scripted(Api(answer=lambda body: next(replies, None))) as s, engine(s) as e:
        assert one(e).text
    said = 200, {"error": {"message": "Provider returned error", "code": 502}}
    with Scripted(Api(answer=lambda body: said)) as s, engine(s, max_retries=1) as e:
        assert one(e).failure == ("server_error", True, "Provider returned error")
        assert len(sent(s)) == 2


def test_an_overloaded_api_is_sent_the_request_again():
    replies = iter([(429, {"error": {"message": "Rate limit", "code": "rate_limit_exceeded"}}), (500, {})])
    with Scripted(Api(answer=lambda body: next(replies, {"message": {"content": "now"}}))) as s, engine(s) as e:
        assert one(e).text == "now"
        assert e.stats.retries == 2


# Prompts


def test_llama_guard_receives_the_conversation_and_other_guards_a_question():
    asked = [user("How are you?"), {"role": "assistant", "content": "Fine."}]
    own = ChatServerTemplate("meta-llama/Llama-Guard-3-8B").conversation(asked)
    assert own.messages == tuple(asked)
    (question,) = ChatServerTemplate("org/model").conversation(asked).messages
    assert all(text in question["content"] for text in ("How are you?", "Fine.", "S1"))


def test_a_system_prompt_replaces_the_system_message():
    template = ChatServerTemplate("org/model")
    given = [{"role": "system", "content": "Old."}, user("Hi")]
    assert template.response(given).messages == tuple(given)
    assert [m["content"] for m in template.response(given, "New.").messages] == ["New.", "Hi"]
    assert [m["content"] for m in template.response(given, "").messages] == ["Hi"]


def test_a_prefill_and_raw_prompts_are_refused_with_the_reason():
    template = ChatServerTemplate("org/model")
    with pytest.raises(TemplateError, match=r"cannot continue the beginning of a reply \(prefill\)"):
        template.response([user("Hi")], prefill="{")
    for raw in (template.pre_query, lambda: template.next_user([user("Hi")])):
        with pytest.raises(TemplateError, match="it cannot write the user's message"):
            raw()


# Models, addresses and keys


@pytest.mark.parametrize(
    ("models", "settings", "name"),
    [
        (("org/model",), {}, "org/model"),
        (("model",), {}, "model"),
        (("a", "b", "org/model"), {}, "org/model"),
        (("a", "b"), {}, "org/model"),
        (None, {}, "org/model"),
        (("a", "org/model"), {"served_model_name": "org/model:provider"}, "org/model:provider"),
    ],
    ids=["one", "short", "several", "not listed", "no list", "a provider"],
)
def test_the_name_of_the_model_is_that_of_the_servers_list(models, settings, name):
    with Scripted(Api(models=models)) as s, engine(s, **settings) as e:
        one(e)
        assert sent(s)[0]["model"] == name


def test_an_api_that_lists_its_models_for_nobody_is_sent_the_name():
    def script(arrived, number):
        return (401, {"error": {"message": "no"}}) if arrived.method == "GET" else Api()(arrived, number)

    with Scripted(script) as s, engine(s) as e:
        one(e)
        assert sent(s)[0]["model"] == "org/model"


@pytest.mark.parametrize("status", [401, 404])
def test_an_api_without_a_list_of_models_is_available_again_after_a_broken_connection(status):
    broken = iter([RESET])
    api = Api()

    def script(arrived, number):
        if arrived.method == "GET":
            return status, {"error": {"message": "no list"}}
        is_probe = "random words" in arrived.body["messages"][-1]["content"]
        return api(arrived, number) if is_probe else next(broken, None) or api(arrived, number)

    with Scripted(script) as s, engine(s, max_outage_s=2.0) as e:
        assert [g.failure for g in e.generate(request(i) for i in range(3))] == [None] * 3


def test_a_server_with_another_model_is_refused():
    with Scripted(Api(models=("other/llama",))) as s, pytest.raises(ModelMismatchError, match="has the model"):
        engine(s).open()
    unknown = {"error": {"message": "The model `org/model` does not exist", "code": "model_not_found"}}
    refuses = pytest.raises(ModelMismatchError, match="does not accept the model 'org/model'")
    with Scripted(lambda a, n: {"data": []} if a.method == "GET" else (404, unknown)) as s, refuses:
        engine(s).open()


def test_a_server_without_chat_is_refused():
    refuses = pytest.raises(CapabilityError, match=r"has no /v1/chat/completions \(404\)")
    with Scripted(lambda a, n: {"data": []} if a.method == "GET" else (404, {"detail": "Not Found"})) as s, refuses:
        engine(s).open()
    with Scripted(lambda a, n: b"<html>") as s, pytest.raises(CapabilityError, match="has no chat API"):
        engine(s).open()


@pytest.mark.parametrize(
    ("end", "api_path", "path"),
    [
        ("", "/v1", "/v1/chat/completions"),
        ("/v1/", "/v1", "/v1/chat/completions"),
        ("/v1/chat/completions", "/v1", "/v1/chat/completions"),
        ("/openai/v1", "/v1", "/openai/v1/chat/completions"),
        ("/v1beta/openai", "", "/v1beta/openai/chat/completions"),
        ("/api", "v3/", "/api/v3/chat/completions"),
    ],
)
def test_the_path_of_the_api(end, api_path, path):
    with Scripted(Api()) as s:
        with ChatEngine("org/model", endpoints=[s.url + end], ref=named_model("org/model"), api_path=api_path) as e:
            one(e)
        assert {post.path for post in s.posts} == {path}


def test_the_key_is_named_and_never_shown(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    said = {"error": {"message": f"Incorrect API key provided: {KEY}"}}
    with Scripted(Api()) as s, engine(s, api_key_env="SOME_KEY") as e:
        one(e)
        assert {a.headers["Authorization"] for a in s.log} == {f"Bearer {KEY}"}
        assert KEY not in str(e.identity()) + repr(e)
    with Scripted(lambda a, n: {"data": []} if a.method == "GET" else (401, said)) as s:
        with pytest.raises(EngineError, match=r"refuses access \(401\)") as caught:
            engine(s, api_key_env="SOME_KEY").open()
        assert KEY not in str(caught.value)


def test_the_name_hf_token_also_stands_for_a_saved_login(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: KEY)
    with Scripted(Api()) as s, engine(s, api_key_env="HF_TOKEN") as e:
        one(e)
        assert s.posts[-1].headers["Authorization"] == f"Bearer {KEY}"
