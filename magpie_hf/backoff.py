"""The retry policy for all servers: which statuses are transient, how long to wait, and when to stop trying."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple


OVERLOADED = frozenset({429, 503})
"""The server is available, but requires a lower rate of requests."""
NOT_READY = OVERLOADED | {502, 504}
"""The request has not been processed: the server is overloaded, or is still starting behind a proxy."""
TRANSIENT = NOT_READY | {408, 425, 500, 520, 521, 522, 523, 524}
"""The same request may succeed later. 409 and 412 are not among them: on the Hub they are conflicts."""


class Backoff(NamedTuple):
    """Waits between retries: `first_s`, then twice as long each time up to `longest_s`, with jitter."""

    first_s: float = 0.5
    longest_s: float = 30.0

    def wait_s(self, attempt: int, draw: Callable[[], float] = random.random) -> float:
        """Return the wait before retry number `attempt` (from 0): half to all of the doubled wait."""
        full = min(self.longest_s, self.first_s * 2.0 ** min(attempt, 30))
        return full * (0.5 + 0.5 * draw())

    def limited(self, doublings: int) -> Backoff:
        """Return the same backoff with at most `doublings` doublings."""
        return self._replace(longest_s=min(self.longest_s, self.first_s * 2.0**doublings))


class Attempts:
    """Counts the attempts of one request, and returns the wait before the next one."""

    def __init__(self, backoff: Backoff, *, limit: int | None = None, timeout_s: float | None = None) -> None:
        """Start the clock: at most `limit` attempts, the last of which starts within `timeout_s`."""
        self._backoff = backoff
        self._limit = limit
        self._end = None if timeout_s is None else time.monotonic() + timeout_s
        self.failed = 0

    def next_wait_s(self, retry_after: str | None = None) -> float | None:
        """Count a failed attempt and return the wait before the next one, None if there are no attempts left.

        `retry_after`: the server's `Retry-After` header, which can make the wait longer, up to `longest_s`.
        """
        self.failed += 1
        left_s = float("inf") if self._end is None else self._end - time.monotonic()
        if self.failed == self._limit or left_s <= 0:
            return None
        # Never shorter than our own wait: "Retry-After: 0" from a server that stays down would repeat without a pause.
        requested_s = min(retry_after_s(retry_after) or 0.0, self._backoff.longest_s)
        return min(left_s, max(requested_s, self._backoff.wait_s(self.failed - 1)))


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Read a `Retry-After` header, seconds or an HTTP date, as seconds from now (0 or more); None if invalid."""
    if not value:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if seconds < float("inf") else None
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
    except OverflowError:
        return None
