"""A run's directory: who owns it, what ran in it, what it cost.

    OUTPUT/
      run.json               recipe, pins, versions, stages with identities, counts and costs; written atomically
      lock                   the owner: host, pid, heartbeat
      stages/NAME-IDENTITY/  journal/*.jnl and FINGERPRINT.arrow of one stage
      data/                  the dataset, as Parquet: `load_dataset("OUTPUT")`

This module stands below stages and hub: stages write here; `status`, budgets and publishing read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import ArgumentError, RunLockedError, StorageError


FORMAT = 1
HEARTBEAT_S = 5.0
FOREIGN_STALE_S = 90.0


def stable_hash(value: object, length: int = 16) -> str:
    """Hash JSON-like data (mappings in any order) to `length` hex digits; the same in every process and version."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def _plain(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old or the new text and never a part."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"Cannot write: {error.strerror or error}.",
            where=str(path),
            hint="Check room and rights, or choose another place with --output; finished rows are kept.",
        ) from error


class RunDir:
    """A run directory, opened for reading (`read`) or owned for writing (`own`).

    `state` is the content of run.json: `recipe`, `pins`, `stages` (by stage directory name), `sessions`, `outputs`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.state: dict[str, Any] = {"format": FORMAT, "pins": {}, "stages": {}, "sessions": [], "outputs": {}}
        self._lock: _Lock | None = None
        self._read()

    @property
    def file(self) -> Path:
        """The path of run.json."""
        return self.path / "run.json"

    @property
    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return self.file.is_file()

    def _read(self) -> None:
        if not self.exists:
            return
        try:
            state = json.loads(self.file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise StorageError(
                f"The run's state cannot be read: {error}.",
                where=str(self.file),
                hint="Move the file away: finished rows lie in stages/ and are found again.",
            ) from error
        written = state.get("format") if isinstance(state, dict) else None
        if not isinstance(written, int):
            raise StorageError(
                "This file holds no run's state.",
                where=str(self.file),
                hint="Give a run's directory, or move it away.",
            )
        if written > FORMAT:
            raise StorageError(
                f"This run was written in format {written}, and this version knows {FORMAT}.",
                where=str(self.file),
                hint="Upgrade magpie_hf.",
            )
        self.state.update(state)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RunDir:
        """Open an existing run to look at.

        Raises:
            ArgumentError: no run was started there.
        """
        run_dir = cls(path)
        if not run_dir.exists:
            raise ArgumentError(f"There is no run in {str(path)!r}.", hint="A run directory has a run.json in it.")
        return run_dir

    def own(self) -> RunDir:
        """Become the owner, and read the state anew.

        Raises:
            RunLockedError: another process owns the directory.
            StorageError: the directory cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"Cannot create the run directory: {error.strerror or error}.",
                where=str(self.path),
                hint="Choose another place with --output.",
            ) from error
        lock = _Lock(self.path / "lock")
        lock.acquire()
        try:
            self._read()
        except StorageError:
            lock.release()
            raise
        self._lock = lock
        return self

    def release(self) -> None:
        """Give up the ownership."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunDir:
        return self if self._lock is not None else self.own()

    def __exit__(self, *_: object) -> None:
        self.release()

    def save(self) -> None:
        """Write run.json.

        Raises:
            RunLockedError: another process took the directory over meanwhile.
        """
        if self._lock is not None:
            self._lock.check()
        write_atomically(self.file, json.dumps(self.state, indent=2, ensure_ascii=False, default=_plain) + "\n")

    def pin(self, name: str, find: Callable[[], Any]) -> Any:
        """Return what was found under this name at the run's first start; find and record it now if this is it."""
        pins = self.state["pins"]
        if name not in pins:
            pins[name] = find()
        return pins[name]

    def stage_dir(self, name: str, identity: str) -> Path:
        """Return the directory of a stage with that identity."""
        return self.path / "stages" / f"{name}-{identity[:12]}"

    def stage_state(self, name: str, identity: str) -> dict[str, Any]:
        """Return the mutable record of a stage, made if it is new."""
        key = f"{name}-{identity[:12]}"
        state: dict[str, Any] = self.state["stages"].setdefault(key, {"name": name, "identity": identity})
        return state


class _Lock:
    """One owner a directory: `flock` between processes of a host, a heartbeat between hosts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        self._file: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(
                f"Cannot write in the run directory: {error.strerror or error}.",
                where=str(self.path.parent),
                hint="Choose another place with --output.",
            ) from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._owned(self._owner()) from None
            except OSError:
                pass  # a file system without flock: the heartbeat decides
            owner = self._owner()
            if owner and owner.get("host") != socket.gethostname() and self._age_s() < FOREIGN_STALE_S:
                raise self._owned(owner)
            self._file = handle
            self._beat()
        except OSError as error:
            self._file = None
            os.close(handle)
            raise StorageError(
                f"Cannot write in the run directory: {error.strerror or error}.",
                where=str(self.path.parent),
                hint="Make room, or choose another place with --output; finished rows are kept.",
            ) from error
        except RunLockedError:
            os.close(handle)
            raise
        self._thread = threading.Thread(target=self._heartbeat, name="magpie-lock", daemon=True)
        self._thread.start()

    def _owner(self) -> dict[str, Any]:
        try:
            owner = json.loads(self.path.read_text("utf-8") or "{}")
        except (OSError, ValueError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def _age_s(self) -> float:
        """Age of the last heartbeat by the file system's own clock: hosts' clocks may differ."""
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=".clock-") as probe:
            now = os.stat(probe.name).st_mtime
        return now - self.path.stat().st_mtime

    def _owned(self, owner: dict[str, Any]) -> RunLockedError:
        host, pid = owner.get("host", "unknown host"), owner.get("pid", "?")
        return RunLockedError(
            f"This run belongs to process {pid} on {host}, last seen {self._age_s():.0f} s ago.",
            where=str(self.path.parent),
            hint="Wait for it or stop it, or use another --output. `magpie-hf status` only looks and works any time.",
            host=host,
            pid=pid,
        )

    def _beat(self) -> None:
        assert self._file is not None  # noqa: S101 (only beats while held)
        record = {"host": socket.gethostname(), "pid": os.getpid(), "token": self.token, "at": time.time()}
        text = json.dumps(record).encode()
        os.pwrite(self._file, text.ljust(256), 0)

    def _heartbeat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            if self._owner().get("token") == self.token:
                with contextlib.suppress(OSError):  # a full disk ends the run elsewhere, with its name
                    self._beat()

    def check(self) -> None:
        """Raise RunLockedError if another process took over (only possible between hosts)."""
        owner = self._owner()
        if owner.get("token") not in (None, self.token):
            raise self._owned(owner)

    def release(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._file is not None:
            if self._owner().get("token") == self.token:
                os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None
