"""The crash-safe storage of finished rows.

A journal is a directory of append-only segment files. A row is finished when the `write` of its record has returned:
from then on it survives `kill -9`. `fsync` calls are grouped (at most `SYNC_EVERY_S` apart), so a power failure can lose
the rows of this interval. Only appends and reads are used, which network file systems support well; no file is changed in
place, and each process writes its own segment.

    segment = magic(8) record*
    record  = header(36) payload
    header  = payload length u32, crc32 u32, code u8, flags u8, zero u16, prompt tokens u32, completion tokens u32, key 16s
    payload = JSON, compressed with deflate if this makes it smaller

The last record of a key is used. An incomplete record at the end (the process died during a write) is ignored. A damaged
record in the middle ends the reading of its segment; the rows after it are generated again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import struct
import threading
import time
import uuid
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import StorageError


MAGIC = b"MGPJRN1\n"
HEADER = struct.Struct("<IIBBHII16s")
CODE_OK = 0
CODE_REOPENED = 255
SYNC_EVERY_S = 0.5
SEGMENT_BYTES = 32 << 20  # read whole by `index`, so this bounds its memory
_DEFLATED = 1
_DEFLATE_FROM = 160
_OFFSET_BITS = 40
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1

Int64Array = npt.NDArray[np.int64]
KeyArray = npt.NDArray[np.uint64]


class Index(NamedTuple):
    """The current records of a journal, one per key, sorted by key.

    `keys`: (num_records, 2) uint64, the key's big-endian halves. `locations`: int64. `codes`: uint8.
    `prompt_tokens`, `completion_tokens`: uint32; these sum over *all* records of a key, retried ones too.
    33 bytes per row.
    """

    keys: KeyArray
    locations: Int64Array
    codes: npt.NDArray[np.uint8]
    prompt_tokens: npt.NDArray[np.uint32]
    completion_tokens: npt.NDArray[np.uint32]

    def find(self, keys: KeyArray) -> Int64Array:
        """Return for each key, (n, 2) uint64, its position in this index, or -1: (n,) int64."""
        found = np.full(len(keys), -1, dtype=np.int64)
        if len(self.keys) == 0 or len(keys) == 0:
            return found
        left = np.searchsorted(self.keys[:, 0], keys[:, 0], side="left")
        inside = left < len(self.keys)
        at = np.where(inside, left, 0)
        same_half = inside & (self.keys[at, 0] == keys[:, 0])
        exact = same_half & (self.keys[at, 1] == keys[:, 1])
        found[exact] = at[exact]
        for row in np.flatnonzero(same_half & ~exact):
            found[row] = self._find_in_run(int(at[row]), keys[row])
        return found

    def _find_in_run(self, start: int, key: KeyArray) -> int:
        end = int(np.searchsorted(self.keys[:, 0], key[0], side="right"))
        at = start + int(np.searchsorted(self.keys[start:end, 1], key[1]))
        return at if at < end and self.keys[at, 1] == key[1] else -1


def key_halves(keys: Sequence[bytes]) -> KeyArray:
    """Turn 16-byte keys into (n, 2) uint64."""
    return np.frombuffer(b"".join(keys), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def halves_key(halves: KeyArray) -> bytes:
    """Turn one (2,) uint64 back into its 16 bytes."""
    return bytes(halves.astype(">u8").tobytes())


class Journal:
    """A directory of finished rows: `append` writes them, `index` and `read` return them.

    Not thread-safe, except for `fsync`, which runs in its own thread while the journal is open for writing.
    `segment_age_s`: start a new segment when the last one is this old, so that closed segments can be copied elsewhere.
    """

    def __init__(self, directory: str | os.PathLike[str], *, segment_age_s: float | None = None) -> None:
        self.directory = Path(directory)
        self._segment_age_s = segment_age_s
        self._rotate_at = math.inf
        self._segments: list[Path] = []
        self._readers: dict[int, int] = {}
        self._writer: int | None = None
        self._writer_number = -1
        self._end = 0
        self._dirty = False
        self._closing = threading.Event()
        self._syncer: threading.Thread | None = None
        self._sync_error: OSError | None = None
        self.damaged = 0

    def index(self) -> Index:
        """Read all segments and return the current records. Counts damaged segments in `self.damaged`.

        Raises:
            StorageError: a segment cannot be read.
        """
        self.damaged = 0
        writing = self._segments[self._writer_number] if self._writer is not None else None
        self._close_readers()
        self._segments = sorted(self.directory.glob("*.jnl")) if self.directory.is_dir() else []
        if writing is not None:
            self._writer_number = self._segments.index(writing)
        parts = [self._scan(number, path) for number, path in enumerate(self._segments)]
        return _merge([part for part in parts if len(part[0])])

    def _scan(self, number: int, path: Path) -> tuple[KeyArray | Int64Array, ...]:
        keys, numbers = bytearray(), array("q")
        for offset, code, prompt_tokens, completion_tokens, key in self._records(path):
            keys += key
            numbers.extend(((number << _OFFSET_BITS) | offset, code, prompt_tokens, completion_tokens))
        columns = np.frombuffer(numbers, dtype=np.int64).reshape(-1, 4)
        halves = np.frombuffer(bytes(keys), dtype=">u8").astype(np.uint64).reshape(-1, 2)
        return halves, columns

    def _records(self, path: Path) -> Iterator[tuple[int, int, int, int, bytes]]:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _storage_error("read", path, error) from error
        view, at, size = memoryview(data), len(MAGIC), len(data)
        if data[:at] != MAGIC:
            self.damaged += size > 0 and not MAGIC.startswith(data[:at])
            return
        unpack, crc32, width = HEADER.unpack_from, zlib.crc32, HEADER.size
        while at + width <= size:
            length, crc, code, _, _, prompt_tokens, completion_tokens, key = unpack(view, at)
            end = at + width + length
            if end > size:
                return
            if crc32(view[at + 8 : end]) != crc:
                self.damaged += 1
                return
            yield at, code, prompt_tokens, completion_tokens, key
            at = end

    def read(self, location: int) -> dict[str, Any]:
        """Return the payload of the record at a location from `index` or `append`.

        Raises:
            StorageError: the record cannot be read or is damaged.
        """
        number, offset = location >> _OFFSET_BITS, location & _OFFSET_MASK
        reader = self._reader(number)
        chunk = os.pread(reader, 4096, offset)
        if len(chunk) < HEADER.size:
            raise _damaged(self._segments[number], offset)
        length, crc, _, flags, *_ = HEADER.unpack_from(chunk)
        end = HEADER.size + length
        if end > len(chunk):
            chunk += os.pread(reader, end - len(chunk), offset + len(chunk))
        if zlib.crc32(memoryview(chunk)[8:end]) != crc:
            raise _damaged(self._segments[number], offset)
        payload = chunk[HEADER.size : end]
        value: dict[str, Any] = json.loads(zlib.decompress(payload) if flags & _DEFLATED else payload)
        return value

    def _reader(self, number: int) -> int:
        if number not in self._readers:
            try:
                self._readers[number] = os.open(self._segments[number], os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise _storage_error("read", self._segments[number], error) from error
        return self._readers[number]

    def append(
        self,
        key: bytes,
        payload: dict[str, Any],
        *,
        code: int = CODE_OK,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
    ) -> int:
        """Write a finished row and return its location; when this returns, the row survives `kill -9`.

        Raises:
            StorageError: the disk is full or not writable; an incomplete record is removed.
        """
        body, flags = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"), 0
        if len(body) >= _DEFLATE_FROM:
            body, flags = zlib.compress(body, 1), _DEFLATED
        head = HEADER.pack(len(body), 0, code, flags, 0, prompt_tokens, completion_tokens, key)
        crc = zlib.crc32(body, zlib.crc32(head[8:]))
        record = head[:4] + crc.to_bytes(4, "little") + head[8:] + body
        self._raise_sync_error()
        if self._writer is None or self._end >= SEGMENT_BYTES or time.monotonic() > self._rotate_at:
            self._new_segment()
        location = (self._writer_number << _OFFSET_BITS) | self._end
        self._write(record)
        return location

    def _write(self, record: bytes) -> None:
        assert self._writer is not None  # noqa: S101 (set by the only caller)
        try:
            written = os.write(self._writer, record)
            if written != len(record):
                raise OSError(errno.ENOSPC, "the record was truncated")
        except OSError as error:
            with contextlib.suppress(
                OSError
            ):  # an incomplete record that cannot be removed is ignored when it is read
                os.ftruncate(self._writer, self._end)
            raise _storage_error("write", self._segments[self._writer_number], error) from error
        self._end += len(record)
        self._dirty = True

    def _new_segment(self) -> None:
        self._close_writer()
        path = self.directory / f"{self._next_stamp():020d}-{uuid.uuid4().hex[:8]}.jnl"
        writer = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
            if os.write(writer, MAGIC) != len(MAGIC):
                raise OSError(errno.ENOSPC, "no space for a segment")
            _sync_directory(self.directory)
        except OSError as error:
            if writer is not None:
                os.close(writer)
                path.unlink(missing_ok=True)
            raise _storage_error("write", path, error) from error
        self._writer = writer
        self._segments.append(path)
        self._writer_number = len(self._segments) - 1
        self._end = len(MAGIC)
        self._rotate_at = math.inf if self._segment_age_s is None else time.monotonic() + self._segment_age_s
        if self._syncer is None:
            self._closing.clear()
            self._syncer = threading.Thread(target=self._sync_loop, name="magpie-journal-sync", daemon=True)
            self._syncer.start()

    def _next_stamp(self) -> int:
        """Return the time in ns, or more, so that later segments sort after earlier ones even if clocks differ."""
        stamps = [path.name.partition("-")[0] for path in self.directory.glob("*.jnl")]
        return max([time.time_ns(), *(int(stamp) + 1 for stamp in stamps if stamp.isdecimal())])

    def _sync_loop(self) -> None:
        while not self._closing.wait(SYNC_EVERY_S):
            writer = self._writer
            if self._dirty and writer is not None:
                self._dirty = False
                try:
                    os.fsync(writer)
                except OSError as error:
                    if error.errno != errno.EBADF:  # EBADF: the segment was synced and closed in the meantime
                        self._sync_error = error

    def _raise_sync_error(self) -> None:
        if self._sync_error is not None:
            error, self._sync_error = self._sync_error, None
            raise _storage_error("sync", self.directory, error) from error

    def close(self) -> None:
        """Sync and close; may be called twice."""
        self._closing.set()
        if self._syncer is not None:
            self._syncer.join()
            self._syncer = None
        self._close_readers()
        self._close_writer()

    def _close_readers(self) -> None:
        for reader in self._readers.values():
            os.close(reader)
        self._readers.clear()

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            os.fsync(writer)
        except OSError as error:
            raise _storage_error("sync", self._segments[self._writer_number], error) from error
        finally:
            os.close(writer)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _merge(parts: list[tuple[KeyArray | Int64Array, ...]]) -> Index:
    """Merge the records of all segments, in the order they were written, and keep the last of each key."""
    if not parts:
        empty32 = np.empty(0, np.uint32)
        return Index(np.empty((0, 2), np.uint64), np.empty(0, np.int64), np.empty(0, np.uint8), empty32, empty32)
    keys = np.concatenate([part[0] for part in parts])
    columns = np.concatenate([part[1] for part in parts])
    order = np.lexsort((np.arange(len(keys)), keys[:, 1], keys[:, 0]))
    keys, columns = keys[order], columns[order]
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
    lasts = np.r_[starts[1:] - 1, len(keys) - 1]
    tokens = np.add.reduceat(columns[:, 2:], starts, axis=0)
    live = columns[lasts, 1] != CODE_REOPENED
    return Index(
        keys[lasts][live],
        columns[lasts, 0][live],
        columns[lasts, 1][live].astype(np.uint8),
        tokens[live, 0].astype(np.uint32),
        tokens[live, 1].astype(np.uint32),
    )


def _sync_directory(path: Path) -> None:
    """Make the name of a new file survive a power failure; not all file systems support this."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _storage_error(verb: str, path: Path, error: OSError) -> StorageError:
    hint = "Check the disk and the permissions of this path, then run the same command again: finished rows are kept."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "The disk (or quota) is full: free some space, then run the same command again: finished rows are kept."
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        hint = "This directory is not writable: choose another one with --output."
    return StorageError(f"Cannot {verb} the journal: {error.strerror or error}.", where=str(path), hint=hint)


def _damaged(path: Path, offset: int) -> StorageError:
    return StorageError(
        "A journal record is damaged.",
        where=f"{path}, byte {offset}",
        hint="Run the same command again: damaged rows are generated again.",
    )
