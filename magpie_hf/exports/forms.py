"""The rows that each target reads, made from conversations and preference pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .reasoning import Form
from .rows import Chat, InvalidRow, Message, Pair, Reader, Row


SHAREGPT_ROLES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
"""Names of roles in ShareGPT data, which LLaMA-Factory reads by default."""
TOOL_CALL = "function_call"


@dataclass(frozen=True)
class Writer:
    """Makes the rows of a target from a source row: one, or several for `trl-kto`.

    `tools`: the target reads tools as a list, as JSON text, or not at all. `one_message`: `chosen` and `rejected` are one
    message each, not a list.
    """

    tools: ClassVar[Literal["list", "text"] | None] = "list"
    one_message: ClassVar[bool] = False
    reader: Reader
    form: Form

    def __call__(self, row: Row) -> list[Row]:
        """Return the rows of the target.

        Raises:
            InvalidRow: the row cannot be exported.
        """
        raise NotImplementedError

    def chat(self, row: Row) -> Chat:
        """Return the conversation of a row, with reasoning in the form of the target."""
        read = self.reader.chat(row)
        return Chat(self.form.put(read.messages), read.tools)

    def pair(self, row: Row) -> Pair:
        """Return the preference pair of a row, with reasoning in the form of the target."""
        read = self.reader.pair(row)
        put = self.form.put
        return Pair(put(read.prompt), put(read.chosen), put(read.rejected), read.tools)


class TrlSft(Writer):
    """`messages`, and `tools` if the rows have tools."""

    def __call__(self, row: Row) -> list[Row]:
        """Return one row."""
        messages, tools = self.chat(row)
        return [{"messages": messages, "tools": tools}]


class TrlPromptCompletion(Writer):
    """`prompt`: the conversation up to its last response; `completion`: this response. TRL trains on it alone."""

    def __call__(self, row: Row) -> list[Row]:
        """Return one row."""
        messages, tools = self.chat(row)
        return [{"prompt": messages[:-1], "completion": messages[-1:], "tools": tools}]


class TrlDpo(Writer):
    """`prompt`, `chosen` and `rejected`, each a list of messages: the explicit form, which TRL recommends."""

    def __call__(self, row: Row) -> list[Row]:
        """Return one row."""
        prompt, chosen, rejected, tools = self.pair(row)
        return [{"prompt": prompt, "chosen": chosen, "rejected": rejected, "tools": tools}]


class TrlKto(Writer):
    """`prompt`, `completion` and `label`: a row with the better response, and one with the worse response."""

    def __call__(self, row: Row) -> list[Row]:
        """Return two rows."""
        prompt, chosen, rejected, tools = self.pair(row)
        sides = (chosen, True), (rejected, False)
        return [{"prompt": prompt, "completion": side, "label": label, "tools": tools} for side, label in sides]


class TrlReward(Writer):
    """`chosen` and `rejected`: whole conversations, from which TRL's reward trainer reads the prompt itself."""

    def __call__(self, row: Row) -> list[Row]:
        """Return one row."""
        prompt, chosen, rejected, tools = self.pair(row)
        return [{"chosen": prompt + chosen, "rejected": prompt + rejected, "tools": tools}]


class TrlGrpo(Writer):
    """`prompt`: the conversation up to its last response. `response`: this response, for reward functions; may be null."""

    def __call__(self, row: Row) -> list[Row]:
        """Return one row."""
        messages, tools = self.reader.prompted(row)
        response = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
        if not messages or messages[-1]["role"] not in ("user", "tool"):
            raise InvalidRow("no instruction")
        return [{"prompt": self.form.put(messages), "response": response, "tools": tools}]


class Axolotl(Writer):
    """`messages`, for `type: chat_template`."""

    tools = "text"

    def __call__(self, row: Row) -> list[Row]:
        """Return one row. Tools and the arguments of tool calls are JSON text, which axolotl parses."""
        messages, tools = self.chat(row)
        return [{"messages": with_text_arguments(messages), "tools": as_json(tools)}]


class AxolotlPreference(Writer):
    """`messages`: the prompt alone; `chosen` and `rejected`: one message each, for `type: chat_template.default`."""

    tools = None
    one_message = True

    def __call__(self, row: Row) -> list[Row]:
        """Return one row."""
        prompt, chosen, rejected, tools = self.pair(row)
        _refuse_tools([*prompt, *chosen, *rejected], tools)
        return [{"messages": prompt, "chosen": only(chosen), "rejected": only(rejected)}]


class LlamaFactory(Writer):
    """`messages` of {role, content} with alternating turns, and `tools` as JSON text."""

    tools = "text"

    def __call__(self, row: Row) -> list[Row]:
        """Return one row."""
        messages, tools = self.chat(row)
        turns = alternating(as_turns(messages), ends="assistant")
        return [{"messages": turns, "tools": as_json(tools)}]


