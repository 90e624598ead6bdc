"""Sizes and checksums of finished files, saved in run.json, to detect damaged files before they are read.

The checksum is xxh3 of the digests of 16 MiB blocks. It protects against flipped bits and truncated files, not against
forgery. Several blocks are read at once, for slow file systems. A file that was checked is not read again in the same
process while its size, modification time and inode stay the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..errors import DatasetError
from .state import FileRecord


BLOCK_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_READERS = 4


class _Stamp(NamedTuple):
    """Size, modification time and inode: unchanged if the file was not written in the meantime."""

    size: int
    time_ns: int
    inode: int


def file_record(path: Path) -> FileRecord:
    """Return the size and checksum of a file. Raises OSError."""
    stamp = _stamp(path)
    return FileRecord(stamp.size, _checksum(path, stamp))


def file_records(root: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """Return the records of files by their names relative to `root`. Raises OSError."""
    return {name: file_record(root / name) for name in names}


def damage(path: Path, record: FileRecord | None) -> str | None:
    """Return how a file differs from its record, or None if it does not."""
    if record is None:
        return "no checksum was recorded"
    try:
        stamp = _stamp(path)
        if stamp.size != record.size:
            return f"{stamp.size:,} bytes instead of {record.size:,}"
        return None if _checksum(path, stamp) == record.xxh3_128 else "its checksum differs"
    except FileNotFoundError:
        return "the file is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"


def damaged_files(root: Path, records: Mapping[str, FileRecord]) -> list[str]:
    """Return "NAME (how it differs)" for each file that differs from its record."""
    found = {name: damage(root / name, record) for name, record in records.items()}
    return [f"{name} ({problem})" for name, problem in found.items() if problem]


def check_files(root: Path, records: Mapping[str, FileRecord]) -> None:
    """Raise DatasetError for files that differ from their records.

    Raises:
        DatasetError: files are damaged; the message names them.
    """
    problems = damaged_files(root, records)
    if problems:
        raise DatasetError(
            f"The dataset saved here is damaged: {', '.join(problems[:5])}.",
            where=str(root),
            hint="Run the recipe again with the same --output: the damaged files are written again from finished rows.",
            files=problems,
        )


def _stamp(path: Path) -> _Stamp:
    stat = path.stat()
    return _Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _checksum(path: Path, stamp: _Stamp) -> str:
    return _known_checksum(os.path.abspath(path), stamp)


@lru_cache(maxsize=4096)
def _known_checksum(path: str, stamp: _Stamp) -> str:
    return _read_checksum(path, stamp.size)


def _read_checksum(path: str, size: int) -> str:
    import xxhash

    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def block(start: int) -> bytes:
        digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(min(_CHUNK_BYTES, size)))
        at, end = start, min(start + BLOCK_BYTES, size)
        while at < end:
            count = os.preadv(handle, [buffer[: end - at]], at)
            if not count:  # truncated while it is read
                break
            digest.update(buffer[:count])
            at += count
        return bytes(digest.digest())

    try:
        starts = range(0, size, BLOCK_BYTES)
        if len(starts) < 2:
            digests = [block(start) for start in starts]
        else:
            with ThreadPoolExecutor(_READERS, thread_name_prefix="magpie-checksum") as pool:
                digests = list(pool.map(block, starts))
    finally:
        os.close(handle)
    return str(xxhash.xxh3_128_hexdigest(b"".join(digests)))
