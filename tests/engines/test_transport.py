from __future__ import annotations

import asyncio
import email.utils
import itertools
import os
import pickle
import signal
import socket
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.backoff import Backoff, retry_after_s
from magpie_hf.engines.base import Prompt, Request
from magpie_hf.engines.remote.pacing import AdaptiveLimit
from magpie_hf.engines.remote.servers import error_text, names_match, normal_address
from magpie_hf.engines.remote.tgi import TgiEngine
from magpie_hf.engines.remote.wire import proxy_for, watched_socket
from magpie_hf.errors import ArgumentError, EngineError, EngineUnavailableError, MagpieError, ModelMismatchError
from magpie_hf.models import ModelRef
from magpie_hf.sampling import SamplingParams

from .scripted import HANG, RESET, Scripted, generated, tgi


KEY = "sk-not-a-real-key-0123456789"
PROMPT = Prompt("<|user|>", [1])
OVERLOADED = {"error": "Model is overloaded", "error_type": "overloaded"}


def engine(*servers, **settings):
    urls = [s if isinstance(s, str) else s.url for s in servers]
    quick = {
        "backoff_s": (0.001, 0.02),
        "startup_timeout_s": 5.0,
        "ref": ModelRef("org/model", "org/model", None, None),
    }
    return TgiEngine("org/model", endpoints=urls, **(quick | settings))


def requests(n, prompt=PROMPT):
    return [Request(i, prompt, SamplingParams(max_tokens=8, seed=i)) for i in range(n)]


def texts(engine, n=8):
    return {g.key: g.failure or g.text for g in engine.generate(requests(n))}


def everything(error):
    """Return all that a reader of this exception can see, causes included."""
    seen = []
    while error is not None:
        seen += [repr(error), str(error), repr(getattr(error, "data", "")), str(pickle.dumps(error))]
        error = error.__cause__ or error.__context__
    return "\n".join(seen)


def eventually(is_true, seconds=5.0):
    end = time.monotonic() + seconds
    while not is_true() and time.monotonic() < end:
        time.sleep(0.01)
    return is_true()


# Keys


@pytest.fixture
def hub_login(monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "API_KEY"):
        monkeypatch.setenv(name, KEY)


@pytest.mark.usefixtures("hub_login")
def test_no_authorization_is_sent_unless_a_key_was_named():
    with Scripted(tgi()) as server:
        with engine(server) as e:
            assert len(texts(e)) == 8
        assert {a.path for a in server.log} == {"/info", "/generate"}
        for arrived in server.log:
            assert "Authorization" not in arrived.headers
            assert KEY not in str(arrived.headers)


