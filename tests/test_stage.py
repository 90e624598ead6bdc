"""Stages on datasets that are not ours, and what a stage says of itself."""

from __future__ import annotations

import dataclasses
import json

import pytest
from datasets import Dataset, Features

from magpie_hf.errors import DatasetError, TemplateError
from magpie_hf.execution.runner import run_stage
from magpie_hf.recipe.schema import load_recipe
from magpie_hf.sampling import GridPoint, SamplingParams
from magpie_hf.session.session import Session
from magpie_hf.stage import CODES, FAILURE_CODES, RowStage, silent
from magpie_hf.stages import STAGES, stage_class
from magpie_hf.stages.instructions import Instructions
from magpie_hf.stages.lengths import Lengths
from magpie_hf.stages.responses import Responses
from magpie_hf.stages.turns import Turns
from magpie_hf.storage.rundir import RunDir
from tests.stages import conftest as runs


null = runs.null
NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.fixture
def apply(null, tiny_model_dir, tmp_path):
    """Run stages on a dataset as `api` does: `apply(dataset, stage, …)`."""

    def run(dataset, *stages, engine=None, **settings):
        recipe = load_recipe({"model": str(tiny_model_dir), "engine": {"kind": "null", **(engine or {})}, **settings})
        with RunDir(tmp_path / "run").own() as run_dir:
            session = Session(recipe, run_dir, show_progress=False)
            with session.recorded():
                for stage in stages:
                    dataset = run_stage(stage, dataset, session.environment(stage.role))
        return dataset

    return run


def of(texts):
    return Dataset.from_dict({"instruction": texts})


SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_frozen_named_and_gives_declared_features(name):
    kind = stage_class(name)
    given = {"rubric": {"rubric": {"name": "mine", "task": "Rate.", "schema": SCHEMA}}}.get(name, {})
    stage = kind(**given)
    assert kind.name == name
    assert dataclasses.is_dataclass(stage)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stage.anything = 1
    assert Features(stage.features()) or name in ("select", "subset")
    assert stage.parameters() == kind(**given).parameters()


def test_a_new_setting_is_part_of_the_identity_unless_it_is_declared_silent():
    @dataclasses.dataclass(frozen=True)
    class Wider(Responses):
        tone: str = "kind"
        batch: int = silent(8)

    before = Responses().parameters()
    assert Wider().parameters() == before | {"tone": "kind"}
    assert Wider(tone="curt").parameters() != Wider().parameters()
    assert Wider(batch=9).parameters() == Wider().parameters()


SILENT = {
    "reward": {"model", "revision", "device", "batch_tokens", "trust_remote_code", "endpoint", "api_key_env", "concurrency"},
    "neighbors": {"model", "revision", "device", "batch_size", "trust_remote_code", "precision"},
    "decontamination": {"model", "revision", "device", "batch_size", "trust_remote_code"},
    "instructions": {"grid", "keep_system_prompt"},
    "rubric": {"rubric"},
    "select": {"is_early"},
    "responses": {"system_prompt_in_messages"},
    "turns": {"system_prompt_in_messages"},
    "language": set(),
}  # fmt: skip


@pytest.mark.parametrize("name", SILENT)
def test_silent_are_addresses_and_batches_and_what_enters_the_identity_elsewhere(name):
    fields = dataclasses.fields(stage_class(name))
    assert {f.name for f in fields if not f.metadata.get("identity", True)} == SILENT[name]


def test_a_rubric_is_in_the_identity_with_its_whole_text():
    build = stage_class("rubric")
    one = build(rubric={"name": "mine", "task": "Rate.", "schema": SCHEMA})
    other = build(rubric={"name": "mine", "task": "Rate it.", "schema": SCHEMA})
    assert one.parameters() != other.parameters()


def test_codes_are_stored_as_numbers_and_so_never_reordered():
    assert CODES[:10] == (
        *("ok", "unfinished", "empty", "fragment", "think_tag", "assistant_voice", "special_token", "mixed_script"),
        *("banned_start", "too_long"),
    )
    assert len(set(CODES)) == len(CODES) < 255
    assert set(FAILURE_CODES) <= set(CODES)


def test_equal_rows_of_a_foreign_dataset_are_answered_each(apply, null):
    answered = apply(of(["Hi there?", "Bye now?", "Hi there?"]), Responses(SamplingParams(temperature=1.0)))
    assert len(null.log) == 3
    seeds = [row["seed"] for row in answered["gen_response_configs"]]
    assert len(set(seeds)) == 3
    assert answered["response"][0] != answered["response"][2], "equal rows are sampled apart"


def test_a_foreign_dataset_is_recognised_by_content(apply, null, tmp_path):
    dataset = of(["One?", "Two?"])
    before = apply(dataset, Responses()).to_list()
    dataset.save_to_disk(tmp_path / "d")
    null.reset()
    assert apply(Dataset.load_from_disk(tmp_path / "d"), Responses()).to_list() == before
    assert null.opened == 0
    apply(of(["One?", "Two?", "Three?"]), Responses())
    assert len(null.log) == 1, "rows are added, not made anew"


