"""Replies that no honest server sends: each ends as a named failure of its row or a named error, and none hangs."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import socketserver
import threading
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magpie_hf.backoff import retry_after_s
from magpie_hf.engines.base import Capabilities, Generation, Prompt, Request
from magpie_hf.engines.remote import detect, exchange
from magpie_hf.engines.remote.openai import OpenAIEngine
from magpie_hf.engines.remote.openai_features import ServerFeatures
from magpie_hf.engines.remote.tgi import TgiEngine
from magpie_hf.engines.remote.untrusted import MAX_COUNT, checked, clean_text, load_json, name_or_none
from magpie_hf.errors import MagpieError, PromptMismatchError
from magpie_hf.messages import conversation
from magpie_hf.models import ModelRef
from magpie_hf.sampling import SamplingParams
from magpie_hf.scoring import reward_endpoint
from magpie_hf.scoring.reward_endpoint import EndpointScorer

from .scripted import Scripted, generated, tgi


REF = ModelRef("org/model", "org/model", None, None)
PROMPT = Prompt("<|user|>", [1, 2])
QUICK = {"ref": REF, "backoff_s": (0.001, 0.002), "startup_timeout_s": 0.3, "max_retries": 1, "max_outage_s": 0.2}
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
NESTED = b'{"error":' * 900 + b'"x"' + b"}" * 900
# Codes that a row can fail with; all but the first two leave it open.
NAMES = {"validation", "too_long", "bad_reply", "aborted", "server_error", "overloaded", "timeout", "connection"}


def requests(n=2):
    return [Request(i, PROMPT, SamplingParams(max_tokens=8, seed=i)) for i in range(n)]


def check(generation):
    """Whatever a server sent, a generation is a named failure or can be journaled."""
    if generation.failure is not None:
        assert generation.failure.code in NAMES
        assert len(generation.failure.message) <= 200
        assert generation.failure.message.isprintable()
        return generation.failure.code
    generation.text.encode()
    for count in (generation.prompt_tokens, generation.completion_tokens):
        assert count is None or (type(count) is int and 0 <= count <= MAX_COUNT)
    assert all(0 <= i < 2**31 for i in generation.token_ids or ())
    assert generation.seed is None or 0 <= generation.seed < 2**63
    for name in generation.served or ():
        assert name is None or (isinstance(name, str) and len(name) <= 200 and name.isprintable())
    return "text"


# Bodies

ANYTHING = {
    "null": None,
    "true": True,
    "minus one": -1,
    "huge": 10**30,
    "a count of 99,999,999,999,999": 99_999_999_999_999,
    "a fraction": 1.5,
    "beyond floats": float("inf"),
    "NaN": float("nan"),
    "a lone surrogate": "\ud800",
    "terminal codes": "\x1b[2J\x00",
    "a long text": "x" * 100_000,
    "digits of another script": "²",
    "an empty list": [],
    "an empty object": {},
    "a list of lists": [[[[]]]],
    "wrong ids": [1, -1, 2**40],
    "not ids": ["a", None, {}],
    "objects": [{"id": 10**30, "text": 7}],
}

COMPLETION = {
    "model": "org/model",
    "system_fingerprint": "fp",
    "choices": [{"index": 0, "text": "x", "finish_reason": "stop", "stop_reason": None, "token_ids": [5, 6]}],
    "usage": {"prompt_tokens": 2, "completion_tokens": 2},
}
GENERATED = generated("x", tokens=[(5, "x", False), (6, "y", True)], seed=3)


def places(value, path=()):
    """Every path into a JSON value, the root too."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


