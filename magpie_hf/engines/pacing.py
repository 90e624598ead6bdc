"""How fast to send: a limit that adapts to overload, waits between retries, and what `Retry-After` says."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple


# An overloaded server keeps this share of what was in flight; gentler than TCP's half, as its queue empties at once.
CUT = 0.7
# Requests that the limit grows by in the time of one answer, once a cut has shown where the ceiling is.
GROWTH = 2.0
# The limit counts as used from this share on: answers that arrive together leave a few slots empty for a moment.
USED_SHARE = 0.8


class Backoff(NamedTuple):
    """Waits between retries: `first_s`, then twice as long each time up to `longest_s`, with jitter."""

    first_s: float = 0.5
    longest_s: float = 30.0

    def wait_s(self, attempt: int, draw: Callable[[], float] = random.random) -> float:
        """Return the wait before retry number `attempt` (from 0): half to all of the doubled wait."""
        full = min(self.longest_s, self.first_s * 2.0 ** min(attempt, 30))
        return full * (0.5 + 0.5 * draw())


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Read a `Retry-After` header, seconds or an HTTP date, as seconds from now (0 or more); None if unreadable."""
    if not value:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if seconds < float("inf") else None
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


@dataclass(slots=True)
class AdaptiveLimit:
    """How many requests one endpoint may have in flight.

    Doubles with every round of answers until the first overload, then grows by `GROWTH` a round; both only while it is
    really used. Only overload (429, 503) shrinks it, once for all the requests that were sent before the cut.
    """

    limit: float
    ceiling: float
    is_starting: bool = True
    cut_at: float = float("-inf")

    def succeeded(self, in_flight: int) -> None:
        """Note an answer that came while `in_flight` requests (itself counted) were out."""
        if in_flight >= USED_SHARE * int(self.limit):
            step = 1.0 if self.is_starting else GROWTH / self.limit
            self.limit = min(self.ceiling, self.limit + step)

    def overloaded(self, in_flight: int, sent_at: float, now: float) -> None:
        """Note a refusal for overload of a request sent at `sent_at`, both times by one clock, in seconds."""
        if sent_at <= self.cut_at:
            return
        self.limit = max(1.0, CUT * min(self.limit, in_flight))
        self.is_starting = False
        self.cut_at = now
