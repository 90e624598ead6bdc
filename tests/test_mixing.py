"""Rows whose labels were made with different rubrics: reports, selections and agreement warn and name the rubrics."""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset, Features, Value, concatenate_datasets, load_dataset

import magpie_hf
from magpie_hf.hub.layouts import Layout
from magpie_hf.judging.rubric import load_rubric
from magpie_hf.mixing import mixed_rubrics, rubrics_of
from magpie_hf.reports import agreement
from magpie_hf.session.shape import Shape


def labeled(rubric, *labels, first=0):
    """Return rows with labels of the rubric "quality" of a set."""
    size = len(labels)
    features = Features({"uuid": Value("string"), "instruction": Value("string"), **load_rubric(rubric).features()})
    values = {
        "uuid": [str(first + n) for n in range(size)],
        "instruction": ["Why?"] * size,
        "input_quality": list(labels),
        "quality_rubric": [load_rubric(rubric).tag] * size,
    }
    return Dataset.from_dict({name: values.get(name, [None] * size) for name in features}, features)


@pytest.fixture
def mixed():
    return concatenate_datasets([labeled("quality", "good", "poor"), labeled("reference/quality", "good", first=2)])


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("magpie_hf"), "propagate", True)
    caplog.set_level(logging.WARNING, "magpie_hf")
    return caplog


BOTH = 'The labels in "input_quality" were made with different rubrics: default-v1 (2 rows) and reference-v1 (1 row).'


def test_a_selection_by_mixed_labels_warns_and_names_both_sets(mixed, warnings):
    assert len(magpie_hf.select(mixed, "quality >= good")) == 2
    assert BOTH in warnings.text
    warnings.clear()
    magpie_hf.select(mixed, "instruction == 'Why?'")
    assert warnings.text == "", "this condition reads no label"


def test_a_report_on_mixed_labels_warns_in_the_log_and_on_its_page(mixed, warnings, tmp_path):
    page = magpie_hf.report(mixed, tmp_path / "report.html").read_text("utf-8")
    assert BOTH in warnings.text
    assert "default-v1 (2 rows) and reference-v1 (1 row)" in page


def test_agreement_of_two_sets_names_them_and_warns_only_if_one_side_is_mixed(mixed, warnings):
    ours, theirs = labeled("quality", "good", "poor"), labeled("reference/quality", "good", "average")
    found = agreement(ours, theirs)["input_quality"]
    assert (found["rubrics_first"], found["rubrics_second"]) == (["default-v1"], ["reference-v1"])
    assert warnings.text == ""
    agreement(ours, mixed)
    assert BOTH in warnings.text


def test_the_command_prints_which_rubrics_are_compared(tmp_path, capsys):
    from magpie_hf.cli.main import main

    for name, rubric in (("a", "quality"), ("b", "reference/quality")):
        labeled(rubric, "good", "poor").to_parquet(tmp_path / f"{name}.parquet")
    assert main(["agreement", str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]) == 0
    assert "Rubrics: default-v1 / reference-v1" in capsys.readouterr().out


def test_rows_of_another_dataset_count_as_labels_of_an_unknown_rubric_and_rows_without_a_label_do_not():
    released = Dataset.from_dict({"uuid": ["8", "9"], "instruction": ["Hi", "Ho"], "input_quality": ["good", None]})
    data = concatenate_datasets([labeled("quality", "good", "poor", None), released])
    assert rubrics_of(data, "input_quality") == {"default-v1": 2, "an unknown rubric": 1}
    assert "default-v1 (2 rows) and an unknown rubric (1 row)" in mixed_rubrics(data)[0]
    assert mixed_rubrics(released) == mixed_rubrics(labeled("quality", "good", None)) == []


def test_two_texts_of_your_own_rubric_are_told_apart_after_parquet_too(tmp_path):
    schema = {"type": "object", "properties": {"level": {"type": "string", "enum": ["low", "high"]}}}
    parts = []
    for task in ("Rate.", "Rate again."):
        rubric = load_rubric({"name": "tone", "task": task, "schema": schema})
        values = {"tone_level": ["low"], "tone_rubric": [rubric.tag]}
        features = Features(rubric.features())
        parts.append(Dataset.from_dict({name: values.get(name, [None]) for name in features}, features))
    concatenate_datasets(parts).to_parquet(str(tmp_path / "rows.parquet"))
    data = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train")
    (warning,) = mixed_rubrics(data)
    assert warning.count("tone-v1-") == 2


def test_a_card_names_the_rubrics_of_its_labels_and_says_if_they_are_mixed(mixed):
    from magpie_hf.hub.card import build_card

    one = build_card(labeled("reference/quality", "good"), license="mit")
    assert "| rubrics of the labels | reference-v1 |" in one
    assert "different rubrics" not in one
    both = build_card(mixed, license="mit")
    assert "| rubrics of the labels | default-v1, reference-v1 |" in both
    assert "default-v1 (2 rows) and reference-v1 (1 row)" in both


def test_columns_of_a_release_that_hide_which_rubric_made_the_labels_come_with_a_warning(warnings):
    layout = Layout("quality", "", {"uuid": "string", "input_quality": "string"})
    made = Shape(layout).apply(labeled("quality", "good"))["train"]
    assert made.column_names == ["uuid", "input_quality"]
    assert "The labels were made with default-v1" in warnings.text
    warnings.clear()
    Shape(layout).apply(labeled("reference/quality", "good"))
    Shape(Layout("ids", "", {"uuid": "string"})).apply(labeled("quality", "good"))
    Shape(("uuid", "input_quality")).apply(labeled("quality", "good"))
    assert warnings.text == ""
