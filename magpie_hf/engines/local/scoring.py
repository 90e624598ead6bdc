"""Token log-probabilities of given texts.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def completion_log_probs(
    model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, max_tokens: int
) -> list[list[float]]:
    """Return, for each (prompt ids, completion ids), the completion's token log-probabilities in nats.

    A prompt has at least one token. Texts of similar length run together, padded on the right (which causal attention
    does not see), with `max_tokens` tokens per forward.
    """
    order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
    results: list[list[float]] = [[] for _ in pairs]
    while order:
        group = [order.pop()]
        width = sum(map(len, pairs[group[0]]))
        while order and width * (len(group) + 1) <= max_tokens:
            group.append(order.pop())
        for index, values in zip(group, _group_log_probs(model, [pairs[i] for i in group], width), strict=True):
            results[index] = values
    return results


@torch.inference_mode()
def _group_log_probs(
    model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], width: int
) -> list[list[float]]:
    ids = np.zeros((len(pairs), width), np.int64)
    mask = np.zeros((len(pairs), width), np.int64)
    for row, (prompt, completion) in enumerate(pairs):
        ids[row, : len(prompt) + len(completion)] = [*prompt, *completion]
        mask[row, : len(prompt) + len(completion)] = 1
    device = model.get_input_embeddings().weight.device
    logits = model(input_ids=torch.from_numpy(ids).to(device), attention_mask=torch.from_numpy(mask).to(device)).logits
    results: list[list[float]] = []
    for row, (prompt, completion) in enumerate(pairs):
        if not len(completion):
            results.append([])
            continue
        places = logits[row, len(prompt) - 1 : len(prompt) + len(completion) - 1].float()
        wanted = torch.tensor(list(completion), device=places.device)
        values: list[float] = places.log_softmax(dim=-1).gather(1, wanted[:, None])[:, 0].tolist()
        results.append(values)
    return results
