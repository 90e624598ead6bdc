from __future__ import annotations

import asyncio
import importlib.util
import time

import aiohttp
import pytest
import torch

from .faults import Fault
from .generation import Generator, Job
from .http_server import ServerProcess
from .tgi_server import TgiServer
from .tiny_model import PRE_QUERY


@pytest.fixture(scope="module")
def generator(tiny_model_dir):
    generator = Generator(tiny_model_dir)
    yield generator
    generator.close()


@pytest.fixture(scope="module")
def server(tiny_model_dir, generator):
    with TgiServer(tiny_model_dir, generator=generator, model_id="tiny", model_sha="0" * 40) as server:
        yield server


@pytest.fixture(autouse=True)
def _healthy(server):
    server.configure(faults=(), model_id=None, starting_s=0.0, latency_s=0.0, latency_by_seed_s=0.0)
    server.record.reset()


def post(url, bodies, *, concurrency=64, headers=None, timeout_s=20.0, path="/generate"):
    """Return (status, headers, json or text) for every body; an exception stands for a request that failed."""

    async def one(session, gate, body):
        async with gate, session.post(url + path, json=body, headers=headers) as response:
            kind = response.headers.get("Content-Type", "")
            content = await (response.json() if "json" in kind else response.text())
            return response.status, response.headers, content

    async def every():
        gate = asyncio.Semaphore(concurrency)
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        connector = aiohttp.TCPConnector(limit=concurrency)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            return await asyncio.gather(*(one(session, gate, body) for body in bodies), return_exceptions=True)

    return asyncio.run(every())


def body(inputs=PRE_QUERY, **parameters):
    return {"inputs": inputs, "parameters": {"max_new_tokens": 8, "details": True, **parameters}}


def test_greedy_generation_equals_transformers(tiny_model_dir, generator):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    for text in ("What is the sea?", "x" * 70):
        ids = generator.encode(PRE_QUERY + text)
        prompt = torch.tensor([ids])
        theirs = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=150, do_sample=False, eos_token_id=[1, 4]
        )
        job = Job(ids, 150, stop_ids=generator.eos_ids)
        assert generator.submit(job).result().token_ids == theirs[0, len(ids) :].tolist()


def test_a_reply_depends_on_the_request_alone(server):
    bodies = [
        body(
            PRE_QUERY + "sea " * (i % 7),
            seed=i,
            do_sample=True,
            max_new_tokens=5 + i % 40,
            top_p=0.95 if i % 2 else None,
        )
        for i in range(60)
    ]
    one_by_one = [reply for _, _, reply in post(server.url, bodies, concurrency=1)]
    together = [reply for _, _, reply in post(server.url, bodies[::-1], concurrency=60)][::-1]
    assert together == one_by_one
    assert server.stats["max_open"] > 16
    assert len({reply["generated_text"] for reply in one_by_one}) > 50


def test_sampling_follows_the_distribution(generator):
    ids = generator.encode(PRE_QUERY)
    logits = generator.weights.prompt(ids)[2].double()
    wanted = torch.softmax(logits / 0.7, -1)
    draws = [generator.submit(Job(ids, 1, seed=i, temperature=0.7)) for i in range(4000)]
    counts = torch.bincount(torch.tensor([d.result().token_ids[0] for d in draws]), minlength=len(wanted))
    top = wanted.topk(8).indices
    assert torch.allclose(counts[top].double() / 4000, wanted[top], atol=4 * 0.5 / 4000**0.5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"top_p": 0.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"temperature": 0.0}, "`temperature` must be strictly positive"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        (
            {"max_new_tokens": 512},
            "`inputs` tokens + `max_new_tokens` must be <= 512. Given: 6 `inputs` tokens and 512",
        ),
        ({"grammar": {"type": "json", "value": {}}}, "grammar is not supported"),
        ({"seed": -1}, "Failed to deserialize"),
    ],
)
def test_bad_parameters_are_refused_as_tgi_does(server, parameters, message):
    [(status, _, reply)] = post(server.url, [body(**parameters)])
    assert status == 422
    assert reply["error_type"] == "validation"
    assert message in reply["error"]


