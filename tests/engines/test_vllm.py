from __future__ import annotations

import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.engines.base import Prompt, Request
from magpie_hf.engines.vllm import VllmEngine, coalesced, device_groups, visible_devices
from magpie_hf.errors import ArgumentError, DependencyError
from magpie_hf.models import ModelRef
from magpie_hf.sampling import SamplingParams


HAS_VLLM = importlib.util.find_spec("vllm") is not None
PROMPTS = [Prompt("a", [1]), Prompt("a", [1])]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.sampled_from([0.0, 1.0, None])), max_size=30))
def test_requests_share_one_only_with_the_same_prompt_equal_sampling_and_seeds_that_count_up(given_requests):
    requests = [
        Request(i, PROMPTS[p], SamplingParams(temperature=1.0 if t is None else t, seed=None if t is None else seed))
        for i, (p, seed, t) in enumerate(given_requests)
    ]
    runs = list(coalesced(requests, 4))
    assert [r for run in runs for r in run] == requests
    for run in runs:
        assert len(run) <= 4
        for i, request in enumerate(run):
            assert request.prompt is run[0].prompt
            if len(run) > 1:
                assert request.sampling == run[0].sampling.with_seed(run[0].sampling.seed + i)
                assert not request.sampling.is_greedy


def test_samples_of_one_prompt_share_requests_as_far_as_they_may():
    requests = [Request(i, PROMPTS[0], SamplingParams(seed=10 + i)) for i in range(10)]
    assert [len(run) for run in coalesced(requests, 4)] == [4, 4, 2]


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
    with pytest.raises(ArgumentError, match="no device 2"):
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
def test_vllm_gives_the_same_samples_with_and_without_n(tmp_path):
    from tests.engines.tiny import END, make_model

    prompt = Prompt("", [0, 1, 9])
    requests = [Request(i, prompt, SamplingParams(max_tokens=12 + i % 5, seed=50 + i)) for i in range(20)]
    requests += [Request(99, prompt, SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(END,)))]
    extra = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 28}
    with VllmEngine(make_model(tmp_path, "wide"), max_model_len=128, batch_size=16, engine_args=extra) as engine:
        grouped = {g.key: (g.token_ids, g.finish_reason, g.completion_tokens) for g in engine.generate(requests)}
        single = {g.key: (g.token_ids, g.finish_reason, g.completion_tokens) for g in engine.generate(requests[::-1])}
        long = Request(0, Prompt("", [0] * 200), SamplingParams())
        (refused,) = engine.generate([long])
    assert len(grouped) == 21
    assert grouped == single
    assert refused.failure.code == "too_long"
    assert not refused.failure.transient
