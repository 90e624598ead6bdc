"""The scheduler of the local engine: pulls requests, lets rows join and leave, and limits the slots of the cache.

A row that becomes much longer than the others uses slots of all rows. The rows with the fewest new tokens are then put back
into the queue, and start again when the long row is finished.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Iterable, Iterator

import torch

from ...errors import EngineError
from ..base import EngineStats, Failure, Generation, Request
from ..groups import RequestSource
from .batching import RowBatch
from .slots import ROWS, SPAN, round_up


# New rows join if they are at least 1/16 of the running rows: a forward pass for fewer rows is not efficient.
_JOIN_PART = 16
# Number of batches that are pulled at once if rows cannot join, to group prompts of similar length.
_SORTED_BATCHES = 4
# Expected new tokens of a row before the first row is finished; longer rows get more slots, or are put back into the queue.
_EXPECTED_TOKENS = 64
# Slots are planned for this quantile of the lengths of the last finished rows, if enough rows are finished.
_QUANTILE = 0.98
_NUM_LENGTHS = 256
_MIN_LENGTHS = 32


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
        self.source = RequestSource(requests)
        self.batch_size = batch_size
        self.cache_tokens = cache_tokens
        self.stats = stats
        self.waiting: list[Request] = []
        self._lengths: deque[int] = deque(maxlen=_NUM_LENGTHS)
        self._typical_length = 0

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
                if self.source.paused:  # the caller returned None although no request is in flight
                    time.sleep(0.001)
                    self.source.resume()
                continue
            finished = self._advance()
            for generation in finished:
                self._count(generation)
                yield generation
            if finished:
                self.source.resume()

    def _rows_that_fit(self, span: int) -> int:
        """Return how many rows with this number of slots fit the cache."""
        rows = self.cache_tokens // max(span, 1)
        return max(rows - rows % ROWS if rows >= ROWS else rows, 1)

    def _free_rows(self) -> int:
        """Return how many more rows may run."""
        rows, span = self.batch.num_rows, self.batch.runner.span
        longest = max((len(r.prompt.token_ids) for r in self.waiting), default=0)
        expected = max(longest + (1 if self._typical_length else _EXPECTED_TOKENS), self._typical_length)
        fitting = self._rows_that_fit(max(span, expected))
        if span > round_up(expected, SPAN):  # an unusually long row is running: use the same margin as `_requeue_rows`
            fitting = max(self._rows_that_fit(span) * 3 // 4, 1)
        return max(min(self.batch_size, fitting) - rows, 0 if rows else 1)

    def _pull(self) -> list[Generation]:
        """Fill the waiting list up to the free rows; returns the requests that cannot run."""
        rows, can_join = self.batch.num_rows, self.batch.runner.can_join
        if rows and not can_join:
            return []
        wanted = self._free_rows() if can_join else _SORTED_BATCHES * self.batch_size
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
            return Failure("too_long", False, f"the prompt has {length} tokens, the context has {limit}")
        return None

    def _advance(self) -> list[Generation]:
        """Let waiting rows join, or generate one token in every row."""
        rows = self.batch.num_rows
        try:
            if self.waiting and self._can_admit():
                return self._admit()
            self._requeue_rows()
            return self.batch.step()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        self._restart_with_fewer_rows(rows)
        return []

    def _can_admit(self) -> bool:
        rows = self.batch.num_rows
        if rows == 0:
            return True
        return self.batch.runner.can_join and min(len(self.waiting), self._free_rows()) >= max(1, rows // _JOIN_PART)

    def _admit(self) -> list[Generation]:
        if not self.batch.runner.can_join:
            self.waiting.sort(key=lambda r: len(r.prompt.token_ids), reverse=True)
        count = self._free_rows()
        joining = self.waiting[:count]
        finished = self.batch.admit(joining)
        self.waiting = self.waiting[count:]
        return finished

    def _requeue_rows(self) -> None:
        """Put the rows with the fewest new tokens back into the queue if the cache would exceed its limit."""
        rows, fitting = self.batch.num_rows, self._rows_that_fit(self.batch.runner.span)
        if rows > fitting:
            # More rows than necessary (a quarter), so that this is not repeated a few tokens later.
            self.waiting = self.batch.drop(rows - max(fitting * 3 // 4, 1)) + self.waiting

    def _restart_with_fewer_rows(self, rows: int) -> None:
        """Restart with half the rows after running out of memory; the seeds give the same texts again."""
        tried = max(rows, min(len(self.waiting), self.batch_size))
        if tried <= 1:
            raise EngineError(
                "Out of memory with a single row running.",
                hint="Use a smaller dtype or quantization, or a device with more memory.",
            )
        self.waiting = self.batch.clear() + self.waiting
        self.batch_size = max(tried // 2, 1)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _count(self, generation: Generation) -> None:
        self.stats.requests += 1
        self._record_length((generation.prompt_tokens or 0) + (generation.completion_tokens or 0))

    def _record_length(self, length: int) -> None:
        """Record the length of a finished row."""
        if length:
            self._lengths.append(length)
        if len(self._lengths) >= _MIN_LENGTHS:
            self._typical_length = sorted(self._lengths)[int(_QUANTILE * (len(self._lengths) - 1))] + 1


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
