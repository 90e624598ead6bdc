"""Sizes and checksums of finished files, kept in run.json, so that a damaged file is noticed before it is read.

xxh3 of blocks of 16 MiB, and of their digests: not against forgers but against bits that flip and files that are cut.
Read at several GB/s from memory; several blocks at once, for file systems that answer slowly. A file that has been
checked is not read again in this process as long as its size, time of change and inode are the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DatasetError


BLOCK_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_READERS = 4


class _Stamp(NamedTuple):
    """What shows that a file was not written since."""

    size: int
    time_ns: int
    inode: int


def file_record(path: Path) -> dict[str, Any]:
    """Return a file's size and checksum, as run.json keeps them. Raises OSError."""
    stamp = _stamp(path)
    return {"size": stamp.size, "xxh3_128": _checksum(path, stamp)}


def file_records(root: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the records of files by their names relative to `root`. Raises OSError."""
    return {name: file_record(root / name) for name in names}


def damage(path: Path, record: Any) -> str | None:
    """Return what is wrong with a file, in words, or None if it is as it was recorded."""
    if not isinstance(record, Mapping):
        return "no checksum was recorded"
    try:
        stamp = _stamp(path)
        if stamp.size != record.get("size"):
            return f"{stamp.size:,} bytes instead of {record.get('size')}"
        return None if _checksum(path, stamp) == record.get("xxh3_128") else "its checksum differs"
    except FileNotFoundError:
        return "the file is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"


def damaged_files(root: Path, names: Iterable[str], records: Any) -> list[str]:
    """Return "NAME (what is wrong)" for each of these files that is not as it was recorded."""
    known = records if isinstance(records, Mapping) else {}
    found = {name: damage(root / name, known.get(name)) for name in names}
    return [f"{name} ({problem})" for name, problem in found.items() if problem]


def check_files(root: Path, names: Iterable[str], records: Any) -> None:
    """Raise DatasetError for files that are not as they were recorded; files without a record are not checked.

    Raises:
        DatasetError: files are damaged; names them.
    """
    problems = damaged_files(root, names, records) if records else []
    if problems:
        raise DatasetError(
            f"The dataset saved here is damaged: {', '.join(problems[:5])}.",
            where=str(root),
            hint="Run the command that made it again: it writes the damaged files anew from the finished rows.",
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
            if not count:  # cut while it is read
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
