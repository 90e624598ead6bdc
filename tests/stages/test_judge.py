"""Judges that err, and what becomes of their rows; on an engine whose answers are written here."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

import magpie_hf
from magpie_hf.engines import ENGINES
from magpie_hf.engines.base import Failure
from magpie_hf.errors import ArgumentError, DatasetError, MagpieError
from magpie_hf.session.status import run_status
from tests.scripted_engine import ScriptedEngine


GOOD = json.dumps({"explanation": "Clear.", "input_quality": "good"})
ALL = {
    "explanation": "Clear.", "input_quality": "good", "intent": "To know.", "knowledge": "Facts.", "difficulty": "easy",
    "primary_tag": "Math", "other_tags": ["Reasoning"],
}  # fmt: skip


@pytest.fixture
def judge(monkeypatch, tiny_model_dir):
    monkeypatch.setitem(ENGINES, "scripted", "tests.scripted_engine:ScriptedEngine")
    ScriptedEngine.reset()

    def spec(answer, **settings):
        ScriptedEngine.answer = staticmethod(answer)
        return {"model": str(tiny_model_dir), "engine": {"kind": "scripted", **settings}}

    return spec


def rows(*instructions):
    return Dataset.from_dict({"instruction": list(instructions)})


def test_a_reply_is_saved_with_the_name_of_the_judge(judge, tmp_path, tiny_model_dir):
    ds = magpie_hf.annotate(rows("What is 2+2?"), ["quality"], judge=judge(lambda r, n: GOOD), output=tmp_path / "run")
    row = ds[0]
    assert (row["input_quality"], row["quality_explanation"]) == ("good", "Clear.")
    assert row["quality_generator"] == tiny_model_dir.name
    assert (row["quality_error"], row["quality_raw"]) == (None, None)
    (asked,) = ScriptedEngine.asked
    assert asked.sampling.is_greedy
    assert asked.sampling.json_schema is None
    assert "What is 2+2?" in asked.prompt.text


def test_an_answer_that_cannot_be_read_is_asked_for_once_more_and_hotter(judge, tmp_path):
    engine = judge(lambda r, n: "I would say good." if n == 0 else GOOD)
    ds = magpie_hf.annotate(rows("Why?"), ["quality"], judge=engine, output=tmp_path / "run")
    assert ds[0]["input_quality"] == "good"
    first, second = ScriptedEngine.asked
    assert first.prompt.text == second.prompt.text
    assert (first.sampling.temperature, second.sampling.temperature) == (0.0, 0.7)
    assert second.sampling.seed is not None


def test_after_the_second_try_the_label_is_null_and_counted_with_the_raw_text(judge, tmp_path):
    engine = judge(lambda r, n: '{"explanation": "So so.", "input_quality": "decent"}')
    ds = magpie_hf.annotate(rows("Why?", "How?"), ["quality"], judge=engine, output=tmp_path / "run")
    assert ds["input_quality"][:] == [None, None]
    assert ds[0]["quality_explanation"] == "So so."
    assert ds[0]["quality_error"] == "unknown_label"
    assert "decent" in ds[0]["quality_raw"]
    assert len(ScriptedEngine.asked) == 4
    assert run_status(tmp_path / "run").stages[0].by_code == {"unknown_label": 2}


def test_a_reply_cut_off_by_the_limit_is_retried_with_more_tokens(judge, tmp_path):
    engine = judge(lambda r, n: ('{"explanation": "It is', "length") if n == 0 else GOOD)
    ds = magpie_hf.annotate(rows("Why?"), ["quality"], judge=engine, output=tmp_path / "run")
    assert ds[0]["input_quality"] == "good"
    assert ScriptedEngine.asked[1].sampling.max_tokens == 2 * ScriptedEngine.asked[0].sampling.max_tokens


def test_the_schema_is_sent_where_the_engine_holds_texts_to_it(judge, tmp_path):
    engine = judge(lambda r, n: GOOD)
    ScriptedEngine.json_schema = True
    magpie_hf.annotate(rows("Why?"), ["quality"], judge=engine, output=tmp_path / "a")
    schema = json.loads(ScriptedEngine.asked[0].sampling.json_schema)
    assert list(schema["properties"]) == schema["required"] == ["explanation", "input_quality"]
    magpie_hf.annotate(rows("Why?"), [{"stage": "quality", "structured": False}], judge=engine, output=tmp_path / "b")
    assert ScriptedEngine.asked[1].sampling.json_schema is None


def test_a_combined_judge_asks_once_and_fills_all_columns(judge, tmp_path):
    names = ["quality", "difficulty", "category"]
    engine = judge(lambda r, n: json.dumps(ALL))
    ds = magpie_hf.annotate(rows("Why?", "How?"), names, judge=engine, judge_mode="combined", output=tmp_path / "run")
    assert len(ScriptedEngine.asked) == 2
    row = ds[0]
    assert (row["input_quality"], row["difficulty"], row["task_category"]) == ("good", "easy", "Math")
    assert row["other_task_category"] == ["Reasoning"]
    assert (row["intent"], row["knowledge"]) == ("To know.", "Facts.")


def test_of_a_combined_answer_what_can_be_read_is_kept(judge, tmp_path):
    broken = {key: value for key, value in ALL.items() if key != "difficulty"}
    engine = judge(lambda r, n: json.dumps(broken if n == 0 else {**broken, "input_quality": "superb"}))
    ds = magpie_hf.annotate(
        rows("Why?"), ["quality", "difficulty", "category"], judge=engine, judge_mode="combined", output=tmp_path / "r"
    )
    row = ds[0]
    assert (row["input_quality"], row["quality_error"]) == ("good", None)
    assert (row["difficulty"], row["difficulty_error"]) == (None, "unparsable")
    assert row["task_category"] == "Math"


def test_the_shared_part_of_a_prompt_comes_first_and_the_row_last(judge, tmp_path):
    magpie_hf.annotate(
        rows("First?", "Second?"), ["difficulty"], judge=judge(lambda r, n: "{}"), output=tmp_path / "r"
    )
    texts = sorted({request.prompt.text for request in ScriptedEngine.asked})
    assert len(texts) == 2
    common = next(n for n, (a, b) in enumerate(zip(*texts, strict=False)) if a != b)
    assert texts[0][common:].startswith("First?")
    assert texts[0].index("very hard") < common


OWN = {
    "name": "humor",
    "task": "Say how funny the response is, from 1 to 5.",
    "reads": ["instruction", "response"],
    "schema": {
        "type": "object",
        "properties": {
            "score": {"type": "integer", "minimum": 1, "maximum": 5},
            "words": {"type": "array", "items": {"type": "string"}},
        },
    },
}


def test_a_rubric_of_ones_own_is_a_mapping_and_no_class(judge, tmp_path):
    data = Dataset.from_dict({"instruction": ["Tell a joke."], "response": ["Knock knock."]})
    engine = judge(lambda r, n: '{"score": 4, "words": ["knock"]}')
    ds = magpie_hf.annotate(data, [{"stage": "rubric", "rubric": OWN}], judge=engine, output=tmp_path / "run")
    assert (ds[0]["humor_score"], ds[0]["humor_words"], ds[0]["humor_error"]) == (4, ["knock"], None)
    assert "Knock knock." in ScriptedEngine.asked[0].prompt.text


def test_two_rubrics_of_ones_own_stand_side_by_side_and_may_lie_in_files(judge, tmp_path):
    import yaml

    (tmp_path / "tone.yaml").write_text(yaml.safe_dump({**OWN, "name": "tone", "reads": ["instruction"]}))
    data = Dataset.from_dict({"instruction": ["Tell a joke."], "response": ["Knock knock."]})
    stages = [{"stage": "rubric", "rubric": OWN}, {"stage": "rubric", "rubric": str(tmp_path / "tone.yaml")}]
    ds = magpie_hf.annotate(
        data, stages, judge=judge(lambda r, n: '{"score": 2, "words": []}'), output=tmp_path / "run"
    )
    assert (ds[0]["humor_score"], ds[0]["tone_score"]) == (2, 2)


@pytest.mark.parametrize(
    ("rubric", "words"),
    [
        ({"name": "x", "task": "t"}, ['"schema"']),
        ({**OWN, "taks": "t"}, ["taks", '"task"']),
        ({**OWN, "name": "two words"}, ["name"]),
        ({**OWN, "schema": {"type": "array"}}, ["object with properties"]),
        ({**OWN, "schema": {"type": "object", "properties": {"a": {"type": "object"}}}}, ["'humor.a'", "'object'"]),
        ("humour.yaml", ["Cannot read the rubric"]),
        ("qualty", ['"quality"']),
    ],
)
def test_a_rubric_that_cannot_be_used_says_why(judge, tmp_path, rubric, words):
    with pytest.raises(MagpieError) as caught:
        magpie_hf.annotate(
            rows("x"), [{"stage": "rubric", "rubric": rubric}], judge=judge(lambda r, n: ""), output=tmp_path / "r"
        )
    for word in words:
        assert word in str(caught.value)


def test_rows_without_instruction_too_long_ones_and_refused_ones_are_named(judge, tmp_path):
    engine = judge(lambda r, n: GOOD)
    ScriptedEngine.fail = {1: Failure("too_long", False, "the prompt has 40000 tokens")}
    ds = magpie_hf.annotate(rows(None, "Why?", "x" * 100_000), ["quality"], judge=engine, output=tmp_path / "run")
    assert ds["quality_error"][:] == ["nothing to judge", None, "too_long"]
    assert ds["input_quality"][:] == [None, "good", None]


def test_only_new_rows_are_judged_when_a_dataset_grows(judge, tmp_path):
    engine = judge(lambda r, n: GOOD)
    magpie_hf.annotate(rows("a?", "b?"), ["quality"], judge=engine, output=tmp_path / "run")
    magpie_hf.annotate(rows("c?", "a?", "b?"), ["quality"], judge=engine, output=tmp_path / "run")
    assert len(ScriptedEngine.asked) == 3


def test_without_an_output_a_larger_dataset_reuses_the_run_of_the_smaller_one(judge, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    engine = judge(lambda r, n: GOOD)
    first = magpie_hf.annotate(rows("a?", "b?"), ["quality"], judge=engine)
    second = magpie_hf.annotate(rows("a?", "b?", "c?"), ["quality"], judge=judge(lambda r, n: GOOD, window=2))
    assert len(ScriptedEngine.asked) == 3
    assert (len(first), len(second)) == (2, 3)
    assert first["input_quality"][:] == ["good"] * 2  # what was returned before is still there


def test_a_recipe_may_annotate_the_first_rows_of_a_file(judge, tmp_path):
    rows("a?", "b?", "c?").to_parquet(str(tmp_path / "rows.parquet"))
    spec = judge(lambda r, n: GOOD)
    recipe = {
        "dataset": str(tmp_path / "rows.parquet"),
        "judge": {"model": spec["model"], "engine": {"kind": "scripted"}},
        "stages": ["quality"],
    }
    assert len(magpie_hf.run(recipe, {"num_rows": 2}, output=tmp_path / "run")) == 2
    assert len(magpie_hf.run(recipe, output=tmp_path / "run")) == 3
    assert len(ScriptedEngine.asked) == 3


def test_without_a_judge_the_error_says_so(tmp_path):
    with pytest.raises(MagpieError, match='No model is given for the stage "quality"'):
        magpie_hf.annotate(rows("a?"), ["quality"], output=tmp_path / "run")


def test_a_missing_column_is_named_before_anything_is_asked(judge, tmp_path):
    with pytest.raises(DatasetError, match="response"):
        magpie_hf.annotate(
            rows("a?"), [{"stage": "rubric", "rubric": OWN}], judge=judge(lambda r, n: GOOD), output=tmp_path / "r"
        )
    with pytest.raises(DatasetError, match="No column contains an instruction"):
        magpie_hf.annotate(
            Dataset.from_dict({"n": [1]}), ["quality"], judge=judge(lambda r, n: GOOD), output=tmp_path / "s"
        )
    assert ScriptedEngine.asked == []


def test_an_empty_dataset_gets_the_columns_and_asks_nothing(judge, tmp_path):
    ds = magpie_hf.annotate(
        rows("x").select([]), ["quality", "flags"], judge=judge(lambda r, n: GOOD), output=tmp_path / "run"
    )
    assert len(ds) == 0
    assert {"input_quality", "quality_error", "flags", "uuid"} <= set(ds.column_names)


def test_two_keys_of_one_name_cannot_be_joined():
    from magpie_hf.stages.judge import Judge

    with pytest.raises(ArgumentError, match="same name"):
        Judge(
            rubrics=(
                "quality",
                {**OWN, "schema": {"type": "object", "properties": {"input_quality": {"type": "string"}}}},
            )
        )
