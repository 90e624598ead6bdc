"""The limits of a run, and the expected use of the rows in flight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ..errors import ArgumentError


class Limit(NamedTuple):
    """A limit and its use: its name in the recipe, its value, the amount spent, and the expected use of another row.

    `spent` and `next_row` have the unit of `value`: tokens, hours, or the currency.
    """

    name: str
    value: float
    spent: float
    next_row: float = 0.0

    def shown(self, amount: float) -> str:
        """Return an amount with its unit."""
        if self.name == "max_tokens_total":
            return f"{amount:,.0f} tokens"
        return f"{amount:.2f} h" if self.name == "max_hours" else f"{amount:.2f}"

    @property
    def setting(self) -> str:
        """The limit as it was set, e.g., "max_hours = 2"."""
        value = f"{self.value:,}" if self.name == "max_tokens_total" else f"{self.value:g}"
        return f"{self.name} = {value}"

    def words(self) -> str:
        """Return the limit in words, for messages."""
        if self.spent >= self.value:
            return f"{self.setting} is reached ({self.shown(self.spent)})"
        spent, expected = self.shown(self.spent), self.shown(self.next_row)
        return f"{self.setting} would be exceeded by another row (used: {spent}; a row may use {expected})"


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a run, including its earlier sessions; None means no limit.

    - `max_tokens_total`: prompt and completion tokens of all stages. `max_hours`: hours with an engine open.
    - `max_cost`: in the currency of `price_per_gpu_hour`, which is paid for each of `num_gpus`.

    Rows in flight count with their expected size: the mean of the stage's finished rows, or the maximum (prompt and
    `max_tokens`) while there are none. A row that would exceed a limit is not started.
    """

    max_tokens_total: int | None = None
    max_hours: float | None = None
    max_cost: float | None = None
    price_per_gpu_hour: float | None = None
    num_gpus: int = 1

    def __post_init__(self) -> None:
        for name in ("max_tokens_total", "max_hours", "max_cost", "price_per_gpu_hour", "num_gpus"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ArgumentError(f"budget.{name} = {value} is invalid.", hint="Give a number above 0.")
        if self.max_cost is not None and self.price_per_gpu_hour is None:
            raise ArgumentError(
                "budget.max_cost needs a price.", hint="Give budget.price_per_gpu_hour, and budget.num_gpus if not 1."
            )

    @property
    def is_limited(self) -> bool:
        """Whether any limit is set."""
        return (self.max_tokens_total, self.max_hours, self.max_cost) != (None, None, None)

    def cost(self, seconds: float) -> float | None:
        """Return the cost of the engine-seconds, or None without a price."""
        return None if self.price_per_gpu_hour is None else seconds / 3600 * self.price_per_gpu_hour * self.num_gpus

    def used(self, tokens: float, seconds: float, row_tokens: float = 0.0, row_seconds: float = 0.0) -> list[Limit]:
        """Return each limit that is set, with the amount spent and the expected use of another row."""
        limits = [
            ("max_tokens_total", self.max_tokens_total, tokens, row_tokens),
            ("max_hours", self.max_hours, seconds / 3600, row_seconds / 3600),
            ("max_cost", self.max_cost, self.cost(seconds) or 0.0, self.cost(row_seconds) or 0.0),
        ]
        return [Limit(name, value, spent, row) for name, value, spent, row in limits if value is not None]

    def exceeded(
        self, tokens: float, seconds: float, row_tokens: float = 0.0, row_seconds: float = 0.0
    ) -> Limit | None:
        """Return the first limit that is reached or that another row would exceed, or None."""
        for limit in self.used(tokens, seconds, row_tokens, row_seconds):
            if limit.spent >= limit.value or limit.spent + limit.next_row > limit.value:
                return limit
        return None


class Spent(Protocol):
    """The use of a stage's finished rows, including earlier sessions: `driver.StageCounters`."""

    prompt_tokens: int
    completion_tokens: int
    generated: int
    seconds: float


class Sized(Protocol):
    """A row in flight: its tokens so far, the upper bound of its tokens, and when it was opened."""

    prompt_tokens: int
    completion_tokens: int
    bound: int
    opened: float


@dataclass(slots=True)
class InFlight:
    """The rows that are started but not finished.

    `bound`: upper bound of their tokens, given their requests so far. `received`: tokens of their earlier generations,
    for rows with several requests. `finished`, `row_seconds`: number of rows finished in this session, and the sum of
    the times that they were in flight.
    """

    rows: int = 0
    bound: int = 0
    received: int = 0
    finished: int = 0
    row_seconds: float = 0.0

    def start(self, row: Sized) -> None:
        """Count a row that is started."""
        self.rows += 1
        self.bound += row.bound

    def ask(self, row: Sized, tokens: int) -> None:
        """Count the next request of a row: its bound is the tokens so far plus this request."""
        bound = row.prompt_tokens + row.completion_tokens + tokens
        self.bound += bound - row.bound
        row.bound = bound

    def end(self, row: Sized, now: float) -> None:
        """Count a row that is no longer in flight."""
        self.rows -= 1
        self.bound -= row.bound
        self.received -= row.prompt_tokens + row.completion_tokens
        self.finished += 1
        self.row_seconds += now - row.opened

    def tokens(self, counters: Spent) -> float:
        """Return the expected total number of tokens of these rows."""
        each, known = _finished_tokens(counters), counters.generated
        return max(float(self.received), (self.rows * each + self.bound) / (known + 1))

    def seconds(self) -> float:
        """Return the mean time that a row is in flight; 0 if unknown."""
        return self.row_seconds / self.finished if self.finished else 0.0


def row_tokens(counters: Spent, bound: int) -> float:
    """Return the expected tokens of a row with at most `bound` tokens.

    It is the mean of the finished rows and the bound as one additional row, as the first rows to finish are the shortest.
    """
    return (_finished_tokens(counters) + bound) / (counters.generated + 1)


def mean_tokens(counters: Spent) -> float:
    """Return the mean number of tokens of the finished rows; 0 if there are none."""
    return _finished_tokens(counters) / max(counters.generated, 1)


def fitting(tokens: float, each: float, at_most: int) -> int:
    """Return how many rows of `each` tokens fit, at least 1; 1 if their size is unknown (0)."""
    return max(1, min(at_most, int(tokens / each))) if each else 1


def _finished_tokens(counters: Spent) -> int:
    return counters.prompt_tokens + counters.completion_tokens