def test_an_unreadable_body_is_refused(server):
    [(status, _, text)] = post(server.url, [{"prompt": "no inputs"}])
    assert status == 422
    assert "Failed to deserialize" in text


def test_bos_is_added_whatever_the_text_begins_with(server):
    texts = [PRE_QUERY, "<|begin_of_text|>" + PRE_QUERY]
    replies = post(server.url, [body(text, decoder_input_details=True) for text in texts])
    prefills = [[token["id"] for token in reply["details"]["prefill"]] for _, _, reply in replies]
    assert prefills[0][:2] == [0, 2]
    assert prefills[1] == [0, *prefills[0]]
    assert [int(headers["x-prompt-tokens"]) for _, headers, _ in replies] == [6, 7]


def test_details_say_how_a_text_ended(server, generator):
    [(_, _, free)] = post(server.url, [body(max_new_tokens=12, seed=3, do_sample=True)])
    tokens = free["details"]["tokens"]
    assert free["details"]["finish_reason"] == "length"
    assert free["details"]["generated_tokens"] == len(tokens) == 12
    assert free["details"]["seed"] == 3
    assert "".join(token["text"] for token in tokens).startswith(free["generated_text"][:5])
    stop = tokens[4]["text"]
    [(_, _, stopped)] = post(server.url, [body(max_new_tokens=12, seed=3, do_sample=True, stop=[stop])])
    assert stopped["details"]["finish_reason"] == "stop_sequence"
    assert stopped["generated_text"].endswith(stop)
    assert len(stopped["details"]["tokens"]) <= 5


def test_end_of_turn_ends_a_text_and_is_not_in_it(server):
    replies = post(server.url, [body(seed=i, do_sample=True, max_new_tokens=300, temperature=2.0) for i in range(20)])
    ended = [r for _, _, r in replies if r["details"]["finish_reason"] == "eos_token"]
    assert ended
    for reply in ended:
        assert reply["details"]["tokens"][-1]["special"]
        assert "<|" not in reply["generated_text"]


def test_temperature_one_is_greedy_unless_sampling_is_asked_for(server):
    replies = [r for _, _, r in post(server.url, [body(seed=i, temperature=1.0) for i in range(4)])]
    assert len({r["generated_text"] for r in replies}) == 1
    assert replies[0]["details"]["seed"] is None


def test_streaming_gives_the_same_text(server):
    request = body(seed=5, do_sample=True)
    [(_, _, whole)] = post(server.url, [request])
    [(_, headers, events)] = post(server.url, [request], path="/generate_stream")
    assert headers["Content-Type"].startswith("text/event-stream")
    assert events.count("data:") == 8
    assert whole["generated_text"].encode("unicode_escape").decode()[:4] in events


def test_both_clients_understand_the_server(server, monkeypatch):
    from huggingface_hub import InferenceClient

    # Offline, huggingface_hub refuses every address, this machine's too.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub = InferenceClient(base_url=server.url).text_generation(PRE_QUERY, details=True, max_new_tokens=6, seed=1)
    assert hub.details is not None
    assert hub.details.generated_tokens == 6
    if importlib.util.find_spec("text_generation"):  # the second lane has this client too
        from text_generation import Client

        theirs = Client(server.url).generate(PRE_QUERY, max_new_tokens=6)
        assert theirs.details.generated_tokens == 6
        assert theirs.generated_text == hub.generated_text


def test_info_names_the_model_and_can_lie_about_it(server):
    def info():
        async def get():
            async with aiohttp.ClientSession() as session, session.get(server.url + "/info") as response:
                return await response.json()

        return asyncio.run(get())

    assert info()["model_id"] == "tiny"
    assert info()["max_stop_sequences"] == 4
    server.configure(model_id="another/model")
    assert info()["model_id"] == "another/model"


def test_overload_comes_with_and_without_retry_after(server):
    server.configure(faults=[Fault("overloaded", at=(1,), retry_after=2), Fault("overloaded", at=(2,))])
    replies = post(server.url, [body()] * 3, concurrency=1)
    assert [status for status, _, _ in replies] == [429, 429, 200]
    assert [headers.get("Retry-After") for _, headers, _ in replies] == ["2", None, None]
    assert replies[0][2] == {"error": "Model is overloaded", "error_type": "overloaded"}


