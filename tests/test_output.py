from __future__ import annotations

import pytest
from datasets import Dataset, load_dataset, load_from_disk

from magpie_hf.errors import StorageError
from magpie_hf.session.output import write_output
from magpie_hf.storage.rundir import RunDir
from tests.stages import conftest as runs


null, make = runs.null, runs.make


@pytest.fixture
def run_dir(tmp_path):
    with RunDir(tmp_path / "run").own() as owned:
        owned.save()
        yield owned


def some(texts=("a", "b")):
    return Dataset.from_dict({"response": list(texts), "uuid": list(texts), "note": list(texts)})


def test_the_dataset_reads_back_as_any_other(run_dir):
    write_output(some(), run_dir, "parquet")
    read = load_dataset(str(run_dir.path), split="train")
    assert read.column_names == ["uuid", "response", "note"]
    assert read.to_list() == some().select_columns(read.column_names).to_list()


def test_an_arrow_dataset_reads_back_from_disk(run_dir):
    write_output(some(), run_dir, "arrow")
    assert load_from_disk(str(run_dir.path / "dataset"))["uuid"][:] == ["a", "b"]


def test_nothing_is_written_where_nothing_is_wanted(run_dir):
    assert len(write_output(some(), run_dir, "none")) == 2
    assert not (run_dir.path / "data").exists()


def test_what_is_written_already_is_left_alone_and_what_is_missing_is_written(run_dir):
    dataset = some()
    write_output(dataset, run_dir, "parquet")
    (file,) = (run_dir.path / "data").iterdir()
    before = file.stat().st_mtime_ns
    write_output(dataset, run_dir, "parquet")
    assert file.stat().st_mtime_ns == before
    file.unlink()
    write_output(dataset, run_dir, "parquet")
    assert file.exists()


def test_an_older_dataset_in_another_format_does_not_stay_beside_a_newer_one(run_dir):
    write_output(some(), run_dir, "parquet")
    write_output(some(["c"]), run_dir, "arrow")
    assert not (run_dir.path / "data").exists()
    assert load_from_disk(str(run_dir.path / "dataset"))["uuid"][:] == ["c"]


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_a_directory_of_somebodys_is_never_replaced(run_dir, file_format):
    theirs = run_dir.path / {"parquet": "data", "arrow": "dataset"}[file_format]
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="not written by a run"):
        write_output(some(), run_dir, file_format)
    write_output(some(), run_dir, "arrow" if file_format == "parquet" else "parquet")
    assert (theirs / "thesis.txt").read_text() == "years of work"


def test_a_directory_of_somebodys_is_refused_before_anything_is_generated(make, null, tmp_path):
    data = tmp_path / "run" / "data"
    data.mkdir(parents=True)
    (data / "train-00000-of-00001.parquet").write_text("not of this run: without run.json")
    with pytest.raises(StorageError, match="not written by a run") as caught:
        make()
    assert "--output" in caught.value.hint
    assert null.opened == 0
    assert len(list(data.iterdir())) == 1


def test_growing_replaces_the_dataset_on_disk(make, tmp_path):
    make(num_rows=5)
    make(num_rows=9)
    assert len(load_dataset(str(tmp_path / "run"), split="train")) == 9
