"""Read conversations of other datasets, with all common names of roles and keys.

Two forms are common: `messages` of {role, content} (chat templates, TRL) and ShareGPT's `conversations` of {from, value}.
Datasets mix column names, keys and roles, so each of these is looked up separately.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import DatasetError, did_you_mean, quoted


COLUMNS = ("messages", "conversations", "conversation", "dialog", "dialogue")
"""Columns that may contain a conversation, the most common first."""
_ROLE_KEYS = ("role", "from", "speaker", "author")
_TEXT_KEYS = ("content", "value", "text")
ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "customer"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "bot", "chatbot", "model", "ai", "chatgpt", "bing", "bard", "claude"), "assistant"
    ),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "function_call", "function_response", "observation", "ipython"), "tool"),
}
"""Names of roles in datasets, in lower case, and the role that each means."""


class FirstTurn(NamedTuple):
    """The first user message of a conversation, its response (before the next user message), and the system message."""

    instruction: str
    response: str | None
    system_prompt: str | None


def read_turns(given: object, where: str) -> list[dict[str, str | None]]:
    """Return a conversation in any format as messages of {role, content}.

    A `content` of several parts becomes the text of the parts; None if a turn has no text. `where`: for errors ("row 7").

    Raises:
        DatasetError: a turn's keys or role are not recognized.
    """
    if isinstance(given, Mapping):  # a Sequence of older `datasets`: one list per key
        given = [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]
    if given is not None and (isinstance(given, (str, bytes)) or not isinstance(given, Sequence)):
        raise DatasetError(
            f"a conversation must be a list of turns, not {quoted(given, 60)}.", where=where, hint="Parse it first."
        )
    return [_turn(turn, where) for turn in given or []]


def _turn(turn: object, where: str) -> dict[str, str | None]:
    keys: Mapping[str, object] = turn if isinstance(turn, Mapping) else {}
    role_key = next((key for key in _ROLE_KEYS if keys.get(key) is not None), None)
    text_key = next((key for key in _TEXT_KEYS if keys.get(key) is not None), None)
    if role_key is None or not any(key in keys for key in _TEXT_KEYS):
        found = f"the keys {', '.join(map(str, keys))}" if keys else f"the form {quoted(turn, 60)}"
        raise DatasetError(
            f"a turn has {found}, but needs {{role, content}} or {{from, value}}.",
            where=where,
            hint='Map the rows to `messages` of {"role": …, "content": …} first.',
        )
    name = str(keys[role_key])
    role = ROLES.get(name.strip().lower())
    if role is None:
        raise DatasetError(
            f"the role {quoted(name, 60)} is not recognized.", where=where, hint=did_you_mean(name.lower(), ROLES)
        )
    return {"role": role, "content": None if text_key is None else _text(keys[text_key])}


def _text(content: object) -> str | None:
    if isinstance(content, str):
        return content
    parts = (
        [part.get("text") for part in content if isinstance(part, Mapping)] if isinstance(content, Sequence) else []
    )
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if texts else None


def first_turn(given: object, where: str) -> FirstTurn:
    """Return the first turn of a conversation, and its system message.

    Raises:
        DatasetError: the conversation does not begin with a user message with text (after an optional system message),
            a second user message comes before any response, or a turn is not recognized.
    """
    turns = read_turns(given, where)
    begins_with_system = bool(turns) and turns[0]["role"] == "system"
    system = turns.pop(0)["content"] if begins_with_system else None
    if not turns or turns[0]["role"] != "user" or turns[0]["content"] is None:
        found = f"begins with {turns[0]['role']}" if turns and turns[0]["role"] != "user" else "has no text of a user"
        raise DatasetError(
            f"the conversation {found}, so it has no instruction.",
            where=where,
            hint="Remove such rows first, e.g., with ds.filter(…).",
        )
    return FirstTurn(str(turns[0]["content"]), _first_answer(turns[1:], where), system)


def _first_answer(turns: Sequence[Mapping[str, str | None]], where: str) -> str | None:
    """Return the first assistant text before the next user message; tool calls before it have no text."""
    own = list(itertools.takewhile(lambda turn: turn["role"] != "user", turns))
    said = [turn["content"] for turn in own if turn["role"] == "assistant"]
    if len(own) < len(turns) and not said:
        raise DatasetError(
            "the conversation has a second user message before any response.",
            where=where,
            hint="Merge such messages, or remove these rows first, e.g., with ds.filter(…).",
        )
    return next((text for text in said if text), said[0] if said else None)
