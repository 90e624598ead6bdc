"""The order of columns in datasets: that of the released Magpie datasets, then all others."""

from __future__ import annotations

from collections.abc import Iterable

from ..columns import RELEASED


def column_order(names: Iterable[str]) -> list[str]:
    """Return column names in the order of the releases: later turns after the first, then all others as given."""
    given = list(names)
    turns = sorted(
        (name for name in given if turn_of(name)), key=lambda name: (turn_of(name), not name.startswith("instruction"))
    )
    order: list[str] = []
    for name in RELEASED:
        if name in given:
            order.append(name)
        if name == "response":
            order.extend(turns)
    return order + [name for name in given if name not in order]


def turn_of(name: str) -> int:
    """Return t of `instruction_t` and `response_t`, the columns of the multi-turn releases, else 0."""
    head, _, tail = name.rpartition("_")
    return int(tail) if head in ("instruction", "response") and tail.isdecimal() else 0
