from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.engines.base import Capabilities, Prompt, Request
from magpie_hf.engines.groups import fitted
from magpie_hf.engines.remote.openai import OpenAIEngine
from magpie_hf.engines.remote.pacing import AdaptiveLimit, has_capacity
from magpie_hf.models import ModelRef
from magpie_hf.sampling import SamplingParams

from .scripted import Scripted


@given(st.integers(0, 100), st.integers(1, 100), st.none() | st.integers(1, 100))
def test_a_request_asks_for_no_more_than_there_is_room_for(prompt, most, context):
    request = Request(b"0" * 16, Prompt("x", tuple(range(prompt))), SamplingParams(max_tokens=most))
    asked = fitted(request, context).max_tokens
    if context is None or prompt + most <= context or prompt >= context:
        assert asked == most
    else:
        assert asked == context - prompt


class Slots:
    """An OpenAI server that holds each answer until as many samples are in flight as the client may have by then.

    The client's limit begins at `allowed` and grows by a request's samples with each answer, up to `most`; when `most`
    were in flight, all is answered. What is held for too long is answered too, so that a test that fails ends.
    """

    def __init__(self, allowed, most, max_n=128):
        self.allowed, self.most, self.max_n = allowed, most, max_n
        self.in_flight = self.max_in_flight = 0
        self.sizes = []
        self.held = []
        self.is_open = False

    async def __call__(self, arrived, number):
        if arrived.path == "/v1/models":
            return {"data": [{"id": "org/model"}]}
        n = arrived.body.get("n", 1)
        if arrived.body["max_tokens"] == LENGTH:
            self.sizes.append(n)
            self.in_flight += n
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            await self._wait(n)
            self.in_flight -= n
        choices = [
            {"index": i, "text": f"seed {arrived.body.get('seed', 0) + i}", "finish_reason": "stop"} for i in range(n)
        ]
        return {"choices": choices, "usage": {"prompt_tokens": len(arrived.body["prompt"]), "completion_tokens": n}}

    async def _wait(self, n):
        turn = asyncio.get_running_loop().create_future()
        self.held.append(turn)
        if self.in_flight >= self.most:
            self.is_open = True
        if self.is_open:
            for held in self.held:
                held.done() or held.set_result(None)
        elif self.in_flight >= self.allowed:
            self.allowed = min(self.most, self.allowed + n)
            self.held.pop(0).set_result(None)
        try:
            await asyncio.wait_for(turn, 30.0)
        except TimeoutError:
            self.is_open = True


LENGTH = 77
TWO = Prompt("two words", [5, 6])


def samples(count, prompt=TWO):
    return [Request(i, prompt, SamplingParams(max_tokens=LENGTH, seed=i)) for i in range(count)]


@contextmanager
def served(server, **settings):
    with Scripted(server) as s:
        ref = ModelRef("org/model", "org/model", None, None)
        with OpenAIEngine("org/model", endpoints=[s.url], ref=ref, **settings) as engine:
            yield engine


@pytest.mark.parametrize(("settings", "size"), [({}, 1), ({"max_n": 8}, 8), ({"max_n": 64}, 64)])
def test_concurrency_is_the_number_of_samples_in_flight_whatever_shares_a_request(settings, size):
    server = Slots(allowed=128, most=1024)
    with served(server, concurrency=1024, **settings) as engine:
        got = {g.key: (g.text, g.seed) for g in engine.generate(samples(2500))}
    assert got == {i: (f"seed {i}", i) for i in range(2500)}
    assert server.max_in_flight == 1024
    assert max(server.sizes) == size


def test_a_long_sample_holds_back_its_own_small_group_and_nothing_else():
    release = asyncio.Event()
    held_back = []

    async def server(arrived, number):
        if arrived.body and arrived.body["max_tokens"] == LENGTH and arrived.body["seed"] == 0:
            held_back.extend(range(arrived.body.get("n", 1)))
            await release.wait()
        return await Slots(0, 0)(arrived, number)

    with Scripted(server) as s:
        ref = ModelRef("org/model", "org/model", None, None)
        with OpenAIEngine("org/model", endpoints=[s.url], ref=ref, max_n=8) as engine:
            order = []
            for generation in engine.generate(samples(2000)):
                order.append(generation.key)
                if len(order) == 2000 - len(held_back):
                    s.loop.call_soon_threadsafe(release.set)
    assert len(held_back) == 8
    assert sorted(order[-len(held_back) :]) == held_back
    assert sorted(order) == list(range(2000))


@given(st.integers(1, 2048), st.integers(1, 128))
def test_a_group_takes_a_small_part_of_the_samples_in_flight(concurrency, max_n):
    engine = OpenAIEngine("org/model", endpoints=["http://127.0.0.1:1"], concurrency=concurrency)
    engine._capabilities = Capabilities(max_n=max_n)
    assert 1 <= engine._group_size() <= max(1, min(max_n, concurrency / 16))


@given(st.integers(0, 2048), st.integers(1, 64), st.integers(1, 1024))
def test_a_request_fits_under_a_limit_with_all_its_samples_or_goes_alone(in_flight, samples, limit):
    if has_capacity(in_flight, samples, limit):
        assert in_flight + samples <= limit or in_flight == 0
    else:
        assert in_flight > 0


def test_an_answer_of_many_samples_raises_the_limit_by_as_many():
    limit = AdaptiveLimit(128.0, 1024.0)
    while limit.limit < 1024:
        before = limit.limit
        for _ in range(int(before) // 8):
            limit.succeeded(int(limit.limit), 8)
        assert limit.limit == min(1024, 2 * before)


def test_a_low_limit_of_open_files_is_raised_for_the_connections():
    code = (
        "import resource; from magpie_hf.engines.remote.exchange import OTHER_FILES, allow_files\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)); allow_files(100)\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 100 + OTHER_FILES), hard)\n"
        "allow_files(10); resource.setrlimit(resource.RLIMIT_NOFILE, (256, 300)); allow_files(10**6)\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, 300)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
