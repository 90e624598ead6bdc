"""The register of columns: one entry, and a column appears everywhere; strangers' columns do no harm."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets, load_dataset, load_from_disk

import magpie_hf
from magpie_hf.columns import (
    REGISTER,
    RELEASED,
    SCALES,
    Column,
    columns_of,
    stored_column,
    types_without_entries,
)
from magpie_hf.errors import ArgumentError, DatasetError
from magpie_hf.hub.card import build_card
from magpie_hf.hub.push import check_rows
from magpie_hf.judging.rubric import BUILT_IN, load_rubric
from magpie_hf.reports import agreement, dataset_statistics, write_report
from magpie_hf.selection.expressions import parse
from magpie_hf.stages import STAGES, stage_class
from tests.end_to_end.harness import here


TONE = """\
name: tone
task: Say how formal the query is.
schema:
  type: object
  properties:
    level: {type: string, enum: [low, medium, high], title: Formality of instructions}
    polite: {type: boolean}
    score: {type: integer, minimum: 1, maximum: 5}
    comment: {type: string}
"""
LEVELS = ["high", "low", "medium", None, "medium", "high"]
OWN = """\
from dataclasses import dataclass
from typing import ClassVar

from magpie_hf.columns import Column
from magpie_hf.stage import BatchStage

STYLE = Column(
    "style", "label", ("plain", "catchy", "absurd"), "Style of instructions", writer="own_styles:Styles",
    report=True, card=True, agreement=True,
)


@dataclass(frozen=True)
class Styles(BatchStage):
    name: ClassVar[str] = "styles"
    reads: ClassVar[tuple[str, ...]] = ("instruction",)

    def features(self):
        return {STYLE.name: STYLE.feature()}

    def bind(self, context):
        return lambda batch: {STYLE.name: [STYLE.labels[len(text) % 3] for text in batch["instruction"]]}
"""


@pytest.fixture
def rubric(tmp_path):
    path = tmp_path / "tone.yaml"
    path.write_text(TONE)
    return path


@pytest.fixture
def annotated(rubric):
    """Rows as the rubric's stage writes them."""
    features = Features(
        {"uuid": Value("string"), "instruction": Value("string"), **load_rubric(str(rubric)).features()}
    )
    count = len(LEVELS)
    rows = {name: [None] * count for name in features}
    rows |= {"uuid": [f"u{n}" for n in range(count)], "instruction": ["Tell me."] * count, "tone_level": LEVELS}
    rows |= {"tone_polite": [True, False, True, None, True, True], "tone_score": [5, 1, 3, None, 3, 4]}
    rows |= {"tone_error": [None, None, None, "unparsable", None, None], "tone_generator": ["judge"] * count}
    return Dataset.from_dict(rows, features=features)


@pytest.fixture
def own_stage(tmp_path, monkeypatch):
    (tmp_path / "own_styles.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_styles:Styles"
    sys.modules.pop("own_styles", None)


def levels_kept(data, condition):
    return magpie_hf.select(data, condition)["tone_level"][:]


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("tone_level >= 'medium'", ["high", "medium", "medium", "high"]),
        ("tone_level >= medium", ["high", "medium", "medium", "high"]),
        ("tone_level < 'high' and tone_score > 1", ["medium", "medium"]),
        ("tone_level in [low, 'high']", ["high", "low", "high"]),
    ],
)
def test_a_rubrics_labels_are_compared_in_the_order_of_its_enum(annotated, condition, kept):
    assert levels_kept(annotated, condition) == kept


def test_labels_that_the_rubric_does_not_have_are_refused(annotated):
    with pytest.raises(ArgumentError, match="'higher' is not a label of tone_level") as caught:
        magpie_hf.select(annotated, "tone_level == 'higher'")
    assert 'Did you mean "high"?' in caught.value.hint


