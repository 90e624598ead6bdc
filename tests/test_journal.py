from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magpie_hf.errors import StorageError
from magpie_hf.storage.journal import CODE_REOPENED, MAGIC, Journal, halves_key, key_halves


def key(number: int, half: int = 7) -> bytes:
    return half.to_bytes(8, "big") + number.to_bytes(8, "big")


def contents(directory):
    """Return key → (payload, code) of all that an index finds."""
    with Journal(directory) as journal:
        index = journal.index()
        return {
            halves_key(k): (journal.read(int(at)), int(code))
            for k, at, code in zip(index.keys, index.locations, index.codes, strict=True)
        }


payloads = st.dictionaries(
    st.text(max_size=8), st.text(max_size=400) | st.integers(-(2**40), 2**40) | st.none(), max_size=4
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), payloads, st.integers(0, 20)), max_size=30))
def test_what_was_appended_is_read_back_and_the_last_record_of_a_key_counts(tmp_path_factory, appended):
    directory = tmp_path_factory.mktemp("journal")
    with Journal(directory) as journal:
        for number, payload, code in appended:
            location = journal.append(key(number), payload, code=code)
            assert journal.read(location) == payload
    assert contents(directory) == {key(number): (payload, code) for number, payload, code in appended}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_journal_cut_at_any_byte_loses_only_the_torn_record(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("journal")
    ends = []
    with Journal(directory) as journal:
        for number in range(5):
            journal.append(key(number), {"text": "x" * data.draw(st.integers(0, 300))})
            ends.append(next(directory.glob("*.jnl")).stat().st_size)
    segment = next(directory.glob("*.jnl"))
    cut = data.draw(st.integers(0, ends[-1]))
    os.truncate(segment, cut)
    whole = sum(end <= cut for end in ends)
    assert set(contents(directory)) == {key(number) for number in range(whole)}


def test_a_damaged_record_ends_its_segment_only_and_is_counted(tmp_path):
    for start in (0, 10):
        with Journal(tmp_path) as journal:
            for number in range(start, start + 3):
                journal.append(key(number), {"n": number})
    first = min(tmp_path.glob("*.jnl"))
    data = bytearray(first.read_bytes())
    data[len(MAGIC) + 36 + 12 + 10] ^= 0xFF  # inside the second record
    first.write_bytes(data)
    with Journal(tmp_path) as journal:
        found = {halves_key(k) for k in journal.index().keys}
        assert journal.damaged == 1
    assert {key(10), key(11), key(12)} <= found
    assert key(2) not in found


def test_reopened_rows_are_gone_until_they_are_finished_again(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append(key(1), {"n": 1}, code=9)
        journal.append(key(1), {}, code=CODE_REOPENED)
    assert contents(tmp_path) == {}
    with Journal(tmp_path) as journal:
        journal.append(key(1), {"n": 2})
    assert contents(tmp_path) == {key(1): ({"n": 2}, 0)}


def test_tokens_of_all_tries_of_a_row_are_counted(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append(key(1), {}, code=9, prompt_tokens=5, completion_tokens=7)
        journal.append(key(1), {}, prompt_tokens=5, completion_tokens=11)
        index = journal.index()
    assert (index.prompt_tokens.tolist(), index.completion_tokens.tolist()) == ([10], [18])


def test_keys_that_share_a_half_are_told_apart(tmp_path):
    wanted = [key(n, half) for half in (3, 3, 9) for n in range(50)]
    with Journal(tmp_path) as journal:
        for name in wanted:
            journal.append(name, {"key": name.hex()})
        index = journal.index()
        at = index.find(key_halves([*wanted, key(50, 3), key(1, 4)]))
        assert (at[-2:] == -1).all()
        assert [journal.read(int(index.locations[i]))["key"] for i in at[:-2]] == [name.hex() for name in wanted]
    assert index.find(np.empty((0, 2), np.uint64)).shape == (0,)


def test_a_full_disk_is_an_error_that_keeps_what_is_finished(tmp_path, monkeypatch):
    """A tmpfs shows the whole of it end to end; here the short write itself."""
    with Journal(tmp_path) as journal:
        journal.append(key(1), {"n": 1})
        real = os.write

        def short(handle, data):
            if len(data) > 30:
                real(handle, data[:20])
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(handle, data)

        monkeypatch.setattr(os, "write", short)
        with pytest.raises(StorageError, match="No space left") as caught:
            journal.append(key(2), {"n": 2})
        assert "full" in caught.value.hint
        monkeypatch.undo()
        journal.append(key(3), {"n": 3})
    assert contents(tmp_path) == {key(1): ({"n": 1}, 0), key(3): ({"n": 3}, 0)}


WRITER = """
import sys
from magpie_hf.storage.journal import Journal
journal = Journal(sys.argv[1])
for number in range(10**9):
    journal.append(b"k" * 8 + number.to_bytes(8, "big"), {"text": "word " * (number % 90), "n": number})
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.05, 0.2, 0.6])
def test_every_row_acknowledged_before_kill_9_is_there(tmp_path, after_s):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    writer.stdout.readline()
    time.sleep(after_s)
    writer.send_signal(signal.SIGKILL)
    lines = writer.stdout.read().split("\n")
    writer.wait()
    writer.stdout.close()
    acknowledged = max((int(line) for line in lines[:-1] if line), default=0)
    found = contents(tmp_path)
    assert acknowledged > 0
    for number in range(acknowledged + 1):
        assert found[b"k" * 8 + number.to_bytes(8, "big")][0]["n"] == number


def test_text_that_is_no_unicode_is_stored_readable(tmp_path):
    with Journal(tmp_path) as journal:
        location = journal.append(key(1), {"text": "half a pair \ud800 here"})
        assert journal.read(location)["text"] == "half a pair ? here"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 9, CODE_REOPENED])), max_size=30), st.data())
def test_several_sessions_read_back_as_one_and_reopened_rows_are_gone(tmp_path_factory, appended, data):
    directory = tmp_path_factory.mktemp("journal")
    wanted = {}
    while appended:
        count = data.draw(st.integers(1, len(appended)))
        with Journal(directory) as journal:
            for number, code in appended[:count]:
                payload = {"n": number, "of": len(wanted)}
                journal.append(key(number), payload, code=code)
                wanted[key(number)] = (payload, code)
        appended = appended[count:]
    assert contents(directory) == {name: found for name, found in wanted.items() if found[1] != CODE_REOPENED}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_bit_anywhere_gives_back_no_wrong_row_and_hurts_no_other_segment(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("journal")
    written = {}
    for start in (0, 10):
        with Journal(directory) as journal:
            for number in range(start, start + 4):
                written[key(number)] = ({"text": "word " * data.draw(st.integers(0, 60)), "n": number}, 0)
                journal.append(key(number), written[key(number)][0])
    first = min(directory.glob("*.jnl"))
    damaged = bytearray(first.read_bytes())
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    first.write_bytes(damaged)
    found = contents(directory)
    assert found.items() <= written.items(), "a damaged row is never given back"
    assert {key(number) for number in range(10, 14)} <= set(found)
    assert at >= len(MAGIC) or not {key(number) for number in range(4)} & set(found)


def test_a_cut_is_followed_by_new_rows_in_a_segment_of_their_own(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append(key(1), {"n": 1})
        journal.append(key(2), {"n": 2})
    (segment,) = tmp_path.glob("*.jnl")
    os.truncate(segment, segment.stat().st_size - 3)
    with Journal(tmp_path) as journal:
        assert len(journal.index().keys) == 1
        assert journal.damaged == 0, "a torn tail does not count as damage"
        journal.append(key(3), {"n": 3})
    assert set(contents(tmp_path)) == {key(1), key(3)}
    assert len(list(tmp_path.glob("*.jnl"))) == 2


def test_what_is_no_segment_is_counted_as_damage_and_an_empty_file_is_not(tmp_path):
    (tmp_path / "1-a.jnl").write_bytes(b"nonsense of another program")
    (tmp_path / "2-b.jnl").write_bytes(b"")
    (tmp_path / "3-c.jnl").write_bytes(MAGIC[:3])
    with Journal(tmp_path) as journal:
        journal.append(key(1), {})
        assert len(journal.index().keys) == 1
        assert journal.damaged == 1


def test_segments_are_closed_at_their_size_and_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr("magpie_hf.storage.journal.SEGMENT_BYTES", 500)
    with Journal(tmp_path) as journal:
        locations = [journal.append(key(number), {"n": number}) for number in range(60)]
        assert [journal.read(location)["n"] for location in locations] == list(range(60))
    assert len(list(tmp_path.glob("*.jnl"))) > 3
    assert {payload["n"] for payload, _ in contents(tmp_path).values()} == set(range(60))


def test_two_processes_on_one_directory_lose_nothing(tmp_path):
    script = (
        "import sys; from magpie_hf.storage.journal import Journal; j = Journal(sys.argv[1]); s = int(sys.argv[2])\n"
    )
    script += "for n in range(s, s + 300): j.append(n.to_bytes(16, 'big'), {'n': n})\nj.close()"
    writers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(start)]) for start in (0, 1000)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    found = {payload["n"] for payload, _ in contents(tmp_path).values()}
    assert found == {*range(300), *range(1000, 1300)}


def test_a_later_segment_counts_after_an_earlier_one_though_the_clock_went_back(tmp_path, monkeypatch):
    with Journal(tmp_path) as journal:
        journal.append(key(1), {"n": 1})
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    with Journal(tmp_path) as journal:
        journal.append(key(1), {"n": 2})
    assert contents(tmp_path) == {key(1): ({"n": 2}, 0)}


def test_an_index_taken_while_writing_gives_locations_that_can_be_read(tmp_path, monkeypatch):
    """A segment that came from elsewhere (a merge) may sort before the one that is being written."""
    with Journal(tmp_path) as journal:
        first = journal.append(key(1), {"n": 1})
        assert journal.read(first) == {"n": 1}
        with Journal(tmp_path) as other:
            other.append(key(2), {"n": 2})
        theirs = max(tmp_path.glob("*.jnl"))
        theirs.rename(tmp_path / "00000000000000000001-x.jnl")
        index = journal.index()
        assert journal.read(journal.append(key(3), {"n": 3})) == {"n": 3}
        found = [journal.read(int(at))["n"] for at in index.locations]
        assert sorted(found) == [1, 2]
        assert {halves_key(k) for k in journal.index().keys} == {key(1), key(2), key(3)}


LIMITED = """
import resource, signal, sys
from magpie_hf.storage.journal import Journal
from magpie_hf.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(sys.argv[1])
journal.append((0).to_bytes(16, "big"), {"n": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
for number in range(1, 10**6):
    try:
        journal.append(number.to_bytes(16, "big"), {"n": number})
    except StorageError as error:
        print(number, error)
        break
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append(number.to_bytes(16, "big"), {"n": number, "again": True})
journal.close()
"""


@pytest.mark.parametrize("limit", [100, 101, 143, 144, 145, 5000])
def test_a_file_that_may_grow_no_further_loses_nothing_and_can_be_gone_on_with(tmp_path, limit):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(limit)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    number = int(done.stdout.split()[0])
    found = {payload["n"]: payload for payload, _ in contents(tmp_path).values()}
    assert set(found) == set(range(number + 1))
    assert found[number] == {"n": number, "again": True}


def test_a_segment_that_cannot_be_begun_leaves_nothing_behind(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    real = os.write

    def full(handle, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for _ in range(2):
        with pytest.raises(StorageError, match="No space left"):
            journal.append(key(1), {"n": 1})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "write", real)
    assert journal.read(journal.append(key(1), {"n": 2})) == {"n": 2}
    journal.close()
    assert contents(tmp_path) == {key(1): ({"n": 2}, 0)}


def test_an_error_at_the_last_sync_is_named_and_closes_all_the_same(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.append(key(1), {})

    def broken(handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageError, match="Input/output error"):
        journal.close()
    journal.close()


def test_a_place_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write the journal") as caught:
        Journal(tmp_path / "file" / "journal").append(key(1), {})
    assert str(tmp_path) in caught.value.where
    assert len(Journal(tmp_path / "nowhere").index().keys) == 0


def test_damage_that_comes_after_the_index_is_found_when_the_row_is_read(tmp_path):
    with Journal(tmp_path) as journal:
        location = journal.append(key(1), {"text": "x" * 20})
    (segment,) = tmp_path.glob("*.jnl")
    with Journal(tmp_path) as journal:
        journal.index()
        data = bytearray(segment.read_bytes())
        data[-4] ^= 1
        segment.write_bytes(data)
        with pytest.raises(StorageError, match="damaged"):
            journal.read(location)
        segment.write_bytes(data[:20])
        with pytest.raises(StorageError, match="damaged"):
            journal.read(location)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=30),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6))),
)
def test_a_key_is_found_exactly_when_it_was_written(tmp_path_factory, written, asked):
    directory = tmp_path_factory.mktemp("journal")
    with Journal(directory) as journal:
        for half, number in written:
            journal.append(key(number, half), {"is": [half, number]})
        index = journal.index()
        at = index.find(
            key_halves([key(number, half) for half, number in asked]) if asked else np.empty((0, 2), np.uint64)
        )
        for pair, position in zip(asked, at, strict=True):
            assert (position >= 0) == (pair in written)
            if position >= 0:
                assert journal.read(int(index.locations[position]))["is"] == list(pair)
