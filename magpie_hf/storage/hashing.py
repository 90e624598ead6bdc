"""A hash of JSON-like data that is the same in every process and version."""

from __future__ import annotations

import hashlib
import json


def stable_hash(value: object, length: int = 16) -> str:
    """Hash JSON-like data (mappings in any order) to `length` hex digits; the same in every process and version."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=to_plain)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def to_plain(value: object) -> object:
    """Convert an object that JSON does not support to a JSON value.

    NumPy scalars become numbers, sets sorted lists, bytes hex digits, and all other objects text.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        plain: object = value.item()
        return plain
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
