"""What a stage reads of a row: instruction and response (`over: pair`), or the whole conversation (`over: messages`)."""

from __future__ import annotations

from ..errors import ArgumentError, DatasetError, did_you_mean, quoted
from ..messages import message
from ..stage import Row
from ..storage.conversations import read_turns


PAIR, MESSAGES = "pair", "messages"
OVER = (PAIR, MESSAGES)


def check_over(over: str) -> None:
    """Raise ArgumentError if `over` is neither "pair" nor "messages"."""
    if over not in OVER:
        raise ArgumentError(f"over = {quoted(over)} is not one of {', '.join(OVER)}.", hint=did_you_mean(over, OVER))


def read_conversation(row: Row) -> list[dict[str, str]] | None:
    """Return the messages of a row in any common format; None if it has none, or if one has no text or no known role."""
    try:
        turns = read_turns(row[MESSAGES], MESSAGES)
    except DatasetError:
        return None
    messages = [message(str(turn["role"]), turn["content"]) for turn in turns if turn["content"] is not None]
    return messages if messages and len(messages) == len(turns) else None
