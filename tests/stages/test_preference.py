from __future__ import annotations

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import magpie_hf
from magpie_hf.errors import ArgumentError, RecipeError
from magpie_hf.messages import conversation
from magpie_hf.scoring.reward_model import RewardModel, Scored
from magpie_hf.session.status import run_status
from magpie_hf.stages.preference import PreferenceResponses, best_and_worst
from tests.end_to_end.harness import nothing_twice


def recipe(**more):
    return {
        "model": "demo",
        "num_rows": 16,
        "sampling": {"max_tokens": 48},
        "stages": [
            "instructions",
            {"stage": "responses", "sampling": {"temperature": 0, "max_tokens": 48}},
            {"stage": "preference_responses", "num_samples": 4, "sampling": {"temperature": 1.2, "max_tokens": 48}},
            "preference",
        ],
        **more,
    }


@pytest.fixture(scope="module")
def made(demo_model_dir, tmp_path_factory):
    place = tmp_path_factory.mktemp("preference") / "run"
    return place, magpie_hf.run(recipe(), output=place)


def test_the_best_answer_is_chosen_and_the_worst_rejected(made):
    _, ds = made
    decided = [row for row in ds if row["chosen"] is not None]
    assert len(decided) >= 8
    for row in decided:
        rewards = row["preference_rewards"]
        assert len(row["responses"]) == len(rewards) == 4
        assert row["chosen_reward"] == max(rewards)
        assert row["rejected_reward"] == min(rewards)
        assert row["reward_margin"] == pytest.approx(max(rewards) - min(rewards))
        assert row["chosen"][1]["content"] == row["responses"][rewards.index(max(rewards))]
        assert [turn["role"] for turn in row["rejected"]] == ["user", "assistant"]
        assert row["chosen"][0] == row["rejected"][0] == {"role": "user", "content": row["instruction"]}
        assert row["chosen"] != row["rejected"]
    for row in ds:
        assert (row["chosen"] is None) == (row["rejected"] is None) == (row["reward_margin"] is None)
    assert set(ds["preference_model"]) == {"demo"}


def test_answers_differ_and_each_has_a_seed_of_its_own(made):
    _, ds = made
    assert sum(len(set(row["responses"])) > 1 for row in ds) >= 8
    for config in ds["gen_responses_configs"]:
        assert len(set(config["seeds"])) == 4


def test_a_score_is_that_of_the_pair_alone(made):
    from magpie_hf.models import demo_model

    _, ds = made
    row = ds[0]
    model = RewardModel(demo_model("reward"))
    assert [s.reward for s in model.score([conversation((row["instruction"], r)) for r in row["responses"]])] == row[
        "preference_rewards"
    ]
    model.close()


def test_a_cached_run_loads_no_model(made, monkeypatch):
    place, ds = made
    monkeypatch.setattr(RewardModel, "__init__", lambda *a, **k: pytest.fail("a model was loaded"))
    assert magpie_hf.run(recipe(), output=place).to_list() == ds.to_list()
    nothing_twice(place)
    assert [stage.name for stage in run_status(place).stages][-2:] == ["preference_responses", "preference"]


def test_rows_that_are_there_get_preferences_too(tmp_path, demo_model_dir):
    ds = Dataset.from_dict({"instruction": ["Name two planets.", None, "Say hi."], "response": ["a", "b", "c"]})
    out = magpie_hf.annotate(
        ds,
        [{"stage": "preference_responses", "num_samples": 3, "sampling": {"max_tokens": 32, "temperature": 1.0}}, "preference"],
        model="demo", output=tmp_path / "run",
    )  # fmt: skip
    assert out[1]["responses"] is None
    assert out[1]["preference_rewards"] is None
    assert out[1]["chosen"] is None
    assert len(out[0]["responses"]) == 3


@given(st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.floats())), max_size=6))
def test_what_is_chosen_scores_more_than_what_is_rejected_or_there_is_nothing(pairs):
    responses, rewards = [p[0] for p in pairs], [p[1] for p in pairs]
    best, worst = best_and_worst(responses, rewards)
    assert (best is None) == (worst is None)
    if best is not None:
        assert rewards[best] > rewards[worst]
        assert responses[best] != responses[worst]


def test_of_equal_scores_the_first_counts():
    assert best_and_worst(["a", "b", "c", "d"], [1.0, 2.0, 2.0, 1.0]) == (1, 0)
    assert best_and_worst(["a", "b"], [1.0, 1.0]) == (None, None)
    assert best_and_worst(["a", "b", "c"], [None, 2.0, 1.0]) == (1, 2)


def test_a_score_that_is_no_number_is_not_chosen_from(made, monkeypatch, tmp_path):
    real = RewardModel.score

    def broken(self, pairs):
        scored = real(self, pairs)
        return [Scored(None, False, 3, "nan") if n % 4 == 0 else one for n, one in enumerate(scored)]

    monkeypatch.setattr(RewardModel, "score", broken)
    ds = magpie_hf.run(recipe(num_rows=4), output=tmp_path / "run")
    for row in ds:
        assert row["preference_rewards"][0] is None
        assert row["chosen_reward"] is None or row["chosen_reward"] == max(row["preference_rewards"][1:])


@pytest.mark.parametrize(
    ("settings", "words"), [({"num_samples": 1}, "num_samples"), ({"sampling": {"temperature": 0}}, "same response")]
)
def test_settings_that_give_nothing_to_choose_from_are_refused(settings, words):
    with pytest.raises(RecipeError, match=words):
        magpie_hf.load_recipe(
            {"model": "demo", "stages": ["instructions", {"stage": "preference_responses", **settings}]}
        )
    with pytest.raises(ArgumentError):
        PreferenceResponses(num_samples=1)


def test_another_model_can_answer(tiny_model_dir, demo_model_dir, tmp_path):
    """Instructions by one model, answers by another, as in the Reasoning releases."""
    raw = recipe(
        num_rows=4,
        responder={"model": str(tiny_model_dir)},
        stages=["instructions", {"stage": "responses", "sampling": {"max_tokens": 8, "temperature": 0}}],
    )
    ds = magpie_hf.run(raw, output=tmp_path / "run")
    assert set(ds["model"]) == {"demo"}
    assert {config["output_generator"] for config in ds["gen_response_configs"]} == {tiny_model_dir.name}
    alone = magpie_hf.run({**raw, "responder": None, "num_rows": 2}, output=tmp_path / "alone")
    assert {config["output_generator"] for config in alone["gen_response_configs"]} == {"demo"}
