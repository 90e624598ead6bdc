"""A run's directory: who owns it, what ran in it, what it cost.

    OUTPUT/
      run.json               recipe, pins, versions, stages with identities, counts and costs; written atomically
      run.json.bak           the same, used where run.json is damaged
      pins.json              the pins alone, used where both are damaged: without them identities could change
      lock                   the owner: host, pid, heartbeat
      stages/NAME-IDENTITY/  journal/*.jnl and FINGERPRINT.arrow of one stage
      data/                  the dataset, as Parquet: `load_dataset("OUTPUT")`

This module stands below stages and hub: stages write here; `status`, budgets and publishing read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, StorageError
from .lock import Lock


logger = logging.getLogger("magpie_hf")
FORMAT = 1
_STAGE_DIRECTORY = re.compile(r"(?P<name>.+)-(?P<identity>[0-9a-f]{12})")


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


def is_run(path: Path) -> bool:
    """Whether a run was ever started in a directory: it has a state, the state's copy, or a stage's journal."""
    return (path / "run.json").is_file() or (path / "run.json.bak").is_file() or bool(_found_stages(path))


def _found_stages(path: Path) -> dict[str, dict[str, Any]]:
    """Return the records of the stages that have a journal in a run directory, as far as their directories tell."""
    found = {}
    for journal in sorted((path / "stages").glob("*/journal")):
        match = _STAGE_DIRECTORY.fullmatch(journal.parent.name)
        if match:
            found[journal.parent.name] = {**match.groupdict(), "kind": "row", "status": "recovered"}
    return found


class RunDir:
    """A run directory, opened for reading (`read`) or owned for writing (`own`).

    `state` is the content of run.json: `recipe`, `pins`, `stages` (by stage directory name), `sessions`, `outputs`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.state: dict[str, Any] = {"format": FORMAT, "pins": {}, "stages": {}, "sessions": [], "outputs": {}}
        self._lock: Lock | None = None
        self._saved_pins: dict[str, Any] = {}
        self._read()

    @property
    def file(self) -> Path:
        """The path of run.json."""
        return self.path / "run.json"

    @property
    def backup(self) -> Path:
        """The path of run.json's copy."""
        return self.path / "run.json.bak"

    @property
    def pins_file(self) -> Path:
        """The path of the pins' own file, written only when they change."""
        return self.path / "pins.json"

    @property
    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return is_run(self.path)

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe that was run here last.

        Raises:
            StorageError: it was lost with a damaged run.json.
        """
        recipe: dict[str, Any] | None = self.state.get("recipe")
        if not recipe:
            raise StorageError(
                "The recipe of this run is not known: no run was started here, or run.json was damaged.",
                where=str(self.file),
                hint="Run the recipe again with this directory as --output: finished rows are kept.",
            )
        return recipe

    def _read(self) -> None:
        """Read run.json; where it is damaged, its copy; where both are, the stages' directories and the pins' file."""
        if not self.exists:
            return
        try:
            self.state.update(_load_state(self.file))
            return
        except ValueError as error:
            problem = error
        try:
            self.state.update(_load_state(self.backup))
            source = "using its copy run.json.bak"
        except ValueError:
            source = self._rebuild(problem)
        _warn_once(f"{self.file} is damaged ({problem}): {source}. Finished rows are kept.")

    def _rebuild(self, problem: ValueError) -> str:
        """Rebuild the state from the stages' directories and the pins' file; return what was found, for people."""
        found = _found_stages(self.path)
        if not found:
            raise StorageError(
                f"The run's state cannot be read: {problem}.",
                where=str(self.file),
                hint="Give the directory of a run, or move this file away.",
            ) from problem
        self.state["stages"] = found
        rebuilt = "its copy too, so the stages are found by their journals"
        try:
            self.state["pins"] = _load_state(self.pins_file)["pins"]
        except (ValueError, KeyError):
            return (
                f"{rebuilt}. The commits and the date that the run began with are lost (pins.json): if a model or the "
                "date in a template has changed since, the same recipe generates its rows again"
            )
        return f"{rebuilt}. Run the same recipe again"

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

    def own(self, *, take_over: bool = False) -> RunDir:
        """Become the owner, and read the state anew; `take_over`: take the directory from its owner at once.

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
        lock = Lock(self.path / "lock", take_over=take_over)
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

    def check_owner(self) -> None:
        """Raise RunLockedError if another process took the directory over: asked before what it may write, too."""
        if self._lock is not None:
            self._lock.check()

    def save(self) -> None:
        """Write run.json, and its copy; before them the pins, if they changed.

        Raises:
            RunLockedError: another process took the directory over meanwhile.
            StorageError: it cannot be written; what was there stays.
        """
        self.check_owner()
        pins = dict(self.state["pins"])
        if pins != self._saved_pins:
            write_atomically(self.pins_file, _state_text({"format": FORMAT, "pins": pins}))
            self._saved_pins = pins
        text = _state_text(self.state)
        write_atomically(self.file, text)
        write_atomically(self.backup, text)

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
        state: dict[str, Any] = self.state["stages"].setdefault(key, {"name": name})
        state["identity"] = identity
        return state


_warned: set[str] = set()


def _warn_once(text: str) -> None:
    """Say something of a file that one command reads several times."""
    if text not in _warned:
        _warned.add(text)
        logger.warning("%s", text)


def _state_text(state: Mapping[str, Any]) -> str:
    """Return run.json's text, with a checksum of its content."""
    plain = json.loads(json.dumps(state, ensure_ascii=False, default=_plain))
    return json.dumps({**plain, "checksum": stable_hash(plain)}, indent=2, ensure_ascii=False) + "\n"


def _load_state(path: Path) -> dict[str, Any]:
    """Read a run.json.

    Raises:
        ValueError: it is damaged.
        StorageError: it cannot be read, or is of a later version.
    """
    try:
        state = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError("the file is missing") from None
    except RecursionError:
        raise ValueError("too deeply nested") from None
    except OSError as error:
        if error.errno == errno.EIO:
            raise ValueError(error.strerror) from error
        raise StorageError(
            f"The run's state cannot be read: {error.strerror or error}.",
            where=str(path),
            hint="Check the rights on this file.",
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise ValueError("this file holds no run's state")
    checksum = state.pop("checksum", None)
    if checksum is not None and checksum != stable_hash(state):
        raise ValueError("its checksum differs")
    if state["format"] > FORMAT:
        raise StorageError(
            f"This run was written in format {state['format']}, and this version knows {FORMAT}.",
            where=str(path),
            hint="Upgrade magpie_hf.",
        )
    _check_shape(state)
    return state


def _check_shape(state: Mapping[str, Any]) -> None:
    """Raise ValueError for a state whose parts are not what they must be."""
    for name, kind in (("pins", dict), ("stages", dict), ("sessions", list), ("outputs", dict)):
        if not isinstance(state.get(name, kind()), kind):
            raise ValueError(f"{name} is not a {'mapping' if kind is dict else 'list'}")
    for key, stage in state.get("stages", {}).items():
        if not (
            isinstance(stage, dict) and isinstance(stage.get("name"), str) and isinstance(stage.get("identity"), str)
        ):
            raise ValueError(f"stages[{key!r}] has no name or identity")
