"""Read the rows to export: conversations and preference pairs, with system prompt, reasoning and tools.

All formats are read into messages of {role, content}. The reasoning of an assistant message is in its key `reasoning`,
tool calls are in `tool_calls`, and the arguments of a call are a mapping. `forms` writes them as a target reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from ..errors import DatasetError
from ..messages import assistant, system, user
from ..storage.conversations import read_turns


Message: TypeAlias = dict[str, Any]
Row: TypeAlias = Mapping[str, Any]
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message that may contain its reasoning, in datasets and chat templates."""
SYSTEM_PROMPTS = ("messages", "column", "drop")
"""Where system messages come from: the conversation, else the column `system_prompt`, or nowhere."""
_TOOL_KEYS = ("tool_calls", "tool_call_id", "name")


class InvalidRow(ValueError):
    """A row that cannot be exported; its text is the reason, which is counted."""


class Chat(NamedTuple):
    """A conversation, and the JSON schemas of its tools (None without tools)."""

    messages: list[Message]
    tools: list[Any] | None


class Pair(NamedTuple):
    """A prompt, its better and its worse response, and the JSON schemas of its tools (None without tools)."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[Any] | None


@dataclass(frozen=True)
class Reader:
    """Reads rows.

    - `column`: the column of conversations; None: the columns `instruction` and `response`.
    - `system_prompt`: see `SYSTEM_PROMPTS`.
    - `reasoning`: whether the column `reasoning` contains the reasoning of the first response.
    """

    column: str | None
    system_prompt: str = "messages"
    reasoning: bool = False

    def chat(self, row: Row) -> Chat:
        """Return the conversation of a row, which ends with a response.

        Raises:
            InvalidRow: it does not.
        """
        read = self.prompted(row)
        if read.messages[-1]["role"] != "assistant":
            raise InvalidRow("no response")
        return read

    def prompted(self, row: Row) -> Chat:
        """Return the conversation of a row, which may end with any message but a tool's or the system's.

        Raises:
            InvalidRow: it has no user message, or a message without text.
        """
        messages = self._with_system(row, self._messages(row))
        if self.reasoning and _is_text(row.get("reasoning")):
            first = next((turn for turn in messages if turn["role"] == "assistant"), None)
            if first is not None:
                first.setdefault("reasoning", row["reasoning"])
        return Chat(checked(messages), tools_of(row))

    def pair(self, row: Row) -> Pair:
        """Return the preference pair of a row: its prompt is the column `prompt`, else the common beginning.

        Raises:
            InvalidRow: a side is null, both are equal, or they do not have the same prompt.
        """
        if not row["chosen"] or not row["rejected"]:
            raise InvalidRow("no preference")
        chosen, rejected = (_read(_as_turns(row[side], "assistant")) for side in ("chosen", "rejected"))
        prompt = _read(_as_turns(row["prompt"], "user")) if row.get("prompt") else []
        if not prompt or any(turn["role"] == "user" for turn in chosen):
            shared = _shared(chosen, rejected)
            prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        prompt = self._with_system(row, prompt)
        if not prompt or [turn["role"] for turn in (chosen[:1] + rejected[:1])] != ["assistant", "assistant"]:
            raise InvalidRow("equal responses" if chosen == rejected else "different prompts")
        checked([*prompt, *chosen])
        checked([*prompt, *rejected])
        if prompt[-1]["role"] not in ("user", "tool"):
            raise InvalidRow("no instruction")
        return Pair(prompt, chosen, rejected, tools_of(row))

    def _messages(self, row: Row) -> list[Message]:
        if self.column is not None:
            return _read(row[self.column])
        texts = row["instruction"], row["response"]
        return [make(text) for make, text in zip((user, assistant), texts, strict=True) if text is not None]

    def _with_system(self, row: Row, messages: list[Message]) -> list[Message]:
        """Return the messages with the system message that the setting asks for."""
        if self.system_prompt == "drop":
            return [turn for turn in messages if turn["role"] != "system"]
        has_one = any(turn["role"] == "system" for turn in messages)
        if self.system_prompt == "column" and row.get("system_prompt") and not has_one:
            return [system(row["system_prompt"]), *messages]
        return messages


def _as_turns(given: object, role: str) -> object:
    """Return a text or a single message as a conversation."""
    if isinstance(given, str):
        return [{"role": role, "content": given}]
    return [given] if isinstance(given, Mapping) and not isinstance(next(iter(given.values()), None), list) else given


def _read(given: object) -> list[Message]:
    """Return a conversation in any format as messages, with reasoning and tool calls.

    Raises:
        InvalidRow: the format is not recognized.
    """
    try:
        messages: list[Message] = [dict(turn) for turn in read_turns(given, "")]
    except DatasetError as error:
        raise InvalidRow("conversation not recognized") from error
    if isinstance(given, Sequence):
        for message, turn in zip(messages, given, strict=True):
            _add_parts(message, turn)
    return messages


def _add_parts(message: Message, turn: Mapping[str, Any]) -> None:
    """Add reasoning, tool calls and names of a turn to its message."""
    if "function_call" in (turn.get("role"), turn.get("from")):
        raise InvalidRow("tool call as text")
    reasoning = next((turn[key] for key in REASONING_KEYS if _is_text(turn.get(key))), None)
    if reasoning is not None and message["role"] == "assistant":
        message["reasoning"] = reasoning
    for key in _TOOL_KEYS:
        if turn.get(key):
            message[key] = without_nulls(turn[key])
    if "tool_calls" in message:
        message["tool_calls"] = [_with_arguments(call) for call in parsed(message["tool_calls"], "tool calls")]
        message["content"] = message["content"] or ""


def _is_text(given: object) -> bool:
    return isinstance(given, str) and bool(given.strip())


def _with_arguments(call: Any) -> Any:
    """Return a tool call whose arguments are a mapping: the chat APIs send them as JSON text, templates print mappings."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    return {**call, "function": {**function, "arguments": parsed(function["arguments"], "tool calls")}}


def tools_of(row: Row) -> list[Any] | None:
    """Return the tools of a row, a list or JSON text, without the nulls that Arrow adds to structs; None without tools.

    Raises:
        InvalidRow: they are not a list of JSON schemas.
    """
    tools = without_nulls(parsed(row.get("tools") or None, "tools"))
    if tools and not isinstance(tools, list):
        raise InvalidRow("invalid tools")
    return tools or None


def parsed(given: Any, what: str) -> Any:
    """Return JSON text as values; other values as they are.

    Raises:
        InvalidRow: the text is not JSON.
    """
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise InvalidRow(f"invalid {what}") from error


def without_nulls(given: Any) -> Any:
    """Return a value without the nulls in its mappings: Arrow adds every key of a column to each of its structs."""
    if isinstance(given, Mapping):
        return {key: without_nulls(value) for key, value in given.items() if value is not None}
    return [without_nulls(value) for value in given] if isinstance(given, list) else given


def checked(messages: list[Message]) -> list[Message]:
    """Return the messages of a conversation that trainers can read.

    Raises:
        InvalidRow: the conversation has no user message, or a message without text.
    """
    if not any(turn["role"] == "user" for turn in messages):
        raise InvalidRow("no instruction")
    for turn in messages:
        if not isinstance(turn["content"], str) or (not turn["content"].strip() and "tool_calls" not in turn):
            raise InvalidRow(
                "no response" if turn is messages[-1] and turn["role"] == "assistant" else "empty message"
            )
    return messages


def _shared(first: Sequence[Message], second: Sequence[Message]) -> int:
    """Return the number of messages that two conversations have in common at the beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))
