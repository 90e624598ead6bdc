"""Batches in the cache of transformers, padded on the left.

For models that `slots.py` does not support: sliding windows, recurrent states, positions computed from the mask. Rows
cannot join a running batch, and prefixes are not shared; finished rows still leave it.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class PaddedRunner:
    """Runs any causal model of transformers with `use_cache`, one batch after the other."""

    can_join = False

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        self.lengths = np.zeros(0, np.int64)
        self.max_slots: int | None = None  # rows that end together have no slots to spare
        self._cache: Any = None
        self._mask = torch.zeros(0, 0, dtype=torch.long)
        self._parameters = inspect.signature(model.forward).parameters

    @property
    def num_rows(self) -> int:
        """Number of running rows."""
        return len(self.lengths)

    @property
    def span(self) -> int:
        """Number of positions of a row, including padding."""
        return int(self._mask.shape[1]) + 1 if self.num_rows else 0

    def reset(self, *, free: bool = False) -> None:
        """Drop all rows and the cache."""
        self.lengths = np.zeros(0, np.int64)
        self._cache = None

    def admit(self, prompts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Start a batch; returns the next tokens' logits, (len(prompts), vocab). No row may be running."""
        longest = max(map(len, prompts))
        ids = np.zeros((len(prompts), longest), np.int64)
        mask = np.zeros((len(prompts), longest), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        self._cache, self._mask = None, torch.from_numpy(mask).to(self.device)
        logits = self._forward(torch.from_numpy(ids), (self._mask.cumsum(1) - 1).clamp(min=0))
        self.lengths = np.array([len(p) for p in prompts], np.int64)
        return logits

    def step(self, tokens: NDArray[np.int64]) -> torch.Tensor:
        """Append each row's token and return the logits of the next, (num_rows, vocab)."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(self.num_rows, 1)], dim=1)
        positions = torch.from_numpy(self.lengths).to(self.device)[:, None]
        logits = self._forward(torch.from_numpy(tokens)[:, None], positions)
        self.lengths = self.lengths + 1
        return logits

    def keep(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Keep only these rows (ascending); returns their new order, which is the given one."""
        if len(kept):
            index = torch.from_numpy(kept).to(self.device)
            # The reordering of beam search accepts any selection of rows, and every kind of cache layer implements it.
            self._cache.reorder_cache(index)
            self._mask = self._mask[index]
        else:
            self._cache = None
        self.lengths = self.lengths[kept]
        return kept

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        kwargs: dict[str, Any] = {}
        if "position_ids" in self._parameters:
            kwargs["position_ids"] = positions
        if "logits_to_keep" in self._parameters:
            kwargs["logits_to_keep"] = 1
        output = self.model(
            input_ids=ids.to(self.device),
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            **kwargs,
        )
        self._cache = output.past_key_values
        logits: torch.Tensor = output.logits[:, -1]
        return logits
