"""Reading the untrusted replies of `/v1/chat/completions`: text, reasoning, refusals, and why a text ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .untrusted import Json, JsonObject
from .wire import Fault, Reply


STOPPED = frozenset({"stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete"})
LENGTH = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})  # the last one is Mistral's
FILTERED = frozenset({"content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii"})
"""The API withheld the text, or cut it. The last ones are those of Gemini."""
CALLS = frozenset({"tool_calls", "function_call"})
# Names of the field with the reasoning: of DeepSeek, SGLang and llama.cpp; of vLLM, OpenRouter and gpt-oss.
_REASONING = ("reasoning_content", "reasoning")
_THINKING_PARTS = ("thinking", "reasoning")
# Not the others: the router itself is available, although a provider is not.
_FORWARDED = (400, 401, 402, 403, 413, 422, 429)
# Another attempt may give a text; a model that calls tools at every attempt must not be sampled forever.
NO_TEXT_RETRIES = 2


class Message(NamedTuple):
    """The message of a reply. `text`: None if the reply has none. `refusal`: whether the model refused."""

    text: str | None
    reasoning: str | None
    refusal: bool
    finish_reason: str


def first_choice(reply: Reply) -> JsonObject | None:
    """Return the first choice of a reply, None if it has no choice with a message."""
    choices = reply.payload.get("choices") if isinstance(reply.payload, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) and isinstance(choice.get("message"), dict) else None


def read_message(choice: JsonObject) -> Message:
    """Return the message of a choice: content as a text or a list of parts, reasoning in its own field or part."""
    message = choice["message"]
    text, thought = _content(message.get("content"))
    given = next((found for name in _REASONING if isinstance(found := message.get(name), str) and found), None)
    refusal = message.get("refusal")
    finish = choice.get("finish_reason")
    return Message(
        text,
        (given or thought or "").strip() or None,
        text is None and isinstance(refusal, str) and bool(refusal),
        finish.partition(":")[0].lower() if isinstance(finish, str) else "",
    )


def _content(content: Json) -> tuple[str | None, str | None]:
    """Return text and reasoning of a message's content; (None, None) if it is null."""
    if not isinstance(content, list):
        return (content if isinstance(content, str) else None), None
    texts = [_part_text(part) for part in content if _kind(part) not in _THINKING_PARTS]
    thoughts = [_part_text(part) for part in content if _kind(part) in _THINKING_PARTS]
    return "".join(texts) if texts else None, "".join(thoughts) or None


def _kind(part: Json) -> object:
    return part.get("type") if isinstance(part, dict) else None


def _part_text(part: Json) -> str:
    """Return the text of a part; the parts of Mistral's reasoning contain lists of parts."""
    if isinstance(part, str):
        return part
    for name in ("text", "thinking", "reasoning"):
        inner = part.get(name) if isinstance(part, dict) else None
        if isinstance(inner, list):
            return "".join(map(_part_text, inner))
        if isinstance(inner, str):
            return inner
    return ""


def fault_in(reply: Reply) -> Fault | None:
    """Return the fault in a reply of status 200, None if it can be decoded."""
    choice = first_choice(reply)
    if choice is None:
        return Fault("transient", "bad_reply", "the reply has no choice with a message")
    message = read_message(choice)
    if message.refusal or message.finish_reason in FILTERED or message.finish_reason == "refusal":
        return None
    if message.finish_reason not in STOPPED | LENGTH | CALLS:
        return Fault("transient", "aborted", f"finish_reason {message.finish_reason[:40]!r}")
    is_empty = message.text is None and message.reasoning is None and message.finish_reason not in LENGTH
    if is_empty or (message.finish_reason in CALLS and not message.text):
        what = "a tool call" if message.finish_reason in CALLS else "null"
        return Fault(
            "transient", "no_text", f"the reply has no text but {what}", retries=NO_TEXT_RETRIES, ends_row=True
        )
    return None


def with_own_status(reply: Reply) -> Reply:
    """Return a reply with the status that its error contains, if it has status 200: routers forward errors so."""
    error = reply.payload.get("error") if isinstance(reply.payload, dict) else None
    status = error.get("code") if isinstance(error, dict) else None
    if reply.status != 200 or first_choice(reply) is not None or status not in _FORWARDED:
        return reply
    return reply._replace(status=status)


def is_flagged(payload: Json) -> bool:
    """Whether an error says that the API's moderation flagged the prompt (OpenRouter's form), not that the key is refused."""
    error = payload.get("error") if isinstance(payload, dict) else None
    details = error.get("metadata") if isinstance(error, dict) else None
    return isinstance(details, dict) and ("flagged_input" in details or "reasons" in details)


def stop_reason(choice: JsonObject, stops: Sequence[str]) -> str:
    """Return "stop" or "stop_text". Without the server's stop reason, a stop text counts as the end if there is one."""
    for name in ("stop_reason", "matched_stop"):
        if name in choice:
            return "stop_text" if choice[name] in stops else "stop"
    return "stop_text" if stops else "stop"


def error_field(payload: Json, name: str) -> str:
    """Return a field of an error body in OpenAI's form (`param`, `code`, `type`), "" without one."""
    error = payload.get("error") if isinstance(payload, dict) else None
    value = error.get(name) if isinstance(error, dict) else None
    return value if isinstance(value, str) else ""