def test_quotas_and_the_best_of_a_group_follow_the_order_of_a_rubric(annotated):
    kept = magpie_hf.select(annotated, {"quotas": {"tone_level": {"> low": 10}}, "length_column": "tone_score"})
    assert kept["tone_level"][:] == ["high", "medium", "medium", "high"]
    grouped = annotated.add_column("group_id", ["g"] * len(annotated))
    assert magpie_hf.select(grouped, {"one_per_group": "tone_level"})["uuid"][:] == ["u0"]


def test_the_order_stays_with_the_rows_through_files_maps_and_card_metadata(annotated, tmp_path):
    annotated.save_to_disk(str(tmp_path / "saved"))
    annotated.to_parquet(str(tmp_path / "rows.parquet"))
    wanted = ["high", "medium", "medium", "high"]
    mapped = annotated.map(lambda row: {"n": len(row["instruction"])}).filter(lambda row: row["n"] > 0)
    for data in (
        mapped,
        concatenate_datasets([annotated, annotated]).select(range(len(annotated))),
        load_from_disk(str(tmp_path / "saved")),
        load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train"),
        annotated.cast(Features._from_yaml_list(annotated.features._to_yaml_list())),
    ):
        assert levels_kept(data, "tone_level >= 'medium'") == wanted
    as_text = Dataset.from_pandas(annotated.to_pandas())
    assert levels_kept(as_text, "tone_level == 'medium'") == ["medium", "medium"]


def without_entries(data):
    return data.cast(Features({name: Value(feature.dtype) for name, feature in data.features.items()}))


def test_rows_without_a_stored_order_are_appended_after_a_cast(annotated):
    other = without_entries(annotated)
    both = concatenate_datasets([annotated, other.cast(annotated.features)])
    assert levels_kept(both, "tone_level >= 'medium'") == 2 * ["high", "medium", "medium", "high"]


@pytest.mark.parametrize("first", ["with entries", "without"])
def test_files_of_a_dataset_may_differ_in_what_is_stored_with_their_columns(annotated, first, tmp_path):
    parts = [annotated, without_entries(annotated)]
    for number, part in enumerate(parts if first == "with entries" else reversed(parts)):
        part.to_parquet(str(tmp_path / f"train-{number:05d}-of-00002.parquet"))
    assert len(magpie_hf.select(str(tmp_path), "tone_level == 'high'")) == 4


def test_splits_that_differ_only_in_what_is_stored_with_their_columns_are_one_config(annotated):
    parts = {"train": annotated, "test": without_entries(annotated)}
    check_rows(parts)
    with pytest.raises(DatasetError, match="other columns"):
        check_rows(parts | {"more": annotated.cast_column("tone_score", Value("float32"))})
    features = Features({"id": Value("int64"), "pair": {"_type": Value("string"), "id": Value("string")}})
    other = Features({**features, "pair": {"_type": Value("string"), "id": Value("int64")}})
    assert types_without_entries(features) != types_without_entries(other)


def test_equal_rows_with_another_order_of_labels_are_selected_again(tmp_path):
    kept = []
    for labels in (("low", "mid", "high"), ("high", "mid", "low")):
        tone = Column("tone", "label", labels=labels).feature()
        features = Features({"instruction": Value("string"), "response": Value("string"), "tone": tone})
        columns = {"instruction": ["a", "b", "c"], "response": ["d"] * 3, "tone": ["low", "mid", "high"]}
        rows = Dataset.from_dict(columns, features=features)
        condition = {"stage": "select", "where": "tone >= 'mid'"}
        kept.append(magpie_hf.annotate(rows, condition, output=tmp_path / "run")["tone"][:])
    assert kept == [["mid", "high"], ["low", "mid"]]


@pytest.mark.parametrize("values", [[1, 5], [["easy"], []], [{"a": "easy"}, None]])
def test_quotas_of_a_column_without_labels_are_refused_in_words(values):
    data = Dataset.from_dict({"instruction": ["a", "b"], "difficulty": values})
    with pytest.raises(ArgumentError, match=r"'difficulty' of type .* has no labels"):
        magpie_hf.select(data, {"quotas": {"difficulty": {"easy": 1}}, "length_column": "instruction_length"})


