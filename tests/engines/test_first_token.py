"""A first token with sampling of its own (`first_token_scale`, bans): its distribution, and that of the rest."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from magpie_hf.engines.base import Capabilities, Failure, Generation, Prompt, Request
from magpie_hf.engines.first_token import TwoRequests
from magpie_hf.engines.local.hf import TransformersEngine
from magpie_hf.engines.remote.openai import OpenAIEngine
from magpie_hf.engines.remote.tgi import TgiEngine
from magpie_hf.errors import ArgumentError, CapabilityError
from magpie_hf.models import resolve_model
from magpie_hf.recipe.schema import load_recipe
from magpie_hf.sampling import SamplingParams
from magpie_hf.templates.template import ChatTemplate
from tests.engines import vllm_stand_in
from tests.engines.test_vllm import worker  # noqa: F401 (a fixture)
from tests.servers.completions_server import CompletionsServer
from tests.stages.conftest import make, null  # noqa: F401 (fixtures)


TEMPERATURE, SCALE = 0.7, 1.6
SAMPLES = 3000
BOTH = Capabilities(first_token_ban=True, first_token_scale=True, max_context=64)


@pytest.fixture(scope="module")
def template():
    return ChatTemplate.load("demo")


@pytest.fixture(scope="module")
def prompt(template):
    return template.pre_query()


@pytest.fixture(scope="module")
def local():
    with TransformersEngine("demo") as engine:
        yield engine


@pytest.fixture(scope="module")
def remote(demo_model_dir, demo_generator):
    """Return an engine on a server that takes and returns token ids, as vLLM's does."""
    with (
        CompletionsServer(demo_model_dir, generator=demo_generator, model_id="demo") as server,
        OpenAIEngine("demo", endpoints=[server.url], ref=resolve_model("demo", None), max_n=64) as engine,
    ):
        yield engine


@pytest.fixture(params=["local", "remote"])
def engine(request):
    return request.getfixturevalue(request.param)


def sampled(engine, prompt, count, first=0, **sampling):
    params = SamplingParams(**({"temperature": TEMPERATURE, "max_tokens": 2} | sampling))
    requests = [Request(i, prompt, params.with_seed(first + i)) for i in range(count)]
    return {g.key: g for g in engine.generate(iter(requests))}


def probabilities(local, ids, temperature):
    """Return softmax(logits / temperature) of the token after `ids`, from the model itself."""
    with torch.inference_mode():
        logits = local._model(torch.tensor([list(ids)])).logits[0, -1].double()
    return torch.softmax(logits / temperature, dim=-1).numpy()


def deviation(tokens, expected):
    """Return chi-square of the counts in standard deviations from its mean; rare tokens count as one."""
    counts = np.bincount(tokens, minlength=len(expected)).astype(float)
    wanted = expected * len(tokens)
    common = wanted >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(wanted[common], wanted[~common].sum())
    chi_square = ((observed - wanted) ** 2 / np.maximum(wanted, 1e-9)).sum()
    return (chi_square - (len(wanted) - 1)) / np.sqrt(2 * (len(wanted) - 1))


@pytest.mark.slow
def test_the_first_token_has_the_scaled_temperature_and_the_second_the_plain_one(engine, local, prompt):
    found = sampled(engine, prompt, SAMPLES, first_token_scale=SCALE)
    firsts = [found[i].token_ids[0] for i in range(SAMPLES) if found[i].token_ids]
    assert len(firsts) > 0.95 * SAMPLES
    assert abs(deviation(firsts, probabilities(local, prompt.token_ids, TEMPERATURE * SCALE))) < 4
    assert deviation(firsts, probabilities(local, prompt.token_ids, TEMPERATURE)) > 20
    usual = Counter(firsts).most_common(1)[0][0]
    seconds = [g.token_ids[1] for g in found.values() if len(g.token_ids) == 2 and g.token_ids[0] == usual]
    after = (*prompt.token_ids, usual)
    assert len(seconds) > 100
    assert abs(deviation(seconds, probabilities(local, after, TEMPERATURE))) < 4


