"""What a person sees while a run is on, and the budgets that end it."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .driver import SAVE_EVERY_S, StageCounters
from .errors import ArgumentError, BudgetExceeded


logger = logging.getLogger("magpie_hf")
LOG_EVERY_S = 30.0
PROJECT_FROM = 0.01


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a run; None is no limit. All count earlier sessions of the run in.

    `max_tokens_total`: prompt and completion tokens of all stages. `max_hours`: hours with an engine open.
    `max_cost`: in the currency of `price_per_gpu_hour`; `num_gpus` are paid for each of those hours.
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
                raise ArgumentError(f"budget.{name} = {value} cannot be used.", hint="Give a number above 0.")
        if self.max_cost is not None and self.price_per_gpu_hour is None:
            raise ArgumentError(
                "budget.max_cost needs a price.", hint="Give budget.price_per_gpu_hour, and budget.num_gpus if not 1."
            )

    def cost(self, seconds: float) -> float | None:
        """Return what the engine-seconds cost, or None without a price."""
        return None if self.price_per_gpu_hour is None else seconds / 3600 * self.price_per_gpu_hour * self.num_gpus

    def exceeded(self, tokens: int, seconds: float) -> str | None:
        """Return which limit is reached, in words, or None."""
        if self.max_tokens_total is not None and tokens >= self.max_tokens_total:
            return f"max_tokens_total = {self.max_tokens_total:,} is reached ({tokens:,} tokens)"
        if self.max_hours is not None and seconds >= self.max_hours * 3600:
            return f"max_hours = {self.max_hours:g} is reached ({seconds / 3600:.2f} h)"
        cost = self.cost(seconds)
        if self.max_cost is not None and cost is not None and cost >= self.max_cost:
            return f"max_cost = {self.max_cost:g} is reached ({cost:.2f})"
        return None


class Listener:
    """Shows progress and stops at a budget. `spent` gives (tokens, engine-seconds) of the run's other stages.

    `show`: True draws a bar, False writes a log line now and then, None decides by whether stderr is a terminal.
    `on_save`: called every few seconds so that run.json stays fresh.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        show: bool | None = None,
        spent: Callable[[str], tuple[int, float]] = lambda _: (0, 0.0),
    ) -> None:
        self.budget = budget or Budget()
        self.show = sys.stderr.isatty() if show is None else show
        self.on_save: Callable[[StageCounters], None] | None = None
        self.cached: dict[str, int] = {}
        self._spent = spent
        self._others = (0, 0.0)
        self._stage = ""
        self._bar: Any = None
        self._last_log = self._last_save = 0.0
        self._projected = False

    def note(self, text: str) -> None:
        """Say something to the person, around the bar."""
        logger.info(text)

    def stage_cached(self, name: str, rows: int) -> None:
        """A finished stage was mapped back."""
        self.cached[name] = rows
        logger.info("%s: %d rows from the cache", name, rows)

    def stage_begins(self, name: str, counters: StageCounters) -> None:
        """A stage starts to generate."""
        self._stage, self._projected = name, False
        self._others = self._spent(name)
        self._last_log = self._last_save = time.monotonic()
        if counters.done:
            logger.info("%s: %d rows are finished already, going on", name, counters.done)
        if self.show:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=counters.total, initial=shown_rows(counters), desc=name, unit="row", leave=False)

    def row_finished(self, counters: StageCounters) -> None:
        """Draw, log and save, each at its own pace."""
        now = time.monotonic()
        if self._bar is not None:
            step = shown_rows(counters) - self._bar.n
            if step > 0 and self._bar.update(step):
                self._bar.set_postfix_str(rates(counters), refresh=False)
        elif now - self._last_log >= LOG_EVERY_S:
            self._last_log = now
            logger.info("%s: %s of %s rows, %s", self._stage, shown_rows(counters), counters.total, rates(counters))
        if now - self._last_save >= SAVE_EVERY_S and self.on_save is not None:
            self._last_save = now
            self.on_save(counters)
        if not self._projected:
            self._project(counters)

    def _project(self, counters: StageCounters) -> None:
        """After the first per cent of this stage, say what the whole will take and what the budget allows."""
        if not counters.total or shown_rows(counters) < max(20, counters.total * PROJECT_FROM):
            return
        self._projected = True
        if counters.session_rows == 0 or counters.total < 2000:
            return
        factor = counters.total / shown_rows(counters)
        tokens = int((counters.prompt_tokens + counters.completion_tokens) * factor)
        seconds = counters.seconds * factor
        cost = self.budget.cost(seconds)
        price = "" if cost is None else f", {cost:.2f} in cost"
        logger.info("%s: projected %s tokens, %.1f h%s", self._stage, f"{tokens:,}", seconds / 3600, price)
        over = self.budget.exceeded(tokens + self._others[0], seconds + self._others[1])
        if over:
            logger.warning("%s: at this rate the budget ends the run before the stage is done: %s", self._stage, over)

    def _exceeded(self, counters: StageCounters) -> str | None:
        tokens = counters.prompt_tokens + counters.completion_tokens + self._others[0]
        return self.budget.exceeded(tokens, counters.seconds + self._others[1])

    def should_stop(self, counters: StageCounters) -> bool:
        """Whether a budget is used up."""
        return self._exceeded(counters) is not None

    def stopped(self, counters: StageCounters) -> None:
        """Raise BudgetExceeded: all in flight is done."""
        raise BudgetExceeded(
            f'The run stopped in stage "{self._stage}": {self._exceeded(counters) or "a budget is reached"}.',
            hint="Everything finished is kept. Raise the budget and run the same command again to go on.",
            stage=self._stage,
        )

    @contextlib.contextmanager
    def steps(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show work that is counted in steps; gives the function to call with the number done."""
        counters = StageCounters(total=total)
        started = time.monotonic()
        self.on_save = None
        self.stage_begins(name, counters)

        def done(number: int) -> None:
            counters.session_rows += number - counters.done
            counters.done = number
            counters.session_seconds = time.monotonic() - started
            self.row_finished(counters)

        try:
            yield done
        finally:
            self.stage_ends(name, counters)

    def stage_ends(self, name: str, counters: StageCounters) -> None:
        """A stage is done, or was interrupted."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if counters.session_rows:
            logger.info("%s: %d rows in this session, %s", name, counters.session_rows, rates(counters))
        if rejected := counters.rejected():
            logger.info("%s: not accepted so far: %s", name, rejected)


def shown_rows(counters: StageCounters) -> int:
    """Return the rows that count towards the total: accepted ones where a stage rejects some."""
    return counters.done if counters.accepted is None else counters.accepted


def rates(counters: StageCounters) -> str:
    """Return "12 rows/s, 1,234 tokens/s, 3 rejected" of this session."""
    seconds = max(counters.session_seconds, 1e-9)
    rejected = sum(number for code, number in counters.by_code.items() if code != "ok")
    text = f"{counters.session_rows / seconds:.1f} rows/s, {counters.session_tokens / seconds:,.0f} tokens/s"
    text += f", {rejected} rejected" if rejected else ""
    return text + (f", {counters.pending} pending" if counters.pending else "")
