"""Which samples can share a request to a server."""

from __future__ import annotations

from collections.abc import Iterable

from ..sampling import SamplingParams
from .base import Request


class Groups:
    """Cuts a stream of requests into groups that one HTTP request can ask for: same prompt, seeds that count up."""

    def __init__(self, requests: Iterable[Request | None], max_n: int) -> None:
        self._source = iter(requests)
        self._max_n = max_n
        self._held: list[Request | None] = []
        self.is_done = False

    def next_group(self) -> list[Request] | None:
        """Return the next group, or None: nothing is ready, or nothing is left (then `is_done`)."""
        first = self._pull()
        if first is None:
            return None
        group = [first]
        while len(group) < self._max_n:
            request = self._pull()
            if request is None or not continues(group[-1], request):
                self._held.append(request)
                break
            group.append(request)
        return group

    def _pull(self) -> Request | None:
        if self._held:
            return self._held.pop()
        try:
            return next(self._source)
        except StopIteration:
            self.is_done = True
            return None


def continues(last: Request, request: Request) -> bool:
    """Whether a request is the next sample of the same prompt under the same sampling (greedy ones never are)."""
    a, b = last.sampling, request.sampling
    if last.prompt is not request.prompt or a.is_greedy:
        return False
    if a.seed is None or b.seed is None:
        return a.seed is b.seed and a == b
    return b.seed == a.seed + 1 and same_but_seed(a, b)


def same_but_seed(a: SamplingParams, b: SamplingParams) -> bool:
    """Whether two samplings differ in nothing but the seed."""
    return a.with_seed(None) == b.with_seed(None)
