"""`banned_starts` of responses and turns: enforced by every engine, and no part of the identity unless it is set."""

from __future__ import annotations

import pytest
import transformers
from datasets import Dataset

import magpie_hf
from magpie_hf.engines import ENGINES
from magpie_hf.errors import ArgumentError, CapabilityError
from magpie_hf.recipe.schema import load_recipe
from magpie_hf.sampling import SamplingParams
from magpie_hf.stages.instructions import Instructions
from magpie_hf.stages.responses import Responses
from magpie_hf.stages.starts import ATTEMPTS, first_tokens
from magpie_hf.stages.turns import Turns
from tests.scripted_engine import ScriptedEngine
from tests.servers.completions_server import CompletionsServer


SAMPLED = {"temperature": 0.8, "max_tokens": 24}
STAGES = {
    "responses": {"stage": "responses", "sampling": SAMPLED},
    "turns": {"stage": "turns", "sampling": SAMPLED, "response_sampling": SAMPLED},
}
QUESTIONS = ["What is the capital of France?", "Name a prime number.", "How do plants grow?", "Why is the sky blue?"]


@pytest.fixture
def scripted(monkeypatch, tiny_model_dir, tmp_path):
    """Run one stage on rows, with texts written by the test: `scripted(answer, stage, **settings)`."""
    monkeypatch.setitem(ENGINES, "scripted", "tests.scripted_engine:ScriptedEngine")
    ScriptedEngine.reset()

    def run(answer, stage, **settings):
        ScriptedEngine.answer = staticmethod(answer)
        recipe = {"model": str(tiny_model_dir), "engine": {"kind": "scripted"}, "dataset": str(tmp_path / "rows")}
        Dataset.from_dict({"instruction": ["Hi?"], "response": ["Hello."]}).save_to_disk(tmp_path / "rows")
        return magpie_hf.run(
            recipe | {"stages": [STAGES[stage] | settings]}, output=tmp_path / "run", show_progress=False
        )[0]

    return run


def test_a_response_with_a_banned_start_is_sampled_again_with_another_seed(scripted):
    row = scripted(lambda request, n: " # Heading" if n < 3 else "Text", "responses", banned_starts=["#", "**"])
    assert row["response"] == "Text"
    seeds = [request.sampling.seed for request in ScriptedEngine.asked]
    assert len(set(seeds)) == 4
    assert row["gen_response_configs"]["seed"] == seeds[3]


def test_a_response_that_always_begins_this_way_is_rejected_with_its_code(scripted):
    row = scripted(lambda request, n: "# Heading", "responses", banned_starts="#")
    assert len(ScriptedEngine.asked) == ATTEMPTS
    assert row["response"] is None
    assert row["response_finish_reason"].startswith("error: banned_start")


def test_neither_a_users_turn_nor_its_response_begins_with_a_banned_start(scripted):
    texts = ["# Title", "And why is that?", "# Because", "Because."]
    row = scripted(lambda request, n: texts[n], "turns", banned_starts=["#"])
    assert (row["instruction_2"], row["response_2"], row["turns_end"]) == (texts[1], texts[3], "complete")


def test_greedy_decoding_needs_an_engine_that_can_ban_tokens(scripted):
    for stage, key in (("responses", "sampling"), ("turns", "response_sampling")):
        with pytest.raises(CapabilityError, match=r"banned_starts.*greedy decoding"):
            scripted(lambda request, n: "x", stage, banned_starts=["#"], **{key: {"temperature": 0}})


def test_an_empty_start_is_refused_and_white_space_before_a_start_is_ignored():
    for stage in (Instructions, Responses, Turns):
        for start in ("", " \n"):
            with pytest.raises(ArgumentError, match="every text begins"):
                stage(banned_starts=(start,))
        assert stage(banned_starts=(" **", "**", "#")).banned_starts == ("**", "#")


