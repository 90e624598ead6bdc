"""The state of a run as typed data. This is the only module that knows the keys of run.json and pins.json.

`run.json` and its copy `run.json.bak` hold a `RunState`, `pins.json` holds its `Pins` alone. Each file has a `version`
and a `checksum` of its content. When a file is read:

- A key with a value of the wrong type, a wrong checksum, or a file that is not a run state: `ValueError` with the key.
- Another version: `StorageError` that says what to do; the file is left as it is.
- Unknown keys are ignored, and are not written back.
- A missing key that has a default gets its default; defaults are not written.

The module `rundir` opens and locks run directories; this module only reads and writes the files.
"""

from __future__ import annotations

import dataclasses
import errno
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..errors import StorageError
from .hashing import stable_hash, to_plain
from .typed_json import from_json, shown, to_json


VERSION = 2
"""Version of the format; increased for each change that an older reader would misunderstand."""
JsonObject = dict[str, Any]
"""A parsed JSON mapping with keys of its own: a recipe as written, the fields of an identity, the facts of a stage."""
StageStatus = Literal["pending", "running", "stopped", "done", "reopened", "recovered"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and checksum of a finished file."""

    size: int
    xxh3_128: str


@dataclass
class Counts:
    """Counts of a stage over all sessions.

    `total`: requested rows, None while unknown. `done`: finished rows. `by_code`: finished rows by code. `accepted`:
    rows that count towards the total, None if all rows count. `special_tokens`: rows rejected because of a special
    token, by token. `generated`: finished rows that used tokens. `seconds`: wall time with the engine open.
    `pending`: rows with transient failures in the last session.
    """

    total: int | None = None
    done: int = 0
    by_code: dict[str, int] = field(default_factory=dict)
    special_tokens: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    generated: int = 0
    seconds: float = 0.0
    pending: int = 0
    retries: int = 0
    accepted: int | None = None

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens


@dataclass
class ServedState:
    """What the server reported while it generated the rows of a stage; `fingerprints`: system fingerprints of its replies."""

    model: str | None = None
    revision: str | None = None
    dtype: str | None = None
    version: str | None = None
    fingerprints: list[str] = field(default_factory=list)


@dataclass
class MergedCounts:
    """The counts that `merge` has already added from one shard."""

    seconds: float = 0.0
    reopened: int = 0


@dataclass
class StageState:
    """The state of one stage with one identity.

    `identity_fields`: the fields that the identity is the hash of. `fingerprint`: fingerprint of the last output.
    `files`: cached Arrow files by name. `report`: results of a set stage. `samples`: numbers of accepted and rejected
    instruction samples, with reasons. `seconds`: time of set stages. `reopened`: how often `retry` reopened finished
    rows. `merged`: counts that `merge` added, by shard ("0/4").
    """

    name: str
    identity: str
    kind: str = "row"
    status: StageStatus = "pending"
    identity_fields: JsonObject = field(default_factory=dict)
    rows_in: int | None = None
    rows_out: int | None = None
    fingerprint: str | None = None
    counts: Counts | None = None
    files: dict[str, FileRecord] = field(default_factory=dict)
    served: ServedState = field(default_factory=ServedState)
    report: JsonObject = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    reopened: int = 0
    merged: dict[str, MergedCounts] = field(default_factory=dict)

    @property
    def has_begun(self) -> bool:
        """Whether the stage has run, in any session."""
        return self.counts is not None or self.status != "pending"

    @property
    def version(self) -> int | None:
        """The version of the stage's class that made the rows."""
        found: int | None = self.identity_fields.get("version")
        return found

    @property
    def funnel(self) -> list[JsonObject]:
        """The steps of a selection: condition, rows_in, rows_out, nulls."""
        return list(self.report.get("funnel", ()))


@dataclass(frozen=True, slots=True)
class StoppedBy:
    """The limit that ended a session: its name, its value, the amount used, and the stage that was running."""

    stage: str
    limit: str
    value: float
    spent: float


@dataclass
class SessionState:
    """One session of a run: when, with which packages, and how it ended ("done", or the name of an error)."""

    started: str
    versions: dict[str, str] = field(default_factory=dict)
    outcome: str = "killed"
    ended: str | None = None
    stopped_by: StoppedBy | None = None


@dataclass(frozen=True, slots=True)
class SavedRows:
    """A dataset that was written into the run directory.

    `files`: paths relative to the run directory, in order. `stages`: keys of the stages that produced it, None if unknown.
    `splits`: rows of each split, empty if all rows are in the split "train".
    """

    fingerprint: str
    rows: int
    format: str = "parquet"
    files: dict[str, FileRecord] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    stages: list[str] | None = None
    splits: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Totals:
    """The totals of a run: tokens, seconds with an engine open and, with a price, the cost, also per 1,000 kept rows."""

    tokens: int = 0
    engine_seconds: float = 0.0
    cost: float | None = None
    cost_per_1000_rows: float | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """Where a run is published: the repository as the recipe names it, its full id, and the branch or pull request."""

    repo_asked: str
    repo: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class PushedSettings:
    """The publishing settings that are saved on the Hub for `resume_from_hub`."""

    config: str | None = None
    license: str | None = None
    state: bool | None = None
    every_s: float | None = None

    @property
    def given(self) -> JsonObject:
        """The settings that were given, in the form of the `push` section of a recipe."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass
class Pins:
    """Values that are determined at the first start of a run and then stay fixed.

    `models`: the commit of each Hub model, by "NAME@REVISION". `dates`: the date that a chat template prints as today's
    date (None if it prints no date), by a hash of model and template settings.
    """

    models: dict[str, str | None] = field(default_factory=dict)
    dates: dict[str, str | None] = field(default_factory=dict)

    def updated(self, newer: Pins) -> Pins:
        """Return these pins merged with newer pins, which take precedence."""
        return Pins({**self.models, **newer.models}, {**self.dates, **newer.dates})


@dataclass
class RunState:
    """The state of a run.

    `recipe`: the last recipe that was run, in the form of a recipe file; empty if it was lost. `recipe_hash`: hash of
    its request. `shard`: part and number of parts. `merged_from`: the shards that `merge` joined. `budget`: the limits
    in the recipe. `plan`: keys of the stages of the current recipe, in order. `stages`: states by the name of the stage
    directory, including stages of earlier settings. `output`: the final rows. `subsets`: rows at other points of the
    recipe, by config. `published`: the repository on the Hub. `push`: only set in states that are saved on the Hub.
    """

    version: int = VERSION
    recipe: JsonObject = field(default_factory=dict)
    recipe_hash: str | None = None
    shard: tuple[int, int] = (0, 1)
    merged_from: list[tuple[int, int]] = field(default_factory=list)
    budget: dict[str, float] = field(default_factory=dict)
    pins: Pins = field(default_factory=Pins)
    plan: list[str] = field(default_factory=list)
    stages: dict[str, StageState] = field(default_factory=dict)
    sessions: list[SessionState] = field(default_factory=list)
    output: SavedRows | None = None
    subsets: dict[str, SavedRows] = field(default_factory=dict)
    totals: Totals | None = None
    published: Published | None = None
    push: PushedSettings | None = None

    @property
    def ended_done(self) -> bool:
        """Whether the last session finished all stages."""
        return bool(self.sessions) and self.sessions[-1].outcome == "done"

    @property
    def shard_name(self) -> str:
        """The shard in the form of the command line, e.g., "0/4"."""
        return "/".join(map(str, self.shard))

    def spent(self, but: str | None = None) -> tuple[int, float]:
        """Return the tokens and engine-seconds of all stages; `but`: without the stage of that key."""
        counted = [stage.counts for key, stage in self.stages.items() if key != but and stage.counts is not None]
        return sum(counts.tokens for counts in counted), sum((counts.seconds for counts in counted), 0.0)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The facts that reports and cards show about a run; `stages`: the stages that produced the rows, by key."""

    recipe: JsonObject = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    stages: dict[str, StageState] = field(default_factory=dict)


@dataclass
class _PinsFile:
    pins: Pins
    version: int = VERSION


def state_text(state: RunState) -> str:
    """Return the text of run.json."""
    return _text(state)


def pins_text(pins: Pins) -> str:
    """Return the text of pins.json."""
    return _text(_PinsFile(pins))


def load_state(path: Path) -> RunState:
    """Read a run.json.

    Raises:
        ValueError: the file is missing, damaged, or not a run state; the message names the key.
        StorageError: the file cannot be read, or has another version.
    """
    return _load(path, RunState)


def load_pins(path: Path) -> Pins:
    """Read a pins.json; raises as `load_state`."""
    return _load(path, _PinsFile).pins


def _text(value: RunState | _PinsFile) -> str:
    plain = json.loads(json.dumps(to_json(value), ensure_ascii=False, default=to_plain))
    try:
        from_json(type(value), plain)
    except ValueError as error:  # otherwise an unreadable state would replace a readable one
        raise StorageError(f"The run's state cannot be saved: {error}.") from None
    return json.dumps({**plain, "checksum": stable_hash(plain)}, indent=2, ensure_ascii=False) + "\n"


def _load(path: Path, kind: type[T]) -> T:
    try:
        data = json.loads(path.read_text("utf-8"))
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
            hint="Check the permissions of this file.",
        ) from error
    if not isinstance(data, dict) or "version" not in data:
        raise ValueError('this file is not the state of a run: it has no key "version"')
    checksum = data.pop("checksum", None)
    if checksum is not None and checksum != stable_hash(data):
        raise ValueError("its checksum differs")
    _check_version(data["version"], path)
    return from_json(kind, data)


def _check_version(version: object, path: Path) -> None:
    if not isinstance(version, int) or isinstance(version, bool):
        raise ValueError(f"version: expected an integer, found {shown(version)}")
    if version != VERSION:
        newer = version > VERSION
        raise StorageError(
            f"This run was written with state version {version}; this magpie_hf reads version {VERSION}.",
            where=f"{path}, key version",
            hint="Upgrade magpie_hf." if newer else "Choose another --output, or use the magpie_hf that wrote it.",
            version=version,
        )
