"""The tests' own server answers as the real ones did: see `recordings/`, made by `python -m tests.servers.record`."""

from __future__ import annotations

import json

import pytest

from .completions_server import CompletionsServer
from .dialects import DIALECTS
from .record import NAME, RECORDINGS, ask


EXCHANGES = {name: json.loads((RECORDINGS / f"{name}.json").read_text("utf-8")) for name in DIALECTS}
SAME_TEXT = {
    "greedy",
    "token ids",
    "extra fields",
    "a stop text",
    "to the end",
    "response_format, a choice",
    "json_schema",
}
# The real `transformers serve` generates beyond the context, which the tests' generation cannot.
LEFT_OUT = {("transformers", "too long")}
CHAT_EXCHANGES = {name: json.loads((RECORDINGS / f"{name}.chat.json").read_text("utf-8")) for name in DIALECTS}
SAME_CHAT_TEXT = {
    "greedy",
    "max_completion_tokens",
    "a system message",
    "a conversation",
    "extra fields",
    "to the end",
}
CHAT_CASES = [
    pytest.param(name, exchange, id=f"{name}, chat: {exchange['name']}")
    for name, exchanges in CHAT_EXCHANGES.items()
    for exchange in exchanges
    if (name, exchange["name"]) not in LEFT_OUT
]
CASES = [
    pytest.param(name, exchange, id=f"{name}: {exchange['name']}")
    for name, exchanges in EXCHANGES.items()
    for exchange in exchanges
    if "request" in exchange and (name, exchange["name"]) not in LEFT_OUT
]  # fmt: skip


@pytest.fixture(scope="module")
def servers(demo_model_dir, demo_generator):
    running = {
        name: CompletionsServer(demo_model_dir, generator=demo_generator, model_id=NAME, dialect=name)
        for name in DIALECTS
    }
    for server in running.values():
        server.start()
    yield running
    for server in running.values():
        server.stop()


def form(value):
    """Return a value's keys and types."""
    if isinstance(value, dict):
        return {key: form(item) for key, item in value.items()}
    if isinstance(value, list):
        return [form(item) for item in value]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


@pytest.mark.parametrize(("name", "exchange"), CASES)
def test_a_reply_has_the_keys_and_types_of_the_real_one(servers, name, exchange):
    status, reply = ask(servers[name].url, "/v1/completions", exchange["request"])
    assert (status, form(reply)) == (exchange["status"], form(exchange["reply"]))
    if exchange["name"] in SAME_TEXT and status == 200:
        assert [c["text"] for c in reply["choices"]] == [c["text"] for c in exchange["reply"]["choices"]]
        if not reply["choices"][0]["text"].startswith(
            '"'
        ):  # how a schema's text is cut into tokens is up to the server
            assert reply["usage"]["completion_tokens"] == exchange["reply"]["usage"]["completion_tokens"]


@pytest.mark.parametrize(("name", "exchange"), CHAT_CASES)
def test_a_chat_reply_has_the_keys_and_types_of_the_real_one(servers, name, exchange):
    status, reply = ask(servers[name].url, "/v1/chat/completions", exchange["request"])
    assert (status, form(reply)) == (exchange["status"], form(exchange["reply"]))
    if exchange["name"] in SAME_CHAT_TEXT and status == 200:
        assert reply["choices"][0]["message"] == exchange["reply"]["choices"][0]["message"]
        assert reply["usage"]["prompt_tokens"] == exchange["reply"]["usage"]["prompt_tokens"]


@pytest.mark.parametrize("name", DIALECTS)
def test_models_are_listed_as_the_real_server_lists_them(servers, name):
    recorded = EXCHANGES[name][0]["reply"]
    status, reply = ask(servers[name].url, "/v1/models")
    assert (status, form(reply)) == (200, form(recorded))
    said = [(m["owned_by"], m["id"]) for m in reply["data"]]
    assert said == [(m["owned_by"], m["id"]) for m in recorded["data"]]


@pytest.mark.parametrize("name", [*DIALECTS, *(f"{name}.chat" for name in DIALECTS)])
def test_recordings_name_no_machine(name):
    text = (RECORDINGS / f"{name}.json").read_text("utf-8")
    assert not [word for word in ("/tmp", "/home", "/root", "/work", "127.0.0.1", "localhost") if word in text]