def test_the_response_after_the_reasoning_does_not_begin_with_a_banned_start(scripted):
    texts = ["<think>hm</think>\n\n# Heading", "<think># So.</think>\n\nText"]
    row = scripted(lambda request, n: texts[n], "responses", banned_starts=["#", "<"])
    assert (row["response"], row["reasoning"]) == ("Text", "# So.")


def test_special_tokens_are_not_banned(demo_model_dir):
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model_dir)
    banned = first_tokens(tokenizer, ("<",))
    assert banned
    assert not {*banned} & {*tokenizer.all_special_ids}


@pytest.mark.parametrize("stage", ["responses", "turns"])
def test_the_identity_has_banned_starts_only_if_they_are_set(stage):
    def recipe(**settings):
        stages = ["instructions", "responses", STAGES["turns"]]
        stages[1 if stage == "responses" else 2] = STAGES[stage] | settings
        return load_recipe({"model": "demo", "stages": stages})

    unset, same, banned = recipe(), recipe(banned_starts=[]), recipe(banned_starts=["#"])
    assert unset.hash == same.hash != banned.hash
    number = 1 if stage == "responses" else 2
    assert "banned_starts" not in unset.stages[number].parameters()
    assert banned.stages[number].parameters()["banned_starts"] == ["#"]


@pytest.fixture
def engine(request, tgi_server, demo_model_dir, demo_generator):
    """Return the settings of a local or an endpoint engine with the demo model."""
    if request.param == "transformers":
        yield {"kind": "transformers"}
    elif request.param == "tgi":
        yield {"kind": "tgi", "endpoint": tgi_server.url}
    else:
        with CompletionsServer(demo_model_dir, generator=demo_generator, model_id="demo") as server:
            yield {"kind": "openai", "endpoint": server.url}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "tgi", "openai"], indirect=True)
def test_every_engine_keeps_responses_and_turns_from_their_usual_starts(engine, tmp_path):
    def texts(place, **settings):
        rows = Dataset.from_dict({"instruction": QUESTIONS * 3})
        recipe = {"model": "demo", "engine": engine, "dataset": {"path": str(tmp_path / "rows")}}
        rows.save_to_disk(tmp_path / "rows")
        stages = [STAGES[name] | settings for name in STAGES]
        made = magpie_hf.run(recipe | {"stages": stages}, output=tmp_path / place, show_progress=False)
        found = [made[name] for name in ("response", "instruction_2", "response_2")]
        return [[text for text in column if text] for column in found]

    free = texts("free")
    starts = sorted({text.lstrip()[0] for column in free for text in column})[::2]
    assert all(any(text.lstrip()[0] in starts for text in column) for column in free)
    for column in texts("banned", banned_starts=starts):
        assert column
        assert not [text for text in column if text.lstrip()[0] in starts]


@pytest.mark.slow
def test_greedy_responses_of_the_local_engine_begin_with_the_next_best_token(tmp_path):
    Dataset.from_dict({"instruction": QUESTIONS}).save_to_disk(tmp_path / "rows")

    def responses(starts):
        stage = {"stage": "responses", "sampling": {"temperature": 0, "max_tokens": 12}, "banned_starts": starts}
        recipe = {"model": "demo", "stages": [stage], "dataset": str(tmp_path / "rows")}
        return magpie_hf.run(recipe, output=tmp_path / f"run-{len(starts)}", show_progress=False)["response"]

    free = list(responses([]))
    starts = sorted({text.lstrip()[0] for text in free})
    banned = list(responses(starts))
    assert all(banned)
    assert not [text for text in banned if text.lstrip()[0] in starts]


def test_without_banned_starts_a_sampled_response_keeps_the_seed_of_its_row(scripted):
    with_ban = scripted(lambda request, n: "Text", "responses", banned_starts=["#"])
    seed = ScriptedEngine.asked[0].sampling
    assert seed == SamplingParams(**SAMPLED, stop=seed.stop, stop_token_ids=seed.stop_token_ids, seed=seed.seed)
    assert with_ban["gen_response_configs"]["seed"] == seed.seed
