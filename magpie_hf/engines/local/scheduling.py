"""Who runs next: pulls requests, lets rows join and leave, and keeps to the slots that the cache may have.

A row that grows far beyond the others takes slots of all rows: those that have written least are put back meanwhile, and
join again when it is done.

Imports torch, so it is itself imported late.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Iterable, Iterator

import torch

from ...errors import EngineError
from ..base import EngineStats, Failure, Generation, Request
from ..groups import Pulled
from .batching import RowBatch
from .slots import ROWS, SPAN, round_up


# Rows join when they are at least one in so many of the running ones: a smaller forward wastes more than it fills.
_JOIN_PART = 16
# Where rows cannot join, so many batches are pulled at once, to put prompts of similar length together.
_SORTED_BATCHES = 4
# New tokens a row is expected to write while no row is finished; rows that write more are found room, or put back.
_EXPECTED_TOKENS = 64
# The length that rows are given room for: one that 98 in 100 of the last finished rows did not pass.
_RECENT = 256
_FEWEST = 32
_TYPICAL = 0.98


class Scheduler:
    """Runs one `generate` call over a batch of rows."""

    def __init__(
        self,
        batch: RowBatch,
        requests: Iterable[Request | None],
        *,
        batch_size: int,
        cache_tokens: int,
        stats: EngineStats,
    ) -> None:
        self.batch = batch
        self.source = Pulled(requests)
        self.batch_size = batch_size
        self.cache_tokens = cache_tokens
        self.stats = stats
        self.waiting: list[Request] = []
        self._lengths: deque[int] = deque(maxlen=_RECENT)
        self._typical = 0

    def run(self) -> Iterator[Generation]:
        """Yield generations until the requests are exhausted and all rows have finished."""
        while True:
            for refused in self._pull():
                self._count(refused)
                yield refused
                self.source.resume()
            if not self.waiting and not self.batch.num_rows:
                if self.source.exhausted:
                    return
                if self.source.paused:  # against the contract: nothing is in flight that could lead to more
                    time.sleep(0.001)
                    self.source.resume()
                continue
            finished = self._advance()
            for generation in finished:
                self._count(generation)
                yield generation
            if finished:
                self.source.resume()

    def _fitting(self, span: int) -> int:
        """Return how many rows of so many slots the cache may have."""
        rows = self.cache_tokens // max(span, 1)
        return max(rows - rows % ROWS if rows >= ROWS else rows, 1)

    def _room(self) -> int:
        """Return how many more rows may run."""
        rows, span = self.batch.num_rows, self.batch.runner.span
        longest = max((len(r.prompt.token_ids) for r in self.waiting), default=0)
        expected = max(longest + (1 if self._typical else _EXPECTED_TOKENS), self._typical)
        fitting = self._fitting(max(span, expected))
        if span > round_up(expected, SPAN):  # a row that is still growing: as `_shed` leaves it
            fitting = max(self._fitting(span) * 3 // 4, 1)
        return max(min(self.batch_size, fitting) - rows, 0 if rows else 1)

    def _pull(self) -> list[Generation]:
        """Fill the waiting list as far as there is room; returns the requests that cannot run."""
        rows, can_join = self.batch.num_rows, self.batch.runner.can_join
        if rows and not can_join:
            return []
        wanted = self._room() if can_join else _SORTED_BATCHES * self.batch_size
        if rows and wanted < max(1, self.batch_size // _JOIN_PART):
            return []
        refused = []
        for request in self.source.pull(wanted - len(self.waiting)):
            failure = self._refusal(request)
            if failure is None:
                self.waiting.append(request)
            else:
                refused.append(Generation(request.key, seed=request.sampling.seed, failure=failure))
        return refused

    def _refusal(self, request: Request) -> Failure | None:
        limit, length = self.batch.max_context, len(request.prompt.token_ids)
        if length == 0:
            return Failure("validation", False, "the prompt has no tokens")
        if limit is not None and length >= limit:
            return Failure("too_long", False, f"the prompt has {length} tokens, the context {limit}")
        return None

    def _advance(self) -> list[Generation]:
        """Let waiting rows join, or write one token in every row."""
        rows = self.batch.num_rows
        try:
            if self.waiting and self._may_join():
                return self._admit()
            self._shed()
            return self.batch.step()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        self._retreat(rows)
        return []

    def _may_join(self) -> bool:
        rows = self.batch.num_rows
        if rows == 0:
            return True
        return self.batch.runner.can_join and min(len(self.waiting), self._room()) >= max(1, rows // _JOIN_PART)

    def _admit(self) -> list[Generation]:
        if not self.batch.runner.can_join:
            self.waiting.sort(key=lambda r: len(r.prompt.token_ids), reverse=True)
        count = self._room()
        joining = self.waiting[:count]
        finished = self.batch.admit(joining)
        self.waiting = self.waiting[count:]
        return finished

    def _shed(self) -> None:
        """Put rows that have written least back when the cache would outgrow its bound."""
        rows, fitting = self.batch.num_rows, self._fitting(self.batch.runner.span)
        if rows > fitting:
            # A quarter more than needed, or the next lines would do it again.
            self.waiting = self.batch.drop(rows - max(fitting * 3 // 4, 1)) + self.waiting

    def _retreat(self, rows: int) -> None:
        """Begin again with half the rows after memory ended; seeds make the texts the same."""
        tried = max(rows, min(len(self.waiting), self.batch_size))
        if tried <= 1:
            raise EngineError(
                "Memory ended with a single row running.",
                hint="Use a smaller dtype or quantization, or a device with more memory.",
            )
        self.waiting = self.batch.clear() + self.waiting
        self.batch_size = max(tried // 2, 1)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _count(self, generation: Generation) -> None:
        self.stats.requests += 1
        self._learn((generation.prompt_tokens or 0) + (generation.completion_tokens or 0))

    def _learn(self, length: int) -> None:
        """Remember how long finished rows are."""
        if length:
            self._lengths.append(length)
        if len(self._lengths) >= _FEWEST:
            self._typical = sorted(self._lengths)[int(_TYPICAL * (len(self._lengths) - 1))] + 1


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
