"""A disk that is full at any moment of a run: an error with a name, nothing lost, and the same command continues."""

from __future__ import annotations

import contextlib
import errno
import subprocess

import pytest
from datasets import load_dataset

from magpie_hf.errors import StorageError
from magpie_hf.session.status import run_status
from magpie_hf.storage.disk import named_disk_errors, writing
from tests.end_to_end.harness import nothing_twice
from tests.stages import conftest as runs


null, make = runs.null, runs.make
STEP_BYTES = 4096
STAGES = [
    *("instructions", {"stage": "subset", "config": "raw"}, "responses"),
    *({"stage": "select", "sample": 5}, "lengths"),
]


class Disk:
    """A small file system in memory."""

    def __init__(self, place):
        self.place = place

    def resize(self, size):
        subprocess.run(["mount", "-o", f"remount,size={size}", self.place], check=True)


@pytest.fixture
def disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={STEP_BYTES}", "none", place]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not allowed here")
    (place / "filler").write_bytes(bytes(STEP_BYTES))  # full from the beginning
    yield Disk(place)
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_is_full_at_any_moment_stops_the_run_and_loses_nothing(make, null, disk, tmp_path):
    settings = {"num_rows": 8, "stages": STAGES}
    expected = make("roomy", **settings).to_list()
    null.reset()
    said, found, size = [], None, 0
    while found is None:
        size += STEP_BYTES
        disk.resize(size)
        try:
            found = make("disk/run", **settings).to_list()
        except StorageError as error:
            said.append(error)
    assert found == expected, len(said)
    assert load_dataset(str(tmp_path / "disk" / "run"), split="train").to_list() == expected
    nothing_twice(tmp_path / "disk" / "run")
    assert len(set(null.log)) == len(null.log), "nothing that was generated was lost"
    assert all("No space left" in error.message and error.hint for error in said)
    for moment in ("run directory", "Cannot write: ", "finished stage", "the dataset"):
        assert any(moment in error.message for error in said), moment


def test_a_disk_that_fills_up_under_a_finished_run_does_not_hurt_it(make, null, disk, tmp_path):
    disk.resize(1 << 20)
    expected = make("disk/run", num_rows=4).to_list()
    with contextlib.suppress(OSError), (tmp_path / "disk" / "filler").open("ab", buffering=0) as filler:
        while filler.write(b"x" * STEP_BYTES):
            pass
    with pytest.raises(StorageError, match="No space left"):
        make("disk/run", num_rows=40)
    assert [stage.done for stage in run_status(tmp_path / "disk" / "run").stages][:1] == [4]
    assert load_dataset(str(tmp_path / "disk" / "run"), split="train").to_list() == expected
    (tmp_path / "disk" / "filler").unlink()
    assert make("disk/run", num_rows=40).to_list()[:4] == expected
    nothing_twice(tmp_path / "disk" / "run")


def closed_upon_a_full_disk():
    """Raise what Arrow does: a ValueError, as the file was closed when the disk was full."""
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        raise ValueError("I/O operation on closed file")  # noqa: B904 (without a cause, as Arrow does)


def test_a_full_disk_is_named_whatever_error_a_library_makes_of_it(tmp_path):
    for within in (writing("the dataset", tmp_path), named_disk_errors(tmp_path)):
        with pytest.raises(StorageError, match="No space left") as caught, within:
            closed_upon_a_full_disk()
        assert caught.value.where == str(tmp_path)
    for within in (writing("the dataset", tmp_path), named_disk_errors(tmp_path)):
        with pytest.raises(ValueError, match="a mistake"), within:
            raise ValueError("a mistake")
