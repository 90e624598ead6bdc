from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from . import transformers_serve
from .completions_server import CompletionsServer
from .generation import Generator
from .sim_server import Latency, SimProcess
from .test_tgi_server import post
from .tiny_model import PRE_QUERY


PATH = "/v1/completions"


@pytest.fixture(scope="module")
def generator(tiny_model_dir):
    generator = Generator(tiny_model_dir)
    yield generator
    generator.close()


@pytest.fixture(scope="module")
def server(tiny_model_dir, generator):
    with CompletionsServer(tiny_model_dir, generator=generator, model_id="tiny") as server:
        yield server


def ask(server, **body):
    [reply] = post(server.url, [{"model": "tiny", "prompt": PRE_QUERY, "max_tokens": 8, **body}], path=PATH)
    return reply


def test_text_and_token_ids_are_the_same_prompt(server, generator):
    ids = list(generator.encode(PRE_QUERY))
    replies = [ask(server, prompt=prompt, seed=4)[2] for prompt in (PRE_QUERY, ids, [ids])]
    assert len({reply["choices"][0]["text"] for reply in replies}) == 1
    counts = {name: value for name, value in replies[0]["usage"].items() if value is not None}
    assert counts == {"prompt_tokens": 6, "completion_tokens": 8, "total_tokens": 14}


def test_n_samples_are_those_of_consecutive_seeds(server):
    together = [choice["text"] for choice in ask(server, n=5, seed=100)[2]["choices"]]
    alone = [ask(server, seed=100 + i)[2]["choices"][0]["text"] for i in range(5)]
    assert together == alone
    assert len(set(together)) > 1


def test_stop_token_ids_end_a_text_and_are_named(server, generator):
    free = ask(server, seed=1, return_token_ids=True)[2]["choices"][0]
    stop = free["token_ids"][3]
    stopped = ask(server, seed=1, stop_token_ids=[stop])[2]["choices"][0]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", stop)
    assert stopped["text"] == generator.decode(free["token_ids"][: free["token_ids"].index(stop)])


def test_stop_texts_are_cut_off(server):
    free = ask(server, seed=1)[2]["choices"][0]["text"]
    stopped = ask(server, seed=1, stop=[free[2:5]])[2]["choices"][0]
    assert stopped["text"] == free[: free.index(free[2:5])]
    assert stopped["stop_reason"] == free[2:5]


def test_a_banned_first_token_does_not_come_first(server):
    first = ask(server, temperature=0, return_token_ids=True)[2]["choices"][0]["token_ids"][0]
    second = ask(server, temperature=0, logit_bias={str(first): -100}, return_token_ids=True)[2]["choices"][0]
    assert second["token_ids"][0] != first


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "other"}, 404, "The model `other` does not exist."),
        ({"max_tokens": 600}, 400, "maximum context length is 512 tokens"),
        ({"top_p": 0}, 400, "top_p must be in (0, 1]"),
        ({"n": 0}, 400, "n must be at least 1"),
        ({"prompt": []}, 400, "prompt"),
    ],
)
def test_bad_requests_are_refused_with_a_reason(server, body, status, message):
    got, _, reply = ask(server, **body)
    assert got == status
    assert message in reply["error"]["message"]


def test_a_chat_only_server_has_no_completions(tiny_model_dir, generator):
    with CompletionsServer(tiny_model_dir, generator=generator, model_id="tiny", chat_only=True) as server:
        assert ask(server)[0] == 404
        messages = [{"role": "user", "content": "What is the sea?"}]
        [(status, _, reply)] = post(server.url, [{"messages": messages}], path="/v1/chat/completions")
    assert status == 200
    assert reply["choices"][0]["message"]["role"] == "assistant"


def test_the_simulated_server_keeps_its_slots_and_its_rate():
    async def load(url, num, concurrency):
        gate = asyncio.Semaphore(concurrency)
        connector = aiohttp.TCPConnector(limit=concurrency)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def one(seed):
                body = {"inputs": "x", "parameters": {"seed": seed}}
                async with gate, session.post(url + "/generate", json=body) as response:
                    return (await response.json())["details"]["seed"]

            return await asyncio.gather(*map(one, range(num)))

    with SimProcess("--slots", "8", "--median-s", "0.02") as sim:
        assert asyncio.run(load(sim.url, 60, 20)) == list(range(60))
        stats = sim.get("/_stats")
    assert (stats["done"], stats["max_busy"]) == (60, 8)
    assert 0.5 < stats["occupancy"] <= 1.0


@pytest.mark.slow
@pytest.mark.skipif(not transformers_serve.is_available(), reason="needs transformers[serving] of transformers 5")
def test_transformers_serve_is_as_described(tiny_model_dir):
    with transformers_serve.TransformersServe(tiny_model_dir) as server:

        def complete(**body):
            body = {"model": server.model, "prompt": PRE_QUERY, "max_tokens": 8, "temperature": 0, **body}
            return post(server.url, [body], path=PATH, timeout_s=60)[0]

        plain = complete()[2]
        assert plain["usage"]["prompt_tokens"] == 6
        assert complete(prompt="<|begin_of_text|>" + PRE_QUERY)[2]["usage"]["prompt_tokens"] == 7
        assert len(complete(n=3)[2]["choices"]) == 1
        assert complete(prompt=[0, 1, 2])[0] == 400
        assert complete(stop_token_ids=[4])[0] == 422
        assert complete(temperature=1.0, seed=1)[2]["choices"] == plain["choices"]
        sampling = {"temperature": 1.0, "generation_config": json.dumps({"do_sample": True, "top_k": 0})}
        texts = [complete(**sampling, seed=seed)[2]["choices"][0]["text"] for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]
        stop = plain["choices"][0]["text"][:2]
        assert stop in complete(stop=[stop])[2]["choices"][0]["text"]


def test_the_simulated_server_gives_the_samples_of_a_request_together_and_each_takes_a_slot():
    with SimProcess("--slots", "8", "--median-s", "0.02", "--tail", "0.2") as sim:
        body = {"prompt": [1, 2, 3], "n": 20, "seed": 7, "max_tokens": 256}
        (reply,) = (payload for _, _, payload in post(sim.url, [body], path=PATH, timeout_s=30))
        stats = sim.get("/_stats")
    assert [c["text"] for c in reply["choices"]] == [f"Simulated text number {seed}" for seed in range(7, 27)]
    assert (stats["done"], stats["max_busy"]) == (20, 8)


def test_the_simulated_tail_has_its_share_and_the_mean_that_it_says():
    latency = Latency(0.5, 0.6, tail=0.01)
    drawn = [latency.draw(seed) for seed in range(20_000)]
    assert 0.008 < sum(seconds > 4.5 for seconds in drawn) / len(drawn) < 0.012
    assert abs(sum(drawn) / len(drawn) / latency.mean_s - 1) < 0.05
