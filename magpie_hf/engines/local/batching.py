"""The running rows: the request of each, its new tokens, and whether it is finished.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import ArgumentError
from ..base import Failure, Generation, Request
from .decoding import SamplingTable, StopTexts, choose_tokens


if TYPE_CHECKING:
    from llguidance import LLMatcher

    from .schemas import Schemas


class Runner(Protocol):
    """Runs the model over rows: `slots.SlotRunner` or `padded.PaddedRunner`."""

    device: torch.device
    max_slots: int | None

    @property
    def can_join(self) -> bool:
        """Whether rows may be added to a running batch."""

    @property
    def num_rows(self) -> int:
        """Number of running rows."""

    @property
    def span(self) -> int:
        """Number of positions that the next step reads of every row."""

    def admit(self, prompts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Add a row for each prompt after the others; returns (len(prompts), vocab) logits."""

    def step(self, tokens: NDArray[np.int64]) -> torch.Tensor:
        """Append a token to each row; returns (num_rows, vocab) logits."""

    def keep(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Drop all other rows; returns the new order of the kept ones."""

    def reset(self, *, free: bool = False) -> None:
        """Drop all rows; `free`: also free the memory."""


class RowBatch:
    """The running rows of a runner, from request to generation."""

    def __init__(
        self,
        runner: Runner,
        decode: Callable[[Sequence[int]], str],
        *,
        end_ids: Sequence[int],
        max_context: int | None,
        schemas: Callable[[], Schemas],
    ) -> None:
        self.runner = runner
        self._schemas = schemas
        self.end_ids = tuple(end_ids)
        self.max_context = max_context
        self._decode = decode
        self._stop_texts = StopTexts(decode)
        self._clear()

    def _clear(self) -> None:
        self.requests: list[Request] = []
        self._matchers: list[LLMatcher | None] = []
        self._started: list[float] = []
        self._table = SamplingTable.of([])
        self._counts = np.zeros(0, np.int64)
        self._limits = np.zeros(0, np.int64)
        self._stop_ids = np.full((0, 1), -1, np.int64)
        self._has_stop_texts = np.zeros(0, bool)
        self._next = np.zeros(0, np.int64)
        self._new_tokens = np.zeros((0, 64), np.int32)
        self._seen: torch.Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Number of running rows."""
        return len(self.requests)

    @torch.inference_mode()
    def admit(self, requests: Sequence[Request]) -> list[Generation]:
        """Start rows for these requests; returns those that are finished after their first token."""
        began, first = time.perf_counter(), self.num_rows
        matchers = [self._matcher(request) for request in requests]
        logits = self.runner.admit([r.prompt.token_ids for r in requests])
        self._append(requests, matchers, began, logits)
        self._apply_schemas(logits, first)
        for row, request in enumerate(requests):
            if request.sampling.banned_first_token_ids:
                _ban(logits[row], request.sampling.banned_first_token_ids, has_schema=matchers[row] is not None)
        self._append_tokens(logits, first)
        return self._remove_finished(first)

    @torch.inference_mode()
    def step(self) -> list[Generation]:
        """Generate one token in every row; returns the finished rows."""
        logits = self.runner.step(self._next)
        self._apply_schemas(logits, 0)
        self._append_tokens(logits, 0)
        return self._remove_finished(0)

    @torch.inference_mode()
    def drop(self, count: int) -> list[Request]:
        """Remove the `count` rows with the fewest new tokens, and return their requests."""
        order = np.argsort(-self._counts, kind="stable")
        dropped = [self.requests[i] for i in sorted(order[self.num_rows - count :])]
        self._keep(np.sort(order[: self.num_rows - count]).astype(np.int64))
        return dropped

    def clear(self) -> list[Request]:
        """Drop all rows, in any state, and return their requests."""
        dropped = self.requests
        self._clear()
        self.runner.reset(free=True)
        return dropped

    def _append(
        self, requests: Sequence[Request], matchers: Sequence[LLMatcher | None], began: float, logits: torch.Tensor
    ) -> None:
        params = [r.sampling for r in requests]
        self._matchers += matchers
        self.requests = self.requests + list(requests)
        self._started += [began] * len(requests)
        self._table = self._table.extended(SamplingTable.of(params))
        zeros = np.zeros(len(requests), np.int64)
        self._counts = np.concatenate([self._counts, zeros])
        self._next = np.concatenate([self._next, zeros])
        self._limits = np.concatenate([self._limits, np.array([self._limit(r) for r in requests], np.int64)])
        self._has_stop_texts = np.concatenate([self._has_stop_texts, np.array([bool(p.stop) for p in params])])
        self._new_tokens = np.concatenate(
            [self._new_tokens, np.zeros((len(requests), self._new_tokens.shape[1]), np.int32)]
        )
        self._append_stop_ids([(*p.stop_token_ids, *self.end_ids) for p in params])
        self._append_seen(requests, logits)

    def _matcher(self, request: Request) -> LLMatcher | None:
        """Return the matcher of a row with a JSON schema, or None."""
        if request.sampling.json_schema is None:
            return None
        if not (self.end_ids or request.sampling.stop_token_ids):
            raise ArgumentError(
                "A JSON schema requires a token that ends the text, and neither the model nor the request has one.",
                hint="Set stop_token_ids.",
                key="stop_token_ids",
            )
        return self._schemas().matcher(request.sampling.json_schema)

    def _apply_schemas(self, logits: torch.Tensor, first: int) -> None:
        """Mask the tokens that the schemas of the rows from `first` on do not allow next; other rows stay unchanged."""
        constrained = [row for row in range(first, self.num_rows) if self._matchers[row] is not None]
        if constrained:
            rows = np.array(constrained, np.int64) - first
            self._schemas().restrict(
                logits, rows, [self._matchers[row] for row in constrained], self._stop_ids[constrained]
            )

    def _limit(self, request: Request) -> int:
        if self.max_context is None:
            return request.sampling.max_tokens
        return min(request.sampling.max_tokens, self.max_context - len(request.prompt.token_ids))

    def _append_stop_ids(self, stops: Sequence[tuple[int, ...]]) -> None:
        width = max(self._stop_ids.shape[1], max(map(len, stops)))
        table = np.full((len(self._stop_ids) + len(stops), width), -1, np.int64)
        table[: len(self._stop_ids), : self._stop_ids.shape[1]] = self._stop_ids
        for row, ids in enumerate(stops, start=len(self._stop_ids)):
            table[row, : len(ids)] = ids
        self._stop_ids = table

    def _append_seen(self, requests: Sequence[Request], logits: torch.Tensor) -> None:
        """Mark the tokens of prompts and texts, as soon as any row has a repetition penalty."""
        if self._seen is None and (self._table.penalty == 1).all():
            return
        old = 0 if self._seen is None else len(self._seen)
        new = torch.zeros(self.num_rows - old, logits.shape[1], dtype=torch.bool, device=logits.device)
        for row in range(old, self.num_rows):
            ids = [*self.requests[row].prompt.token_ids, *self._new_tokens[row, : self._counts[row]].tolist()]
            new[row - old, ids] = True
        self._seen = new if self._seen is None else torch.cat([self._seen, new])

    def _append_tokens(self, logits: torch.Tensor, first: int) -> None:
        """Sample and append the next token of the rows from `first` on."""
        rows = np.arange(first, self.num_rows, dtype=np.int64)
        table = self._table.take(rows) if first else self._table
        seen = None if self._seen is None else self._seen[first:]
        tokens = choose_tokens(logits, table, self._counts[first:], seen=seen)
        for row, matcher in enumerate(self._matchers[first:]):
            if matcher is not None and tokens[row] not in self._stop_ids[first + row]:
                matcher.consume_token(int(tokens[row]))
        if self._counts.max() >= self._new_tokens.shape[1]:
            self._new_tokens = np.concatenate([self._new_tokens, np.zeros_like(self._new_tokens)], axis=1)
        self._new_tokens[rows, self._counts[first:]] = tokens
        self._counts[first:] += 1
        self._next[first:] = tokens
        if seen is not None:
            seen[torch.arange(len(rows)), torch.from_numpy(tokens)] = True

    def _remove_finished(self, first: int) -> list[Generation]:
        """Remove the finished rows from `first` on and return their generations."""
        stopped = (self._next[first:, None] == self._stop_ids[first:]).any(axis=1)
        done = stopped | (self._counts[first:] >= self._limits[first:])
        for row in np.flatnonzero(self._has_stop_texts[first:] & ~done):
            done[row] = self._stop_texts.hit(
                self._tokens_of(first + int(row)), self.requests[first + int(row)].sampling.stop
            )
        if not done.any():
            return []
        finished = np.flatnonzero(done)
        generations = [self._generation(first + int(row), bool(stopped[row])) for row in finished]
        kept = np.ones(self.num_rows, bool)
        kept[first + finished] = False
        self._keep(np.flatnonzero(kept).astype(np.int64))
        return generations

    def _tokens_of(self, row: int) -> list[int]:
        ids: list[int] = self._new_tokens[row, : self._counts[row]].tolist()
        return ids

    def _keep(self, kept: NDArray[np.int64]) -> None:
        order = self.runner.keep(kept)
        self.requests = [self.requests[i] for i in order]
        self._matchers = [self._matchers[i] for i in order]
        self._started = [self._started[i] for i in order]
        self._table = self._table.take(order)
        for name in ("_counts", "_limits", "_stop_ids", "_has_stop_texts", "_next", "_new_tokens"):
            setattr(self, name, getattr(self, name)[order])
        if self._seen is not None:
            still = bool((self._table.penalty != 1).any())
            self._seen = self._seen[torch.from_numpy(order).to(self._seen.device)] if still else None

    def _generation(self, row: int, stopped: bool) -> Generation:
        request, ids, matcher = self.requests[row], self._tokens_of(row), self._matchers[row]
        if matcher is not None and (matcher.is_error() or (stopped and not matcher.is_accepting())):
            message = f"the JSON schema could not be completed ({matcher.stop_reason()})"
            failure = Failure("json_schema", False, message)
            return Generation(request.key, seed=request.sampling.seed, failure=failure)
        count = len(ids)
        if stopped:
            ids = ids[:-1]
        reason = "stop" if stopped else "length"
        cut = self._stop_texts.cut(ids, request.sampling.stop) if request.sampling.stop else None
        if cut is not None:
            text, ids = cut
            reason = "stop_text"
        else:
            text = self._decode(ids)
        return Generation(
            key=request.key,
            text=text,
            finish_reason=reason,
            token_ids=tuple(ids),
            prompt_tokens=len(request.prompt.token_ids),
            completion_tokens=count,
            seed=request.sampling.seed,
            seconds=time.perf_counter() - self._started[row],
        )


def _ban(logits: torch.Tensor, tokens: Sequence[int], *, has_schema: bool) -> None:
    """Set the logits (vocab,) of these tokens to -inf, unless the row's schema allows no other token."""
    index = list(tokens)
    before = logits[index]
    logits[index] = float("-inf")
    if has_schema and bool(logits.isneginf().all()):
        logits[index] = before