def test_a_netrc_file_is_not_read(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {KEY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Scripted(tgi()) as server, engine(server) as e:
        texts(e)
        assert not any("Authorization" in a.headers for a in server.log)


@pytest.mark.usefixtures("hub_login")
def test_a_named_key_goes_to_its_endpoint():
    with Scripted(tgi()) as server, engine(server, api_key_env="HF_TOKEN") as e:
        texts(e)
        assert {a.headers.get("Authorization") for a in server.log} == {f"Bearer {KEY}"}
        assert KEY not in repr(e)
        assert KEY not in str(e.identity())


def test_a_key_variable_that_is_not_set_is_an_error_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with Scripted(tgi()) as server:
        with pytest.raises(ArgumentError, match=r"MY_KEY.*not set or empty"):
            engine(server, api_key_env="MY_KEY").open()
        assert not server.log


def test_a_key_with_a_line_break_inside_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("MY_KEY", f"{KEY}\nX-Other: 1")
    with pytest.raises(ArgumentError, match="invalid characters for a key") as caught:
        engine("http://127.0.0.1:1", api_key_env="MY_KEY").open()
    assert KEY not in everything(caught.value)


@pytest.mark.parametrize("key", ["sk-proj-abc123", "hf_abc123", "abc 123", ""])
def test_a_key_given_in_place_of_the_name_of_its_variable_is_not_shown(key):
    with pytest.raises(ArgumentError, match="not the name of an environment variable") as caught:
        engine("http://127.0.0.1:1", api_key_env=key).open()
    assert not key or key not in f"{caught.value} {caught.value.data}"


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("at_open", [True, False], ids=["at open", "in mid-run"])
def test_refused_access_ends_the_run_and_names_the_setting_but_not_the_key(monkeypatch, status, at_open):
    monkeypatch.setenv("MY_KEY", KEY)

    def script(arrived, number):
        if at_open or number > 3:
            return status, {"error": {"message": f"Incorrect API key provided: {KEY}"}}
        return tgi()(arrived, number)

    with Scripted(script) as server, pytest.raises(EngineError, match=f"refuses access.*{status}") as caught:  # noqa: PT012
        e = engine(server, api_key_env="MY_KEY")
        with e:
            texts(e, 20)
    assert "MY_KEY" in str(caught.value)
    assert KEY not in everything(caught.value)


def test_a_key_that_the_server_echoes_is_not_in_the_failure(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    bad = {"error": f"what is {KEY}?", "error_type": "validation"}
    with Scripted(tgi(lambda a, n: (422, bad))) as server, engine(server, api_key_env="MY_KEY") as e:
        (failure,) = texts(e, 1).values()
    assert failure.code == "validation"
    assert not failure.transient
    assert KEY not in failure.message


def test_a_redirect_is_not_followed(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with Scripted(tgi()) as other:
        moved = (307, {}, {"Location": f"{other.url}/info"})
        with Scripted(lambda a, n: moved) as server, pytest.raises(EngineError, match="redirects to") as caught:
            engine(server, api_key_env="MY_KEY").open()
        assert other.url in str(caught.value)
        assert not other.log


@pytest.mark.parametrize(
    "address", ["http://user:secret@host:1", "http://host/?token=secret", "ftp://host", "http://", "http://h:x"]
)
def test_an_address_that_cannot_be_used_is_refused_without_showing_secrets(address):
    with pytest.raises(ArgumentError) as caught:
        engine(address)
    assert "secret" not in everything(caught.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost:8080", "http://localhost:8080"),
        ("http://h:1/", "http://h:1"),
        ("https://h/base/generate/", "https://h/base"),
        ("http://[::1]:8", "http://[::1]:8"),
    ],
)
def test_addresses_are_brought_to_one_form(address, expected):
    assert normal_address(address, ("/generate",)) == expected


def test_the_environments_proxy_is_used_but_never_for_this_machine(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert proxy_for("http://elsewhere.example/x") == "http://proxy:3128"
    assert proxy_for("http://inside.example/x") is None
    assert proxy_for("http://127.0.0.1:8080") is None
    assert proxy_for("http://localhost:8080") is None


# Faults


FAULTS = {
    "429": (429, OVERLOADED),
    "429 with seconds": (429, OVERLOADED, {"Retry-After": "0.01"}),
    "429 with a date gone by": (429, OVERLOADED, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "503": (503, b"upstream gone"),
    "500": (500, {"error": "Incomplete generation", "error_type": "incomplete_generation"}),
    "424": (424, {"error": "Request failed during generation: oom", "error_type": "generation"}),
    "502": (502, b"<html>Bad gateway</html>"),
    "404 in mid-run": (404, b"no tunnel here"),
    "reset": RESET,
    "half of the JSON": b'{"generated_text": "How do I',
    "HTML with 200": b"<html></html>",
    "an answer without details": {"generated_text": "x"},
    "an unknown finish reason": generated("x", "because"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_survived_and_every_request_is_answered_once(fault):
    hurt = set()

    def answer(arrived, number):
        seed = arrived.body["parameters"]["seed"]
        if seed % 3 == 0 and seed not in hurt:
            hurt.add(seed)
            return fault
        return generated(f"text {seed}")

    with Scripted(tgi(answer)) as server, engine(server, concurrency=8) as e:
        got = [(g.key, g.text, g.failure) for g in e.generate(requests(40))]
        assert sorted(got) == [(i, f"text {i}", None) for i in range(40)]
        assert len(hurt) == 14
    assert e.stats.retries >= 14
    assert e.stats.requests == 40


PERMANENT = {
    "validation": (422, {"error": "Input validation error: `top_k` …", "error_type": "validation"}, "validation"),
    "too long": (
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 512. Given: 500 and 64",
            "error_type": "validation",
        },
        "too_long",
    ),
    "bad request": (400, {"message": "no"}, "validation"),
    "too large": (413, b"", "validation"),
}


@pytest.mark.parametrize(("status", "body", "code"), PERMANENT.values(), ids=PERMANENT)
def test_a_request_at_fault_is_finished_and_not_sent_again(status, body, code):
    with Scripted(tgi(lambda a, n: (status, body))) as server, engine(server) as e:
        before = server.num_posts
        (failure,) = texts(e, 1).values()
        assert (failure.code, failure.transient) == (code, False)
        assert server.num_posts - before == 1


@pytest.mark.parametrize(
    ("answer", "code", "tries", "transient"),
    [
        ((500, {"error": "x", "error_type": "incomplete_generation"}), "incomplete_generation", 4, True),
        ((500, b"oops"), "server_error", 4, True),
        ((424, {"error": "x", "error_type": "generation"}), "generation", 3, False),
        (b"{", "bad_reply", 4, True),
    ],
    ids=["incomplete", "500", "generation", "truncated"],
)
def test_retries_end(answer, code, tries, transient):
    with Scripted(tgi(lambda a, n: answer)) as server, engine(server, max_retries=3) as e:
        before = server.num_posts
        (failure,) = texts(e, 1).values()
        assert (failure.code, failure.transient) == (code, transient)
        assert server.num_posts - before == tries


MALFORMED = {
    "tokens are no list": generated("x", tokens=()) | {"details": {"finish_reason": "length", "tokens": 7}},
    "tokens without text": {"generated_text": "x", "details": {"finish_reason": "length", "tokens": [{"id": 1}]}},
    "text that is none": {"generated_text": 5, "details": {"finish_reason": "length"}},
    "an unhashable reason": {"generated_text": "x", "details": {"finish_reason": []}},
    "counts in words": {"generated_text": "x", "details": {"finish_reason": "length", "generated_tokens": "two"}},
    "a list": [],
    "null": None,
}


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_reply_leaves_the_row_open(answer):
    with Scripted(tgi(lambda a, n: answer)) as server, engine(server, max_retries=1) as e:
        (failure,) = texts(e, 1).values()
    assert (failure.code, failure.transient) == ("bad_reply", True)


def test_a_server_that_says_nothing_is_given_up_after_the_timeout():
    def answer(arrived, number):
        return HANG if arrived.body["parameters"]["seed"] == 0 else generated("fine")

    with Scripted(tgi(answer)) as server, engine(server, timeout_s=0.2, max_retries=2) as e:
        got = texts(e, 5)
    assert got.pop(0).code == "timeout"
    assert set(got.values()) == {"fine"}


def test_overload_does_not_use_up_the_retries():
    tries = itertools.count()

    def answer(arrived, number):
        return (429, OVERLOADED) if next(tries) < 30 else generated("at last")

    with Scripted(tgi(answer)) as server, engine(server, max_retries=2) as e:
        assert texts(e, 1) == {0: "at last"}


def test_overload_without_end_leaves_the_row_open():
    with Scripted(tgi(lambda a, n: (429, OVERLOADED))) as server, engine(server, max_outage_s=0.1) as e:
        (failure,) = texts(e, 1).values()
    assert (failure.code, failure.transient) == ("overloaded", True)


def test_retry_after_is_obeyed_before_our_own_clock():
    first = []

    def answer(arrived, number):
        if not first:
            first.append(arrived.time_s)
            return 429, OVERLOADED, {"Retry-After": "0.4"}
        return generated("x")

    with Scripted(tgi(answer)) as server, engine(server, concurrency=1) as e:
        texts(e, 3)
        later = [a.time_s for a in server.posts if a.time_s > first[0]]
    assert min(later) - first[0] >= 0.4


@pytest.mark.waits
@pytest.mark.parametrize("said", ["0", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_retry_after_that_is_over_does_not_repeat_requests_without_a_pause(said):
    overloaded = Scripted(tgi(lambda a, n: (429, OVERLOADED, {"Retry-After": said})))
    with overloaded as server, engine(server, max_outage_s=0.3, backoff_s=(0.1, 0.1)) as e:
        texts(e, 1)
        assert len(server.posts) <= 9


@pytest.mark.parametrize("value", ["0", "2.5", "17"])
def test_retry_after_reads_seconds(value):
    assert retry_after_s(value) == float(value)


def test_retry_after_reads_dates_and_nothing_else():
    now = datetime.now(UTC).replace(microsecond=0)
    assert retry_after_s(email.utils.format_datetime(now + timedelta(seconds=30), usegmt=True), now) == 30
    assert retry_after_s(email.utils.format_datetime(now - timedelta(seconds=30), usegmt=True), now) == 0
    assert [retry_after_s(v, now) for v in (None, "", "soon", "inf", "nan-ish")] == [None] * 5


@pytest.mark.waits
@given(st.integers(0, 10_000), st.floats(0.001, 10), st.floats(0.001, 100))
def test_waits_stay_between_half_and_all_of_the_doubled_wait(attempt, first_s, longest_s):
    full = min(longest_s, first_s * 2.0 ** min(attempt, 30))
    assert 0.5 * full <= Backoff(first_s, longest_s).wait_s(attempt) <= full


def test_silent_connections_are_probed_by_the_system():
    with closing(watched_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1)))) as opened:
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


# Pace


def test_the_limit_doubles_with_each_round_while_it_is_used_and_not_above_the_ceiling():
    limit = AdaptiveLimit(4, 64)
    for _ in range(4):
        limit.succeeded(1)
    assert limit.limit == 4
    for _ in range(4):
        limit.succeeded(int(limit.limit))
    assert limit.limit == 8
    for _ in range(200):
        limit.succeeded(int(limit.limit))
    assert limit.limit == 64


def test_one_overload_cuts_once_however_many_refusals_it_brings():
    limit = AdaptiveLimit(100, 100)
    for _ in range(50):
        limit.overloaded(100, sent_at=1.0, now=2.0)
    assert limit.limit == pytest.approx(70)
    limit.overloaded(70, sent_at=3.0, now=4.0)
    assert limit.limit == pytest.approx(49)
    limit.succeeded(49)
    assert limit.limit < 50


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 300)), max_size=200))
def test_the_limit_stays_between_one_and_the_ceiling(events):
    limit = AdaptiveLimit(16, 256)
    for i, (is_good, in_flight) in enumerate(events):
        limit.succeeded(in_flight) if is_good else limit.overloaded(in_flight, i, i + 0.5)
        assert 1 <= limit.limit <= 256


def test_concurrency_settles_under_what_the_server_takes_and_nothing_is_lost():
    slots, refused = 12, []

    async def serve(server):
        if server.num_open > slots:
            refused.append(1)
            return 429, OVERLOADED
        await asyncio.sleep(0.01)
        return generated("x")

    server = Scripted(tgi(lambda a, n: serve(server)))
    with server, engine(server, concurrency=128) as e:
        assert set(texts(e, 600).values()) == {"x"}
        assert e.transport.endpoints[0].limit.limit < 40
    assert len(refused) < 500


def test_network_faults_do_not_shrink_the_limit():
    flaky = itertools.count(1)
    with (
        Scripted(tgi(lambda a, n: RESET if next(flaky) % 5 == 0 else generated("x"))) as server,
        engine(server, concurrency=32) as e,
    ):
        texts(e, 100)
        assert e.transport.endpoints[0].limit.limit == 32


def test_256_requests_are_out_at_once_and_connections_are_reused():
    together = threading.Event()

    async def serve(server):
        while not together.is_set():
            if server.num_open >= 256:
                together.set()
            await asyncio.sleep(0.005)
        return generated("x")

    server = Scripted(tgi(lambda a, n: serve(server)))
    with server, engine(server, concurrency=256) as e:
        assert len(texts(e, 1500)) == 1500
        assert server.max_open == 256
        assert len({a.connection for a in server.log}) <= 257


def test_a_slow_request_holds_up_no_other():
    release = asyncio.Event()

    async def answer(arrived):
        if arrived.body["parameters"]["seed"] == 0:
            await release.wait()
        return generated("x")

    with Scripted(tgi(lambda a, n: answer(a))) as server, engine(server, concurrency=4) as e:
        order = []
        for g in e.generate(requests(200)):
            order.append(g.key)
            if len(order) == 199:
                server.loop.call_soon_threadsafe(release.set)
        assert order[-1] == 0


# Several endpoints


def test_requests_go_to_the_endpoint_with_the_fewest_in_flight():
    async def slow():
        await asyncio.sleep(0.05)
        return generated("slow")

    async def fast():
        await asyncio.sleep(0.005)
        return generated("fast")

    with (
        Scripted(tgi(lambda a, n: slow())) as a,
        Scripted(tgi(lambda a, n: fast())) as b,
        engine(a, b, concurrency=16) as e,
    ):
        got = list(texts(e, 300).values())
        assert a.max_open <= 10
        assert b.max_open <= 10
    assert got.count("fast") > 3 * got.count("slow") > 0


def test_endpoints_take_turns_when_there_is_little_to_do():
    with Scripted(tgi()) as a, Scripted(tgi()) as b, engine(a, b, concurrency=1) as e:
        texts(e, 20)
        assert min(a.num_posts, b.num_posts) > 5


def test_a_dead_endpoint_is_set_aside_and_used_again_when_it_is_back():
    with Scripted(tgi(lambda a, n: generated("a"))) as a:
        b = Scripted(tgi(lambda a, n: generated("b"))).start()
        with engine(a, b, concurrency=8) as e:
            stream = e.generate(requests(3000))
            got = [next(stream) for _ in range(100)]
            b.stop()
            got += [next(stream) for _ in range(400)]
            assert eventually(lambda: e.transport.endpoints[1].is_down)
            again = Scripted(b.script, port=int(b.url.rpartition(":")[2])).start()
            assert eventually(lambda: not e.transport.endpoints[1].is_down)
            got += list(stream)
            assert again.num_posts > 0
            again.stop()
    assert sorted(g.key for g in got) == list(range(3000))
    assert {g.text for g in got} == {"a", "b"}


def test_an_endpoint_that_comes_back_with_another_model_ends_the_run():
    with Scripted(tgi()) as a:
        b = Scripted(tgi()).start()
        with engine(a, b, concurrency=8) as e:
            stream = e.generate(requests(100_000))
            next(stream)
            b.stop()
            assert eventually(lambda: next(stream) and e.transport.endpoints[1].is_down)
            with (
                Scripted(tgi(model_id="org/other"), port=int(b.url.rpartition(":")[2])),
                pytest.raises(ModelMismatchError, match="org/other"),
            ):
                list(stream)


def test_an_endpoint_whose_connection_breaks_is_asked_who_it_is_before_it_gets_more():
    names = {"model_id": "org/model"}

    def answer(arrived, number):
        if number < 6:
            return generated("x")
        names["model_id"] = "org/other"
        return RESET

    def script(arrived, number):
        return tgi(answer, **names)(arrived, number)

    with Scripted(script) as server, engine(server, concurrency=1) as e:
        with pytest.raises(ModelMismatchError, match="org/other"):
            texts(e, 50)
        assert server.num_posts == 6


def test_all_endpoints_down_ends_the_run_with_their_names():
    a = Scripted(tgi()).start()
    b = Scripted(tgi()).start()
    with engine(a, b, concurrency=8, max_outage_s=0.3) as e:
        stream = e.generate(requests(100_000))
        next(stream)
        a.stop()
        b.stop()
        with pytest.raises(EngineUnavailableError) as caught:
            list(stream)
    assert caught.value.data["endpoints"] == [a.url, b.url]
    assert "server running" in str(caught.value)


def test_an_outage_shorter_than_allowed_costs_nothing():
    a = Scripted(tgi()).start()
    with engine(a, concurrency=8, max_outage_s=30) as e:
        stream = e.generate(requests(600))
        got = [next(stream).key for _ in range(50)]
        a.stop()
        threading.Timer(0.3, lambda: a.start()).start()
        a._port = int(a.url.rpartition(":")[2])
        got += [g.key for g in stream if g.failure is None]
        a.stop()
    assert sorted(got) == list(range(600))


def test_a_server_that_starts_slowly_is_waited_for():
    begin = time.monotonic() + 0.3

    def script(arrived, number):
        return (503, {"error": "unhealthy"}) if time.monotonic() < begin else tgi()(arrived, number)

    with Scripted(script) as server, engine(server) as e:
        assert len(texts(e)) == 8


def test_a_server_that_is_not_there_is_an_error_with_its_address():
    with Scripted(tgi()) as server:
        url = server.url
    with pytest.raises(EngineUnavailableError, match="port correct") as caught:
        engine(url, startup_timeout_s=0.05).open()
    assert url in str(caught.value)
    assert "no connection" in str(caught.value)


def test_one_endpoint_that_is_not_there_at_the_start_is_set_aside():
    with Scripted(tgi()) as gone:
        pass
    with Scripted(tgi()) as server, engine(gone, server, startup_timeout_s=0.05) as e:
        assert len(texts(e)) == 8
        assert e.transport.endpoints[0].is_down


# The request loop


def test_none_waits_for_a_completion_and_pulls_again():
    answered = []

    def source():
        yield from requests(2)
        yield None
        assert answered
        yield Request(2, PROMPT, SamplingParams(seed=2))

    with Scripted(tgi()) as server, engine(server) as e:
        for g in e.generate(source()):
            answered.append(g.key)
    assert sorted(answered) == [0, 1, 2]


def test_requests_are_pulled_as_there_is_room():
    pulled = itertools.count()
    last = 0

    def source():
        nonlocal last
        for request in requests(500):
            last = next(pulled)
            yield request

    with Scripted(tgi()) as server, engine(server, concurrency=8) as e:
        for done, _ in enumerate(e.generate(source())):
            assert last - done <= 12


def test_closing_the_iterator_cancels_what_is_in_flight():
    with Scripted(tgi(lambda a, n: HANG if n > 3 else generated("x"))) as server, engine(server, concurrency=16) as e:
        stream = e.generate(requests(100))
        next(stream)
        assert eventually(lambda: server.num_open >= 10)
        stream.close()
        assert eventually(lambda: server.num_open == 0)
        assert server.canceled >= 10
        server.script = tgi()
        assert len(texts(e)) == 8


def test_ctrl_c_gets_through_while_nothing_arrives():
    with Scripted(tgi(lambda a, n: HANG)) as server, engine(server) as e:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            list(e.generate(requests(3)))
        timer.join()
        assert eventually(lambda: server.num_open == 0)


def test_it_works_inside_a_running_event_loop():
    async def notebook(url):
        with engine(url) as e:
            return texts(e)

    with Scripted(tgi()) as server:
        assert len(asyncio.run(notebook(server.url))) == 8


def test_two_iterators_share_one_engine():
    with Scripted(tgi()) as server, engine(server, concurrency=4) as e:
        a, b = e.generate(requests(30)), e.generate(requests(30))
        keys = [(next(a).key, next(b).key) for _ in range(30)]
    assert sorted(k for k, _ in keys) == sorted(k for _, k in keys) == list(range(30))


def test_an_error_of_the_caller_passes_through_and_the_engine_goes_on():
    def source():
        yield from requests(3)
        raise KeyError("mine")

    with Scripted(tgi()) as server, engine(server) as e:
        with pytest.raises(KeyError, match="mine"):
            list(e.generate(source()))
        assert len(texts(e)) == 8


def test_open_and_close_may_be_called_twice_and_a_closed_engine_says_so():
    with Scripted(tgi()) as server:
        e = engine(server)
        with pytest.raises(EngineError, match="not open"):
            e.capabilities()
        e.open()
        e.open()
        assert len(texts(e)) == 8
        e.close()
        e.close()
        with pytest.raises(EngineError, match="not open"):
            list(e.generate(requests(1)))
    assert not [t for t in threading.enumerate() if t.name == "magpie-hf transport"]


# Names and messages


@pytest.mark.parametrize(
    ("asked", "served", "expected"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct", True),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "Meta-Llama/meta-llama-3-8b-instruct", True),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "/data/Meta-Llama-3-8B-Instruct/", True),
        (
            "meta-llama/Meta-Llama-3-8B-Instruct",
            "/c/models--meta-llama--Meta-Llama-3-8B-Instruct/snapshots/ab12",
            True,
        ),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "someone/Meta-Llama-3-8B-Instruct", False),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B", False),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "", False),
        ("demo", "demo", True),
        ("demo", "/x/demo/model@main", True),
        ("demo", "gpt2", False),
    ],
)
def test_names_of_models_match_by_hub_id_or_by_the_directorys_name(asked, served, expected):
    ref = ModelRef(asked, "/x/demo/model" if asked == "demo" else asked, None, None)
    assert names_match(ref, served) is expected


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"error": "a", "error_type": "b"}, "a"),
        ({"error": {"message": "a", "type": "b"}}, "a"),
        ({"detail": "a"}, "a"),
        ({"detail": [{"loc": ["body", "n"], "msg": "bad", "input": "my prompt"}]}, "body.n: bad"),
        (None, ""),
        ([1], ""),
    ],
)
def test_error_texts_are_found_in_every_dialect_without_the_prompt(payload, expected):
    assert error_text(payload) == expected


def test_identity_holds_what_was_asked_only(monkeypatch):
    monkeypatch.setenv("K", KEY)
    a = engine("http://a:1", concurrency=3, api_key_env="K", dtype="bfloat16")
    b = engine("http://b:2", "http://c:3", concurrency=9, dtype="bfloat16")
    assert a.identity() == b.identity() == {"model": "org/model", "revision": None, "dtype": "bfloat16"}


@pytest.mark.parametrize("settings", [{"endpoints": []}, {"endpoints": ["http://h:1"], "concurrency": 0}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(MagpieError):
        TgiEngine("org/model", **settings)
