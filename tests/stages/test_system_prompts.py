"""A row's own system prompt: written by the grid, in force for responses and turns, and only in messages if asked for."""

from __future__ import annotations

import pytest
from datasets import Dataset

import magpie_hf
from magpie_hf.errors import DatasetError, RecipeError
from magpie_hf.recipe.schema import load_recipe
from magpie_hf.sampling import GridPoint, SamplingParams
from magpie_hf.stages.instructions import point_key
from magpie_hf.storage.keys import content_fingerprint
from tests.null_engine import NullEngine
from tests.test_existing import other_model  # noqa: F401 (a fixture)


MATH, COOK = "You answer questions about numbers.", "You help people who cook."
GRID = [
    {"system_prompt": MATH, "system_prompt_key": "math", "share": 3},
    {"system_prompt": COOK, "system_prompt_key": "cook"},
]
ROW = {"system_prompt": "row"}
STAGES = ["instructions", {"stage": "responses", **ROW}, {"stage": "turns", "turns": 3, **ROW}]


def sent(kind):
    """Return the prompts that were sent, by system prompt; the first are those of instructions."""
    return [prompt for prompt, _ in NullEngine.log if kind in prompt]


def test_the_rows_have_their_system_prompt_and_its_label_as_columns(make):
    ds = make(sampling=GRID, stages=["instructions"])
    assert {*zip(ds["system_prompt_key"], ds["system_prompt"], strict=True)} == {("math", MATH), ("cook", COOK)}
    assert list(ds["system_prompt_key"]).count("math") == 30  # of 40, by share


def test_without_labels_instructions_have_the_columns_that_they_always_had(make):
    ds = make(sampling=[{"system_prompt": MATH}], stages=["instructions"])
    assert not {"system_prompt", "system_prompt_key"} & {*ds.column_names}


def test_a_later_stage_that_reads_the_system_prompt_makes_instructions_save_it(make):
    ds = make(sampling=[{"system_prompt": MATH}], stages=STAGES)
    assert {*ds["system_prompt"]} == {MATH}
    assert "system_prompt_key" not in ds.column_names


def test_a_label_is_no_part_of_the_identity_of_a_sample():
    plain, labeled = GridPoint(SamplingParams(), 1, MATH), GridPoint(SamplingParams(), 1, MATH, "math")
    assert plain.to_dict() == labeled.to_dict()
    assert point_key(plain) == point_key(labeled)


def test_a_new_label_adds_the_columns_without_generating_anything(make, null):
    first = make(sampling=[{"system_prompt": MATH}], stages=["instructions"])
    asked = len(null.log)
    for label in ("math", "numbers"):
        ds = make(sampling=[{"system_prompt": MATH, "system_prompt_key": label}], stages=["instructions"])
        assert {*ds["system_prompt_key"]} == {label}
        assert list(ds["uuid"]) == list(first["uuid"])
    assert len(null.log) == asked


def test_responses_and_turns_are_generated_under_the_system_prompt_of_the_row(make):
    ds = make(sampling=GRID, stages=STAGES, num_rows=8)
    later = [prompt for prompt, _ in NullEngine.log if ds[0]["instruction"] in prompt]
    assert len(later) == 5  # a response; then twice a user's turn and a response
    assert all(ds[0]["system_prompt"] in prompt for prompt in later)
    for row in ds:
        other = COOK if row["system_prompt"] == MATH else MATH
        assert not [prompt for prompt in sent(row["instruction"]) if other in prompt]
        assert row["gen_response_configs"]["system_prompt"] == row["system_prompt"]
        assert row["gen_turns_configs"]["system_prompt"] == row["system_prompt"]
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 3


def test_a_system_prompt_is_written_to_messages_only_if_asked(make):
    stages = ["instructions", {"stage": "responses", **ROW, "system_prompt_in_messages": True}]
    for ds in (make(sampling=GRID, stages=stages), make(sampling=GRID, stages=[*stages, STAGES[2]])):
        for row in ds:
            assert row["messages"][0] == {"role": "system", "content": row["system_prompt"]}
            assert [message["role"] for message in row["messages"][1:3]] == ["user", "assistant"]


def test_finished_rows_get_and_lose_the_system_prompt_in_messages_without_generating_anything(make, null):
    def roles(**settings):
        ds = make(sampling=GRID, stages=["instructions", {**STAGES[1], **settings}, STAGES[2]], num_rows=8)
        return {row["messages"][0]["role"] for row in ds}

    assert roles() == {"user"}
    asked = len(null.log)
    assert roles(system_prompt_in_messages=True) == {"system"}
    assert roles() == {"user"}
    assert len(null.log) == asked


def test_a_system_prompt_that_only_the_users_turns_have_cannot_begin_messages():
    stages = ["instructions", "responses", {"stage": "turns", "system_prompt_in_messages": True}]
    with pytest.raises(RecipeError, match="requires `system_prompt: row`"):
        load_recipe({"model": "demo", "stages": stages})


