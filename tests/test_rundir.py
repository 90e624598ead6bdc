from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.errors import ArgumentError, RunLockedError, StorageError
from magpie_hf.storage.hashing import stable_hash
from magpie_hf.storage.rundir import RunDir, write_atomically
from magpie_hf.storage.state import Pins, RunState, SavedRows, state_text


HOLD = "import sys, time; from magpie_hf.storage.rundir import RunDir; RunDir(sys.argv[1]).own(); print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_told_host_and_pid_of_the_owner(holder, tmp_path):
    with pytest.raises(RunLockedError, match=f"process {holder.pid}") as caught:
        RunDir(tmp_path).own()
    assert caught.value.data["pid"] == holder.pid


def test_the_run_of_a_killed_owner_is_taken_over_at_once(holder, tmp_path):
    holder.kill()
    holder.wait()
    with RunDir(tmp_path).own() as run_dir:
        run_dir.save()


def lock_of_another_host(place, age_s, pid=1):
    lock = place / "lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": pid, "token": "x", "at": 0}))
    stat = lock.stat()
    os.utime(lock, (stat.st_atime - age_s, stat.st_mtime - age_s))
    return lock


def test_the_run_of_another_host_is_free_once_its_heartbeat_is_old(tmp_path):
    lock_of_another_host(tmp_path, 500)
    RunDir(tmp_path).own().release()


def test_a_dead_owner_on_another_host_is_waited_for_and_the_wait_is_announced(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("magpie_hf.storage.lock.FOREIGN_STALE_S", 5.5)
    lock_of_another_host(tmp_path, 5, pid=77)
    with caplog.at_level("WARNING", "magpie_hf"):
        RunDir(tmp_path).own().release()
    (said,) = caplog.messages
    assert "process 77 on elsewhere, last seen 5 s ago" in said
    assert "waiting up to" in said
    assert "--take-over" in said


def test_an_owner_on_another_host_that_shows_a_sign_of_life_keeps_its_run(tmp_path):
    lock = lock_of_another_host(tmp_path, 5)
    beat = threading.Timer(0.3, lambda: os.utime(lock))
    beat.start()
    with pytest.raises(RunLockedError, match="elsewhere") as caught:
        RunDir(tmp_path).own()
    beat.join()
    assert "--take-over" in caught.value.hint


def test_a_run_can_be_taken_over_at_once_from_another_host(tmp_path, caplog):
    lock_of_another_host(tmp_path, 0, pid=77)
    with caplog.at_level("WARNING", "magpie_hf"):
        RunDir(tmp_path).own(take_over=True).release()
    assert caplog.messages == ["Taking over the run of process 77 on elsewhere."]


def test_a_run_can_be_taken_over_from_a_process_that_is_alive(holder, tmp_path):
    with RunDir(tmp_path).own(take_over=True) as run_dir:
        run_dir.save()
        with pytest.raises(RunLockedError, match=f"process {os.getpid()}"):
            RunDir(tmp_path).own()


def test_the_owner_from_whom_a_run_was_taken_writes_nothing_more(tmp_path):
    old = RunDir(tmp_path).own()
    old.save()
    new = RunDir(tmp_path).own(take_over=True)
    new.state.output = SavedRows("f", 5)
    new.save()
    with pytest.raises(RunLockedError, match="taken over") as caught:
        old.save()
    assert "finished rows are kept" in caught.value.hint
    old.release()
    new.save()
    assert RunDir.read(tmp_path).state.output == SavedRows("f", 5)
    new.release()


def test_the_old_owner_writes_nothing_more_even_if_the_new_one_has_ended(tmp_path):
    old = RunDir(tmp_path).own()
    old.save()
    with RunDir(tmp_path).own(take_over=True) as new:
        new.state.output = SavedRows("f", 5)
        new.save()
    with pytest.raises(RunLockedError, match="taken over"):
        old.save()
    old.release()
    assert RunDir.read(tmp_path).state.output == SavedRows("f", 5)


def test_an_owner_whose_lock_was_deleted_stops_at_the_next_save(tmp_path):
    run_dir = RunDir(tmp_path).own()
    run_dir.save()
    (tmp_path / "lock").unlink()
    with pytest.raises(RunLockedError, match="deleted"):
        run_dir.save()
    run_dir.release()


def test_an_owner_who_lost_the_run_to_another_host_stops_at_the_next_save(tmp_path):
    run_dir = RunDir(tmp_path).own()
    (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "other"}))
    with pytest.raises(RunLockedError, match="elsewhere"):
        run_dir.save()
    run_dir.release()


def test_state_and_pins_come_back(tmp_path):
    with RunDir(tmp_path).own() as run_dir:
        assert run_dir.pin_model("a/b@main", lambda: "abc") == "abc"
        run_dir.stage_state("instructions", "f" * 32).status = "done"
        run_dir.save()
    again = RunDir.read(tmp_path)
    assert again.pin_model("a/b@main", lambda: pytest.fail("asked again")) == "abc"
    assert again.state.stages["instructions-ffffffffffff"].status == "done"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_run_of_a_later_format_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"version": 99}')
    with pytest.raises(StorageError, match="version 99"):
        RunDir(tmp_path)


