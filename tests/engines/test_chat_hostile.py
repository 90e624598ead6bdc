"""Chat replies that no honest server sends: each ends as a text or a named failure of its row, or a named error."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given

from magpie_hf.engines.base import Request
from magpie_hf.engines.remote.chat import ChatEngine
from magpie_hf.errors import MagpieError
from magpie_hf.messages import user
from magpie_hf.sampling import SamplingParams
from magpie_hf.templates.chat_server import ChatServerTemplate

from .scripted import Scripted
from .test_hostile_replies import ANYTHING, BODIES, LOOSE, NAMES, QUICK, changed, check, hostile, places, put


PROMPT = ChatServerTemplate("org/model").response([user("Hello")])
MODELS = {"data": [{"id": "org/model", "root": "org/model", "max_model_len": 99}]}
REPLY = {
    "model": "org/model",
    "system_fingerprint": "fp",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "x",
                "reasoning": "y",
                "reasoning_content": "z",
                "refusal": None,
            },
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ],
    "usage": {"prompt_tokens": 2, "completion_tokens": 2},
}
PERMANENT = {"no_text", "content_filter", "refusal"}


def asked(engine):
    """Return how each of two requests ended."""
    ended = []
    for generation in engine.generate(Request(i, PROMPT, SamplingParams(max_tokens=8, seed=i)) for i in range(2)):
        if generation.failure is not None and generation.failure.code in PERMANENT:
            assert not generation.failure.transient
            ended.append(generation.failure.code)
            continue
        if generation.reasoning is not None:
            generation.reasoning.encode()
        ended.append(check(generation))
    return ended


@pytest.fixture(scope="module")
def says():
    """An open engine whose server replies to chat requests with what is put into the list."""
    replies = [REPLY]

    def script(arrived, number):
        return MODELS if arrived.method == "GET" else replies[0]

    with Scripted(script) as server, ChatEngine("org/model", endpoints=[server.url], **QUICK) as engine:
        yield engine, replies


@LOOSE
@given(changes=hostile(REPLY))
def test_a_chat_reply_with_any_part_replaced_is_a_text_or_a_named_failure(says, changes):
    engine, replies = says
    replies[0] = changed(REPLY, changes)
    assert len(asked(engine)) == 2


@pytest.mark.parametrize("status", [200, 400, 422, 500])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_cannot_be_read_is_a_named_failure(says, body, status):
    engine, replies = says
    replies[0] = (status, body)
    assert {*asked(engine)} <= ({"validation"} if status in (400, 422) else {"bad_reply", "server_error"})


@LOOSE
@given(
    changes=hostile({"error": {"message": "too high", "param": "temperature", "code": "content_filter", "type": "x"}})
)
def test_an_error_with_any_part_replaced_is_a_named_failure_or_a_named_error(says, changes):
    said = changed({"error": {"message": "bad", "param": "top_p", "code": "content_filter", "type": "x"}}, changes)

    def script(arrived, number):
        is_probe = arrived.method == "POST" and "random words" in arrived.body["messages"][0]["content"]
        return MODELS if arrived.method == "GET" else REPLY if is_probe else (400, said)

    with (
        Scripted(script) as server,
        ChatEngine("org/model", endpoints=[server.url], **QUICK) as engine,
        contextlib.suppress(MagpieError),
    ):
        assert {*asked(engine)} <= NAMES | PERMANENT


@pytest.mark.parametrize("value", ANYTHING.values(), ids=ANYTHING)
def test_whatever_a_server_says_of_itself_opens_or_is_a_named_error(value):
    for good, is_list in ((MODELS, True), (REPLY, False)):
        for path in places(good):
            said = put(good, path, value)

            def script(arrived, number, said=said, is_list=is_list):
                return said if (arrived.method == "GET") == is_list else REPLY if is_list else MODELS

            with (
                Scripted(script) as server,
                contextlib.suppress(MagpieError),
                ChatEngine("org/model", endpoints=[server.url], **QUICK) as engine,
            ):
                asked(engine)