def put(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


def hostile(good):
    """Strategy: a good reply with one or two of its parts replaced."""
    part = st.sampled_from(list(ANYTHING.values()))
    return st.lists(st.tuples(st.sampled_from(sorted(places(good), key=str)), part), min_size=1, max_size=2)


def changed(good, changes):
    for path, new in sorted(changes, key=lambda change: -len(change[0])):
        with contextlib.suppress(KeyError, IndexError, TypeError):
            good = put(good, path, new)
    return good


@pytest.fixture(scope="module")
def tgi_says():
    """An open TGI engine whose server generates whatever is put into the list."""
    says = [GENERATED]
    with Scripted(tgi(lambda a, n: says[0])) as server, TgiEngine("org/model", endpoints=[server.url], **QUICK) as e:
        yield e, says


def completions(says):
    def script(arrived, number):
        if arrived.path == "/v1/models":
            return {"data": [{"id": "org/model"}]}
        return says[0] if arrived.body["prompt"] == [1, 2] else COMPLETION

    return script


@pytest.fixture(scope="module")
def openai_says():
    says = [COMPLETION]
    with Scripted(completions(says)) as server, OpenAIEngine("org/model", endpoints=[server.url], **QUICK) as e:
        e._features = ServerFeatures(token_ids=True)
        yield e, says


LOOSE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@LOOSE
@given(changes=hostile(GENERATED))
def test_a_tgi_reply_with_any_part_replaced_is_a_text_or_a_named_failure(tgi_says, changes):
    e, says = tgi_says
    says[0] = changed(GENERATED, changes)
    assert len([check(g) for g in e.generate(requests())]) == 2


@LOOSE
@given(changes=hostile(COMPLETION))
def test_a_completion_with_any_part_replaced_is_a_text_or_a_named_failure(openai_says, changes):
    e, says = openai_says
    says[0] = changed(COMPLETION, changes)
    assert len([check(g) for g in e.generate(requests())]) == 2


BODIES = {
    "nested without end": DEEP,
    "an error inside errors": NESTED,
    "a number of 5,000 digits": b'{"generated_text": ' + b"1" * 5000 + b"}",
    "invalid UTF-8": b'{"generated_text": "\xff\xfe"}',
    "nothing": b"",
    "only a bracket": b"[",
    "NaN": b"NaN",
}


@pytest.mark.parametrize("status", [200, 400, 422, 500])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_cannot_be_read_is_a_named_failure(tgi_says, openai_says, body, status):
    for e, says in (tgi_says, openai_says):
        says[0] = (status, body)
        found = {check(g) for g in e.generate(requests())}
        assert found <= ({"validation"} if status in (400, 422) else {"bad_reply", "server_error"})


@pytest.mark.parametrize("status", [201, 204, 206, 299, 406, 409, 410, 418, 499, 599])
def test_a_status_that_is_not_about_the_request_finishes_no_row(tgi_says, status):
    e, says = tgi_says
    says[0] = (status, b"")
    got = list(e.generate(requests()))
    assert {check(g) for g in got} <= {"server_error", "bad_reply"}
    assert all(g.failure.transient for g in got)


@pytest.mark.parametrize("count", ["99999999999999", "-1", "²", "1e9", "", "9" * 5000])
def test_a_count_in_a_header_that_cannot_be_one_is_never_used(tgi_says, count):
    e, says = tgi_says
    says[0] = (200, GENERATED, {"x-prompt-tokens": count})
    got = list(e.generate(requests()))
    assert {check(g) for g in got} <= {"text", "bad_reply"}
    assert all((g.prompt_tokens or 0) < MAX_COUNT for g in got)
    with pytest.raises(MagpieError):
        e.check_prompt(PROMPT)


def test_a_server_cannot_claim_more_tokens_than_it_was_asked_for(openai_says):
    e, says = openai_says
    says[0] = COMPLETION | {
        "choices": [{"index": 0, "text": "x", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 1_000_000},
    }
    assert {g.completion_tokens for g in e.generate(requests())} == {8}


def test_fewer_choices_than_samples_is_a_named_failure():
    with (
        Scripted(completions([COMPLETION])) as server,
        OpenAIEngine("org/model", endpoints=[server.url], **QUICK) as e,
    ):
        e._capabilities, e._features = Capabilities(max_n=4), ServerFeatures(token_ids=True)
        assert {check(g) for g in e.generate(requests(4))} == {"bad_reply"}


# The start

OPENED = {"model_id": "org/model", "model_sha": None, "version": "3", "max_total_tokens": 9, "max_stop_sequences": 4}


@pytest.mark.parametrize("value", ANYTHING.values(), ids=ANYTHING)
def test_whatever_a_server_says_of_itself_opens_or_is_a_named_error(value):
    listed = {"data": [{"id": "org/model", "max_model_len": 99, "root": "org/model", "owned_by": "x"}]}
    for engine, good in ((TgiEngine, OPENED), (OpenAIEngine, listed)):
        for path in places(good):
            said = put(good, path, value)

            def script(arrived, number, said=said):
                if arrived.method == "GET":
                    return said
                return GENERATED if arrived.path == "/generate" else COMPLETION

            with (
                Scripted(script) as server,
                contextlib.suppress(MagpieError),
                engine("org/model", endpoints=[server.url], **QUICK) as e,
            ):
                assert {check(g) for g in e.generate(requests(1))} <= NAMES | {"text"}


@LOOSE
@given(changes=hostile(COMPLETION))
def test_whatever_a_server_answers_to_the_first_questions_opens_or_is_a_named_error(changes):
    answer = changed(COMPLETION, changes)

    def script(arrived, number):
        return {"data": [{"id": "org/model"}]} if arrived.method == "GET" else answer

    with Scripted(script) as server, contextlib.suppress(MagpieError):
        made = OpenAIEngine("org/model", endpoints=[server.url], **QUICK)
        made.open()
        made.close()


@pytest.mark.parametrize("location", ["http://[", "//", "\\", "http://user:secret@elsewhere/", "x" * 5000])
def test_a_redirect_to_anywhere_is_an_error_that_shows_no_secret(location):
    with (
        Scripted(lambda a, n: (302, b"", {"Location": location})) as server,
        pytest.raises(MagpieError, match="redirect") as caught,
    ):
        TgiEngine("org/model", endpoints=[server.url], **QUICK).open()
    assert "secret" not in str(caught.value)


# Rewards


def assert_score(url):
    """A score is a finite number or null with its reason, or the run ends with what to do."""
    try:
        (found,) = EndpointScorer(url, REF).score([conversation(("a", "b"))])
    except MagpieError as error:
        assert error.hint  # noqa: PT017 (either is right)
    else:
        assert (found.reward is None) == (found.error is not None)
        assert found.reward is None or math.isfinite(found.reward)
        assert 0 <= found.tokens <= MAX_COUNT


@pytest.mark.parametrize("value", ANYTHING.values(), ids=ANYTHING)
def test_a_reward_that_is_not_one_number_is_null(value):
    good = {"data": [{"data": [[0.5]]}], "usage": {"prompt_tokens": 3}}
    says = [good]
    with Scripted(lambda a, n: says[0]) as server:
        for path in places(good):
            says[0] = put(good, path, value)
            assert_score(server.url)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_reward_reply_that_cannot_be_read_ends_with_what_to_do(body):
    with Scripted(lambda a, n: (200, body)) as server:
        assert_score(server.url)


# Below JSON: what the HTTP client has to survive


class Raw:
    """A server that sends the bytes of `parts` for any request, a part at a time, with a pause between them."""

    def __init__(self, parts, pause_s=0.0):
        outer = self
        self.gone = threading.Event()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError):
                    self.request.recv(65536)
                    for part in parts() if callable(parts) else parts:
                        self.request.sendall(part)
                        if outer.gone.wait(pause_s):
                            return

        socketserver.ThreadingTCPServer.daemon_threads = True
        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.gone.set()
        self.server.shutdown()
        self.server.server_close()


def http(body=b"", *headers, status=b"200 OK", length=None):
    sized = [] if length is False else [b"Content-Length: %d" % (len(body) if length is None else length)]
    return b"\r\n".join([b"HTTP/1.1 " + status, *sized, *headers, b"Connection: close", b"", body])


def bomb():
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([squeeze.compress(b"[" * (1 << 20)) for _ in range(80)]) + squeeze.flush()


INFO = json.dumps(OPENED).encode()
WIRE = {
    "nothing": [b""],
    "not HTTP": [b"SSH-2.0-OpenSSH_9.6\r\n"],
    "a status of words": [b"HTTP/1.1 OK 200\r\n\r\n"],
    "a status of 999": [http(INFO, status=b"999 What")],
    "a flood of headers": [http(INFO, *(b"X-%d: 1" % i for i in range(20_000)))],
    "one long header": [http(INFO, b"X: " + b"a" * 1_000_000)],
    "invalid UTF-8 in a header": [http(INFO, b"X: \xff\xfe")],
    "a negative length": [http(INFO, length=-5)],
    "a length of 10^20": [http(INFO, length=10**20)],
    "two lengths": [http(INFO, b"Content-Length: 3")],
    "less than promised": [http(INFO, length=len(INFO) + 9)],
    "chunks of no size": [http(b"zz\r\n{}\r\n", b"Transfer-Encoding: chunked", length=False)],
    "a chunk of 10^18": [http(b"DE0B6B3A7640000\r\n{}", b"Transfer-Encoding: chunked", length=False)],
    "gzip that is none": [http(INFO, b"Content-Encoding: gzip")],
    "gzip cut off": [http(gzip.compress(INFO)[:-12], b"Content-Encoding: gzip")],
    "an unknown encoding": [http(INFO, b"Content-Encoding: magic")],
    "an unknown charset": [http(INFO, b"Content-Type: application/json; charset=klingon")],
    "a type of garbage": [http(INFO, b"Content-Type: ;;;=")],
    "cookies": [http(INFO, *[b"Set-Cookie: a=b; Domain=.com; Max-Age=99999999999999999"] * 50)],
    "an upgrade": [http(b"", b"Upgrade: websocket", b"Connection: Upgrade", status=b"101 Switching Protocols")],
}


@pytest.mark.parametrize("parts", WIRE.values(), ids=WIRE)
def test_what_is_hardly_http_is_a_named_error(parts, monkeypatch):
    monkeypatch.setattr(reward_endpoint, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(detect, "TIMEOUT_S", 0.3)
    with Raw(parts) as server:
        for engine in (TgiEngine, OpenAIEngine):
            with (
                contextlib.suppress(MagpieError),
                engine("org/model", endpoints=[server.url], timeout_s=0.3, **QUICK) as e,
            ):
                assert e.served is not None
        with contextlib.suppress(MagpieError):
            detect.server_kind(server.url)
        assert_score(server.url)


def test_a_body_without_end_is_not_kept(monkeypatch):
    monkeypatch.setattr(exchange, "MAX_BODY_BYTES", 1 << 20)

    def endless():
        yield http(b"", length=1 << 40)
        while True:
            yield b"[" * 65536

    for parts in (endless, [http(bomb(), b"Content-Encoding: gzip")]):
        with Raw(parts) as server, pytest.raises(MagpieError, match="too large"):
            TgiEngine("org/model", endpoints=[server.url], **QUICK).open()


def drip(head=b""):
    yield head
    while True:
        yield b" "


DRIPS = {
    "of the body": lambda: drip(http(length=1 << 30)),
    "of the headers": lambda: drip(b"HTTP/1.1 200 OK\r\nX-Slow: "),
    "of chunks": lambda: (
        part for part in [http(b"", b"Transfer-Encoding: chunked", length=False), *[b"1\r\n \r\n"] * 999]
    ),
}


@pytest.mark.parametrize("parts", DRIPS.values(), ids=DRIPS)
def test_a_byte_at_a_time_holds_nothing_up_for_ever(parts, monkeypatch):
    monkeypatch.setattr(reward_endpoint, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(detect, "TIMEOUT_S", 0.1)
    with Raw(parts, pause_s=0.02) as server:
        for engine in (TgiEngine, OpenAIEngine):
            with pytest.raises(MagpieError, match="No endpoint replies"):
                engine("org/model", endpoints=[server.url], timeout_s=0.1, **QUICK).open()
        with pytest.raises(MagpieError, match="no reply in time"):
            detect.server_kind(server.url)
        with pytest.raises(MagpieError, match="no reply in time"):
            EndpointScorer(server.url, REF).score([conversation(("a", "b"))])


def test_a_generation_that_drips_is_a_timeout(monkeypatch):
    monkeypatch.setattr(exchange, "BODY_S", 0.1)
    with (
        Raw(DRIPS["of the body"], pause_s=0.02) as slow,
        Scripted(tgi()) as server,
        TgiEngine("org/model", endpoints=[server.url], timeout_s=0.2, **QUICK) as e,
    ):
        e.transport.endpoints[0].url = slow.url
        assert {check(g) for g in e.generate(requests())} == {"timeout"}


def test_first_questions_that_drip_hold_no_start_up_for_ever():
    with (
        Raw(DRIPS["of the body"], pause_s=0.02) as slow,
        Scripted(tgi()) as server,
        TgiEngine("org/model", endpoints=[server.url], timeout_s=0.1, **QUICK) as e,
    ):
        e.transport.endpoints[0].url = slow.url
        with pytest.raises(PromptMismatchError, match="no reply in time"):
            e.check_prompt(PROMPT)


# Values

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode()))
def test_json_is_read_or_refused(raw):
    with contextlib.suppress(ValueError):
        load_json(raw)


@given(st.integers(0, 200), st.booleans())
def test_json_is_read_up_to_a_depth(depth, is_list):
    opening, closing = ("[", "]") if is_list else ('{"a":', "}")
    raw = (opening * depth + "1" + closing * depth).encode()
    if depth <= 64:
        assert load_json(raw) is not None
    else:
        with pytest.raises(ValueError, match="deeply"):
            load_json(raw)


@given(st.text(st.characters(codec=None)))
def test_texts_can_be_written_and_stay_what_they_were_where_they_could(text):
    cleaned = clean_text(text)
    cleaned.encode()
    with contextlib.suppress(UnicodeEncodeError):
        text.encode()
        assert cleaned == text


@given(JSON)
def test_names_are_short_and_printable(value):
    name = name_or_none(value)
    assert name is None or (name.isprintable() and 0 < len(name) <= 200)


@given(
    st.text(max_size=40)
    | st.sampled_from(["Mon, 01 Jan 0001 00:00:00 +2359", "Fri, 31 Dec 9999 23:59:59 -2359", "nan"])
)
def test_any_retry_after_is_seconds_or_nothing(value):
    seconds = retry_after_s(value)
    assert seconds is None or 0 <= seconds < float("inf")


@given(st.lists(st.integers(-2, 2**33) | st.booleans() | st.floats(), max_size=4))
def test_token_ids_are_possible_ones_or_the_reply_is_invalid(ids):
    made = Generation(0, "x", "stop", token_ids=ids)
    if all(type(i) is int and 0 <= i < 2**31 for i in ids):
        assert checked(made, SamplingParams()).token_ids == ids
    else:
        with pytest.raises(ValueError, match="ids"):
            checked(made, SamplingParams())
