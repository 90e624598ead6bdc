"""The parser `regex`: the named groups of a rubric's pattern are the values of its keys.

The pattern comes from the user, the text from a model. A pattern that backtracks without end must not stop a run, so the
length of both is limited, and a search ends after `TIMEOUT_S`.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from ..errors import ArgumentError, did_you_mean, quoted


MAX_PATTERN_CHARS = 2_000
MAX_REPLY_CHARS = 20_000
TIMEOUT_S = 1.0


def check_pattern(pattern: str, keys: Collection[str], required: Collection[str], rubric: str) -> None:
    """Raise ArgumentError if a pattern cannot be compiled, or its groups are not the keys of the rubric."""
    if not pattern:
        raise _invalid(rubric, "it is missing", r"E.g., pattern: 'Rating: (?P<score>\d+)'.")
    if len(pattern) > MAX_PATTERN_CHARS:
        raise _invalid(rubric, f"it has more than {MAX_PATTERN_CHARS:,} characters", "Write a shorter pattern.")
    try:
        groups = set(_compiled(pattern).groupindex)
    except Exception as error:  # noqa: BLE001 (the library raises several kinds)
        raise _invalid(rubric, str(error), "Check the pattern.") from None
    for name in sorted(groups - {*keys}):
        raise _invalid(rubric, f"its group {quoted(name)} is not a key of the schema", did_you_mean(name, keys))
    for key in required:
        if key not in groups:
            raise _invalid(
                rubric, f"it has no group for the key {quoted(key)}", f"Write (?P<{key}>…) around its value."
            )


def find_groups(text: str, pattern: str) -> dict[str, object]:
    """Return the named groups of the first match in a text; empty without a match, or if the search takes too long."""
    try:
        found = _compiled(pattern).search(text[:MAX_REPLY_CHARS], timeout=TIMEOUT_S)
    except TimeoutError:
        return {}
    return {} if found is None else {name: value for name, value in found.groupdict().items() if value is not None}


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> Any:
    import regex  # the standard library's `re` has no timeout

    return regex.compile(pattern)


def _invalid(rubric: str, why: str, hint: str) -> ArgumentError:
    return ArgumentError(f'Invalid pattern of the rubric "{rubric}": {why}.', hint=hint, key="pattern")
