"""A judge and a guard behind a TGI server: one BOS, the same labels as the local engine, killed and gone on with."""

from __future__ import annotations

import pytest
from datasets import Dataset

import magpie_hf
from tests.end_to_end.harness import RESPONSES, TEXTS, nothing_twice


def test_a_judge_behind_a_server_gives_the_labels_of_the_local_one(tgi_server, tmp_path):
    data = Dataset.from_dict({"instruction": TEXTS, "response": RESPONSES})
    remote = {"judge": "demo", "engine": "tgi", "endpoint": tgi_server.url}
    found = magpie_hf.annotate(
        data, ["quality", "difficulty", "category", "safety"], guard="demo", **remote, output=tmp_path / "tgi"
    )
    local = magpie_hf.annotate(
        data, ["quality", "difficulty", "category", "safety"], judge="demo", output=tmp_path / "local"
    )
    for column in ("input_quality", "difficulty", "task_category", "safety", "intent"):
        assert found[column][:] == local[column][:], column
    assert found["quality_error"][:] == [None] * len(TEXTS)
    nothing_twice(tmp_path / "tgi")


@pytest.mark.slow
def test_an_engines_kind_and_address_change_no_identity(tgi_server, tmp_path):
    data = Dataset.from_dict({"instruction": TEXTS})
    magpie_hf.annotate(data, ["quality"], judge="demo", engine="tgi", endpoint=tgi_server.url, output=tmp_path / "run")
    before = len(tgi_server.record.entries)
    assert before >= len(TEXTS)
    magpie_hf.annotate(data, ["quality"], judge="demo", output=tmp_path / "run")
    assert len(tgi_server.record.entries) == before
