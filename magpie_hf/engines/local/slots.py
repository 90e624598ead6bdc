"""A KV cache of slots, and the forwards that fill it: rows can join and leave a running batch.

Token t of row i is stored in slot t of row i, independent of other rows. So rows of any lengths run together, the last row
moves to the place of a finished one (no other row moves), and new rows join between two steps. Slots after the end of a
row are masked and finite: their weight is exactly zero.

Imports torch and transformers: import this module inside functions only.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, CacheLayerMixin


SPAN = 16  # attention reads a multiple of this many slots
CHUNK = 32  # deterministic prefill: tokens per forward and row
ROWS = 16  # deterministic mode: rows per forward are a multiple of this
SHARED_PROMPTS = 16  # prompts whose states are cached for later rows


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


@dataclass(slots=True)
class _Plan:
    """Where the next forward writes, and how many slots it reads; shared by all layers.

    `positions`: (num_rows,) the slot of each row's one new token, or None: all rows write from slot `start` on.
    `span`: number of slots that are read. `rows`, `length`: the allocated size.
    """

    rows: int
    length: int
    span: int = 0
    start: int = 0
    index: torch.Tensor | None = None
    positions: torch.Tensor | None = None


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer: (rows, heads, slots, head size), zeros until written."""

    is_sliding = False
    is_compileable = False

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        self.plan = plan

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        values = key_states if value_states is None else value_states
        shape = (self.plan.rows, key_states.shape[1], self.plan.length)
        self.keys = key_states.new_zeros(*shape, key_states.shape[3])
        self.values = values.new_zeros(*shape, values.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        plan, rows = self.plan, key_states.shape[0]
        if plan.positions is None:
            end = plan.start + key_states.shape[2]
            self.keys[:rows, :, plan.start : end] = key_states
            self.values[:rows, :, plan.start : end] = value_states
        else:
            index, positions = plan.index.to(self.keys.device), plan.positions.to(self.keys.device)  # type: ignore[union-attr]
            self.keys[index, :, positions] = key_states[:, :, 0]
            self.values[index, :, positions] = value_states[:, :, 0]
        return self.keys[:rows, :, : plan.span], self.values[:rows, :, : plan.span]

    def get_seq_length(self, *args: Any) -> int:
        return self.plan.span if self.is_initialized else 0

    def get_mask_sizes(self, *args: Any) -> tuple[int, int]:
        return self.plan.span, 0

    def get_max_length(self) -> int:
        return self.plan.length

    get_max_cache_shape = get_max_length  # its name in transformers 4

    def resize(self, rows: int, length: int) -> None:
        """Allocate the new size and copy the contents."""
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(rows, old.shape[1], length, old.shape[3])
            keep_rows, keep_slots = min(rows, old.shape[0]), min(length, old.shape[2])
            new[:keep_rows, :, :keep_slots] = old[:keep_rows, :, :keep_slots]
            setattr(self, name, new)


class SlotCache(Cache):  # type: ignore[misc]
    """A transformers Cache of slots: the runner sets where to write and how many slots to read."""

    def __init__(self, num_layers: int, rows: int, length: int) -> None:
        self.plan = _Plan(rows, length)
        super().__init__(layers=[_SlotLayer(self.plan) for _ in range(num_layers)])

    def resize(self, rows: int, length: int) -> None:
        """Change the allocated size layer by layer, so that only one layer is in memory twice."""
        for layer in self.layers:
            layer.resize(rows, length)
        self.plan.rows, self.plan.length = rows, length

    def move(self, sources: torch.Tensor, targets: torch.Tensor, slots: int) -> None:
        """Copy the first `slots` slots of rows `sources` over rows `targets`."""
        for layer in self.layers:
            for states in (layer.keys, layer.values):
                states[targets.to(states.device), :, :slots] = states[sources.to(states.device), :, :slots]

    def fill(self, targets: torch.Tensor, other: SlotCache, sources: torch.Tensor, slots: int) -> None:
        """Copy the first `slots` slots of the other cache's rows `sources` over rows `targets`."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if not mine.is_initialized:
                mine.lazy_initialization(theirs.keys, theirs.values)
            for to, source in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
                to[targets.to(to.device), :, :slots] = source[sources.to(to.device), :, :slots]


class _Prefilled(NamedTuple):
    """Distinct prompts with their states: row r of `cache` has `lengths[r]` tokens; `logits`: (num_rows, vocab)."""

    cache: SlotCache
    lengths: NDArray[np.int64]
    logits: torch.Tensor


def compaction(kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return (order, sources, targets): how to move the kept rows (ascending) to the front with the fewest moves.

    Row `order[i]` becomes row i; only rows `sources` move, to the places `targets` of dropped ones.
    """
    count = len(kept)
    order = np.arange(count, dtype=np.int64)
    sources = kept[kept >= count]
    holes = np.ones(count, bool)
    holes[kept[kept < count]] = False
    targets = np.flatnonzero(holes).astype(np.int64)
    order[targets] = sources
    return order, sources, targets


class SlotRunner:
    """Runs a decoder-only model over rows in slots.

    `deterministic`: a row's logits have the same bits for any other rows in the batch. On CPU in float32 this requires at
    least 16 lines in every matrix product (so rows are padded with dummies to a multiple of 16, and prefill runs in
    chunks of 32 tokens from slot 0), an even query length in attention, and zeros in unused slots. The number of slots
    read, the number of rows beyond 16 and their order then change no bit, so compaction, joining rows and shared
    prefixes (cut to a multiple of the chunk) are possible.
    """

    can_join = True

    def __init__(self, model: Any, *, deterministic: bool, max_forward_tokens: int, max_length: int | None) -> None:
        self.model = model
        self.deterministic = deterministic
        self.max_forward_tokens = max_forward_tokens
        self.max_length = max_length
        self.num_layers = int(model.config.get_text_config(decoder=True).num_hidden_layers)
        self.device = model.get_input_embeddings().weight.device
        self.cache = SlotCache(self.num_layers, 0, 0)
        self.lengths = np.zeros(0, np.int64)
        self.max_slots: int | None = None  # maximum number of slots of the cache, unless the rows need more
        self._shared: OrderedDict[tuple[int, ...], _Prefilled] = OrderedDict()
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def num_rows(self) -> int:
        """Number of running rows."""
        return len(self.lengths)

    @property
    def span(self) -> int:
        """Number of slots that the next step reads."""
        return round_up(int(self.lengths.max()) + 1, SPAN) if self.num_rows else 0

    def reset(self, *, free: bool = False) -> None:
        """Drop all rows; `free`: also free the memory."""
        self.lengths = np.zeros(0, np.int64)
        if free:
            self._shared.clear()
            self.cache = SlotCache(self.num_layers, 0, 0)

    def admit(self, prompts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Add a row for each prompt behind the running ones; returns their next tokens' logits, (len(prompts), vocab).

        Equal prompts are computed once. Prompts of similar length run together.
        """
        distinct = sorted(set(prompts), key=lambda p: (len(p), p))
        is_shared = len(prompts) >= 2 * len(distinct)
        first = self.num_rows
        lengths = np.array([len(p) for p in prompts], np.int64)
        self._reserve(first + len(prompts), int(max(lengths.max(), self.lengths.max(initial=0))) + 1)
        pieces, order = [], []
        for group in self._groups(distinct):  # each group's states are freed before the next one's are computed
            part = self._prefilled(group, shared=is_shared)
            where = {prompt: row for row, prompt in enumerate(group)}
            members = [i for i, prompt in enumerate(prompts) if prompt in where]
            sources = torch.tensor([where[prompts[i]] for i in members], device=self.device)
            targets = torch.tensor(members, device=self.device) + first
            self.cache.fill(targets, part.cache, sources, int(part.lengths.max()))
            pieces.append(part.logits[sources.to(part.logits.device)])
            order.extend(members)
        self.lengths = np.concatenate([self.lengths, lengths])
        back = torch.from_numpy(np.argsort(np.array(order)))
        return torch.cat(pieces)[back.to(pieces[0].device)]

    def step(self, tokens: NDArray[np.int64]) -> torch.Tensor:
        """Append each row's token and return the logits of the next, (num_rows, vocab)."""
        self._reserve(self.num_rows, int(self.lengths.max()) + 1)
        logits = self._decode(self.cache, self.lengths, tokens)
        self.lengths = self.lengths + 1
        return logits

    def keep(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Keep only these rows (ascending); returns their new order."""
        order, sources, targets = compaction(kept)
        if len(sources):
            self.cache.move(torch.from_numpy(sources), torch.from_numpy(targets), int(self.lengths[sources].max()))
        self.lengths = self.lengths[order]
        return order

    def _reserve(self, rows: int, length: int) -> None:
        """Allocate at least this many rows and slots; the allocated size is not reduced unless `max_slots` requires it.

        Grows by at least half if possible, so that copies are rare. Rows and slots that are no longer needed are
        freed if the memory is needed.
        """
        plan = self.cache.plan
        needed, length = rows, round_up(length, SPAN)
        rows = round_up(rows, ROWS)
        if rows <= plan.rows and length <= plan.length:
            return
        ample = length
        if length > plan.length:
            ample = max(length, round_up(min(plan.length * 3 // 2, self.max_length or plan.length * 2), SPAN))
        limit = self.max_slots
        fits_rows = length if limit is None else max(length, min(ample, limit // rows // SPAN * SPAN))
        wanted = [
            (max(rows, plan.rows), max(ample, plan.length)),
            (rows, fits_rows),
            (rows if self.deterministic else needed, length),
        ]
        self.cache.resize(*next((s for s in wanted if limit is None or s[0] * s[1] <= limit), wanted[-1]))

    def _groups(self, prompts: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
        """Split prompts, sorted by length, so that each group's tokens fit a forward."""
        groups: list[list[tuple[int, ...]]] = []
        for prompt in prompts:
            if groups and len(prompt) * (len(groups[-1]) + 1) <= self.max_forward_tokens:
                groups[-1].append(prompt)
            else:
                groups.append([prompt])
        return groups

    def _prefilled(self, prompts: list[tuple[int, ...]], *, shared: bool) -> _Prefilled:
        """Return the states of distinct prompts; those of a single shared prompt are cached."""
        known = self._shared.get(prompts[0]) if len(prompts) == 1 else None
        if known is not None:
            self._shared.move_to_end(prompts[0])
            return known
        made = self._prefill(prompts)
        if shared and len(prompts) == 1:
            made.cache.resize(1, made.cache.plan.length)
            self._shared[prompts[0]] = made
            while len(self._shared) > SHARED_PROMPTS:
                self._shared.popitem(last=False)
        return made

    def _prefill(self, prompts: list[tuple[int, ...]]) -> _Prefilled:
        """Compute all but the last token in forwards over many tokens, and the last one as a step."""
        lengths = np.array([len(p) - 1 for p in prompts], np.int64)
        longest = int(lengths.max())
        chunk = CHUNK if self.deterministic else max(1, longest)
        slots = round_up(longest + 1, CHUNK if self.deterministic else SPAN)
        cache = SlotCache(self.num_layers, round_up(len(prompts), ROWS), slots)
        ids = np.zeros((len(prompts), round_up(max(longest, 1), chunk)), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt) - 1] = prompt[:-1]
        start = self._prefill_common(cache, ids, prompts, chunk) if longest else 0
        while longest and start < longest:
            end = min(start + chunk, ids.shape[1])
            self._forward_chunk(cache, ids[:, start:end], start)
            start = end
        logits = self._decode(cache, lengths, np.array([p[-1] for p in prompts], np.int64))
        return _Prefilled(cache, lengths + 1, logits)

    def _prefill_common(
        self, cache: SlotCache, ids: NDArray[np.int64], prompts: list[tuple[int, ...]], chunk: int
    ) -> int:
        """Compute the common prefix of all prompts for one row and copy it to the others, if it is long."""
        low, high = min(prompts), max(prompts)
        common = next(
            (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(map(len, (low, high)))
        )
        common = min(common, *(len(p) - 1 for p in prompts))
        if self.deterministic:
            common -= common % chunk
        if len(prompts) < 2 or common * (len(prompts) - 1) < 256:
            return 0
        for start in range(0, common, chunk):
            self._forward_chunk(cache, ids[:1, start : min(start + chunk, common)], start)
        others = torch.arange(1, len(prompts))
        cache.move(torch.zeros_like(others), others, common)
        return common

    def _forward_chunk(self, cache: SlotCache, ids: NDArray[np.int64], start: int) -> None:
        """Run tokens (rows, tokens) that go to the slots from `start` on."""
        plan = cache.plan
        plan.start, plan.positions = start, None
        plan.span = min(round_up(start + ids.shape[1], SPAN), plan.length)
        positions = torch.arange(start, start + ids.shape[1], device=self.device)
        visible = torch.arange(plan.span, device=self.device)[None] <= positions[:, None]
        mask = self._additive(visible)[None, None].expand(ids.shape[0], 1, -1, -1)
        self._forward(cache, torch.from_numpy(ids).to(self.device), positions[None].expand(ids.shape[0], -1), mask)

    def _decode(self, cache: SlotCache, lengths: NDArray[np.int64], tokens: NDArray[np.int64]) -> torch.Tensor:
        """Run one token a row at the slot that follows its last; returns (num_rows, vocab)."""
        count = len(lengths)
        rows = round_up(count, ROWS) if self.deterministic else count
        places = np.zeros(rows, np.int64)
        places[:count] = lengths
        ids = np.zeros(rows, np.int64)
        ids[:count] = tokens
        plan = cache.plan
        plan.span = min(round_up(int(lengths.max()) + 1, SPAN), plan.length)
        plan.index = torch.arange(rows, device=self.device)
        plan.positions = torch.from_numpy(places).to(self.device)
        visible = torch.arange(plan.span, device=self.device)[None] <= plan.positions[:, None]
        mask = self._additive(visible)[:, None, None]
        logits = self._forward(cache, torch.from_numpy(ids).to(self.device)[:, None], plan.positions[:, None], mask)
        return logits[:count, -1]

    def _additive(self, visible: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros(visible.shape, dtype=self.model.dtype, device=self.device)
        return zeros.masked_fill_(~visible, float("-inf"))

    def _forward(
        self, cache: SlotCache, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        kwargs: dict[str, Any] = {"logits_to_keep": 1} if self._keeps_logits else {}
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **kwargs,
        )
        logits: torch.Tensor = output.logits
        return logits
