"""Injected faults and a record of the requests, shared by all test servers.

A `Fault` selects generation requests by their number, counted 1, 2, 3, … in the order of arrival (since the start or the last
`POST /_reset`). `each=True` counts the attempts of every distinct request separately instead, so
`Fault("overloaded", first=2, each=True)` rejects every request twice and then serves it.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


KINDS = ("overloaded", "status", "hang", "reset", "cut", "truncate", "garbage", "delay", "die")
# Chat only: what the first choice of the reply becomes.
SPOILED: dict[str, dict[str, Any]] = {
    "filtered": {"finish_reason": "content_filter", "message": {"role": "assistant", "content": None}},
    "refused": {
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": None, "refusal": "I can't help."},
    },
    "null": {"finish_reason": "stop", "message": {"role": "assistant", "content": None}},
}


@dataclass(frozen=True)
class Fault:
    """A fault, and the requests that it affects.

    `kind`: "overloaded" (429, with `Retry-After: retry_after` if set) · "status" (`status`, an error body) · "hang" (no reply) ·
    "reset" (the connection is reset before the reply) · "cut" (the connection ends in the middle of the body) · "truncate" (a
    complete HTTP message with half of the JSON) · "garbage" (200 with an HTML page) · "delay" (the correct reply, `seconds` late)
    · "die" (the server stops, its open connections are reset) · "filtered", "refused", "null" (see `SPOILED`).
    It affects the `first` requests, every `every`-th one, those with a number in `at`, and all if none of the three is set.
    """

    kind: str
    first: int = 0
    every: int = 0
    at: tuple[int, ...] = ()
    each: bool = False
    status: int = 500
    retry_after: float | str | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, *SPOILED):
            raise ValueError(f"fault kind {self.kind!r}: known are {', '.join([*KINDS, *SPOILED])}")
        object.__setattr__(self, "at", tuple(self.at))

    def hits(self, number: int) -> bool:
        """Return whether the request with this number is affected."""
        if not (self.first or self.every or self.at):
            return True
        return number <= self.first or number in self.at or bool(self.every and number % self.every == 0)


@dataclass(frozen=True)
class Behavior:
    """The settings of a running server that a test can change (`POST /_faults` with these names, or the constructor).

    `model_id`, `model_sha`: what the server calls its model, None for the truth. `starting_s`: that many seconds from
    now every address answers 503. `latency_s`: added to every answer. `latency_by_seed_s`: up to so much more, a pure
    function of the request's seed.
    """

    faults: tuple[Fault, ...] = ()
    model_id: str | None = None
    model_sha: str | None = None
    starting_s: float = 0.0
    latency_s: float = 0.0
    latency_by_seed_s: float = 0.0

    @classmethod
    def from_json(cls, given: dict[str, Any] | list[Any]) -> Behavior:
        """Build from the body of `POST /_faults`: a list of faults, or an object with the names above."""
        given = {"faults": given} if isinstance(given, list) else dict(given)
        faults = given.pop("faults", ())
        return cls(faults=tuple(f if isinstance(f, Fault) else Fault(**f) for f in faults), **given)

    def to_json(self) -> dict[str, Any]:
        """Return a mapping for `from_json`."""
        return asdict(self)

    def delay_s(self, seed: int | None) -> float:
        """Return the seconds by which a reply for this seed is delayed."""
        spread = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest(), "big") / 2**32
        return self.latency_s + self.latency_by_seed_s * spread


def request_hash(body: dict[str, Any]) -> str:
    """Return a hash of the body, independent of the order of its keys."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Entry:
    """One generation request; times are `time.time()`.

    `outcome`: "open" (not answered yet), "completed" (a whole right answer went out), "dropped" (the client had gone by
    then), or the fault or HTTP status that it met.
    """

    number: int
    hash: str
    connection: str
    authorization: bool
    seed: int | None
    n: int = 1
    arrived: float = field(default_factory=time.time)
    ended: float | None = None
    outcome: str = "open"


class Record:
    """All requests, thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self.entries: list[Entry] = []
            self.tries: Counter[str] = Counter()
            self.connections: set[str] = set()
            self.authorization: Counter[str] = Counter()
            self.user_agents: set[str] = set()
            self.paths: Counter[str] = Counter()
            self.num_open = 0
            self.max_open = 0

    def saw(self, path: str, connection: str, headers: dict[str, str]) -> None:
        """Record an HTTP request."""
        with self._lock:
            self.paths[path] += 1
            self.connections.add(connection)
            self.user_agents.add(headers.get("user-agent", ""))
            if "authorization" in headers:
                self.authorization[path] += 1

    def arrive(self, body: dict[str, Any], connection: str, authorization: bool, seed: int | None, n: int) -> Entry:
        """Record a generation request and return its entry; `end` closes it."""
        key = request_hash(body)
        with self._lock:
            self.tries[key] += 1
            entry = Entry(len(self.entries) + 1, key, connection, authorization, seed, n)
            self.entries.append(entry)
            self.num_open += 1
            self.max_open = max(self.max_open, self.num_open)
        return entry

    def end(self, entry: Entry, outcome: str) -> None:
        """Record how a request ended; the first call for an entry wins."""
        with self._lock:
            if entry.outcome == "open":
                entry.outcome, entry.ended = outcome, time.time()
                self.num_open -= 1

    def stats(self, log: bool = False) -> dict[str, Any]:
        """Return the counts as JSON; `by_hash` has, for each distinct request, how often it met which outcome."""
        with self._lock:
            by_hash: dict[str, Counter[str]] = {}
            for entry in self.entries:
                by_hash.setdefault(entry.hash, Counter())[entry.outcome] += 1
            outcomes = Counter(entry.outcome for entry in self.entries)
            out: dict[str, Any] = {
                "requests": len(self.entries),
                "outcomes": dict(outcomes),
                "completed": outcomes["completed"],
                "completed_twice": sum(counts["completed"] > 1 for counts in by_hash.values()),
                "open": self.num_open,
                "max_open": self.max_open,
                "connections": len(self.connections),
                "authorization": sum(self.authorization.values()),
                "authorization_paths": dict(self.authorization),
                "paths": dict(self.paths),
                "user_agents": sorted(self.user_agents),
                "by_hash": {key: dict(counts) for key, counts in by_hash.items()},
            }
            if log:
                out["log"] = [asdict(entry) for entry in self.entries]
        return out