def test_rows_without_text_are_finished_without_a_request(apply, null):
    dataset = apply(of(["One?", None]), Responses(), Turns(), Lengths())
    row = dataset[1]
    assert (row["response"], row["response_finish_reason"], row["messages"]) == (None, "error: no instruction", [])
    assert (row["num_turns"], row["turns_end"]) == (0, "no first turn")
    assert (row["instruction_length"], row["response_tokens"]) == (None, None)
    assert dataset[0]["num_turns"] == 2
    assert len(null.log) == 3


def test_a_new_conversation_takes_the_place_of_the_old_form_that_would_contradict_it(apply):
    old = [[{"from": "human", "value": "One?"}, {"from": "gpt", "value": "An older answer."}]]
    dataset = of(["One?"]).add_column("conversations", old).add_column("response", ["An older answer."])
    assert apply(dataset, Lengths())["conversations"][:] == old
    assert "conversations" not in apply(dataset, Responses()).column_names


def test_an_empty_dataset_passes_through_every_stage_with_its_columns(apply, null):
    empty = Dataset.from_dict(
        {"instruction": []}, features=Features({"instruction": of(["x"]).features["instruction"]})
    )
    dataset = apply(empty, Responses(), Turns(), Lengths())
    assert len(dataset) == 0
    assert {"response", "messages", "instruction_2", "response_tokens"} <= set(dataset.column_names)
    assert null.opened == 0


def test_other_columns_and_their_types_are_kept(apply):
    dataset = Dataset.from_dict({"instruction": ["One?"], "tags": [["a", "b"]], "score": [0.5]})
    answered = apply(dataset, Responses())
    assert answered.features["tags"] == dataset.features["tags"]
    assert answered[0]["score"] == 0.5


@pytest.mark.parametrize("stage", [Responses(), Turns(), Lengths()], ids=lambda stage: stage.name)
def test_a_missing_column_is_named_before_anything_is_loaded(apply, null, stage):
    with pytest.raises(DatasetError, match=f'"{stage.name}" reads the column'):
        apply(Dataset.from_dict({"text": ["x"]}), stage)
    assert null.opened == 0


def test_lengths_are_characters_and_tokens_without_special_ones(apply, tiny_model_dir):
    from transformers import AutoTokenizer

    texts = ["What is 2+2?", "日本", ""]
    dataset = apply(Dataset.from_dict({"instruction": texts, "response": [None, "x", "y"]}), Lengths())
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert dataset["instruction_length"][:] == [12, 2, 0]
    assert dataset["response_length"][:] == [None, 1, 1]
    assert dataset["instruction_tokens"][:] == [
        len(tokenizer.encode(text, add_special_tokens=False)) for text in texts
    ]
    bare = apply(of(["x"]).add_column("response", ["y"]), Lengths(tokens=False))
    assert "instruction_tokens" not in bare.column_names


@pytest.mark.parametrize(
    "settings",
    [
        {"stages": ["instructions", "responses", {"stage": "turns", "turns": 2}]},
        {"stages": ["instructions", {"stage": "responses", "system_prompt": "Be brief."}]},
        {"system_prompt": "Be curious.", "stages": ["instructions"]},
    ],
    ids=["turns", "responses", "instructions"],
)
def test_a_template_that_refuses_a_later_stages_prompt_is_named_before_any_row_is_paid_for(
    null, tiny_model_dir, tmp_path, settings
):
    import magpie_hf

    recipe = {"model": str(tiny_model_dir), "num_rows": 4, "engine": "null", "template": {"chat_template": NO_SYSTEM}}
    with pytest.raises(TemplateError):
        magpie_hf.run({**recipe, **settings}, output=tmp_path / "run")
    assert (null.opened, null.log) == (0, [])


def test_a_stage_that_uses_no_engine_has_no_seed_in_its_identity_but_whose_tokens_it_counts(apply, tmp_path):
    apply(of(["x"]).add_column("response", ["y"]), Lengths(), seed=1)
    (state,) = RunDir.read(tmp_path / "run").state.stages.values()
    assert set(state.identity_fields) == {"stage", "version", "parameters", "tokenizer"}


def test_another_models_tokens_are_not_taken_from_the_cache(apply, tiny_model_dir, tmp_path):
    from tests.servers.tiny_model import build_tiny_model

    other = build_tiny_model(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    dataset = of(["What is the sum?"]).add_column("response", ["It is twelve."])
    one = apply(dataset, Lengths())[0]["instruction_tokens"]
    assert apply(dataset, Lengths(), model=str(other))[0]["instruction_tokens"] == 16 > one


def test_engine_settings_that_change_no_text_are_in_no_identity(apply, tmp_path):
    apply(of(["One?"]), Responses(), engine={"window": 3})
    apply(of(["One?"]), Responses(), engine={"window": 5})
    (state,) = RunDir.read(tmp_path / "run").state.stages.values()
    assert set(state.identity_fields) == {"stage", "version", "parameters", "seed", "engine", "template"}
    assert str(tmp_path) not in str(state.identity_fields)


def test_shares_are_no_part_of_a_stages_parameters_and_rows_hold_their_setting():
    grid = (GridPoint(SamplingParams(temperature=0.5)), GridPoint(SamplingParams(), share=9.0))
    assert Instructions(grid=grid).parameters() == Instructions().parameters()
    assert issubclass(Instructions, RowStage)
