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
from magpie_hf.journal import CODE_REOPENED, MAGIC, Journal, halves_key, key_halves


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
from magpie_hf.journal import Journal
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
