"""Chat messages in the format of `datasets` and chat templates: {"role": "user", "content": "Hello"}."""

from __future__ import annotations


def message(role: str, text: str) -> dict[str, str]:
    """Return a message of any role."""
    return {"role": role, "content": text}


def user(text: str) -> dict[str, str]:
    """Return a message of the user."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    """Return a message of the assistant."""
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    """Return a system message."""
    return {"role": "system", "content": text}


def conversation(*turns: tuple[str | None, str | None], system_prompt: str | None = None) -> list[dict[str, str]]:
    """Return the messages of (user, assistant) turns, after a system message if one is given; None adds no message."""
    messages = [system(system_prompt)] if system_prompt is not None else []
    for question, answer in turns:
        messages += [user(question)] if question is not None else []
        messages += [assistant(answer)] if answer is not None else []
    return messages


def messages_feature() -> list[object]:
    """Return the `datasets` feature of a column of conversations."""
    from datasets import Value

    return [{"role": Value("string"), "content": Value("string")}]
