"""Pulling requests from the caller, and grouping samples that can share a request to a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ..sampling import SamplingParams
from .base import Request


def fitted(request: Request, max_context: int | None) -> SamplingParams:
    """Return the request's sampling with `max_tokens` limited to what fits the context after the prompt.

    As in the local engines, a text that reaches the end of the context ends with "length". A prompt that fills the
    context is sent unchanged, and rejected as too long.
    """
    sampling = request.sampling
    free = sampling.max_tokens if max_context is None else max_context - len(request.prompt.token_ids)
    return replace(sampling, max_tokens=free) if 1 <= free < sampling.max_tokens else sampling


class RequestSource:
    """The caller's requests, pulled a few at a time.

    A `None` pauses pulling until `resume()` is called: after a generation is yielded, more requests may be available.
    """

    def __init__(self, requests: Iterable[Request | None]) -> None:
        self._requests = iter(requests)
        self.exhausted = False
        self.paused = False

    def pull(self, count: int) -> list[Request]:
        """Return up to `count` requests."""
        pulled: list[Request] = []
        while len(pulled) < count and not (self.exhausted or self.paused):
            try:
                request = next(self._requests)
            except StopIteration:
                self.exhausted = True
                break
            if request is None:
                self.paused = True
            else:
                pulled.append(request)
        return pulled

    def resume(self) -> None:
        """Continue pulling, because a generation was yielded."""
        self.paused = False


class Groups:
    """Splits a stream of requests into groups for one HTTP request each: same prompt, consecutive seeds.

    `max_n()` is the maximum size of the next group, which may change. Grouping does not change seeds.
    """

    def __init__(self, requests: Iterable[Request | None], max_n: Callable[[], int]) -> None:
        self._source = iter(requests)
        self._max_n = max_n
        self._put_back: list[Request | None] = []
        self.is_done = False

    def next_group(self) -> list[Request] | None:
        """Return the next group, or None if no request is ready, or all were returned (`is_done`)."""
        first = self._pull()
        if first is None:
            return None
        group, size = [first], self._max_n()
        while len(group) < size:
            request = self._pull()
            if request is None or not continues(group[-1], request):
                self._put_back.append(request)
                break
            group.append(request)
        return group

    def _pull(self) -> Request | None:
        if self._put_back:
            return self._put_back.pop()
        try:
            return next(self._source)
        except StopIteration:
            self.is_done = True
            return None


def halves(group: Sequence[Request]) -> list[list[Request]]:
    """Return the two halves of a group that a server rejected."""
    middle = (len(group) + 1) // 2
    return [list(group[:middle]), list(group[middle:])]


def continues(last: Request, request: Request) -> bool:
    """Whether a request is the next sample of the same prompt with the same sampling (never if greedy)."""
    a, b = last.sampling, request.sampling
    if last.prompt is not request.prompt or a.is_greedy:
        return False
    if a.seed is None or b.seed is None:
        return a.seed is b.seed and a == b
    return b.seed == a.seed + 1 and equal_except_seed(a, b)


def equal_except_seed(a: SamplingParams, b: SamplingParams) -> bool:
    """Whether two samplings are equal except for the seed."""
    return a.with_seed(None) == b.with_seed(None)
