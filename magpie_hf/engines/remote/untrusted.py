"""Reading untrusted replies of servers: their size, depth, types and values.

Every function returns a valid value or raises ValueError.
"""

from __future__ import annotations

import json
from typing import Any

from ...sampling import SamplingParams
from ..base import Generation


Json = Any
"""A parsed JSON value from a server. Any part may have any type, so readers check every value that they use."""
JsonObject = dict[str, Json]
# Much larger than a reply with several samples of a long context and all of their token lists.
MAX_BODY_BYTES = 64 << 20
# Valid replies have up to five levels.
MAX_DEPTH = 64
# Larger than any context. The counts of a row are sums of a few such counts, and are saved as 32-bit integers.
MAX_COUNT = 1 << 24
MAX_TOKEN_ID = (1 << 31) - 1
MAX_SEED = (1 << 63) - 1
MAX_NAME = 200


def load_json(raw: bytes) -> Json:
    """Parse a JSON body; NaN and Infinity, which are not JSON, become None.

    Raises:
        ValueError: it is not JSON, or nested deeper than `MAX_DEPTH`.
    """
    try:
        value = json.loads(raw, parse_constant=lambda _: None)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _is_deep(value):
        raise ValueError("nested too deeply")
    return value


def _is_deep(value: Json) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            part
            for outer in level
            for part in (outer.values() if type(outer) is dict else outer)
            if type(part) is dict or type(part) is list
        ]
        if not level:
            return False
    return True


def count_of(value: object) -> int | None:
    """Return a token count, None for None. Raises ValueError if it is invalid."""
    if value is None or (type(value) is int and 0 <= value <= MAX_COUNT):
        return value
    raise ValueError("invalid token count")


def count_or_none(value: object, least: int = 1) -> int | None:
    """Return a count of `least` or more, None for any other value."""
    return value if type(value) is int and least <= value <= MAX_COUNT else None


def header_count(value: str | None) -> int | None:
    """Return the count in a header, None if it is missing. Raises ValueError if it is too large."""
    if value is None or not (value.isascii() and value.isdecimal()):
        return None
    return count_of(int(value[:20]))


def clean_text(text: object) -> str:
    """Return a text that is valid UTF-8: lone surrogates become U+FFFD. Raises ValueError if it is not a text."""
    if not isinstance(text, str):
        raise ValueError("not a text")
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def name_or_none(value: object) -> str | None:
    """Return a name that a server reported, printable and short; None if it is not a text."""
    if not isinstance(value, str):
        return None
    return "".join(c if c.isprintable() else " " for c in clean_text(value[:MAX_NAME])).strip() or None


def checked(generation: Generation, sampling: SamplingParams) -> Generation:
    """Return a decoded generation after checking its values; completion tokens are limited to `max_tokens`.

    Raises:
        ValueError: a value is invalid.
    """
    generation.text = clean_text(generation.text)
    generation.reasoning = None if generation.reasoning is None else clean_text(generation.reasoning)
    ids = generation.token_ids
    if ids is not None and not all(type(i) is int and 0 <= i <= MAX_TOKEN_ID for i in ids):
        raise ValueError("invalid token ids")
    generation.prompt_tokens = count_of(generation.prompt_tokens)
    count = count_of(generation.completion_tokens)
    generation.completion_tokens = None if count is None else min(count, sampling.max_tokens)
    if generation.seed is not None and not (type(generation.seed) is int and 0 <= generation.seed <= MAX_SEED):
        generation.seed = sampling.seed
    return generation
