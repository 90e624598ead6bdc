"""How long to wait before a retry: growing waits with jitter, or what the server's `Retry-After` header says."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple


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
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
    except OverflowError:
        return None
