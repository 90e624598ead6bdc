"""How many samples may be in flight: a limit for each endpoint, adapted to overload."""

from __future__ import annotations

from dataclasses import dataclass


# After an overload the limit is this share of what was in flight; more than TCP's half, as the queue empties at once.
CUT = 0.7
# Samples that the limit grows by in the time of one reply, after the first overload.
GROWTH = 2.0
# The limit counts as used from this share on: replies that arrive together leave a few slots empty for a moment.
USED_SHARE = 0.8
# Default maximum of samples in flight: vLLM's default `max_num_seqs` on GPUs with 80 GB.
CONCURRENCY = 1024
# Samples that an endpoint gets before its first reply, unless it says how many it accepts.
START_LIMIT = 128
# A reply that took a larger share of `timeout_s` does not raise the limit: a longer queue would end in timeouts.
SLOW_SHARE = 1 / 3


@dataclass(slots=True)
class AdaptiveLimit:
    """How many samples one endpoint may have in flight; a request for `n` of them counts `n`.

    Doubles with every round of replies until the first overload, then grows by `GROWTH` a round; both only while it is
    reached. Only overloads and timeouts shrink it, once for all the requests sent before the cut.
    """

    limit: float
    ceiling: float
    is_starting: bool = True
    cut_at: float = float("-inf")

    def succeeded(self, in_flight: int, samples: int = 1) -> None:
        """Record a reply with so many samples that arrived with `in_flight` of them (including its own) in flight."""
        if in_flight >= USED_SHARE * int(self.limit):
            step = 1.0 if self.is_starting else GROWTH / self.limit
            self.limit = min(self.ceiling, self.limit + step * samples)

    def overloaded(self, in_flight: int, sent_at: float, now: float) -> None:
        """Record an overload (or timeout) of a request sent at `sent_at`; both times in seconds by the same clock."""
        if sent_at <= self.cut_at:
            return
        self.limit = max(1.0, CUT * min(self.limit, in_flight))
        self.is_starting = False
        self.cut_at = now


def has_capacity(in_flight: int, samples: int, limit: int) -> bool:
    """Whether so many more samples fit the limit; a single request always does, however many samples it has."""
    return in_flight == 0 or in_flight + samples <= limit