def test_a_column_of_labels_that_has_only_nulls_orders_no_rows():
    data = Dataset.from_dict({"uuid": ["b", "a"], "group_id": ["g", "g"], "difficulty": [None, None]})
    assert magpie_hf.select(data, {"one_per_group": "difficulty"})["uuid"][:] == ["a"]


def test_a_rubric_appears_in_statistics_page_card_and_agreement(annotated, tmp_path):
    facts = dataset_statistics(annotated)
    assert list(facts["labels"]["tone_level"]["counts"].items()) == [("low", 1), ("medium", 2), ("high", 2)]
    assert facts["labels"]["tone_polite"]["counts"] == {"true": 4, "false": 1}
    assert facts["numbers"]["tone_score"]["mean"] == pytest.approx(3.2)
    assert facts["errors"] == {"tone_error": {"unparsable": 1}}
    assert "tone_comment" not in facts["columns"]
    page = write_report(annotated, tmp_path / "report.html").read_text("utf-8")
    assert "Formality of instructions: 40 % medium" in page
    assert "Tone score: median 3" in page
    card = build_card(annotated, license="mit")
    assert "| tone_level | share | |" in card
    assert "| tone_score | 3.2 |" in card
    assert "annotated with tone" in card
    compared = agreement(annotated, annotated.select(range(5)))
    assert compared["tone_level"]["labels"] == ["low", "medium", "high"]
    assert compared["tone_level"]["weighted_kappa"] == 1.0
    assert compared["tone_polite"]["kappa"] == 1.0


def test_hints_name_the_rubric_that_writes_a_missing_column(rubric, annotated):
    bare = annotated.select_columns(["uuid", "instruction"])
    with pytest.raises(DatasetError) as caught:
        magpie_hf.select(bare, "tone_level >= 'medium'")
    assert f'annotate(ds, [{{"stage": "rubric", "rubric": "{rubric}"}}]) first' in caught.value.hint
    with pytest.raises(ArgumentError, match="is neither a column nor a label") as caught:
        magpie_hf.select(annotated, "tone_level >= mediun")
    assert caught.value.hint == 'Did you mean "medium"?'


def test_an_own_stage_that_declares_its_column_appears_everywhere(own_stage, tmp_path):
    rows = [{"uuid": f"u{n}", "instruction": "a" * n} for n in range(1, 8)]
    out = magpie_hf.annotate(rows, own_stage, output=tmp_path / "run")
    for data in (out, load_dataset(str(tmp_path / "run"), split="train")):
        assert {*magpie_hf.select(data, "style >= 'catchy'")["style"]} == {"catchy", "absurd"}
        assert dataset_statistics(data)["columns"]["style"]["title"] == "Style of instructions"
        assert "style" in agreement(data, data)
        assert "| style | share | |" in build_card(data, license="mit")
    assert "Style of instructions" in write_report(out, tmp_path / "r.html").read_text("utf-8")
    here("select", tmp_path / "run", "style >= 'catchy'", "--output", tmp_path / "kept.parquet")
    assert "plain" not in load_dataset("parquet", data_files=str(tmp_path / "kept.parquet"), split="train")["style"]
    with pytest.raises(DatasetError) as caught:
        magpie_hf.select(out.remove_columns("style"), "style == 'plain'")
    assert 'annotate(ds, ["own_styles:Styles"]) first' in caught.value.hint


def test_a_recipe_selects_by_the_order_of_a_rubric_and_of_a_stage_before_it(own_stage, tmp_path):
    Dataset.from_list([{"instruction": "a" * n} for n in range(1, 8)]).to_json(tmp_path / "rows.jsonl")
    raw = {
        "name": "own",
        "dataset": str(tmp_path / "rows.jsonl"),
        "stages": [own_stage, {"stage": "select", "where": "style >= catchy"}],
    }
    out = magpie_hf.run(raw, output=tmp_path / "run")
    assert {*out["style"]} == {"catchy", "absurd"}


