"""Template arguments, and the date that a template prints as today: it is fixed, so that prompts do not change daily."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import ArgumentError, quoted
from .probe import Renderer


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_RESERVED = {
    "conversation",
    "messages",
    "chat_template",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
}


def dated_renderer(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    kwargs: Mapping[str, object],
    template_date: dt.date | str | None,
    name: str,
) -> Renderer:
    """Return a template's renderer with a fixed date (default: today).

    Raises:
        ArgumentError: the date is invalid.
    """
    day = as_date(template_date)
    dated: tuple[str, ...] = ()
    if template_date is not None and "strftime_now" not in text and re.search(r"\bdate_string\b", text):
        # As in Llama 3.1: the template prints a constant date unless this argument is given
        dated = () if "date_string" in kwargs else ("date_string",)
    return Renderer(tokenizer, text, kwargs, day, name, dated=dated)


def as_date(given: dt.date | str | None) -> dt.date:
    """Return a date or ISO text as a date; today for None. Raises ArgumentError if it is invalid."""
    if given is None:
        return dt.datetime.now().astimezone().date()
    if isinstance(given, dt.datetime):
        return given.date()
    if isinstance(given, dt.date):
        return given
    try:
        return dt.date.fromisoformat(given)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"template_date = {quoted(given)} is not a date.", hint="Write it as 2026-01-31.", key="template_date"
        ) from None


def checked_kwargs(given: Mapping[str, object] | None) -> dict[str, object]:
    """Return the template arguments as a dict. Raises ArgumentError for arguments that only this package may set."""
    kwargs = dict(given or {})
    for key in kwargs:
        if not isinstance(key, str) or key in _RESERVED:
            raise ArgumentError(
                f"template_kwargs: {quoted(key)} cannot be set.",
                hint="Give arguments that the template itself reads, such as enable_thinking.",
                key="template_kwargs",
            )
    return kwargs
