"""Sampling parameters, grids of them, and the seed of each sample."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .errors import ArgumentError, did_you_mean, quoted


SEED_MODULUS = 2**31


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of a request, with one meaning for all engines.

    - `temperature`: 0 is greedy decoding; otherwise the divisor of the logits, at most 10.
    - `top_p`: probability mass of the nucleus, in (0, 1]; 1 keeps every token.
    - `top_k`: number of tokens to keep, or None for all.
    - `repetition_penalty`: divisor of the logits of tokens already used, > 0; 1 is off.
    - `max_tokens`: maximum number of new tokens, including the stop token.
    - `stop`: texts that end the generation; the returned text ends before the first of them.
    - `stop_token_ids`: tokens that end the generation; not part of the returned text.
    - `first_token_scale`: factor of the temperature for the first token, > 0; 1 is off. The reference's flaming tokens
      (`--flaming_tokens`) divide the first token's logits by 1.2, which is a `first_token_scale` of 1.2.
    - `banned_first_token_ids`: tokens that a text may not start with ("de-markdown" in the reference scripts).
    - `json_schema`: a JSON schema (as text) that the text must match, or None.
    - `seed`: in [0, 2^31), or None for unseeded.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    repetition_penalty: float = 1.0
    first_token_scale: float = 1.0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    banned_first_token_ids: tuple[int, ...] = ()
    json_schema: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("stop", "stop_token_ids", "banned_first_token_ids"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, (str, int)) else tuple(given))
        _check("temperature", self.temperature, 0 <= self.temperature <= 10, "a number from 0 (greedy) to 10")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "a number in (0, 1]; 1 keeps every token")
        top_k_ok = self.top_k is None or (_is_whole(self.top_k) and self.top_k >= 1)
        _check("top_k", self.top_k, top_k_ok, "a whole number, 1 or more, or null for all tokens")
        _check("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0; 1 is off")
        _check("first_token_scale", self.first_token_scale, self.first_token_scale > 0, "above 0; 1 is off")
        hottest = self.temperature * self.first_token_scale
        _check("first_token_scale", self.first_token_scale, hottest <= 10, "at most 10 divided by the temperature")
        tokens_ok = _is_whole(self.max_tokens) and self.max_tokens >= 1
        _check("max_tokens", self.max_tokens, tokens_ok, "a whole number, 1 or more")
        seed_ok = self.seed is None or (_is_whole(self.seed) and 0 <= self.seed < SEED_MODULUS)
        _check("seed", self.seed, seed_ok, "a whole number from 0 to 2^31 - 1")

    @property
    def is_greedy(self) -> bool:
        """Whether decoding is greedy: always the most likely token."""
        return self.temperature == 0

    def with_seed(self, seed: int | None) -> SamplingParams:
        """Return the same parameters with another seed."""
        return replace(self, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters that are not off, as JSON values."""
        given = asdict(self)
        keep = {"temperature", "top_p", "max_tokens"}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if k in keep or v != _DEFAULTS[k]}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> SamplingParams:
        """Build from a mapping; an unknown key is an ArgumentError that names the nearest one."""
        known = {f.name for f in fields(cls)}
        for key in given:
            if key not in known:
                raise ArgumentError(
                    f"sampling.{key}: unknown key.", hint=did_you_mean(str(key), known), key=f"sampling.{key}"
                )
        try:
            return cls(**given)
        except TypeError as error:
            raise ArgumentError(f"sampling: {error}", hint="These settings are numbers.", key="sampling") from None


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check(name: str, value: object, good: bool, wanted: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        good = False
    if not good:
        raise ArgumentError(f"{name} = {quoted(value)} is invalid.", hint=f"It must be {wanted}.", key=name)


_DEFAULTS = {f.name: f.default for f in fields(SamplingParams)}


@dataclass(frozen=True, slots=True)
class GridPoint:
    """One setting of a sampling grid and its share of the accepted rows (relative to the others', > 0).

    `system_prompt_key`: a short label of the system prompt, e.g., "math"; written to a column of its own.
    """

    sampling: SamplingParams
    share: float = 1.0
    system_prompt: str | None = None
    system_prompt_key: str | None = None

    def __post_init__(self) -> None:
        _check("share", self.share, self.share > 0, "a number above 0")

    def to_dict(self) -> dict[str, Any]:
        """Return all settings of this point that can change a text: all except the share and the label."""
        return {"sampling": self.sampling.to_dict(), "system_prompt": self.system_prompt}


def grid_sequence(shares: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Yield (grid point, rank) for output row 0, 1, 2, …: the order of accepted samples in the dataset.

    The r-th accepted sample of a point with share s is at position (r + 0.5) / s. So every prefix has the shares as
    closely as whole rows allow, and the rows of a longer run start with those of a shorter run.
    """
    ranks = [0] * len(shares)
    while True:
        point = min(range(len(shares)), key=lambda g: ((ranks[g] + 0.5) / shares[g], g))
        yield point, ranks[point]
        ranks[point] += 1


def seed_base(*parts: object) -> int:
    """Hash the parts (run seed, stage, turn, attempt, grid point, …) to a number in [0, 2^31)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % SEED_MODULUS


def sample_seed(base: int, index: int) -> int:
    """Return (base + index) mod 2^31: contiguous samples have contiguous seeds, as vLLM's `n` gives its children."""
    return (base + index) % SEED_MODULUS


def schema_of(text: str) -> dict[str, Any]:
    """Parse a JSON schema. Raises ArgumentError if the text is not one."""
    try:
        schema = json.loads(text)
    except ValueError:
        schema = None
    if not isinstance(schema, dict):
        raise ArgumentError(f"json_schema = {quoted(text)} is not a JSON schema.", key="json_schema")
    return schema
