"""`--model demo` on any recipe, another engine than the recipe's, and what an address turns out to be."""

from __future__ import annotations

import pytest

from magpie_hf.cli.main import build_parser
from magpie_hf.cli.parse import overrides_of
from magpie_hf.engines.remote.detect import server_kind
from magpie_hf.errors import EngineUnavailableError
from magpie_hf.recipe.costs import estimate, model_billions
from magpie_hf.recipe.schema import load_recipe


BIG = {
    "model": "meta-llama/Meta-Llama-3-70B-Instruct",
    "revision": "abc",
    "num_rows": 1_000_000,
    "engine": {"kind": "vllm", "tensor_parallel_size": 4},
    "responder": {"model": "a/b", "engine": {"kind": "vllm"}},
    "judge": {"model": "meta-llama/Meta-Llama-3-8B-Instruct", "mode": "combined", "engine": {"kind": "vllm"}},
    "stages": ["instructions", "responses", {"stage": "reward", "model": "x/rm", "trust_remote_code": True}, "safety"],
}


def test_a_rehearsal_needs_no_other_model():
    recipe = load_recipe(BIG, {"engine.kind": "transformers", "model": "demo"})
    assert {recipe.role(name).model for name in ("generator", "responder", "judge", "guard", "base")} == {"demo"}
    assert {recipe.role(name).engine.kind for name in ("generator", "responder", "judge")} == {"transformers"}
    assert recipe.revision is None
    assert recipe.raw["judge"]["mode"] == "combined"
    assert {choice.name for stage in recipe.stages for choice in stage.models("demo").values()} == {"demo"}


def test_what_is_said_of_a_role_counts_in_a_rehearsal_too():
    recipe = load_recipe(
        BIG, {"engine.kind": "transformers", "model": "demo", "judge.model": "c/d", "judge.engine": "vllm"}
    )
    assert recipe.role("judge").model == "c/d"


def test_settings_of_another_engine_are_left_behind():
    recipe = load_recipe(
        BIG,
        {"engine.kind": "openai", "engine.endpoints": ["http://h:1"], "responder": None, "stages": ["instructions"]},
    )
    assert recipe.engine.options == {}
    same = load_recipe(BIG, {"engine.kind": "vllm"})
    assert same.engine.options == {"tensor_parallel_size": 4}


def test_an_address_says_what_serves_there(tgi_server):
    assert server_kind(tgi_server.url) == "tgi"
    options = build_parser().parse_args(["run", "quickstart", "--endpoint", tgi_server.url])
    assert overrides_of(options)["engine.kind"] == "tgi"


def test_completions_are_recognised(demo_model_dir, demo_generator):
    from tests.servers.completions_server import CompletionsServer

    with CompletionsServer(demo_model_dir, generator=demo_generator, model_id="demo") as server:
        assert server_kind(server.url) == server_kind(f"{server.url}/v1/") == "openai"


def test_an_address_where_nothing_answers_is_named():
    with pytest.raises(EngineUnavailableError, match=r"127\.0\.0\.1:9"):
        server_kind("http://127.0.0.1:9")


def test_the_estimate_agrees_with_the_papers_gpu_hours():
    """Magpie, arXiv:2406.08464v2, section 3.4: 206 GPU-hours and $0.12 per 1,000; 614 and $1.10."""
    air = estimate(load_recipe({"model": "meta-llama/Meta-Llama-3-8B-Instruct", "num_rows": 3_000_000}))
    pro = estimate(load_recipe({"model": "meta-llama/Meta-Llama-3-70B-Instruct", "num_rows": 1_000_000}))
    assert air.gpu_hours == pytest.approx(206, rel=0.1)
    assert pro.gpu_hours == pytest.approx(614, rel=0.1)
    assert air.price / 3_000 == pytest.approx(0.12, rel=0.1)
    assert pro.price / 1_000 == pytest.approx(1.10, rel=0.1)


@pytest.mark.parametrize(
    ("model", "billions"),
    [("Qwen/Qwen3-30B-A3B-Instruct-2507", 3), ("google/gemma-2-27b-it", 27), ("HuggingFaceTB/SmolLM3-3B", 3),
     ("microsoft/Phi-3-medium-128k-instruct", 14), ("acme/secret", None), ("allenai/OLMo-2-0325-32B-Instruct", 32)],
)  # fmt: skip
def test_sizes_are_read_off_names(model, billions):
    assert model_billions(model) == billions


def test_the_responses_of_the_base_model_are_priced_at_its_size():
    raw = {
        "model": "meta-llama/Meta-Llama-3-70B-Instruct",
        "num_rows": 1000,
        "base": "meta-llama/Meta-Llama-3-8B",
        "stages": ["instructions", "responses"],
    }
    without = estimate(load_recipe(raw))
    small = estimate(load_recipe({**raw, "stages": [*raw["stages"], "reward_difference"]}))
    large = estimate(load_recipe({**raw, "base": "a/b-70b", "stages": [*raw["stages"], "reward_difference"]}))
    assert small.gpu_hours == pytest.approx(without.gpu_hours * (1 + 0.97 * 8 / 70))
    assert large.gpu_hours == pytest.approx(without.gpu_hours * 1.97)
    assert small.tokens == large.tokens == pytest.approx(without.tokens * 1.97)
