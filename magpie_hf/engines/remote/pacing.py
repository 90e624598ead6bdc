"""The limit of samples in flight for each endpoint, adapted to overload."""

from __future__ import annotations

from dataclasses import dataclass


# After an overload, the limit is this share of the samples in flight. TCP uses half; here more is safe, because a queue empties fast.
CUT = 0.7
# Increase of the limit, in samples, per round of replies after the first overload.
GROWTH = 2.0
# The limit counts as reached from this share on, because replies that arrive together leave capacity unused for a moment.
USED_SHARE = 0.8
# Default maximum of samples in flight: vLLM's default `max_num_seqs` on GPUs with 80 GB.
CONCURRENCY = 1024
# Maximum of samples in flight before an endpoint's first reply, unless the server reports its maximum.
START_LIMIT = 128
# A reply that took longer than this share of `timeout_s` does not increase the limit, to prevent timeouts.
SLOW_SHARE = 1 / 3


@dataclass(slots=True)
class AdaptiveLimit:
    """The limit of samples in flight at one endpoint; a request for `n` samples counts `n`.

    While it is reached, the limit doubles with every round of replies until the first overload, and then grows by
    `GROWTH` per round. Overloads and timeouts reduce it, but only once for all requests sent before the reduction.
    """

    limit: float
    ceiling: float
    is_starting: bool = True
    cut_at: float = float("-inf")

    def succeeded(self, in_flight: int, samples: int = 1) -> None:
        """Record a successful reply with `samples` samples; `in_flight`: samples in flight, including those of the reply."""
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
    """Whether `samples` more samples are within the limit; a single request always is, with any number of samples."""
    return in_flight == 0 or in_flight + samples <= limit
