"""A hash of JSON-like data that is the same in every process and version."""

from __future__ import annotations

import hashlib
import json


def stable_hash(value: object, length: int = 16) -> str:
    """Hash JSON-like data (mappings in any order) to `length` hex digits; the same in every process and version."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=to_plain)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def to_plain(value: object) -> object:
    """Return a JSON value for an object that is not one.

    NumPy scalars are numbers, sets are sorted, bytes are hex digits, all others become text.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        plain: object = value.item()
        return plain
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
