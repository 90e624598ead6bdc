"""Errors of a full, read-only or broken disk, from any library that writes files."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from ..errors import MagpieError, StorageError


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
SAME_COMMAND = "Free disk space (or choose another --output) and run the same command again: finished rows are kept."


def disk_error(error: BaseException) -> OSError | None:
    """Return the disk error that caused an error, or None.

    On a full disk, Arrow and fsspec raise a ValueError about a closed file while they handle the OSError.
    """
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, OSError) and found.errno in _DISK:
            return found
        found = found.__cause__ or found.__context__
    return None


@contextlib.contextmanager
def writing(what: str, where: Path, *, hint: str = SAME_COMMAND) -> Iterator[None]:
    """Convert disk errors inside the block to a StorageError; `what` is written to `where`.

    Raises:
        StorageError: an OSError, or another error caused by a full or broken disk.
    """
    try:
        yield
    except MagpieError:
        raise
    except Exception as error:
        cause = error if isinstance(error, OSError) else disk_error(error)
        if cause is None:
            raise
        raise StorageError(f"Cannot write {what}: {cause.strerror or cause}.", where=str(where), hint=hint) from error


@contextlib.contextmanager
def named_disk_errors(where: Path) -> Iterator[None]:
    """Convert disk errors that no other code has handled to a StorageError.

    Raises:
        StorageError: the disk is full, read-only or broken.
    """
    try:
        yield
    except MagpieError:
        raise
    except Exception as error:
        cause = disk_error(error)
        if cause is None:
            raise
        name = cause.filename or where
        raise StorageError(
            f"The disk failed: {cause.strerror or cause}.", where=str(name), hint=SAME_COMMAND
        ) from error
