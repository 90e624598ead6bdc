"""Progress bars and log lines of a run, and the budgets that stop it."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import BudgetExceeded
from .budget import Budget, InFlight, Limit, fitting, mean_tokens, row_tokens
from .driver import SAVE_EVERY_S, StageCounters


logger = logging.getLogger("magpie_hf")
LOG_EVERY_S = 30.0
PROJECT_FROM = 0.01
RATE_FROM_ROWS = 3
"""Rows after which the counts are saved for the first time, so that `status` can show a rate."""


class Listener:
    """Shows progress and stops at a budget. `spent` gives (tokens, engine-seconds) of the run's other stages.

    `show`: True shows a progress bar, False writes log lines regularly, None shows a bar unless
    `datasets.disable_progress_bars()` was called, like `datasets.map`.
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
        self.show = show
        self.on_save: Callable[[StageCounters], None] | None = None
        self.cached: dict[str, int] = {}
        self._spent = spent
        self._other_stages = (0, 0.0)
        self._stage = ""
        self._bar: Any = None
        self._last_log = self._last_save = 0.0
        self._projected = False

    def note(self, text: str) -> None:
        """Log a message without disturbing the progress bar."""
        logger.info(text)

    def stage_cached(self, name: str, rows: int) -> None:
        """Called when a finished stage was loaded from the cache."""
        self.cached[name] = rows
        logger.info("%s: %d rows from the cache", name, rows)

    def stage_begins(self, name: str, counters: StageCounters, *, key: str = "") -> None:
        """Called when a stage starts to generate; `key`: its name in run.json."""
        self._stage, self._projected = name, False
        self._other_stages = self._spent(key)
        self._last_log = self._last_save = time.monotonic()
        if counters.done:
            logger.info("%s: resuming with %d finished rows", name, counters.done)
        bar = self._bar_class()
        if bar is not None:
            self._bar = bar(total=counters.total, initial=shown_rows(counters), desc=name, unit="row", leave=False)

    def _bar_class(self) -> Any:
        """Return the class of progress bars, or None if they are disabled."""
        if self.show is False:
            return None
        if self.show is None:
            from datasets.utils import are_progress_bars_disabled

            if are_progress_bars_disabled():
                return None
        from tqdm.auto import tqdm

        return tqdm

    def row_finished(self, counters: StageCounters) -> None:
        """Update the bar, write log lines and save the counts, each at its own interval."""
        now = time.monotonic()
        if self._bar is not None:
            step = shown_rows(counters) - self._bar.n
            if step > 0 and self._bar.update(step):
                self._bar.set_postfix_str(rates(counters, rows=False), refresh=False)
        elif now - self._last_log >= LOG_EVERY_S:
            self._last_log = now
            logger.info("%s: %s of %s rows, %s", self._stage, shown_rows(counters), counters.total, rates(counters))
        is_due = now - self._last_save >= SAVE_EVERY_S or counters.session_rows == RATE_FROM_ROWS
        if is_due and self.on_save is not None:
            self._last_save = now
            self.on_save(counters)
        if not self._projected:
            self._project(counters)

    def _project(self, counters: StageCounters) -> None:
        """Log the projected totals once, after 1 % of the rows, and whether they exceed the budget."""
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
        over = self.budget.exceeded(tokens + self._other_stages[0], seconds + self._other_stages[1])
        if over:
            logger.warning(
                "%s: at this rate the run stops before the stage is finished: the limit is %s, and %s are projected",
                *(self._stage, over.shown(over.value), over.shown(over.spent)),
            )

    @property
    def counts_tokens(self) -> bool:
        """Whether there is a limit on tokens."""
        return self.budget.max_tokens_total is not None

    def _totals(self, counters: StageCounters) -> tuple[int, float]:
        """Return the tokens and engine-seconds of all stages."""
        tokens = counters.prompt_tokens + counters.completion_tokens
        return tokens + self._other_stages[0], counters.seconds + self._other_stages[1]

    def _exceeded(self, counters: StageCounters, in_flight: InFlight, bound: int) -> Limit | None:
        if not self.budget.is_limited:
            return None
        tokens, seconds = self._totals(counters)
        tokens += math.ceil(in_flight.tokens(counters))
        return self.budget.exceeded(tokens, seconds, row_tokens(counters, bound), in_flight.seconds())

    def fits_budget(self, counters: StageCounters, in_flight: InFlight, bound: int) -> bool:
        """Return whether the budget allows a row of at most `bound` tokens in addition to those in flight."""
        return self._exceeded(counters, in_flight, bound) is None

    def rows_that_fit(self, counters: StageCounters, at_most: int) -> int:
        """Return how many rows of unknown size the budget allows at once; 1 until a row is finished."""
        tokens, seconds = self._totals(counters)
        if self.budget.exceeded(tokens, seconds, mean_tokens(counters)):
            return 0
        if self.budget.max_tokens_total is None:
            return at_most
        return fitting(self.budget.max_tokens_total - tokens, mean_tokens(counters), at_most)

    def stopped(self, counters: StageCounters, in_flight: InFlight, bound: int) -> None:
        """Raise BudgetExceeded; called when nothing is in flight."""
        limit = self._exceeded(counters, in_flight, bound)
        if limit is None:
            return
        raise BudgetExceeded(
            f'The run stopped in stage "{self._stage}": {limit.words()}.',
            hint="Finished rows are kept. Raise the limit (or lower max_tokens, if a single row may exceed it) and run "
            "the same command again to resume.",
            stage=self._stage,
            limit=limit.name,
            value=limit.value,
            spent=limit.spent,
        )

    @contextlib.contextmanager
    def steps(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of a number of steps; yields the function to call with the number done."""
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
        """Close the progress bar of a stage that is finished or interrupted."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if counters.session_rows:
            logger.info("%s: %d rows in this session, %s", name, counters.session_rows, rates(counters))
        if rejected := counters.rejected():
            logger.info("%s: not accepted so far: %s", name, rejected)


def shown_rows(counters: StageCounters) -> int:
    """Return the rows that count towards the total: the accepted ones if a stage rejects some."""
    return counters.done if counters.accepted is None else counters.accepted


def rates(counters: StageCounters, *, rows: bool = True) -> str:
    """Return "12 rows/s, 1,234 tokens/s, 3 rejected" for this session. `rows`: False for progress bars, which show rows themselves."""
    seconds = counters.session_seconds
    rejected = sum(number for code, number in counters.by_code.items() if code != "ok")
    parts = [f"{counters.session_rows / seconds:.1f} rows/s"] if rows and seconds else []
    parts += [f"{counters.session_tokens / seconds:,.0f} tokens/s"] if seconds and counters.session_tokens else []
    parts += [f"{rejected:,} rejected"] if rejected else []
    return ", ".join(parts + ([f"{counters.pending:,} pending"] if counters.pending else []))


@contextlib.contextmanager
def log_lines_shown() -> Iterator[None]:
    """Show log lines during a run if logging is not set up, as in most scripts and notebooks; then restore everything.

    Runs in several threads share one handler; the last one removes it.
    """
    global _num_users
    with _show_lock:
        if not _num_users and (logger.handlers or logging.getLogger().handlers):
            is_ours = False
        else:
            is_ours = True
            _num_users += 1
            if _num_users == 1:
                _attach()
    try:
        yield
    finally:
        if is_ours:
            with _show_lock:
                _num_users -= 1
                if not _num_users:
                    _detach()


_show_lock = threading.Lock()
_num_users = 0
_handler = logging.StreamHandler()
_previous_settings = (logging.NOTSET, True)


def _attach() -> None:
    global _handler, _previous_settings
    _handler, _previous_settings = logging.StreamHandler(), (logger.level, logger.propagate)
    _handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(_handler)
    logger.propagate = False  # a library may add a handler to the root logger, and lines would appear twice
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def _detach() -> None:
    logger.removeHandler(_handler)
    if logger.level == logging.INFO:
        logger.setLevel(_previous_settings[0])
    logger.propagate = _previous_settings[1]


def show_summary(text: str) -> None:
    """Log the summary of a run; write it to stderr if only the level of the root logger hides it.

    Libraries such as absl add a handler at level WARNING to the root logger, without the user's choice. A level set for
    `magpie_hf`, or `logging.disable`, is respected.
    """
    if logger.isEnabledFor(logging.INFO) or logger.level != logging.NOTSET or logger.manager.disable >= logging.INFO:
        logger.info(text)
    else:
        print(text, file=sys.stderr)  # noqa: T201 (like a progress bar)
