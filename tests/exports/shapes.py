"""Source rows of every shape: one turn, several turns, a system prompt, reasoning, tools, preference pairs."""

from __future__ import annotations

from datasets import Dataset


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


SINGLE = [turn("user", "What is 2 + 3?"), turn("assistant", "2 + 3 = 5.")]
SEVERAL = [*SINGLE, turn("user", "Add 1 to the result."), turn("assistant", "5 + 1 = 6")]
WITH_SYSTEM = [turn("system", "You are a pirate."), *SINGLE]
REASONING = "Two and three make five."
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "The time", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
WITH_TOOLS = [
    turn("user", "How is the weather in Rome?"),
    turn("assistant", "", tool_calls=[CALL]),
    turn("tool", "Sunny."),
    turn("assistant", "It is sunny."),
]
WORSE = [SINGLE[0], turn("assistant", "2 + 3 = 6.")]


def chats(*conversations, **columns):
    """Return conversations as a Dataset in the columns of a run."""
    given = [
        {"uuid": f"u{n}", "instruction": messages[0]["content"], "messages": messages}
        for n, messages in enumerate(conversations)
    ]
    return Dataset.from_list(
        [{**row, **{name: values[n] for name, values in columns.items()}} for n, row in enumerate(given)]
    )


def pairs(*sides):
    """Return pairs of whole conversations as a Dataset in the columns of a run."""
    return Dataset.from_list([{"messages": good, "chosen": good, "rejected": bad} for good, bad in sides])


def tool_rows():
    """Return rows with two tools each, as JSON text, one of them without arguments."""
    import json

    return Dataset.from_list(
        [{"messages": json.loads(json.dumps(WITH_TOOLS)), "tools": json.dumps([WEATHER, CLOCK])}],
        on_mixed_types="use_json",
    )
