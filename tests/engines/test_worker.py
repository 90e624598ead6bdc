from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from magpie_hf.engines.base import Prompt, Request
from magpie_hf.engines.local.hf import TransformersEngine
from magpie_hf.engines.workers.child import WorkerSpec
from magpie_hf.engines.workers.worker import ReplicatedEngine
from magpie_hf.errors import CapabilityError, EngineDiedError, EngineError, ModelError
from magpie_hf.sampling import SamplingParams
from tests.engines.tiny import make_model


ROOT = Path(__file__).parents[2]


def _echo(count=1, **settings):
    specs = [
        WorkerSpec("tests.engines.echo:EchoEngine", {"model": "echo"} | settings, label=f"echo {i}")
        for i in range(count)
    ]
    return ReplicatedEngine(specs, model="echo")


def _requests(count):
    prompts = [Prompt("", [7, 8]), Prompt("", [9])]
    return [Request(key, prompts[key % 2], SamplingParams(seed=key)) for key in range(count)]


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_replicas_share_the_requests_and_each_comes_back_once():
    with _echo(2, seconds=0.001) as engine:
        found = list(engine.generate(iter(_requests(100))))
        assert sorted(g.key for g in found) == list(range(100))
        by_key = {g.key: g.text.split(" ", 1)[1] for g in found}
        assert by_key[4] == "7 8 4"
        assert by_key[5] == "9 5"
        shares = [sum(g.text.startswith(f"{pid} ") for g in found) for pid in engine.pids]
        assert sum(shares) == 100
        assert min(shares) > 20
        assert engine.capabilities().max_context == 64
        assert engine.served.version == str(engine.pids[0])
        assert engine.stats.requests == 100


def test_requests_may_follow_from_generations_of_a_worker():
    follow, asked = [], []

    def requests():
        yield from _requests(10)
        while len(asked) < 10:
            if follow:
                asked.append(follow.pop())
                yield Request(100 + asked[-1], Prompt("", [1]), SamplingParams(seed=1))
            else:
                yield None

    keys = []
    with _echo(2) as engine:
        for generation in engine.generate(requests()):
            keys.append(generation.key)
            if generation.key < 100:
                follow.append(generation.key)
    assert sorted(keys) == [*range(10), *range(100, 110)]


def test_a_call_that_is_closed_early_leaves_nothing_to_the_next():
    with _echo(seconds=0.02) as engine:
        stream = engine.generate(iter(_requests(50)))
        next(stream)
        stream.close()
        later = [Request(1000 + i, Prompt("", [3]), SamplingParams(seed=i)) for i in range(5)]
        assert sorted(g.key for g in engine.generate(later)) == [1000, 1001, 1002, 1003, 1004]


def test_a_worker_that_ends_is_an_error_with_its_exit_code():
    with _echo(exit_code=17) as engine, pytest.raises(EngineDiedError, match="exit code 17") as caught:
        list(engine.generate(iter(_requests(20))))
    assert caught.value.data["exit_code"] == 17


def test_a_killed_worker_is_an_error_that_names_the_signal_and_keeps_what_came_before():
    with _echo(2, seconds=0.02) as engine:
        stream = engine.generate(iter(_requests(200)))
        found = [next(stream).key for _ in range(10)]
        os.kill(engine.pids[1], signal.SIGKILL)
        with pytest.raises(EngineDiedError, match="SIGKILL") as caught:
            found.extend(generation.key for generation in stream)
    assert len(set(found)) == len(found)
    assert "run the same command again to resume" in str(caught.value)


def test_an_error_while_opening_is_raised_in_the_parent_and_leaves_no_process():
    engine = _echo(2, fail="open")
    with pytest.raises(CapabilityError, match="echo cannot open"):
        engine.open()
    assert engine.pids == []


def test_an_error_while_generating_is_raised_in_the_parent():
    with _echo(fail="generate") as engine, pytest.raises(EngineError, match="no more today"):
        list(engine.generate(iter(_requests(20))))


def test_closing_ends_the_processes_even_of_a_busy_worker():
    engine = _echo(2, seconds=30)
    engine.open()
    pids = engine.pids
    engine._send_requests(iter(_requests(4)))  # as generate does first; its first text would take 30 s
    assert all(_is_alive(pid) for pid in pids)
    engine.close()
    assert not any(_is_alive(pid) for pid in pids)
    with pytest.raises(EngineError, match="not open"):
        engine.capabilities()


def test_a_worker_ends_when_its_parent_is_killed():
    script = (
        "import time\n"
        "from magpie_hf.engines.workers.worker import ReplicatedEngine\n"
        "from magpie_hf.engines.workers.child import WorkerSpec\n"
        "engine = ReplicatedEngine([WorkerSpec('tests.engines.echo:EchoEngine', {'model': 'echo'})], model='echo')\n"
        "engine.open()\n"
        "print(engine.pids[0], flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    child = int(parent.stdout.readline())
    assert _is_alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _wait_until(lambda: not _is_alive(child))


@pytest.mark.slow
def test_a_model_in_workers_writes_what_it_writes_in_this_process(tmp_path):
    model = make_model(tmp_path, "gqa")
    requests = [
        Request(key, Prompt("", [0, 1, 9 + key % 3]), SamplingParams(max_tokens=5 + key % 9, seed=key))
        for key in range(40)
    ]
    with TransformersEngine(model, device="cpu", deterministic=True) as engine:
        expected = {g.key: (g.text, tuple(g.token_ids), g.finish_reason) for g in engine.generate(requests)}
        identity = engine.identity()
    with TransformersEngine(model, devices=["cpu", "cpu"], deterministic=True, batch_size=16) as engine:
        found = {g.key: (g.text, tuple(g.token_ids), g.finish_reason) for g in engine.generate(requests)}
        assert engine.identity() == identity
        assert engine.capabilities().first_token_ban
        assert engine.stats.requests == 40
    assert found == expected


@pytest.mark.slow
def test_a_model_that_a_worker_cannot_load_is_a_model_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        TransformersEngine(str(tmp_path), devices=["cpu", "cpu"]).open()
