from __future__ import annotations

import importlib.util

import pytest

from magpie_hf.engines.base import Prompt, Request
from magpie_hf.engines.local.vllm import VllmEngine, VllmWorker, device_groups, visible_devices
from magpie_hf.errors import ArgumentError, DependencyError
from magpie_hf.models import ModelRef
from magpie_hf.sampling import SamplingParams

from . import vllm_stand_in


HAS_VLLM = importlib.util.find_spec("vllm") is not None
PROMPT = Prompt("a", [1])


REF = ModelRef("org/model", "org/model", None, None)


@pytest.fixture
def worker(monkeypatch):
    """Return what opens a worker with the settings of `VllmEngine`, on the stand-in for vLLM."""
    vllm_stand_in.install(monkeypatch)
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)

    def opened(**settings):
        made = VllmWorker(
            "org/model", ref=REF, engine_args=VllmEngine("org/model", ref=REF, **settings).settings.to_engine_args()
        )
        made.open()
        return made

    return opened


def samples(count, prompt=PROMPT):
    return [Request(i, prompt, SamplingParams(max_tokens=1000, seed=i)) for i in range(count)]


def test_vllms_own_width_for_offline_inference_is_used_unless_one_is_set(worker):
    assert worker()._engine.args.max_num_seqs is None
    assert worker()._engine.width == vllm_stand_in.WIDTH
    assert worker(batch_size=7)._engine.width == 7
    assert worker(engine_args={"max_num_seqs": 9})._engine.width == 9


@pytest.mark.parametrize("width", [None, 256, 1024])
def test_it_takes_as_many_steps_as_when_vllm_is_given_everything_at_once(worker, width):
    wanted = samples(4000)
    alone = worker(batch_size=width)._engine
    for request in wanted:
        params = vllm_stand_in.SamplingParams(seed=request.sampling.seed, max_tokens=1000)
        alone.add_request(str(request.key), {}, params)
    while alone.has_unfinished_requests():
        alone.step()
    ours = worker(batch_size=width)
    found = {g.key: (len(g.token_ids), g.seed) for g in ours.generate(iter(wanted))}
    assert found == {i: (vllm_stand_in.tokens_of(i), i) for i in range(4000)}
    assert ours._engine.steps == alone.steps
    assert ours._engine.most_held <= ours.window == 2 * ours._engine.width


def test_a_dropped_call_leaves_nothing_running(worker):
    ours = worker()
    stream = ours.generate(iter(samples(500)))
    next(stream)
    stream.close()
    assert not ours._engine.has_unfinished_requests()
    assert len(list(ours.generate(iter(samples(3))))) == 3


@pytest.mark.parametrize(
    ("devices", "size", "expected"),
    [(None, 2, [None]), ([0, 1], 1, [(0,), (1,)]), ([0, 1, 2, 3], 2, [(0, 1), (2, 3)]), ([[4, 6]], 2, [(4, 6)])],
    ids=["vllm's choice", "one each", "pairs", "a named group"],
)
def test_devices_are_cut_into_replicas(devices, size, expected):
    assert device_groups(devices, size) == expected


@pytest.mark.parametrize("devices", [[0, 1, 2], [[0], [1, 2]], []])
def test_devices_that_do_not_fill_the_replicas_are_refused(devices):
    with pytest.raises(ArgumentError, match="tensor_parallel_size = 2"):
        device_groups(devices, 2)


def test_device_numbers_count_within_those_that_the_process_sees(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_devices((1,)) == "5"
    with pytest.raises(ArgumentError, match="Device 2 not found"):
        visible_devices((2,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_devices((1, 2)) == "1,2"


def test_the_identity_says_what_was_asked_and_not_on_which_devices():
    ref = ModelRef("org/model", "org/model", "c" * 40, "c" * 40)
    plain = VllmEngine("org/model", ref=ref, devices=[0, 1], batch_size=7).identity()
    assert plain == {"model": "org/model", "revision": "c" * 40}
    assert VllmEngine("org/model", ref=ref, quantization="fp8").identity() == plain | {"quantization": "fp8"}


@pytest.mark.skipif(HAS_VLLM, reason="vllm is installed")
def test_a_missing_vllm_is_an_error_with_the_pip_line():
    ref = ModelRef("org/model", "org/model", None, None)
    with pytest.raises(DependencyError, match=r"magpie_hf\[vllm\]"):
        VllmEngine("org/model", ref=ref).open()


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not HAS_VLLM, reason="vllm is not installed")
def test_vllm_gives_the_same_samples_in_any_order(tmp_path):
    from tests.engines.tiny import END, make_model

    prompt = Prompt("", [0, 1, 9])
    requests = [Request(i, prompt, SamplingParams(max_tokens=12 + i % 5, seed=50 + i)) for i in range(20)]
    requests += [Request(99, prompt, SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(END,)))]
    extra = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 28}
    with VllmEngine(make_model(tmp_path, "wide"), max_model_len=128, batch_size=16, engine_args=extra) as engine:
        forward = {g.key: (g.token_ids, g.finish_reason, g.completion_tokens) for g in engine.generate(requests)}
        backward = {
            g.key: (g.token_ids, g.finish_reason, g.completion_tokens) for g in engine.generate(requests[::-1])
        }
        long = Request(0, Prompt("", [0] * 200), SamplingParams())
        (refused,) = engine.generate([long])
    assert len(forward) == 21
    assert forward == backward
    assert refused.failure.code == "too_long"
    assert not refused.failure.transient