def test_too_many_at_once_are_refused(tiny_model_dir, generator):
    with TgiServer(tiny_model_dir, generator=generator, max_concurrent_requests=4) as server:
        replies = post(server.url, [body(seed=i, do_sample=True, max_new_tokens=100) for i in range(24)])
    statuses = [status for status, _, _ in replies]
    assert set(statuses) == {200, 429}


def test_each_request_can_fail_its_first_tries(server):
    server.configure(faults=[Fault("status", status=500, first=1, each=True)])
    bodies = [body(seed=i, do_sample=True) for i in range(3)]
    assert [r[0] for r in post(server.url, bodies)] == [500] * 3
    assert [r[0] for r in post(server.url, bodies)] == [200] * 3
    assert server.stats["by_hash"].popitem()[1] == {"500": 1, "completed": 1}


@pytest.mark.parametrize("kind", ["reset", "cut"])
def test_a_broken_connection_is_an_error_of_the_connection(server, kind):
    server.configure(faults=[Fault(kind, first=1)])
    broken, *rest = post(server.url, [body()] * 3, concurrency=1)
    assert isinstance(broken, aiohttp.ClientError)
    assert [status for status, _, _ in rest] == [200, 200]


def test_truncated_json_cannot_be_read(server):
    server.configure(faults=[Fault("truncate")])
    [failed] = post(server.url, [body()])
    assert isinstance(failed, ValueError)


def test_a_hanging_request_is_never_answered(server):
    server.configure(faults=[Fault("hang", first=1)])
    hung, answered = post(server.url, [body()] * 2, concurrency=2, timeout_s=1.0)
    assert isinstance(hung, TimeoutError)
    assert answered[0] == 200


def test_slow_start_answers_503_first(server):
    server.configure(starting_s=0.3)
    assert post(server.url, [body()])[0][0] == 503
    time.sleep(0.3)
    assert post(server.url, [body()])[0][0] == 200


def test_stats_count_what_came_and_whether_a_key_came_along(server):
    post(server.url, [body(seed=1, do_sample=True)] * 2 + [body(seed=2, do_sample=True)], concurrency=1)
    post(server.url, [body()], headers={"Authorization": "Bearer none-of-your-business"})
    stats = server.stats
    assert stats["requests"] == stats["completed"] == 4
    assert stats["completed_twice"] == 1
    assert stats["authorization_paths"] == {"/generate": 1}
    assert stats["connections"] == 2
    assert "none-of-your-business" not in str(stats)


def test_a_request_whose_client_has_gone_is_not_counted_as_completed(server):
    server.configure(latency_s=0.5)
    [gone] = post(server.url, [body()], timeout_s=0.1)
    assert isinstance(gone, TimeoutError)
    assert server.stats["open"] == 1
    time.sleep(1.0)
    assert server.stats["outcomes"] == {"dropped": 1}


def test_a_server_process_serves_dies_and_serves_again(tiny_model_dir):
    with ServerProcess("tgi_server", tiny_model_dir, "--model-id", "tiny") as process:
        [(status, _, first)] = post(process.url, [body(seed=9, do_sample=True)])
        assert status == 200
        process.post("/_faults", [{"kind": "die"}])
        [died] = post(process.url, [body()])
        assert isinstance(died, aiohttp.ClientError)
        assert process.process.wait(timeout=10) == 137
    with ServerProcess("tgi_server", tiny_model_dir, port=process.port) as again:
        assert post(again.url, [body(seed=9, do_sample=True)])[0][2] == first
        assert again.get("/_stats")["completed"] == 1


def test_a_thread_server_dies_too(tiny_model_dir, generator):
    with TgiServer(tiny_model_dir, generator=generator, faults=[Fault("die", at=(2,))]) as server:
        answered, died, refused = post(server.url, [body()] * 3, concurrency=1)
    assert answered[0] == 200
    assert isinstance(died, aiohttp.ClientError)
    assert isinstance(refused, aiohttp.ClientError)