class LlamaFactoryPreference(Writer):
    """`messages`: the prompt alone; `chosen` and `rejected`: one message each."""

    tools = "text"
    one_message = True

    def __call__(self, row: Row) -> list[Row]:
        """Return one row."""
        prompt, chosen, rejected, tools = self.pair(row)
        turns = alternating(as_turns(prompt), ends="user")
        sides = {"chosen": as_turns([only(chosen)])[0], "rejected": as_turns([only(rejected)])[0]}
        return [{"messages": turns, **sides, "tools": as_json(tools)}]


class ShareGpt(Writer):
    """`conversations` of {from, value}, with the roles human, gpt and system."""

    tools = "text"

    def __call__(self, row: Row) -> list[Row]:
        """Return one row."""
        messages, tools = self.chat(row)
        return [{"conversations": as_sharegpt(messages), "tools": as_json(tools)}]


class ShareGptPreference(Writer):
    """`conversations`: the prompt alone; `chosen` and `rejected`: one {from, value} each."""

    tools = "text"
    one_message = True

    def __call__(self, row: Row) -> list[Row]:
        """Return one row."""
        prompt, chosen, rejected, tools = self.pair(row)
        sides = {"chosen": as_sharegpt([only(chosen)])[0], "rejected": as_sharegpt([only(rejected)])[0]}
        return [{"conversations": as_sharegpt(prompt), **sides, "tools": as_json(tools)}]


class OpenAi(Writer):
    """`messages` and `tools`, as chat APIs take them."""

    def __call__(self, row: Row) -> list[Row]:
        """Return one row. The arguments of tool calls are JSON text, as chat APIs require."""
        messages, tools = self.chat(row)
        return [{"messages": with_text_arguments(messages), "tools": tools}]


class OpenAiPreference(Writer):
    """`input` with the prompt, `preferred_output` and `non_preferred_output`: preference fine-tuning of chat APIs."""

    tools = None

    def __call__(self, row: Row) -> list[Row]:
        """Return one row."""
        prompt, chosen, rejected, tools = self.pair(row)
        given: Message = {"messages": with_text_arguments(prompt), **({"tools": tools} if tools else {})}
        sides = with_text_arguments([only(chosen)]), with_text_arguments([only(rejected)])
        return [{"input": given, "preferred_output": sides[0], "non_preferred_output": sides[1]}]


def as_json(tools: list[Any] | None) -> str | None:
    """Return tools as JSON text."""
    return None if tools is None else json.dumps(tools, ensure_ascii=False)


def only(messages: Sequence[Message]) -> Message:
    """Return the only message of a response.

    Raises:
        InvalidRow: the response has several messages.
    """
    if len(messages) != 1:
        raise InvalidRow("response of several messages")
    return messages[0]


def with_text_arguments(messages: Sequence[Message]) -> list[Message]:
    """Return messages whose tool calls have their arguments as JSON text."""

    def call_of(call: Any) -> Any:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or isinstance(function.get("arguments"), str):
            return call
        text = json.dumps(function.get("arguments", {}), ensure_ascii=False)
        return {**call, "function": {**function, "arguments": text}}

    return [
        {**turn, "tool_calls": [call_of(call) for call in turn["tool_calls"]]} if "tool_calls" in turn else turn
        for turn in messages
    ]


def as_turns(messages: Sequence[Message]) -> list[Message]:
    """Return messages of {role, content} alone: a tool call is the JSON text of a message of the role `function_call`."""
    return [_with_call_text(message) for message in messages]


def _with_call_text(message: Message) -> Message:
    if "tool_calls" not in message:
        return {"role": message["role"], "content": message["content"]}
    if message["content"].strip():
        raise InvalidRow("text next to a tool call")
    calls = [call.get("function", call) for call in message["tool_calls"]]
    return {"role": TOOL_CALL, "content": json.dumps(calls, ensure_ascii=False)}


def alternating(turns: list[Message], ends: str) -> list[Message]:
    """Return the turns if they alternate between user and assistant after a system message; `ends`: the last role.

    Raises:
        InvalidRow: they do not, so LLaMA-Factory would skip the row.
    """
    sides = [
        "user" if turn["role"] in ("user", "tool") else turn["role"].replace(TOOL_CALL, "assistant") for turn in turns
    ]
    sides = sides[1:] if sides[:1] == ["system"] else sides
    expected = ["user" if at % 2 == 0 else "assistant" for at in range(len(sides))]
    if sides != expected or sides[-1:] != [ends]:
        raise InvalidRow("turns do not alternate")
    return turns


def as_sharegpt(messages: Sequence[Message]) -> list[Message]:
    """Return messages as turns of {from, value}."""
    turns = as_turns(messages)
    return [{"from": SHAREGPT_ROLES.get(turn["role"], turn["role"]), "value": turn["content"]} for turn in turns]


def _refuse_tools(messages: Sequence[Message], tools: list[Any] | None) -> None:
    if tools or any("tool_calls" in turn for turn in messages):
        raise InvalidRow("tools in a preference pair")
