"""Where a text ends: stops that a server could not be told, or that it left in the text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from ..templates.special_tokens import is_ordinary


class Ending(NamedTuple):
    """A text without its stop, why it ended ("stop", "stop_text" or "length"), and how many of its tokens are left."""

    text: str
    finish_reason: str
    num_tokens: int | None = None


def to_send(turn_ends: Iterable[str]) -> list[str]:
    """Return those texts of stop tokens that a server may stop at as text; the others are ends of sequence to it."""
    return [text for text in turn_ends if not is_ordinary(text)]


def first_stop(text: str, stops: Collection[str]) -> tuple[int, str] | None:
    """Return where the first of the stop texts begins, and which it is (the longest of those that begin there)."""
    found = [(text.find(stop), -len(stop), stop) for stop in stops if stop]
    places = [place for place in found if place[0] >= 0]
    if not places:
        return None
    start, _, stop = min(places)
    return start, stop


def end_text(text: str, finish_reason: str, *, turn_ends: Collection[str], stops: Collection[str]) -> Ending:
    """Cut a text before the first of all stops. `turn_ends`: texts of the stop tokens; `stops`: the user's.

    Names of tokens that ordinary texts hold end a text only where it ends: a server may show the token that ended it.
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
    """Cut a text that is known token by token: before the first stop token, then before the first stop text.

    A last token that ended the generation (`finish_reason` "stop") without being one of `stop_token_ids` must have
    been left out by the caller.
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
