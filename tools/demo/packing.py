"""Annotation rows packed after one shared prompt, so that the shared part is computed once per batch.

A mask lets each row attend to the shared part and to itself, and its positions continue those of the shared part. The logits
of a row are therefore the same as without packing (a test checks this).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

from .grammar.judge import Task, sample_task
from .tokenizer import BOS, CONTEXT, END_OF_TEXT, END_OF_TURN, HEADER_END, HEADER_START


if TYPE_CHECKING:
    import torch

_OPEN_USER = f"{BOS}{HEADER_START}user{HEADER_END}\n\n"
_OPEN_ASSISTANT = f"{END_OF_TURN}{HEADER_START}assistant{HEADER_END}\n\n"


class Packed(NamedTuple):
    """A packed batch of one sequence: ids, targets and positions are (1, length) int64; targets are -100 but on answers.

    `mask`: (1, 1, length, length) float32, 0 where a position is seen and -inf where not.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor


def prompt_parts(task: Task) -> tuple[str, str, str]:
    """Return (shared, row, answer) as the model sees them, special tokens written out."""
    if task.chat:
        return _OPEN_USER + task.shared, task.row + _OPEN_ASSISTANT, task.answer + END_OF_TURN
    return BOS + task.shared, task.row, task.answer + END_OF_TEXT


def packed_batch(tokenizer: Any, rng: random.Random, name: str, length: int = CONTEXT) -> Packed:
    """Return as many rows of a task as fit into `length` tokens behind their shared prompt."""
    rows: list[tuple[list[int], list[int]]] = []
    shared: list[int] = []
    used = 0
    while True:
        texts = prompt_parts(sample_task(rng, name))
        head, row, answer = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
        if not shared:
            shared, used = head, len(head)
        if used + len(row) + len(answer) > length:
            if rows:
                return pack(shared, rows)
            continue  # a row too long to stand at all: take another
        rows.append((row, answer))
        used += len(row) + len(answer)


def pack(shared: list[int], rows: list[tuple[list[int], list[int]]]) -> Packed:
    """Pack (row, answer) token lists behind their shared ones."""
    import torch

    ids, targets = list(shared), [-100] * len(shared)
    positions, owners = list(range(len(shared))), [0] * len(shared)
    for number, (row, answer) in enumerate(rows, start=1):
        ids += row + answer
        targets += [-100] * len(row) + answer
        positions += range(len(shared), len(shared) + len(row) + len(answer))
        owners += [number] * (len(row) + len(answer))
    owner = torch.tensor(owners)
    order = torch.arange(len(ids))
    seen = (order[:, None] >= order[None, :]) & ((owner[:, None] == owner[None, :]) | (owner[None, :] == 0))
    mask = torch.zeros(len(ids), len(ids)).masked_fill(~seen, float("-inf"))
    return Packed(torch.tensor([ids]), torch.tensor([targets]), torch.tensor([positions]), mask[None, None])


def packed_loss(model: Any, batch: Packed) -> torch.Tensor:
    """Return the mean loss on the answers' tokens."""
    from torch.nn.functional import cross_entropy

    states = model.model(
        input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    targets = batch.targets[0, 1:]
    asked = targets != -100  # logits of the others are not even computed
    loss: torch.Tensor = cross_entropy(model.lm_head(states[0, :-1][asked]), targets[asked])
    return loss
