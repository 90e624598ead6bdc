"""Cutting texts at stops that a server does not support, or does not remove from the text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from ..templates.special_tokens import is_ordinary


class Ending(NamedTuple):
    """A text without its stop, its finish reason ("stop", "stop_text" or "length"), and its number of tokens."""

    text: str
    finish_reason: str
    num_tokens: int | None = None


def to_send(turn_ends: Iterable[str]) -> list[str]:
    """Return the texts of stop tokens that are safe as stop texts; others also occur in ordinary texts."""
    return [text for text in turn_ends if not is_ordinary(text)]


def first_stop(text: str, stops: Collection[str]) -> tuple[int, str] | None:
    """Return the position of the first stop text, and the stop text (the longest one at that position)."""
    found = [(text.find(stop), -len(stop), stop) for stop in stops if stop]
    places = [place for place in found if place[0] >= 0]
    if not places:
        return None
    start, _, stop = min(places)
    return start, stop


def end_text(text: str, finish_reason: str, *, turn_ends: Collection[str], stops: Collection[str]) -> Ending:
    """Cut a text before the first of all stops. `turn_ends`: texts of the stop tokens; `stops`: the user's.

    Texts of stop tokens that also occur in ordinary texts are only removed from the end: some servers return the token
    that ended a text.
    """
    found = first_stop(text, [*to_send(turn_ends), *stops])
    if found is None:
        shown = next((end for end in turn_ends if is_ordinary(end) and text.endswith(end)), None)
        return Ending(text, finish_reason) if shown is None else Ending(text.removesuffix(shown), "stop")
    start, stop = found
    return Ending(text[:start], "stop" if stop in turn_ends else "stop_text")


def end_tokens(
    token_ids: Sequence[int],
    token_texts: Sequence[str],
    finish_reason: str,
    *,
    stop_token_ids: Collection[int],
    turn_ends: Collection[str],
    stops: Collection[str],
) -> Ending:
    """Cut a text with known tokens before the first stop token, then before the first stop text.

    A last token that ended the generation (`finish_reason` "stop") without being one of `stop_token_ids` must
    have been removed by the caller.
    """
    num_tokens = next((i for i, token in enumerate(token_ids) if token in stop_token_ids), len(token_ids))
    if num_tokens < len(token_ids):
        finish_reason = "stop"
    text = "".join(token_texts[:num_tokens])
    ending = end_text(text, finish_reason, turn_ends=to_send(turn_ends), stops=stops)
    if len(ending.text) == len(text):
        return ending._replace(num_tokens=num_tokens)
    length = 0
    for i in range(num_tokens):
        length += len(token_texts[i])
        if length > len(ending.text):
            return ending._replace(num_tokens=i)
    return ending._replace(num_tokens=num_tokens)