@pytest.mark.parametrize("name", [name for name in STAGES if name != "rubric"])
def test_every_column_of_a_stage_is_in_the_register_with_its_type(name):
    for column, feature in stage_class(name)().features().items():
        if column not in ("instruction_2", "response_2"):
            assert REGISTER[column].fits(feature), column
            assert stored_column(column, feature) is None


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_scales_of_the_built_in_rubrics_are_those_of_the_register(name):
    scales = {entry.name: entry.labels for entry in load_rubric(name).entries if entry.name in SCALES}
    assert scales == {column: SCALES[column] for column in scales}
    assert {entry.name: entry.writer for entry in load_rubric(name).entries} == {
        entry.name: REGISTER[entry.name].writer for entry in load_rubric(name).entries
    }


def test_a_rubric_may_give_a_registered_column_a_scale_of_its_own():
    given = {
        "name": "mine", "task": "Rate.", "columns": {"level": "difficulty"},
        "schema": {"type": "object", "properties": {"level": {"type": "string", "enum": ["b", "a"]}}},
    }  # fmt: skip
    features = Features(load_rubric(given).features())
    data = Dataset.from_dict({name: ["a", "b"] if name == "difficulty" else [None] * 2 for name in features}, features)
    assert magpie_hf.select(data, "difficulty > b")["difficulty"][:] == ["a"]


WRONG = {
    "numbers": [3, 4],
    "texts": ["a", None],
    "lists": [["x"], []],
    "structs": [{"refusal": "yes"}, {"refusal": None}],
    "nothing": [None, None],
}


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG)
def test_columns_of_a_known_name_and_another_type_end_no_report(values, tmp_path):
    data = Dataset.from_dict({name: values * 20 for name in REGISTER if name != "uuid"})
    data = data.add_column("uuid", [str(n) for n in range(40)]).add_column("weird name|", [1, 2] * 20)
    write_report(data, tmp_path / "report.html")
    assert build_card(data, license="mit")
    with_texts = data.remove_columns("instruction").add_column("instruction", ["Tell me a story."] * 40)
    write_report(with_texts, tmp_path / "report.html")
    agreement(data, data, columns=["weird name|"])
    for condition in ("difficulty == 3", "difficulty == 'hard'"):
        try:
            parse(condition).evaluate(data)
        except ArgumentError as error:
            assert "^" in error.message  # noqa: PT017 (either is fine, a crash is not)


@pytest.mark.parametrize(
    "stored",
    [
        "magpie_hf:", "magpie_hf:[]", 'magpie_hf:{"kind": "flags"}', 'magpie_hf:{"labels": "abc"}', "other",
        'magpie_hf:{"kind": "label", "labels": ["a", "a"]}', 'magpie_hf:{"kind": ["label"]}', "magpie_hf:" + "[" * 9000,
        'magpie_hf:{"kind": "label", "labels": [1]}',
    ],
)  # fmt: skip
def test_a_stored_entry_that_makes_no_sense_is_ignored(stored):
    assert columns_of(Features({"x": Value("string", id=stored)})) == {}


def test_a_stored_entry_cannot_break_out_of_a_page_or_card(tmp_path):
    entry = {"kind": "label", "labels": ["<b>|x"], "title": "<script>alert(1)</script>", "report": True, "card": True}
    features = Features({"<i>|": Value("string", id="magpie_hf:" + json.dumps(entry))})
    data = Dataset.from_dict({"<i>|": ["<b>|x"]}, features)
    text = write_report(data, tmp_path / "r.html").read_text("utf-8") + build_card(data, license="mit")
    assert "<script" not in text
    assert "<i>" not in text
    assert "<b>|" not in text


def test_class_labels_of_a_stranger_are_left_alone(tmp_path):
    data = Dataset.from_dict({"difficulty": [0, 1]}, Features({"difficulty": ClassLabel(names=["easy", "hard"])}))
    write_report(data, tmp_path / "report.html")


def test_the_released_order_has_no_gaps():
    assert [REGISTER[name].released for name in RELEASED] == list(range(1, len(RELEASED) + 1))


def test_a_struct_cannot_store_an_entry():
    with pytest.raises(ArgumentError, match="struct"):
        Column("x", "struct").feature()