def damages(text):
    """Return damaged forms of a run.json, by name."""
    flipped = text.replace('"pins"', '"pinz"', 1)
    return {
        "cut": text[: len(text) // 2],
        "empty": "",
        "deeply nested": "[" * 100_000,
        "not a mapping": "[]",
        "not ours": "{}",
        "a letter changed": flipped,
        "zeros": "\0" * len(text),
        "not text": "\udcff" * 9,
    }


@pytest.mark.parametrize("damage", list(damages("")))
def test_a_damaged_state_is_read_from_its_copy(tmp_path, caplog, damage):
    with RunDir(tmp_path).own() as run_dir:
        run_dir.pin_model("a/b@main", lambda: "abc")
        run_dir.stage_state("instructions", "f" * 32).status = "done"
        run_dir.save()
    text = run_dir.file.read_text()
    run_dir.file.write_bytes(damages(text)[damage].encode("utf-8", "surrogateescape"))
    with caplog.at_level("WARNING", "magpie_hf"):
        again = RunDir.read(tmp_path)
    assert again.state == run_dir.state
    assert "run.json is damaged" in caplog.text
    with again.own():
        again.save()
    assert run_dir.file.read_text() == text


def test_a_state_that_was_deleted_is_read_from_its_copy(tmp_path):
    with RunDir(tmp_path).own() as run_dir:
        run_dir.pin_model("a/b@main", lambda: "abc")
        run_dir.save()
    run_dir.file.unlink()
    assert RunDir.read(tmp_path).state.pins == Pins({"a/b@main": "abc"})


def test_where_the_copy_is_damaged_too_the_stages_are_found_by_their_journals(tmp_path):
    journal = tmp_path / "stages" / "responses-0123456789ab" / "journal"
    journal.mkdir(parents=True)
    for name in ("run.json", "run.json.bak"):
        (tmp_path / name).write_text("{")
    state = RunDir.read(tmp_path).state
    assert [stage.name for stage in state.stages.values()] == ["responses"]
    with pytest.raises(StorageError, match="recipe of this run is not known") as caught:
        _ = RunDir.read(tmp_path).recipe
    assert "--output" in caught.value.hint


def test_a_file_that_is_not_a_runs_state_is_an_error_that_names_it(tmp_path):
    (tmp_path / "run.json").write_text('{"version": 2, "sta')
    with pytest.raises(StorageError, match="cannot be read") as caught:
        RunDir(tmp_path)
    assert caught.value.where == str(tmp_path / "run.json")


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(ArgumentError, match="No run found"):
        RunDir.read(tmp_path)


def test_hashes_do_not_depend_on_the_order_of_keys():
    assert stable_hash({"a": 1, "b": [1, {"x": None}]}) == stable_hash({"b": [1, {"x": None}], "a": 1})
    assert stable_hash({"a": 1}) != stable_hash({"a": 1.5})


def test_a_refused_owner_does_not_take_itself_for_one(holder, tmp_path):
    run_dir = RunDir(tmp_path)
    for _ in range(2):
        with pytest.raises(RunLockedError), run_dir:
            pytest.fail("not the owner")


def test_an_owner_that_asks_again_keeps_what_it_has(tmp_path):
    run_dir = RunDir(tmp_path).own()
    with pytest.raises(RunLockedError, match=f"process {os.getpid()}"):
        run_dir.own()
    run_dir.save()
    run_dir.release()
    run_dir.release()
    RunDir(tmp_path).own().release()


def test_a_state_that_is_damaged_while_waiting_gives_the_lock_back(tmp_path):
    run_dir = RunDir(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StorageError):
        run_dir.own()
    (tmp_path / "run.json").unlink()
    RunDir(tmp_path).own().release()


def test_reading_needs_no_lock(holder, tmp_path):
    (tmp_path / "run.json").write_text(state_text(RunState(plan=["a"])))
    assert RunDir.read(tmp_path).state.plan == ["a"]


def test_the_state_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_atomically(path, "before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        write_atomically(path, "after")
    assert caught.value.where == str(path)
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_a_disk_too_full_for_the_lock_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="No space left"):
        RunDir(tmp_path).own()
    monkeypatch.undo()
    RunDir(tmp_path).own().release()


def test_a_file_in_the_directorys_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot create"):
        RunDir(tmp_path / "file").own()


@pytest.mark.parametrize("text", ["nonsense", "[]", "", "[" * 100_000, '{"host":' * 100_000])
def test_a_lock_that_cannot_be_read_has_no_owner(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    RunDir(tmp_path).own().release()


keys = st.text(max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
)


@given(st.dictionaries(keys, values, max_size=4))
def test_a_hash_survives_being_written_as_json_in_another_order(value):
    again = json.loads(json.dumps(dict(reversed(value.items()))))
    assert stable_hash(again) == stable_hash(value)


def test_hashes_are_the_same_in_every_process(tmp_path):
    script = (
        "from magpie_hf.storage.hashing import stable_hash; print(stable_hash({'x': {'b', 'a'}, 'y': [1, 'ü', None]}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert found == {stable_hash({"x": {"b", "a"}, "y": [1, "ü", None]}) + "\n"}


def test_the_pins_have_a_file_of_their_own_that_is_written_only_when_they_change(tmp_path):
    with RunDir(tmp_path).own() as run_dir:
        run_dir.save()
        assert not run_dir.pins_file.exists()
        run_dir.pin_model("a/b@main", lambda: "abc")
        run_dir.save()
        first = run_dir.pins_file.stat().st_ino
        run_dir.save()
        assert run_dir.pins_file.stat().st_ino == first
        run_dir.pin_date("x", lambda: None)
        run_dir.save()
    assert json.loads(run_dir.pins_file.read_text())["pins"] == {"models": {"a/b@main": "abc"}, "dates": {"x": None}}