def test_turns_after_responses_without_the_system_prompt_are_an_error_that_says_why():
    with pytest.raises(RecipeError, match=r"(?s)stages\[2\].*no column \"system_prompt\".*unless they have"):
        load_recipe({"model": "demo", "sampling": GRID, "stages": ["instructions", "responses", STAGES[2]]})


def test_points_with_equal_settings_cannot_have_two_labels():
    grid = [{"system_prompt_key": "a"}, {"system_prompt_key": "b"}]
    with pytest.raises(RecipeError, match=r"sampling\[1\].system_prompt_key: 'b' has the same"):
        load_recipe({"model": "demo", "sampling": grid})


CONVERSATIONS = Dataset.from_dict(
    {
        "messages": [
            [{"role": "system", "content": MATH}, {"role": "user", "content": "a b c"}],
            [{"role": "user", "content": "d e f"}],
        ]
    }
)


def annotated(dataset, stage, tmp_path, model, null, **settings):
    given = {"dataset": {"fingerprint": content_fingerprint(dataset)}, "model": str(model), "engine": {"kind": "null"}}
    return magpie_hf.run(given | {"stages": [stage]} | settings, dataset=dataset, output=tmp_path / "run", force=True)


def test_an_existing_conversation_is_answered_under_its_own_system_message(tmp_path, tiny_model_dir, null):
    stage = {"stage": "responses", **ROW, "system_prompt_in_messages": True}
    ds = annotated(CONVERSATIONS, stage, tmp_path, tiny_model_dir, null)
    assert [MATH in prompt for prompt, _ in null.log] == [True, False]
    assert list(ds["system_prompt"]) == [MATH, None]
    assert [[m["role"] for m in row] for row in ds["messages"]] == [
        ["system", "user", "assistant"],
        ["user", "assistant"],
    ]
    ds = annotated(CONVERSATIONS, "responses", tmp_path, tiny_model_dir, null)
    assert not any(MATH in prompt for prompt, _ in null.log[2:])
    assert "system_prompt" not in ds.column_names


def test_responses_to_choose_from_are_generated_under_the_system_prompt_of_the_row(tmp_path, tiny_model_dir, null):
    stage = {"stage": "preference_responses", "num_samples": 2, **ROW}
    ds = annotated(CONVERSATIONS, stage, tmp_path, tiny_model_dir, null)
    assert sorted(MATH in prompt for prompt, _ in null.log) == [False, False, True, True]
    assert [row["system_prompt"] for row in ds["gen_responses_configs"]] == [MATH, None]


def test_rows_without_system_prompts_are_refused_before_anything_is_generated(tmp_path, tiny_model_dir, null):
    rows = Dataset.from_dict({"instruction": ["a b c"]})
    with pytest.raises(DatasetError, match='the rows have no column "system_prompt"'):
        annotated(rows, {"stage": "responses", **ROW}, tmp_path, tiny_model_dir, null)
    assert not null.log


PICKY = (
    "{% for m in messages %}{% if 'forbidden' in m['content'] %}{{ raise_exception('not this word') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("stage", [{"stage": "responses"}, {"stage": "preference_responses"}, {"stage": "turns"}])
def test_a_system_prompt_that_the_template_rejects_fails_its_row_only(stage, tmp_path, tiny_model_dir, null):
    rows = Dataset.from_dict(
        {"instruction": ["a b c", "d e f"], "response": ["A.", "D."], "system_prompt": ["forbidden", MATH]}
    )
    ds = annotated(rows, stage | ROW, tmp_path, tiny_model_dir, null, template={"chat_template": PICKY})
    assert all("d e f" in prompt for prompt, _ in null.log)
    assert len(null.log) > 0
    if stage["stage"] == "responses":
        assert list(ds["response_finish_reason"]) == ["error: validation", "stop"]
    elif stage["stage"] == "turns":
        assert list(ds["turns_end"]) == ["validation", "complete"]
    else:
        assert [row is None for row in ds["responses"]] == [True, False]


def test_the_prompts_of_all_points_are_checked_with_the_server_before_the_first_row(make, null, monkeypatch):
    checked = []
    monkeypatch.setattr(null, "check_prompt", lambda self, prompt: checked.append(prompt.text))
    make(sampling=[*GRID, {**GRID[0], "temperature": 0.5}], stages=["instructions"])
    assert [[MATH in text, COOK in text] for text in checked] == [[True, False], [False, True]]


def test_a_responder_of_its_own_is_checked_with_the_prompts_of_all_points(make, null, monkeypatch, other_model):  # noqa: F811
    checked = []
    monkeypatch.setattr(null, "check_prompt", lambda self, prompt: checked.append(prompt.text))
    make(sampling=GRID, stages=STAGES[:2], responder={"model": other_model})
    assert [[MATH in text, COOK in text] for text in checked] == [[True, False], [False, True]] * 2
