"""How fast to send: how many samples may be in flight, adapted to overload."""

from __future__ import annotations

from dataclasses import dataclass


# An overloaded server keeps this share of what was in flight; gentler than TCP's half, as its queue empties at once.
CUT = 0.7
# Samples that the limit grows by in the time of one answer, once a cut has shown where the ceiling is.
GROWTH = 2.0
# The limit counts as used from this share on: answers that arrive together leave a few slots empty for a moment.
USED_SHARE = 0.8
# Most samples in flight where nobody says otherwise: the width of vLLM on an 80 GB card.
CONCURRENCY = 1024
# How many an endpoint gets before its first answer, where it does not say how many it takes.
START_LIMIT = 128
# An answer that took a larger share of `timeout_s` raises no limit: a longer queue would end in timeouts.
SLOW_SHARE = 1 / 3


@dataclass(slots=True)
class AdaptiveLimit:
    """How many samples one endpoint may have in flight; a request for `n` of them counts `n`.

    Doubles with every round of answers until the first overload, then grows by `GROWTH` a round; both only while it is
    really used. Only overload (429, 503) and timeouts shrink it, once for all the requests sent before the cut.
    """

    limit: float
    ceiling: float
    is_starting: bool = True
    cut_at: float = float("-inf")

    def succeeded(self, in_flight: int, samples: int = 1) -> None:
        """Note an answer with so many samples that came while `in_flight` of them (itself counted) were out."""
        if in_flight >= USED_SHARE * int(self.limit):
            step = 1.0 if self.is_starting else GROWTH / self.limit
            self.limit = min(self.ceiling, self.limit + step * samples)

    def overloaded(self, in_flight: int, sent_at: float, now: float) -> None:
        """Note an overload (or timeout) met by a request sent at `sent_at`, both times by one clock, in seconds."""
        if sent_at <= self.cut_at:
            return
        self.limit = max(1.0, CUT * min(self.limit, in_flight))
        self.is_starting = False
        self.cut_at = now


def has_room(in_flight: int, samples: int, limit: int) -> bool:
    """Whether so many more samples keep to a limit; one request alone always may, however many it asks for."""
    return in_flight == 0 or in_flight + samples <= limit
