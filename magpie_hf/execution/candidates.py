"""Run instruction synthesis until enough samples are accepted; the result does not depend on timing.

The samples of a grid point are numbered 0, 1, 2, …; sample i has the same text in every session and process. The dataset
contains the first accepted samples of each grid point in this order, according to the point's share. A few additional
samples may be in flight when the last needed one is accepted; they stay in the journal and are used if the run is extended.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import ArgumentError, NothingUsable
from ..sampling import grid_sequence
from ..stage import CODE_NUMBERS
from ..stages.instructions import Instructions, point_key
from ..stages.system_prompts import labels_of
from ..storage.journal import Index, Int64Array, Journal
from .driver import OpenRow, StageCounters
from .environment import Environment
from .runner import check_pending, collector, drive, note_damage
from .store import StageStore


if TYPE_CHECKING:
    from datasets import Dataset


BLOCK = 64
"""Number of contiguous samples that a shard owns and requests together (as one request with `n` if possible)."""
OPEN, IN_FLIGHT, ACCEPTED, REJECTED, DROPPED = range(5)
YIELD_CHECK_AFTER = 512
MIN_YIELD = 0.01
SHARD_SLACK_SIGMAS = 3.0
PRIOR_SAMPLES = 32
"""Prior of the acceptance rate: the first finished samples are the shortest, and are rejected more often."""


class Shard(NamedTuple):
    """Part of a job array: number `part` of `parts`, counted from 0."""

    part: int = 0
    parts: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """Read "i/n", i from 0 to n - 1."""
        if text is None:
            return cls()
        try:
            part, parts = (int(number) for number in text.split("/"))
        except ValueError:
            part, parts = -1, 0
        if not 0 <= part < parts:
            raise ArgumentError(
                f"shard = {text!r} is invalid.", hint='Give "i/n" with i from 0 to n - 1, e.g., "0/4".'
            )
        return cls(part, parts)


WHOLE = Shard()


@dataclass
class Candidates:
    """The samples of one grid point: the state of each (1 byte) and the location of its record (8 bytes)."""

    point: int
    key: int
    needed: int
    shard: Shard
    states: bytearray = field(default_factory=bytearray)
    locations: array[int] = field(default_factory=lambda: array("q"))
    accepted: int = 0
    rejected: int = 0
    in_flight: int = 0
    dropped: int = 0
    _cursor: int = 0
    _checked_at: int = -1
    _open_holes: int = 0

    def load(self, index: Index) -> Int64Array:
        """Load the finished samples of this point from a journal; return their rows in the index."""
        rows = np.flatnonzero(index.keys[:, 0] == np.uint64(self.key)).astype(np.int64)
        for row in rows:
            self.set(int(index.keys[row, 1]), int(index.locations[row]), int(index.codes[row]))
        return rows

    def set(self, sample: int, location: int, code: int) -> None:
        """Record a finished sample."""
        self._grow(sample)
        self.in_flight -= self.states[sample] == IN_FLIGHT
        self.states[sample] = ACCEPTED if code == CODE_NUMBERS["ok"] else REJECTED
        self.locations[sample] = location
        if code == CODE_NUMBERS["ok"]:
            self.accepted += 1
        else:
            self.rejected += 1

    def drop(self, sample: int) -> None:
        """Record a transient failure: the sample stays unfinished until the next session."""
        self.in_flight -= 1
        self.dropped += 1
        self.states[sample] = DROPPED

    def _grow(self, sample: int) -> None:
        missing = sample + 1 - len(self.states)
        if missing > 0:
            self.states.extend(bytes(missing))
            self.locations.extend([-1] * missing)

    @property
    def needs_more(self) -> bool:
        """Whether more samples are needed, assuming that those in flight are accepted at the current rate."""
        done = self.accepted + self.rejected
        rate = (self.accepted + PRIOR_SAMPLES) / (done + PRIOR_SAMPLES)
        return self.accepted + (self.in_flight + self.dropped) * rate < self.needed

    def next_sample(self) -> int:
        """Return the first sample of this shard that is neither finished nor in flight, and mark it as in flight."""
        while True:
            sample = self._cursor
            self._cursor += 1
            if not self.owns(sample):
                self._cursor = (sample // BLOCK + 1) * BLOCK
                continue
            self._grow(sample)
            if self.states[sample] == OPEN:
                self.states[sample] = IN_FLIGHT
                self.in_flight += 1
                self._open_holes -= self._open_holes > 0
                return sample

    def owns(self, sample: int) -> bool:
        """Return whether this shard generates the sample: every n-th block."""
        return (sample // BLOCK) % self.shard.parts == self.shard.part

    @property
    def has_hole(self) -> bool:
        """Whether enough samples are accepted, but an earlier sample is unfinished (if a run was killed or merged)."""
        if self.accepted < self.needed:
            return False
        if not self._open_holes and not self.in_flight and self._checked_at != self.accepted + self.rejected:
            self._checked_at = self.accepted + self.rejected
            self._open_holes = self._count_open()
        return self._open_holes > 0

    def _count_open(self) -> int:
        """Count the open samples that are needed even if all unfinished ones are accepted; they are requested together."""
        possible = holes = 0
        for sample, state in enumerate(self.states):
            if possible >= self.needed:
                break
            if state == ACCEPTED or (state != REJECTED and self.owns(sample)):
                possible += 1
                holes += state == OPEN
        return holes

    def chosen(self) -> tuple[array[int], int]:
        """Return the first `needed` accepted samples in order, and the number of unfinished samples before the last one."""
        picked = array("q")
        holes = 0
        for sample, state in enumerate(self.states):
            if len(picked) == self.needed:
                break
            if state == ACCEPTED:
                picked.append(sample)
            elif state != REJECTED and self.owns(sample):
                holes += 1
        return picked, holes


def needed_per_point(shares: list[float], num_rows: int, shard: Shard) -> list[int]:
    """Return how many accepted samples each grid point needs.

    A shard generates its part and a little more (3 standard deviations of a count of that size), so that the merged run
    rarely needs to generate any.
    """
    counts = [0] * len(shares)
    for point, _ in itertools.islice(grid_sequence(shares), num_rows):
        counts[point] += 1
    if shard.parts == 1:
        return counts
    return [_owned(n, shard) + math.ceil(SHARD_SLACK_SIGMAS * math.sqrt(n / shard.parts)) if n else 0 for n in counts]


def _owned(samples: int, shard: Shard) -> int:
    """Return how many of the first `samples` samples belong to the shard."""
    rounds, rest = divmod(samples, BLOCK * shard.parts)
    return rounds * BLOCK + min(max(rest - shard.part * BLOCK, 0), BLOCK)


def run_instructions(stage: Instructions, num_rows: int, env: Environment, shard: Shard = WHOLE) -> Dataset:
    """Return the dataset of the first `num_rows` accepted instructions; generate those not in the journal.

    Raises:
        NothingUsable: less than 1 % of the texts of a grid point are usable.
        RowsPending: needed samples had transient failures only.
        RunStopped: a budget or the circuit breaker stopped the run.
    """
    shares = [point.share for point in stage.grid]
    store = StageStore(stage, env, "samples", samples_key(stage, num_rows, shard))
    cached = store.cached()
    if cached is not None:
        return cached
    needs = needed_per_point(shares, num_rows, shard)
    points = [Candidates(i, point_key(p), needs[i], shard) for i, p in enumerate(stage.grid)]
    with Journal(store.directory / "journal", segment_age_s=env.segment_age_s) as journal:
        index = journal.index()
        note_damage(env, journal, stage.name)
        rows = np.concatenate([candidates.load(index) for candidates in points])
        counters = store.counters(journal, index, rows)
        counters.total, counters.accepted = sum(needs), count_accepted(points)
        if any(_is_short(candidates) for candidates in points):
            _generate(stage, env, store, journal, counters, points)
        picks = _choose(stage, points)
        samples = _samples(picks, shares, sum(needs))
        locations = array("q", (points[g].locations[i] for g, i in zip(*samples.values(), strict=True)))
        store.state.samples = _funnel(points)
        _write(stage, env, store, journal, samples, locations)
    store.done(sum(store.state.samples.values()), len(locations), counters)
    return store.require_cached()


def samples_key(stage: Instructions, num_rows: int, shard: Shard) -> dict[str, object]:
    """Return what else, besides the identity of the stage, the samples of a dataset depend on."""
    grid = [[point.to_dict(), point.share] for point in stage.grid]
    labels = {"own_columns": list(stage.own_columns), "labels": labels_of(stage.grid)} if stage.own_columns else {}
    return {"num_rows": num_rows, "grid": grid, "shard": list(shard), **labels}


def _is_short(candidates: Candidates) -> bool:
    picked, holes = candidates.chosen()
    return len(picked) < candidates.needed or holes > 0


def count_accepted(points: list[Candidates]) -> int:
    """Return the number of accepted samples, for each point at most as many as needed."""
    return sum(min(candidates.accepted, candidates.needed) for candidates in points)


def _generate(
    stage: Instructions,
    env: Environment,
    store: StageStore,
    journal: Journal,
    counters: StageCounters,
    points: list[Candidates],
) -> None:
    def finished(row: OpenRow, location: int, code: int) -> None:
        candidates = points[row.values["grid_point"]]
        candidates.set(row.values["sample_index"], location, code)
        counters.accepted = count_accepted(points)
        _check_yield(stage, candidates, counters)

    def dropped(row: OpenRow) -> None:
        points[row.values["grid_point"]].drop(row.values["sample_index"])

    with drive(stage, env, store, journal, counters, finished, dropped) as driver:
        driver.run(_samples_to_generate(points), lambda: any(_is_short(candidates) for candidates in points))


def _samples_to_generate(points: list[Candidates]) -> Iterator[OpenRow | None]:
    """Yield the samples to generate, in blocks of one grid point; None while the samples in flight may be sufficient."""
    current: Candidates | None = None
    left = 0
    while True:
        if current is None or left == 0 or not current.needs_more:
            short = [c for c in points if c.needs_more or c.has_hole]
            if not short:
                if not any(c.in_flight for c in points):
                    return
                yield None
                continue
            current = min(short, key=lambda c: ((c.accepted + c.in_flight) / c.needed, c.point))
            left = BLOCK
        sample = current.next_sample()
        left -= 1
        key = key_bytes(current.key, sample)
        yield OpenRow(-1, key, {"grid_point": current.point, "sample_index": sample})


def key_bytes(point: int, sample: int) -> bytes:
    """Return the row key of a sample: the grid point's hash and the sample's number."""
    return point.to_bytes(8, "big") + sample.to_bytes(8, "big")


def _check_yield(stage: Instructions, candidates: Candidates, counters: StageCounters) -> None:
    done = candidates.accepted + candidates.rejected
    if done < YIELD_CHECK_AFTER or candidates.accepted >= done * MIN_YIELD:
        return
    sampling = stage.grid[candidates.point].sampling
    reasons = ", ".join(f"{code} {n}" for code, n in sorted(counters.by_code.items(), key=lambda kv: -kv[1]))
    raise NothingUsable(
        f"{candidates.accepted} of {done} samples were usable at temperature {sampling.temperature:g}, top_p "
        f"{sampling.top_p:g} ({reasons}).",
        hint="Inspect the generated texts with `magpie-hf probe MODEL`, and the prompts with "
        "`magpie-hf template show MODEL`; a system prompt or another temperature may help.",
        by_code=dict(counters.by_code),
    )


def _choose(stage: Instructions, points: list[Candidates]) -> list[array[int]]:
    picks: list[array[int]] = []
    pending = 0
    for candidates in points:
        picked, holes = candidates.chosen()
        pending += max(holes, candidates.needed - len(picked))
        picks.append(picked)
    check_pending(stage.name, pending, sum(candidates.needed for candidates in points))
    return picks


def _samples(picks: list[array[int]], shares: list[float], total: int) -> dict[str, array[int]]:
    """Put the chosen samples of all grid points in the order of the dataset, including a shard's additional samples."""
    chosen = {"grid_point": array("q"), "sample_index": array("q")}
    for point, rank in grid_sequence(shares):
        if len(chosen["grid_point"]) == total:
            return chosen
        if rank < len(picks[point]):
            chosen["grid_point"].append(point)
            chosen["sample_index"].append(picks[point][rank])
    return chosen


def _funnel(points: list[Candidates]) -> dict[str, int]:
    return {
        "accepted": sum(candidates.accepted for candidates in points),
        "rejected": sum(candidates.rejected for candidates in points),
    }


def _write(
    stage: Instructions,
    env: Environment,
    store: StageStore,
    journal: Journal,
    samples: dict[str, array[int]],
    locations: array[int],
) -> None:
    from datasets import Dataset, Features, Value

    columns = {name: np.frombuffer(numbers, dtype=np.int64) for name, numbers in samples.items()}
    source = Dataset.from_dict(columns, features=Features({name: Value("int64") for name in samples}))
    accepted = np.full(len(locations), CODE_NUMBERS["ok"], dtype=np.uint8)
    collect = collector(stage, env, journal, np.frombuffer(locations, dtype=np.int64), accepted)
    store.write(source, collect, remove=list(samples))
