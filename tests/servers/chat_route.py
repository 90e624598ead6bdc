"""The chat route of the tests' completions server: the model's template, and the forms of the real servers' replies.

The forms are held to `recordings/NAME.chat.json`. Under a JSON schema, a reply that has the schema's keys by itself stays as
it is; any other becomes that of a weak model (see `dialects.constrained`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from .dialects import BadRequest, Dialect


HIGHEST_TEMPERATURE = 2.0
_EMPTY_MESSAGE = ("refusal", "annotations", "audio", "function_call", "reasoning")
_CHAT_FIELDS = {"messages", "max_completion_tokens", "response_format", "chat_template_kwargs"}


class ChatForm:
    """How a dialect reads chat requests, and what its replies look like."""

    def __init__(self, dialect: Dialect, model_dir: str | Path) -> None:
        self.dialect = dialect
        config = json.loads((Path(model_dir) / "tokenizer_config.json").read_text("utf-8"))
        # The prompt is encoded with a BOS, as on the completions route.
        template = config.get("chat_template") or "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        self._template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)

    def read(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the request to `/v1/completions` with the rendered prompt. Raises BadRequest."""
        messages = given.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRequest("Cannot apply chat template to an empty conversation. Provide at least one message.")
        if self.dialect.name == "vllm" and (given.get("temperature") or 0) > HIGHEST_TEMPERATURE:
            raise BadRequest("temperature must be in [0, 2]. (parameter=temperature)", param="temperature")
        most = given.get("max_tokens") or given.get("max_completion_tokens")
        own = {name: value for name, value in given.items() if name not in _CHAT_FIELDS}
        prompt = self._template.render(messages=messages, bos_token="", add_generation_prompt=True)
        return own | {"prompt": prompt, "max_tokens": most}

    def schema(self, given: dict[str, Any]) -> dict[str, Any] | None:
        """Return the JSON schema of a request, if the server supports it; `transformers serve` ignores the field."""
        asked = given.get("response_format")
        return asked["json_schema"]["schema"] if asked and self.dialect.name != "transformers" else None

    def reply(self, whole: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a chat request, given that of the completions route."""
        choices = [self._choice(choice) for choice in whole["choices"]]
        more = {}
        if self.dialect.name == "vllm":
            more = dict.fromkeys(("prompt_logprobs", "prompt_token_ids", "prompt_text"))
        return whole | {"object": "chat.completion", "choices": choices} | more

    def _choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice["text"]}
        if self.dialect.name != "vllm":
            return {"finish_reason": choice["finish_reason"], "index": choice["index"], "message": message}
        left_out = ("text", "prompt_logprobs", "prompt_token_ids")
        rest = {name: value for name, value in choice.items() if name not in left_out}
        return rest | {"message": message | dict.fromkeys(_EMPTY_MESSAGE)}


def satisfies(text: str, schema: dict[str, Any]) -> bool:
    """Return whether a text is a JSON object that has the keys which the schema requires."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and {*schema.get("required", ())} <= value.keys() and "required" in schema
