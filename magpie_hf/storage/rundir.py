"""The directory of a run: its owner, its state, and the paths in it.

    OUTPUT/
      run.json               the state: recipe, pins, versions, stages with identities, counts and costs (see `state`)
      run.json.bak           a copy, used if run.json is damaged
      pins.json              the pins alone, used if both are damaged: without them, identities could change
      lock                   the owner: host, pid, heartbeat
      stages/NAME-IDENTITY/  journal/*.jnl and FINGERPRINT.arrow of one stage
      data/                  the dataset as Parquet: `load_dataset("OUTPUT")`

Each file is replaced atomically, so readers never see an incomplete file.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import ArgumentError, StorageError
from .lock import Lock
from .state import JsonObject, Pins, RunState, StageState, load_pins, load_state, pins_text, state_text


logger = logging.getLogger("magpie_hf")
_STAGE_DIRECTORY = re.compile(r"(?P<name>.+)-(?P<identity>[0-9a-f]{12})")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file atomically: readers see the old or the new text, never a part of it, even after a crash."""
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
            hint="Check free disk space and permissions, or choose another --output; finished rows are kept.",
        ) from error


def is_run(path: Path) -> bool:
    """Whether a directory contains a run: a run.json, its copy, or the journal of a stage."""
    return (path / "run.json").is_file() or (path / "run.json.bak").is_file() or bool(_found_stages(path))


def _found_stages(path: Path) -> dict[str, StageState]:
    """Return the stages that have a journal in a run directory; their names are read from the names of directories."""
    found = {}
    for journal in sorted((path / "stages").glob("*/journal")):
        match = _STAGE_DIRECTORY.fullmatch(journal.parent.name)
        if match:
            found[journal.parent.name] = StageState(match["name"], match["identity"], status="recovered")
    return found


class RunDir:
    """A run directory, opened for reading (`read`) or owned for writing (`own`). `state`: the content of run.json."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.state = RunState()
        self._lock: Lock | None = None
        self._saved_pins = Pins()
        self._read()

    @property
    def file(self) -> Path:
        """The path of run.json."""
        return self.path / "run.json"

    @property
    def backup(self) -> Path:
        """The path of the copy of run.json."""
        return self.path / "run.json.bak"

    @property
    def pins_file(self) -> Path:
        """The path of pins.json, which is written only when the pins change."""
        return self.path / "pins.json"

    @property
    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return is_run(self.path)

    @property
    def recipe(self) -> JsonObject:
        """The recipe that was last run in this directory.

        Raises:
            StorageError: the recipe was lost because run.json is damaged.
        """
        if not self.state.recipe:
            raise StorageError(
                "The recipe of this run is not known: no run was started here, or run.json was damaged.",
                where=str(self.file),
                hint="Run the recipe again with this directory as --output: finished rows are kept.",
            )
        return self.state.recipe

    def _read(self) -> None:
        """Read run.json, else its copy, else rebuild the state from the stage directories and pins.json."""
        if not self.exists:
            return
        try:
            self.state = load_state(self.file)
            return
        except ValueError as error:
            problem = error
        try:
            self.state = load_state(self.backup)
            source = "using its copy run.json.bak"
        except ValueError:
            source = self._rebuild(problem)
        _warn_once(f"{self.file} is damaged ({problem}): {source}. Finished rows are kept.")

    def _rebuild(self, problem: ValueError) -> str:
        """Rebuild the state from the stage directories and pins.json; return a description of what was found."""
        found = _found_stages(self.path)
        if not found:
            raise StorageError(
                f"The state of the run cannot be read: {problem}.",
                where=str(self.file),
                hint="Use the directory of a run, or move this file to another directory.",
            ) from problem
        self.state = RunState(stages=found)
        rebuilt = "the copy is damaged too, so the stages were found by their journals"
        try:
            self.state.pins = load_pins(self.pins_file)
        except ValueError:
            return (
                f"{rebuilt}. The model commits and the template date of the first start are lost (pins.json): if they "
                "have changed since, the same recipe generates its rows again"
            )
        return f"{rebuilt}. Run the same recipe again"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RunDir:
        """Open an existing run for reading.

        Raises:
            ArgumentError: the directory contains no run.
        """
        run_dir = cls(path)
        if not run_dir.exists:
            raise ArgumentError(f"No run found in {str(path)!r}.", hint="A run directory contains a run.json.")
        return run_dir

    def own(self, *, take_over: bool = False) -> RunDir:
        """Become the owner and read the state again; `take_over`: do not wait for the current owner.

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
                hint="Choose another directory with --output.",
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
        """Raise RunLockedError if another process has taken the directory over; called before every write."""
        if self._lock is not None:
            self._lock.check()

    def save(self) -> None:
        """Write run.json and its copy; before them pins.json, if the pins changed.

        Raises:
            RunLockedError: another process has taken the directory over.
            StorageError: a file cannot be written; the old one stays.
        """
        self.check_owner()
        if self.state.pins != self._saved_pins:
            write_atomically(self.pins_file, pins_text(self.state.pins))
            self._saved_pins = copy.deepcopy(self.state.pins)
        text = state_text(self.state)
        write_atomically(self.file, text)
        write_atomically(self.backup, text)

    def pin_model(self, key: str, find: Callable[[], str | None]) -> str | None:
        """Return the commit of a model ("NAME@REVISION") from the first start of the run; find it if this is the first."""
        return _pinned(self.state.pins.models, key, find)

    def pin_date(self, key: str, find: Callable[[], str | None]) -> str | None:
        """Return the date of a template from the first start of the run; find it if this is the first."""
        return _pinned(self.state.pins.dates, key, find)

    def stage_dir(self, name: str, identity: str) -> Path:
        """Return the directory of a stage with that identity."""
        return self.path / "stages" / stage_key(name, identity)

    def stage_state(self, name: str, identity: str) -> StageState:
        """Return the state of a stage with that identity; a new state if none exists."""
        state = self.state.stages.setdefault(stage_key(name, identity), StageState(name, identity))
        state.identity = identity  # a rebuilt state only has the first characters
        return state


def stage_key(name: str, identity: str) -> str:
    """Return the key of a stage in the state, which is also the name of its directory."""
    return f"{name}-{identity[:12]}"


def stage_name(key: str) -> str:
    """Return the name of the stage with that key."""
    match = _STAGE_DIRECTORY.fullmatch(key)
    return match["name"] if match else key


def _pinned(pins: dict[str, str | None], key: str, find: Callable[[], str | None]) -> str | None:
    if key not in pins:
        pins[key] = find()
    return pins[key]


_warned: set[str] = set()


def _warn_once(text: str) -> None:
    """Log a warning only once, even if a command reads the same file several times."""
    if text not in _warned:
        _warned.add(text)
        logger.warning("%s", text)
