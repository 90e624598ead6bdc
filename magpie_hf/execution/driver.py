"""The loop that passes rows to the engine and writes results to the journal.

The engine pulls requests when it has capacity, and only then are rows opened, so memory is bounded by the number of
rows in flight. A finished row is written to the journal and freed at once, even if earlier rows are unfinished.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from ..engines.base import Capabilities, Engine, Generation, Prompt, Request, Served
from ..engines.first_token import check_first_token, needs_two
from ..errors import TooManyFailures
from ..sampling import SamplingParams
from ..stage import WITHHELD_CODES, Outcome, Row, RowFunction, Steps
from ..storage.journal import Journal
from ..storage.state import Counts
from .budget import InFlight


if TYPE_CHECKING:
    from ..storage.journal import Index, Int64Array


FAILURE_WINDOW = 500
FAILURE_WINDOW_MIN = 100
SAVE_EVERY_S = 5.0


class OpenRow:
    """A row in progress: its position, its key, and the values that its stage reads.

    `bound`: upper bound of its tokens, given its requests so far. `opened`: when it was started.
    """

    __slots__ = ("bound", "completion_tokens", "key", "opened", "position", "prompt_tokens", "steps", "values")

    def __init__(self, position: int, key: bytes, values: Row) -> None:
        self.position = position
        self.key = key
        self.values = values
        self.steps: Steps | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.bound = 0
        self.opened = 0.0


@dataclass
class StageCounters(Counts):
    """The counts of a stage over all sessions, and of this one.

    `session_*`: rows, completion tokens and seconds of this session.
    """

    session_rows: int = 0
    session_tokens: int = 0
    session_seconds: float = 0.0

    def add_index(self, index: Index, rows: Int64Array, codes: tuple[str, ...]) -> None:
        """Count the finished rows of a journal's index."""
        self.done += len(rows)
        numbers = index.codes[rows]
        for number in set(numbers.tolist()):
            name = codes[number] if number < len(codes) else f"code {number}"
            self.by_code[name] = self.by_code.get(name, 0) + int((numbers == number).sum())
        self.prompt_tokens += int(index.prompt_tokens[rows].sum())
        self.completion_tokens += int(index.completion_tokens[rows].sum())
        self.generated += int(((index.prompt_tokens[rows] > 0) | (index.completion_tokens[rows] > 0)).sum())

    def add_row(self, code: str, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Count a finished row."""
        self.done += 1
        self.by_code[code] = self.by_code.get(code, 0) + 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.generated += bool(prompt_tokens or completion_tokens)
        self.session_rows += 1
        self.session_tokens += completion_tokens

    def rejected(self) -> str:
        """Return how many rows were not accepted, by code: "empty 3, special_token 2 (<|im_start|> 2)", or ""."""
        return rejected_by_code(self.by_code, self.special_tokens)

    def counts(self) -> Counts:
        """Return a copy of the counts over all sessions."""
        return Counts(**{item.name: copy(getattr(self, item.name)) for item in fields(Counts)})


def rejected_by_code(by_code: Mapping[str, int], special_tokens: Mapping[str, int]) -> str:
    """Return the counts of rows that were not accepted, the most frequent code first, special tokens by name."""
    counts = sorted((item for item in by_code.items() if item[0] != "ok"), key=lambda item: -item[1])
    tokens = ", ".join(f"{token} {n:,}" for token, n in sorted(special_tokens.items(), key=lambda item: -item[1]))
    named = {"special_token": f" ({tokens})"} if tokens else {}
    return ", ".join(f"{code} {n:,}{named.get(code, '')}" for code, n in counts)


class DriverListener(Protocol):
    """Receives finished rows, may raise RunStopped to stop at once, and decides whether the budget allows another row.

    `counts_tokens`: whether it needs the sizes of prompts.
    """

    @property
    def counts_tokens(self) -> bool:
        """Whether there is a limit on tokens."""

    def row_finished(self, counters: StageCounters) -> None:
        """Called after each finished row."""

    def fits_budget(self, counters: StageCounters, in_flight: InFlight, bound: int) -> bool:
        """Return whether the budget allows a row of at most `bound` tokens; called before a row is started."""

    def stopped(self, counters: StageCounters, in_flight: InFlight, bound: int) -> None:
        """Called when nothing is in flight and the budget allows no further row; raises RunStopped with the reason."""


class Driver:
    """Runs rows through an engine into a journal; see the module's docstring."""

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        steps: RowFunction,
        *,
        finished: Callable[[OpenRow, int, int], None],
        counters: StageCounters,
        listener: DriverListener,
        code_numbers: Mapping[str, int],
        accept_failures: bool = False,
        check_served: Callable[[Served], None] | None = None,
        dropped: Callable[[OpenRow], None] | None = None,
    ) -> None:
        self.engine = engine
        self.journal = journal
        self.steps = steps
        self.finished = finished
        self.counters = counters
        self.listener = listener
        self.code_numbers = code_numbers
        self.accept_failures = accept_failures
        self.check_served = check_served
        self.dropped = dropped
        self.in_flight = InFlight()
        self._ready: deque[Request] = deque()
        self._waiting_for_budget: tuple[OpenRow, Request] | None = None
        self._open: dict[int, OpenRow] = {}
        self._next_key = 0
        self._recent: deque[bool] = deque(maxlen=FAILURE_WINDOW)
        self._recent_failures = 0
        self._last_failure = ""
        self._last_served: Served | None = None

    def run(self, rows: Iterator[OpenRow | None], is_short: Callable[[], bool] = lambda: True) -> None:
        """Process all rows of the iterator.

        `rows` yields None while it depends on the rows in flight whether more are needed. `is_short` returns whether
        more rows are needed; it is called when the budget allows no further row and nothing is in flight.

        Raises:
            TooManyFailures: most of the last requests failed.
            RunStopped: raised by the listener.
        """
        started, base, retries = time.monotonic(), self.counters.seconds, self.engine.stats.retries
        generations = self.engine.generate(self._requests(rows))
        try:
            for generation in generations:
                self.counters.session_seconds = time.monotonic() - started
                self.counters.seconds = base + self.counters.session_seconds
                self._receive(generation)
        finally:
            close = getattr(generations, "close", None)
            if close is not None:
                close()
            self.counters.retries += self.engine.stats.retries - retries
            self.counters.seconds = base + time.monotonic() - started
        if self._waiting_for_budget is not None and is_short():
            self.listener.stopped(self.counters, self.in_flight, self._waiting_for_budget[0].bound)

    def _requests(self, rows: Iterator[OpenRow | None]) -> Iterator[Request | None]:
        exhausted = False
        while True:
            if self._ready:
                yield self._ready.popleft()
            elif self._waiting_for_budget is not None and self._fits_budget(self._waiting_for_budget[0]):
                yield self._start(*self._waiting_for_budget)
            elif exhausted or self._waiting_for_budget is not None:
                if not self.in_flight.rows:
                    return
                yield None
            else:
                try:
                    row = next(rows)
                except StopIteration:
                    exhausted = True
                    continue
                if row is not None:
                    row.steps = self.steps(row.values)
                    self._advance(row, None)
                elif self.in_flight.rows:
                    yield None
                else:
                    raise RuntimeError("no row is in flight and the iterator yielded None")

    def _fits_budget(self, row: OpenRow) -> bool:
        return self.listener.fits_budget(self.counters, self.in_flight, row.bound)

    def _start(self, row: OpenRow, request: Request) -> Request:
        """Count a row as in flight and return its first request."""
        self._waiting_for_budget = None
        row.opened = time.monotonic()
        self.in_flight.start(row)
        return request

    def _receive(self, generation: Generation) -> None:
        row = self._open.pop(generation.key)
        if generation.served is not None and generation.served != self._last_served:
            self._last_served = generation.served
            if self.check_served is not None:
                self.check_served(generation.served)
        row.prompt_tokens += generation.prompt_tokens or 0
        row.completion_tokens += generation.completion_tokens or 0
        self.in_flight.received += (generation.prompt_tokens or 0) + (generation.completion_tokens or 0)
        failure = generation.failure
        is_fault = failure is not None and failure.code not in WITHHELD_CODES
        self._count_failure(is_fault, failure.message if failure else "")
        if failure is not None and failure.transient and not self.accept_failures:
            self.counters.pending += 1
            assert row.steps is not None  # noqa: S101 (set when the row was opened)
            row.steps.close()
            self.in_flight.end(row, time.monotonic())
            if self.dropped is not None:
                self.dropped(row)
            self._check_breaker()
            return
        self._advance(row, generation)
        self._check_breaker()

    def _advance(self, row: OpenRow, generation: Generation | None) -> None:
        """Resume the row's generator with a generation; queue its next request or save its outcome."""
        assert row.steps is not None  # noqa: S101 (set when the row was opened)
        try:
            ask = next(row.steps) if generation is None else row.steps.send(generation)
        except StopIteration as stop:
            if generation is not None:
                self.in_flight.end(row, time.monotonic())
            self._finish(row, stop.value)
            return
        self._check_first_token(ask.sampling)
        request = Request(self._next_key, ask.prompt, ask.sampling)
        self._next_key += 1
        self._open[request.key] = row
        bound = ask.sampling.max_tokens + (num_prompt_tokens(ask.prompt) if self.listener.counts_tokens else 0)
        if generation is None:  # its first request is sent when the budget allows the row
            row.bound = bound
            self._waiting_for_budget = (row, request)
        else:
            self.in_flight.ask(row, bound)
            self._ready.append(request)

    def _check_first_token(self, sampling: SamplingParams) -> None:
        """Raise CapabilityError for settings that an engine unaware of them would ignore."""
        if needs_two(sampling):
            check_first_token(sampling, self._capabilities, f"The engine {self.engine.name}")

    @cached_property
    def _capabilities(self) -> Capabilities:
        return self.engine.capabilities()

    def _finish(self, row: OpenRow, outcome: Outcome) -> None:
        number = self.code_numbers[outcome.code]
        location = self.journal.append(
            row.key,
            outcome.record,
            code=number,
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
        )
        self.counters.add_row(outcome.code, row.prompt_tokens, row.completion_tokens)
        if outcome.code == "special_token" and (token := outcome.record.get("why")):
            self.counters.special_tokens[token] = self.counters.special_tokens.get(token, 0) + 1
        self.finished(row, location, number)
        self.listener.row_finished(self.counters)

    def _count_failure(self, is_failure: bool, message: str) -> None:
        if len(self._recent) == self._recent.maxlen:
            self._recent_failures -= self._recent[0]
        self._recent.append(is_failure)
        self._recent_failures += is_failure
        if is_failure:
            self._last_failure = message

    def _check_breaker(self) -> None:
        if len(self._recent) >= FAILURE_WINDOW_MIN and self._recent_failures * 2 > len(self._recent):
            raise TooManyFailures(
                f"{self._recent_failures} of the last {len(self._recent)} requests failed; the last one: "
                f"{self._last_failure}",
                hint="Check the server, then run the same command again: finished rows are kept.",
                failed=self._recent_failures,
                window=len(self._recent),
            )


def num_prompt_tokens(prompt: Prompt) -> int:
    """Return the number of tokens of a prompt; for text without ids, a conservative estimate from its bytes."""
    try:
        return len(prompt.token_ids)
    except ValueError:
        return len(prompt.text.encode()) // 2
