"""Attention from one new token per row for `slots`: without repeating keys, and with equal bits for any thread count.

Imports torch and transformers: import this module inside functions only.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


ATTENTION = "magpie_slots"
DETERMINISTIC_ATTENTION = "magpie_slots_deterministic"


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    twice: bool,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from one new token per row: query heads that share a key head become the query's length.

    So keys are not repeated. `twice`: an odd query length gets a copy of its last line. torch's CPU kernel multiplies an
    odd last line with a matrix-vector routine whose rounding depends on the thread that runs it (seen with torch 2.13, two
    threads, float32, lengths 1 and 3; even ones were equal in all bits over rows, heads, head sizes and slots).
    """
    if query.shape[2] != 1 or attention_mask is None or attention_mask.shape[1] != 1:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return plain
    rows, heads, _, size = query.shape
    query = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    group = query.shape[2]
    if twice and group % 2:
        query = torch.cat([query, query[:, :, -1:]], dim=2)
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    return out[:, :, :group].reshape(rows, 1, heads, value.shape[-1]), None


def _attend_fast(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    return _attend(module, query, key, value, attention_mask, twice=False, **kwargs)


def _attend_deterministic(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    return _attend(module, query, key, value, attention_mask, twice=True, **kwargs)


for _name, _function in ((ATTENTION, _attend_fast), (DETERMINISTIC_ATTENTION, _attend_deterministic)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, sdpa_mask)
