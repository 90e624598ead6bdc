"""Damage to finished files: noticed before they are read, named, and made again by the same command."""

from __future__ import annotations

import os

import pytest
from datasets import load_dataset, load_from_disk

from magpie_hf.api.rows import select
from magpie_hf.errors import DatasetError
from magpie_hf.storage import checksums
from magpie_hf.storage.checksums import damage, file_record
from magpie_hf.storage.rundir import RunDir
from tests.end_to_end.harness import here, nothing_twice
from tests.stages import conftest as runs


null, make = runs.null, runs.make


def flip(path, part):
    """Flip one bit, that far into the file (0 to 1)."""
    data = bytearray(path.read_bytes())
    data[int(part * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


DAMAGES = {
    "a bit at the start": lambda path: flip(path, 0.0),
    "a bit in a third": lambda path: flip(path, 0.33),
    "a bit in the middle": lambda path: flip(path, 0.5),
    "a bit near the end": lambda path: flip(path, 0.9),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "grown": lambda path: os.truncate(path, path.stat().st_size + 512),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "other text": lambda path: path.write_bytes(b"nonsense"),
}


@pytest.fixture(params=list(DAMAGES))
def harm(request):
    return DAMAGES[request.param]


def read(place):
    return load_dataset(str(place), split="train").to_list()


def test_a_damaged_dataset_is_written_again_by_the_same_command(make, null, tmp_path, caplog, harm):
    expected = make(num_rows=6).to_list()
    (file,) = (tmp_path / "run" / "data").iterdir()
    before = file.read_bytes()
    harm(file)
    null.reset()
    with caplog.at_level("WARNING", "magpie_hf"):
        assert make(num_rows=6).to_list() == expected
    assert file.read_bytes() == before
    assert "data/train-00000-of-00001.parquet" in caplog.text
    assert "damaged" in caplog.text
    assert null.opened == 0


def test_damaged_caches_of_stages_are_made_again_from_their_finished_rows(make, null, tmp_path, caplog, harm):
    expected = make(num_rows=6).to_list()
    caches = sorted((tmp_path / "run" / "stages").glob("*/*.arrow"))
    assert len(caches) == 3
    for file in caches:
        harm(file)
    (output,) = (tmp_path / "run" / "data").iterdir()
    output.unlink()
    null.reset()
    with caplog.at_level("WARNING", "magpie_hf"):
        assert make(num_rows=6).to_list() == expected
    assert read(tmp_path / "run") == expected
    for name in ("instructions", "responses", "lengths"):
        assert f'"{name}" are damaged' in caplog.text
    assert null.log == []
    nothing_twice(tmp_path / "run")


def test_damaged_datasets_in_arrow_format_and_subsets_are_written_again(make, tmp_path, caplog):
    settings = {
        "num_rows": 6,
        "output": {"format": "arrow"},
        "stages": ["instructions", {"stage": "subset", "config": "raw"}, "responses"],
    }
    expected = make(**settings).to_list()
    files = [*(tmp_path / "run" / "dataset").iterdir(), *(tmp_path / "run" / "raw").iterdir()]
    assert len(files) == 4
    for file in files:
        flip(file, 0.5)
    with caplog.at_level("WARNING", "magpie_hf"):
        make(**settings)
    assert load_from_disk(str(tmp_path / "run" / "dataset")).to_list() == expected
    raw = load_dataset("parquet", data_files=str(tmp_path / "run" / "raw" / "*.parquet"), split="train")
    assert raw["instruction"][:] == [row["instruction"] for row in expected]
    assert caplog.text.count("is damaged") == 2


def test_a_search_over_damaged_rows_is_done_again(make, null, tmp_path):
    settings = {"num_rows": 6, "stages": ["instructions", "responses", {"stage": "select", "sample": 4}]}
    expected = make(**settings).to_list()
    for file in (tmp_path / "run" / "stages").glob("select-*/*.arrow"):
        flip(file, 0.5)
    null.reset()
    assert make(**settings).to_list() == expected
    assert null.log == []


def test_a_damaged_dataset_is_not_read_by_other_commands(make, tmp_path):
    make(num_rows=6)
    (file,) = (tmp_path / "run" / "data").iterdir()
    flip(file, 0.4)
    with pytest.raises(
        DatasetError, match=r"damaged: data/train-00000-of-00001\.parquet \(its checksum differs\)"
    ) as caught:
        select(str(tmp_path / "run"), "instruction_length > 0")
    assert "again" in caught.value.hint
    said = here("push", tmp_path / "run", "me/rows", "--license", "mit", code=1)
    assert "its checksum differs" in said


def test_a_file_that_was_checked_is_not_read_again_unless_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    record = file_record(path)
    reads = []
    real = checksums._read_checksum
    monkeypatch.setattr(checksums, "_read_checksum", lambda path, size: reads.append(path) or real(path, size))
    assert damage(path, record) is None
    assert reads == []
    path.write_bytes(b"y" * 1000)
    os.utime(path, ns=(1, 1))
    assert damage(path, record) == "its checksum differs"
    assert reads == [str(path)]


def test_checksums_see_every_byte_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(checksums, "_CHUNK_BYTES", 300)
    path = tmp_path / "file"
    data = bytes(range(256)) * 20
    path.write_bytes(data)
    found = {file_record(path).xxh3_128}
    for at in range(0, len(data), 97):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        os.utime(path, ns=(at + 1, at + 1))
        found.add(file_record(path).xxh3_128)
    assert len(found) == 1 + len(range(0, len(data), 97))


def test_an_empty_file_has_a_checksum_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "empty").touch()
    record = file_record(tmp_path / "empty")
    assert damage(tmp_path / "empty", record) is None
    assert damage(tmp_path / "gone", record) == "the file is missing"
    assert damage(tmp_path / "empty", None) == "no checksum was recorded"


def test_a_cache_whose_record_was_lost_is_made_again(make, null, tmp_path):
    expected = make(num_rows=6).to_list()
    with RunDir(tmp_path / "run") as run_dir:
        for state in run_dir.state.stages.values():
            state.files = {}
        run_dir.save()
    null.reset()
    assert make(num_rows=6).to_list() == expected
    assert null.log == []