def test_equal_seeds_give_equal_texts_and_each_request_has_one_generation(engine, prompt):
    settings = {"first_token_scale": SCALE, "max_tokens": 12, "stop_token_ids": ()}
    one = sampled(engine, prompt, 40, **settings)
    again = {}
    for first in (20, 0):
        again |= {first + key: g for key, g in sampled(engine, prompt, 20, first, **settings).items()}
    assert sorted(one) == sorted(again) == list(range(40))
    for key, generation in one.items():
        same = again[key]
        assert (generation.text, generation.finish_reason) == (same.text, same.finish_reason)
        assert generation.seed == key
        assert generation.completion_tokens == len(generation.token_ids) + (generation.finish_reason == "stop")
        assert generation.completion_tokens <= 12
    assert len({g.text for g in one.values()}) > 20


def test_the_rest_of_a_text_is_the_same_for_any_scale_if_the_first_token_is(local, prompt):
    plain = sampled(local, prompt, 200, max_tokens=10)
    scaled = sampled(local, prompt, 200, max_tokens=10, first_token_scale=SCALE)
    same = [i for i in range(200) if plain[i].token_ids[:1] == scaled[i].token_ids[:1]]
    assert 20 < len(same) < 200
    assert all(plain[i].text == scaled[i].text for i in same)


def test_a_text_may_end_with_its_first_token(engine, local, prompt, template):
    size = local._model.config.vocab_size
    end = template.instruction_stops.token_ids[0]
    (newline,) = template.tokenizer.encode("\n", add_special_tokens=False)
    for token, stops, reason in ((end, {"stop_token_ids": (end,)}, "stop"), (newline, {"stop": ("\n",)}, "stop_text")):
        others = tuple(i for i in range(size) if i != token)
        (ended,) = sampled(engine, prompt, 1, max_tokens=9, banned_first_token_ids=others, **stops).values()
        assert (ended.text, ended.finish_reason, ended.completion_tokens) == ("", reason, 1)
    others = tuple(i for i in range(size) if i != newline)
    (whole,) = sampled(engine, prompt, 1, max_tokens=1, banned_first_token_ids=others).values()
    assert (whole.text, whole.finish_reason, whole.completion_tokens) == ("\n", "length", 1)


def test_greedy_texts_with_a_banned_first_token_are_those_of_the_local_engine(local, remote, prompt):
    (free,) = sampled(local, prompt, 1, temperature=0, max_tokens=16).values()
    banned = {"temperature": 0, "max_tokens": 16, "banned_first_token_ids": free.token_ids[:1]}
    (here,), (there,) = (sampled(engine, prompt, 1, **banned).values() for engine in (local, remote))
    assert here.token_ids[0] != free.token_ids[0]
    assert (here.text, here.finish_reason) == (there.text, there.finish_reason)
    assert there.prompt_tokens == len(prompt.token_ids)


@pytest.mark.parametrize("server", [{"dialect": "llama.cpp"}, {"dialect": "transformers"}, {"string_only": True}])
def test_a_server_that_does_not_continue_from_token_ids_is_refused_by_name(
    server, demo_model_dir, demo_generator, prompt
):
    with CompletionsServer(demo_model_dir, generator=demo_generator, model_id="demo", **server) as running:
        named = {"served_model_name": "demo"}
        with OpenAIEngine("demo", endpoints=[running.url], ref=resolve_model("demo", None), **named) as engine:
            assert not engine.capabilities().first_token_scale
            with pytest.raises(CapabilityError, match=r"(?s)first_token_scale = 1.2.*token ids.*transformers or vllm"):
                sampled(engine, prompt, 1, first_token_scale=1.2)


def test_tgi_is_refused_because_its_prompts_are_texts(tgi_server, prompt):
    with TgiEngine("demo", endpoints=[tgi_server.url], ref=resolve_model("demo", None)) as engine:
        with pytest.raises(CapabilityError, match=r"first_token_scale = 1.2.*prompts are texts"):
            sampled(engine, prompt, 1, first_token_scale=1.2)
        assert sampled(engine, prompt, 1, temperature=0, first_token_scale=1.2), "greedy texts do not change"


def test_an_engine_that_does_not_know_the_setting_is_refused_before_its_first_request(make, null):  # noqa: F811
    with pytest.raises(CapabilityError, match=r"The engine null cannot .*first_token_scale = 1.5"):
        make(sampling={"first_token_scale": 1.5})
    assert not null.log


def test_vllm_gets_two_requests_a_sample_and_gives_one_generation(worker, prompt):  # noqa: F811
    ours = worker()
    found = sampled(ours, prompt, 300, max_tokens=1000, first_token_scale=SCALE)
    assert sorted(found) == list(range(300))
    assert all(g.completion_tokens == len(g.token_ids) > 1 for g in found.values())
    assert {g.seed for g in found.values()} == set(range(300))
    assert ours._engine.most_held <= 2 * vllm_stand_in.WIDTH


