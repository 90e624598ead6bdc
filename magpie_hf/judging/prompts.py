"""Prompts that are not rubrics: for a guard without a chat template of its own, and for base models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .rubric import read_prompt


_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}


def hazard_codes() -> dict[str, str]:
    """Return the hazard codes S1 to S14 and their names (MLCommons taxonomy, used by Llama Guard 2 and 3)."""
    codes: dict[str, str] = read_prompt("guard")["codes"]
    return codes


def guard_prompt(messages: Sequence[Mapping[str, str]]) -> str:
    """Return the user message that asks a chat model whether the last message of a conversation is safe."""
    codes = "\n".join(f"{code}: {name}" for code, name in hazard_codes().items())
    conversation = "\n\n".join(f"{_SPEAKERS.get(m['role'], m['role'])}: {m['content']}" for m in messages)
    head, _, tail = str(read_prompt("guard")["prompt"]).partition("{conversation}")
    return head.replace("{codes}", codes) + conversation + tail


def urial_prompt(instruction: str) -> str:
    """Return the prompt with which a base model responds to an instruction; it ends with an opened fence."""
    head, _, tail = str(read_prompt("urial")["prompt"]).partition("{instruction}")
    return head + instruction + tail.rstrip("\n") + "\n"


def urial_stops() -> tuple[str, ...]:
    """Return the stop strings of a base model's response."""
    return tuple(read_prompt("urial")["stop"])
