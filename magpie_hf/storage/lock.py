"""Make one process the owner of a run directory: with `flock` on one host, with a heartbeat between hosts.

The lock file contains host, process and token of the owner. If a process finds another token than its own, another
process has taken over: it stops writing and ends. The new owner reads its finished rows from the journals.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

from ..errors import RunLockedError, StorageError, quoted


logger = logging.getLogger("magpie_hf")
HEARTBEAT_S = 5.0
FOREIGN_STALE_S = 90.0
"""Age of the heartbeat after which an owner on another host is considered dead. It is long because network file systems
cache modification times."""
POLL_S = 0.5
_LOCK_BYTES = 4096


Owner = dict[str, object]
"""Host, pid and token of an owner, as read from a lock file: the values are not checked."""


class Lock:
    """The lock file of a run directory; `take_over`: replace the current owner."""

    def __init__(self, path: Path, *, take_over: bool = False) -> None:
        self.path = path
        self.take_over = take_over
        self.token = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        self._file: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Become the owner; if one on another host seems dead, wait until its heartbeat is too old.

        Raises:
            RunLockedError: another process owns the directory.
            StorageError: the lock file cannot be written.
        """
        if self.take_over:
            self._remove()
        handle = self._open()
        try:
            self._wait_for_foreign()
            self._file = handle
            self._beat()
        except BaseException as error:
            self._file = None
            os.close(handle)
            if isinstance(error, OSError) and not isinstance(error, StorageError):
                raise _not_writable(self.path, error) from error
            raise
        self._thread = threading.Thread(target=self._heartbeat, name="magpie-lock", daemon=True)
        self._thread.start()

    def _remove(self) -> None:
        """Delete the lock file of the owner; it is replaced by a new file, on which that owner has no `flock`."""
        owner = self._owner()
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise _not_writable(self.path, error) from error
        if owner:
            logger.warning("Taking over the run of %s.", _named(owner))

    def _open(self) -> int:
        """Open and `flock` the current lock file; a file that was replaced in the meantime is not valid."""
        while True:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise _not_writable(self.path, error) from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise self._owned_here() from None
            except OSError:
                pass  # a file system without flock: the heartbeat decides
            if self._is_current(handle):
                return handle
            os.close(handle)

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except OSError:
            return False

    def _wait_for_foreign(self) -> None:
        """If there is an owner on another host, wait until its heartbeat is too old.

        Raises:
            RunLockedError: it is alive.
        """
        owner = self._owner()
        if not owner or owner.get("host") == socket.gethostname():
            return
        seen, left = self._beaten_at(), FOREIGN_STALE_S - self._age_s()
        if left > 0:
            logger.warning(
                "This run belongs to %s, last seen %.0f s ago. If that process is dead (e.g., a pod that was killed and "
                "started again under another name), the run is released after %.0f s without a heartbeat: waiting up to "
                "%.0f s. Use --take-over (take_over=True) to continue immediately.",
                _named(owner),
                FOREIGN_STALE_S - left,
                FOREIGN_STALE_S,
                left,
            )
        until = time.monotonic() + left
        while time.monotonic() < until:
            time.sleep(min(POLL_S, max(until - time.monotonic(), 0)))
            now = self._owner()
            if not now:
                return
            if now != owner or self._beaten_at() != seen:
                raise self._owned_elsewhere(now)

    def _owner(self) -> Owner:
        """Return the owner in the lock file; empty if there is none or the file cannot be read."""
        try:
            with self.path.open("rb") as file:
                owner = json.loads(file.read(_LOCK_BYTES).decode("utf-8") or "{}")
        except (OSError, ValueError, RecursionError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def _beaten_at(self) -> float:
        try:
            return self.path.stat().st_mtime
        except OSError:
            return 0.0

    def _age_s(self) -> float:
        """Return the age of the last heartbeat by the clock of the file system, as the clocks of hosts may differ."""
        now = time.time()
        try:
            with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=".clock-") as probe:
                now = os.stat(probe.name).st_mtime
        except OSError:  # e.g., a full disk: use the clock of this host
            logger.debug("no time from the file system", exc_info=True)
        return now - self._beaten_at()

    def _owned_here(self) -> RunLockedError:
        hint = "Wait for it or stop it, or use another --output. `magpie-hf status` only reads and works at any time."
        owner = self._owner()
        if owner.get("host", "") not in ("", socket.gethostname()):  # a network file system that shares locks
            hint += " If it is dead, use --take-over (take_over=True)."
        return self._owned(owner, hint)

    def _owned_elsewhere(self, owner: Owner) -> RunLockedError:
        return self._owned(
            owner,
            "The process is running: wait for it or stop it, or use another --output. With --take-over "
            "(take_over=True), this process becomes the owner, and the other one ends; its finished rows are kept.",
        )

    def _owned(self, owner: Owner, hint: str) -> RunLockedError:
        return RunLockedError(
            f"This run belongs to {_named(owner)}, last seen {max(self._age_s(), 0):.0f} s ago.",
            where=str(self.path.parent),
            hint=hint,
            host=owner.get("host", "unknown host"),
            pid=owner.get("pid", "?"),
        )

    def _beat(self) -> None:
        assert self._file is not None  # noqa: S101 (called only while held)
        record = {"host": socket.gethostname(), "pid": os.getpid(), "token": self.token, "at": time.time()}
        text = json.dumps(record).encode().ljust(256)
        if os.pwrite(self._file, text, 0) != len(text):
            raise OSError(28, "No space left on device")

    def _heartbeat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            if self._owner().get("token") == self.token:
                with contextlib.suppress(OSError):  # a full disk raises its error elsewhere
                    self._beat()

    def check(self) -> None:
        """Raise RunLockedError if another process has taken the directory over, even if it has ended since."""
        owner = self._owner()
        token = owner.get("token")
        if token == self.token or (token is None and self._is_held()):
            return
        by = _named(owner) if owner else "another process, which has ended, or its lock file was deleted"
        raise RunLockedError(
            f"This run was taken over by {by}.",
            where=str(self.path.parent),
            hint="This process ends; its finished rows are kept, and the new owner continues from them.",
            host=owner.get("host", "unknown host"),
            pid=owner.get("pid", "?"),
        )

    def _is_held(self) -> bool:
        """Whether this process still owns an unreadable lock file: it is damaged, but was not deleted or replaced."""
        if self._file is None:
            return True
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        except OSError:  # it cannot be checked
            return True
        return there.st_size > 0 and os.path.samestat(os.fstat(self._file), there)

    def release(self) -> None:
        """Give up the directory; may be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._file is not None:
            if self._owner().get("token") == self.token:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None


def running_owner(path: Path) -> Owner | None:
    """Return the owner (host, pid) that is running in a directory now, None if there is none; only reads.

    On this host, the process of the owner must be alive; on another one, its heartbeat must not be too old.
    """
    lock = Lock(path)
    owner = lock._owner()
    pid = owner.get("pid")
    if not isinstance(pid, int) or pid < 1 or time.time() - lock._beaten_at() > FOREIGN_STALE_S:
        return None
    if owner.get("host") == socket.gethostname():
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return None
        except PermissionError:  # another user's process
            pass
    return owner


def _named(owner: Owner) -> str:
    host, pid = owner.get("host", "unknown host"), owner.get("pid", "?")
    return f"process {quoted(pid, 20).strip(chr(39))} on {quoted(host, 100).strip(chr(39))}"


def _not_writable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"Cannot write to the run directory: {error.strerror or error}.",
        where=str(path.parent),
        hint="Free disk space, or choose another --output; finished rows are kept.",
    )
