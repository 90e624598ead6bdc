"""A rubric's own prompt: text with a place for each column, filled in without interpreting the text of the row.

`{instruction}` is the place of the column `instruction`. All other braces are plain text, so that a prompt with JSON in it
needs no escapes; only `{{name}}` stands for `{name}`. The prompt is read once, so braces in the text of a row mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from ..errors import ArgumentError, did_you_mean, quoted


_PLACE = re.compile(r"\{\{(?P<literal>[A-Za-z_]\w*)\}\}|\{(?P<column>[A-Za-z_]\w*)\}")


def check_prompt(prompt: str, reads: Sequence[str], rubric: str) -> None:
    """Raise ArgumentError if a prompt has a place for an unknown column, or no place for a column that it should show."""
    places = [match["column"] for match in _PLACE.finditer(prompt) if match["column"]]
    for name in places:
        if name not in reads:
            raise ArgumentError(
                f'The prompt of the rubric "{rubric}" has a place for {quoted(name)}, which is not in reads.',
                hint=f"{did_you_mean(name, reads)} Columns: {', '.join(reads)}. Write {{{{{name}}}}} for the text "
                f"{{{name}}} itself.".strip(),
                key="prompt",
            )
    for name in reads:
        if name not in places:
            raise ArgumentError(
                f'The prompt of the rubric "{rubric}" has no place for the column {quoted(name)}.',
                hint=f"Write {{{name}}} where the text of the column belongs, or remove it from reads.",
                key="prompt",
            )


def fill(prompt: str, row: Mapping[str, object]) -> str:
    """Return a prompt with the columns of a row in their places."""
    return _PLACE.sub(_filler(row), prompt)


def _filler(row: Mapping[str, object]) -> Callable[[re.Match[str]], str]:
    return lambda match: f"{{{match['literal']}}}" if match["literal"] else str(row[match["column"]])