# Joining two generations


def joined(first, rest, sampling, decode=None, context=64):
    """Return the whole generation of a sample, and the requests that the engine received."""
    asked = []

    def generate(requests):
        for request in requests:
            if request is not None:
                asked.append(request)
                yield (first, rest)[len(asked) - 1]

    two = TwoRequests(
        "engine", Capabilities(first_token_ban=True, first_token_scale=True, max_context=context), decode
    )
    (whole,) = two.run([Request(0, Prompt("ab", [1, 2]), sampling)], generate)
    return whole, asked


def generation(text, reason, ids, count=None, failure=None):
    count = len(ids) if count is None else count
    return Generation(0, text, reason, tuple(ids), 2, count, failure=failure)


SAMPLED = SamplingParams(max_tokens=8, first_token_scale=1.5, seed=3, stop=("END",))


def test_the_second_request_continues_from_the_first_token_under_a_seed_of_its_own():
    whole, (one, two) = joined(generation("x", "length", [7]), generation("yz", "stop", [8, 9], 3), SAMPLED)
    assert (one.sampling.temperature, one.sampling.max_tokens, one.sampling.seed) == (1.5, 1, 3)
    assert two.prompt.token_ids == (1, 2, 7)
    assert (two.sampling.temperature, two.sampling.max_tokens) == (1.0, 7)
    assert two.sampling.seed not in (None, 3)
    assert one.sampling.stop == two.sampling.stop == ("END",)
    assert (whole.text, whole.token_ids, whole.finish_reason) == ("xyz", (7, 8, 9), "stop")
    assert (whole.prompt_tokens, whole.completion_tokens, whole.seed) == (2, 4, 3)


def test_a_stop_text_that_begins_in_the_first_token_ends_the_text():
    whole, _ = joined(generation("xE", "length", [7]), generation("ND and more", "length", [8, 9]), SAMPLED)
    assert (whole.text, whole.finish_reason, whole.completion_tokens) == ("x", "stop_text", 3)


def test_a_first_token_that_is_a_part_of_a_character_is_decoded_with_the_rest():
    halves = generation("\ufffd", "length", [7]), generation("\ufffd!", "stop", [8, 9])
    whole, _ = joined(*halves, SAMPLED, decode=lambda ids: "é!" if tuple(ids) == (7, 8, 9) else "")
    assert whole.text == "é!"


def test_a_first_token_that_fills_the_context_is_the_whole_text():
    whole, asked = joined(generation("x", "length", [7]), None, SAMPLED, context=3)
    assert (whole.text, whole.finish_reason, len(asked)) == ("x", "length", 1)


@pytest.mark.parametrize("which", [0, 1])
def test_a_failure_of_either_request_is_that_of_the_sample(which):
    parts = [generation("x", "length", [7]), generation("y", "stop", [8])]
    parts[which].failure = Failure("overloaded", True, "busy")
    whole, asked = joined(*parts, SAMPLED)
    assert whole.failure == Failure("overloaded", True, "busy")
    assert len(asked) == which + 1


def test_a_reply_without_the_id_of_the_first_token_is_a_transient_failure():
    whole, _ = joined(generation("x", "length", []), None, SAMPLED)
    assert (whole.failure.code, whole.failure.transient) == ("bad_reply", True)


def test_a_json_schema_cannot_be_split_over_two_requests():
    with pytest.raises(CapabilityError, match="JSON schema"):
        joined(None, None, SamplingParams(first_token_scale=1.5, json_schema="{}"))


# The setting


@pytest.mark.parametrize("scale", [0, -1, float("nan"), 11])
def test_a_scale_must_leave_a_temperature_from_0_to_10(scale):
    with pytest.raises(ArgumentError, match="first_token_scale"):
        SamplingParams(first_token_scale=scale)


def test_the_identity_has_the_scale_only_if_it_is_set():
    plain, one, other = (
        load_recipe({"model": "demo", "sampling": {"temperature": 0.6, **given}})
        for given in ({}, {"first_token_scale": 1.0}, {"first_token_scale": 1.2})
    )
    assert plain.hash == one.hash != other.hash
    assert "first_token_scale" not in plain.grid[0].to_dict()["sampling"]
    assert other.grid[0].to_dict()["sampling"]["first_token_scale"] == 1.2
