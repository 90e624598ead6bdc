"""The two prompts that are no rubrics: a guard's, for models without a guard's own chat template, and a base model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .rubric import read_prompt


_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}


def hazard_codes() -> dict[str, str]:
    """Return the hazard codes S1 to S14 and their names (MLCommons taxonomy, as Llama Guard 2 and 3 use it)."""
    codes: dict[str, str] = read_prompt("guard")["codes"]
    return codes


def guard_prompt(messages: Sequence[Mapping[str, str]]) -> str:
    """Return the user message that asks a chat model whether a conversation's last message is safe."""
    codes = "\n".join(f"{code}: {name}" for code, name in hazard_codes().items())
    conversation = "\n\n".join(f"{_SPEAKERS.get(m['role'], m['role'])}: {m['content']}" for m in messages)
    head, _, tail = str(read_prompt("guard")["prompt"]).partition("{conversation}")
    return head.replace("{codes}", codes) + conversation + tail


def urial_prompt(instruction: str) -> str:
    """Return the plain text under which a base model answers an instruction; it goes on behind the opened fence."""
    head, _, tail = str(read_prompt("urial")["prompt"]).partition("{instruction}")
    return head + instruction + tail.rstrip("\n") + "\n"


def urial_stops() -> tuple[str, ...]:
    """Return the texts that end a base model's answer."""
    return tuple(read_prompt("urial")["stop"])
