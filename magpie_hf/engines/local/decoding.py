"""From logits to tokens, for many rows at once: per-row sampling parameters, counter-based randomness, stop texts.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from ...sampling import SEED_MODULUS, SamplingParams


# SplitMix64 (Steele, Lea, Flood 2014): the increment and the two multipliers of its finalizer.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
# Number of the largest logits that are sorted first for `top_p`: most nuclei are smaller, and sorting a vocabulary of
# 150,000 costs more than a step of a small model.
_FIRST_LOOK = 1024


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


def uniforms(seeds: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return one number in [0, 1) for each (seed, step): a pure function of the two, so no row depends on another.

    The `step`-th output of SplitMix64 started at a hash of `seed` (otherwise consecutive seeds would give overlapping
    streams); the top 24 bits fill a float32's fraction exactly. Shapes: both (num_rows,), result the same.
    """
    with np.errstate(over="ignore"):
        start = _mix((seeds.astype(np.uint64) + np.uint64(1)) * _GAMMA)
        bits = _mix(start + (steps.astype(np.uint64) + np.uint64(1)) * _GAMMA)
    return ((bits >> np.uint64(40)).astype(np.float64) * 2.0**-24).astype(np.float32)


@dataclass(slots=True)
class SamplingTable:
    """The sampling parameters of the running rows as columns, each (num_rows,)."""

    temperature: NDArray[np.float32]
    first_scale: NDArray[np.float32]  # factor of the temperature for the first token
    top_p: NDArray[np.float32]
    top_k: NDArray[np.int64]  # 0: off
    penalty: NDArray[np.float32]
    seed: NDArray[np.int64]

    @classmethod
    def of(cls, params: Sequence[SamplingParams]) -> SamplingTable:
        """Build the columns; a row without a seed gets a new random one."""
        return cls(
            temperature=np.array([p.temperature for p in params], np.float32),
            first_scale=np.array([p.first_token_scale for p in params], np.float32),
            top_p=np.array([p.top_p for p in params], np.float32),
            top_k=np.array([p.top_k or 0 for p in params], np.int64),
            penalty=np.array([p.repetition_penalty for p in params], np.float32),
            seed=np.array([secrets.randbelow(SEED_MODULUS) if p.seed is None else p.seed for p in params], np.int64),
        )

    def take(self, order: NDArray[np.int64]) -> SamplingTable:
        """Return the rows of `order`."""
        return SamplingTable(*(getattr(self, f.name)[order] for f in fields(self)))

    def extended(self, other: SamplingTable) -> SamplingTable:
        """Return these rows and then the other's."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return SamplingTable(*(np.concatenate(pair) for pair in pairs))


def choose_tokens(
    logits: torch.Tensor,
    table: SamplingTable,
    steps: NDArray[np.int64],
    *,
    seen: torch.Tensor | None = None,
) -> NDArray[np.int64]:
    """Choose every row's next token: the most likely one if temperature is 0, else by inversion of the CDF.

    `logits`: (num_rows, vocab), any float dtype; not changed. `steps`: (num_rows,), how many new tokens each row has.
    `seen`: (num_rows, vocab) bool, the tokens of prompt and text so far, needed if a repetition penalty is set.
    The order is that of transformers: penalty, temperature, top_k, top_p. Returns (num_rows,) int64.
    """
    logits = logits.float()
    if seen is not None and bool((table.penalty != 1).any()):
        logits = penalized(logits, seen, _column(table.penalty, logits))
    temperature = np.where(steps == 0, table.temperature * table.first_scale, table.temperature)
    greedy = temperature == 0
    if greedy.all():
        return _to_numpy(logits.argmax(dim=-1))
    if (temperature != 1).any():
        scaled = logits / _column(np.where(greedy, np.float32(1), temperature), logits)
    else:
        scaled = logits
    scaled = _filtered(scaled, table, ~greedy)
    tokens = _invert_cdf(scaled, uniforms(table.seed, steps))
    if greedy.any():
        tokens = torch.where(torch.from_numpy(greedy).to(logits.device), logits.argmax(dim=-1), tokens)
    return _to_numpy(tokens)


def penalized(logits: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Divide the positive logits of seen tokens by the penalty and multiply the negative ones (Keskar et al. 2019)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _column(values: NDArray[np.float32], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device)[:, None]


def _to_numpy(tokens: torch.Tensor) -> NDArray[np.int64]:
    result: NDArray[np.int64] = tokens.cpu().numpy()
    return result


def _filtered(scaled: torch.Tensor, table: SamplingTable, sampled: NDArray[np.bool_]) -> torch.Tensor:
    """Put -inf where top_k and top_p exclude a token; rows without either are skipped."""
    rows = np.flatnonzero(((table.top_k > 0) | (table.top_p < 1)) & sampled)
    if not len(rows):
        return scaled
    if len(rows) == len(scaled):
        return scaled.masked_fill(scaled < cutoffs(scaled, table.top_k, table.top_p)[:, None], float("-inf"))
    index = torch.from_numpy(rows).to(scaled.device)
    part = scaled[index]
    part = part.masked_fill(part < cutoffs(part, table.top_k[rows], table.top_p[rows])[:, None], float("-inf"))
    return scaled.index_copy(0, index, part)


def cutoffs(scaled: torch.Tensor, top_k: NDArray[np.int64], top_p: NDArray[np.float32]) -> torch.Tensor:
    """Return the smallest logit that each row keeps, (num_rows,).

    A threshold instead of a set of indices: tokens with equal logits are kept or dropped together, so their order after
    sorting (which changes with the batch) does not matter. Only the largest `_FIRST_LOOK` logits are sorted, and the
    whole vocabulary if a row's nucleus is larger.
    """
    width = min(scaled.shape[1], max(_FIRST_LOOK, int(top_k.max())))
    cut, enough = _cutoffs_among(scaled, torch.topk(scaled, width).values, top_k, top_p)
    wide = np.flatnonzero(~enough)
    if len(wide) and width < scaled.shape[1]:
        index = torch.from_numpy(wide).to(scaled.device)
        part = scaled[index]
        cut[index] = _cutoffs_among(part, part.sort(descending=True).values, top_k[wide], top_p[wide])[0]
    return cut


def _cutoffs_among(
    scaled: torch.Tensor, largest: torch.Tensor, top_k: NDArray[np.int64], top_p: NDArray[np.float32]
) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """Return the cutoffs, and for which rows `largest` (descending) was long enough."""
    device, width = scaled.device, largest.shape[1]
    kept = torch.from_numpy(np.where(top_k > 0, np.minimum(top_k, width), width)).to(device)
    within = torch.arange(width, device=device)[None] < kept[:, None]
    unlimited = torch.from_numpy(top_k == 0).to(device)
    total = torch.where(unlimited, scaled.logsumexp(1), largest.masked_fill(~within, float("-inf")).logsumexp(1))
    probs = torch.where(within, (largest - total[:, None]).exp(), 0.0)
    mass = probs.cumsum(1)
    wanted = torch.from_numpy(np.ascontiguousarray(top_p)).to(device)[:, None]
    # A token stays while the mass before it is below top_p; the first always stays.
    nucleus = ((mass - probs < wanted) & within).sum(1).clamp(min=1)
    by_p = torch.from_numpy(top_p < 1).to(device)
    count = torch.where(by_p, nucleus, kept)
    enough = (~unlimited) | (mass[:, -1] >= wanted[:, 0]) | ~by_p
    cut = largest.gather(1, (count - 1)[:, None])[:, 0]
    return cut.masked_fill(unlimited & ~by_p, float("-inf")), enough.cpu().numpy()


def _invert_cdf(scaled: torch.Tensor, draws: NDArray[np.float32]) -> torch.Tensor:
    """Return the first token, in vocabulary order, at which the cumulative probability exceeds the draw."""
    cdf = torch.softmax(scaled, dim=-1).cumsum(dim=-1)
    total = cdf[:, -1]
    # A draw times a rounded-up total must not select a token after the last one with a probability.
    point = torch.minimum(
        torch.from_numpy(draws).to(cdf.device) * total, torch.nextafter(total, torch.zeros_like(total))
    )
    return torch.searchsorted(cdf, point[:, None], right=True)[:, 0]


class StopTexts:
    """Finds stop texts in new tokens, by decoding only tails, and only if a stop could end there.

    `decode` turns token ids into text with special tokens visible.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._pieces: dict[int, str] = {}

    def _piece(self, token: int) -> str:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._decode([token])
        return piece

    def may_end(self, token: int, stops: Sequence[str]) -> bool:
        """Return whether a stop text can end with this token: the token contains the last character of one.

        Unclear cases (a part of a character, or a space, which some decoders strip) count as yes.
        """
        piece = self._piece(token)
        return "\ufffd" in piece or any(stop[-1] in piece or stop[-1] == " " for stop in stops)

    def hit(self, tokens: Sequence[int], stops: Sequence[str]) -> bool:
        """Return whether the text of `tokens` contains a stop text that ends with the last token."""
        if not tokens or not self.may_end(int(tokens[-1]), stops):
            return False
        # Nearly every token is at least one byte; eight more for those without any.
        window = max(len(stop.encode()) for stop in stops) + 8
        tail = self._decode(list(tokens[-window:]))
        return any(stop in tail for stop in stops)

    def cut(self, tokens: Sequence[int], stops: Sequence[str]) -> tuple[str, list[int]] | None:
        """Return the text before the first stop text and its tokens, or None without a stop text."""
        tokens = list(tokens)
        text = self._decode(tokens)
        found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
        if not found:
            return None
        text = text[: min(found)]
        count = len(tokens)
        while count and not text.startswith(self._decode(tokens[:count])):
            count -= 1
        return text, tokens[:count]
