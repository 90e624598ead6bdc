"""How vLLM, llama.cpp and `transformers serve` differ behind `/v1/completions`, as recorded in `recordings/`.

A dialect reads a request like its server (rejects, ignores and limits the same fields) and formats the reply like it. Tests
compare the formats with the recordings: the same keys, and values of the same types.
"""

from __future__ import annotations

import json
import uuid
from typing import Any


class BadRequest(Exception):
    """A request that the server rejects: with 400, 404 for an unknown model, or 422."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.more = more


class Dialect:
    """vLLM: all fields are supported, unknown ones are ignored, `usage` covers all choices."""

    name = "vllm"
    fingerprint: str | None = "vllm-0.32.0-3faf1696"
    owned_by = "vllm"
    most_n = 16384
    grammar_field = "response_format"
    shows_special = True
    keeps_stop = False
    checks_model = True

    def __init__(self, fingerprint: str | None = None, max_n: int | None = None) -> None:
        self.fingerprint = fingerprint or self.fingerprint
        self.most_n = max_n or self.most_n

    def read(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the request as the server reads it. Raises BadRequest if the server rejects it."""
        n = given.get("n", 1)
        if n < 1:
            raise BadRequest(f"n must be at least 1, got {n}.")
        if n > self.most_n:
            hint = "To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable."
            raise BadRequest(f"n must be at most {self.most_n}, got {n}. {hint}")
        if n > 1 and given.get("temperature") == 0:
            raise BadRequest(f"n must be 1 when using greedy sampling, got {n}.")
        return given

    def unknown_model(self, asked: str, served: str) -> dict[str, Any]:
        """Return message and status for a request that names another model."""
        return {"message": f"The model `{asked}` does not exist.", "status": 404, "param": "model"}

    def new_tokens(self, num_prompt: int, asked: int | None, limit: int) -> int:
        """Return the maximum number of new tokens. Raises BadRequest if the prompt leaves none."""
        if num_prompt + (asked or 1) > limit:
            raise BadRequest(
                f"This model's maximum context length is {limit} tokens. However, you requested {asked} output "
                f"tokens and your prompt contains at least {num_prompt} input tokens.",
                param="input_tokens",
            )
        return asked or limit - num_prompt

    def schema(self, given: dict[str, Any]) -> dict[str, Any] | None:
        """Return the JSON schema of a request, if it is in a field that this server supports."""
        asked = given.get(self.grammar_field)
        return asked["json_schema"]["schema"] if asked and self.grammar_field == "response_format" else asked

    def error(self, bad: BadRequest) -> dict[str, Any]:
        """Return the body of an error reply."""
        kind = "NotFoundError" if bad.status == 404 else "BadRequestError"
        return {"error": {"message": str(bad), "type": kind, "param": bad.param, "code": bad.status}}

    def models(self, name: str, root: str, limit: int, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to `/v1/models`."""
        permission = {"id": "", "object": "model_permission", "created": 0, "organization": "*", "group": None}
        for what in ("create_engine", "sampling", "logprobs", "search_indices", "view", "fine_tuning"):
            permission[f"allow_{what}"] = what in ("sampling", "logprobs", "view")
        model = {"id": name, "object": "model", "created": 0, "owned_by": self.owned_by, "root": root, "parent": None}
        more = {"max_model_len": limit, "permission": [permission | {"is_blocking": False}]}
        return {"object": "list", "data": [model | more]}

    def choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return a complete choice in the format of the server."""
        ids = {name: choice.get(name) for name in ("token_ids", "prompt_token_ids")}
        return choice | ids | {"prompt_logprobs": None, "routed_experts": None}

    def reply(self, name: str, choices: list[dict[str, Any]], num_prompt: int, counts: list[int]) -> dict[str, Any]:
        """Return the whole reply; `counts`: new tokens of each choice."""
        details = {"prompt_tokens_details": None, "completion_tokens_details": None}
        nothing = dict.fromkeys(("service_tier", "kv_transfer_params", "ec_transfer_params", "metrics"))
        return _reply(name, [self.choice(c) for c in choices]) | {
            "system_fingerprint": self.fingerprint,
            "usage": _usage(num_prompt, sum(counts)) | details,
            **nothing,
        }


class LlamaCpp(Dialect):
    """llama.cpp's server: `n` up to its slots, `usage` of one choice, no special tokens in the text."""

    name = "llama.cpp"
    fingerprint = "b0-0c1e570"
    owned_by = "llamacpp"
    most_n = 4
    grammar_field = "json_schema"
    shows_special = False
    checks_model = False

    def read(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the request without the fields that the server does not support."""
        n = given.get("n", 1)
        if not 1 <= n <= self.most_n:
            raise BadRequest(f"Field 'n': Value must be between 1 <= value <= {self.most_n}, but got {n}")
        ignored = ("stop_token_ids", "repetition_penalty", "return_token_ids")
        return {name: value for name, value in given.items() if name not in ignored}

    def new_tokens(self, num_prompt: int, asked: int | None, limit: int) -> int:
        """Return the maximum number of new tokens: a text ends with the context."""
        if num_prompt >= limit:
            raise BadRequest(
                f"request ({num_prompt} tokens) exceeds the available context size ({limit} tokens), try increasing it",
                type="exceed_context_size_error",
                n_prompt_tokens=num_prompt,
                n_ctx=limit,
            )
        return min(asked or limit, limit - num_prompt)

    def error(self, bad: BadRequest) -> dict[str, Any]:
        """Return the body of an error reply."""
        return {"error": {"code": bad.status, "message": str(bad), "type": "invalid_request_error"} | bad.more}

    def models(self, name: str, root: str, limit: int, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to `/v1/models`, which also has the fields of Ollama."""
        meta = {"n_ctx": limit, "n_ctx_train": limit, "vocab_type": 2, "ftype": "all F32"} | facts
        entry = {"id": name, "aliases": [name], "tags": [], "object": "model", "created": 0, "owned_by": self.owned_by}
        empty = dict.fromkeys(("modified_at", "size", "digest", "description", "parameters"), "")
        details = dict.fromkeys(("parent_model", "family", "parameter_size", "quantization_level"), "")
        theirs = {"name": name, "model": name, "type": "model", "tags": [""], "capabilities": ["completion"]}
        details |= {"format": "gguf", "families": [""]}
        return {"models": [theirs | empty | {"details": details}], "object": "list", "data": [entry | {"meta": meta}]}

    def choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return a choice without token ids and stop reason."""
        return {name: choice[name] for name in ("text", "index", "logprobs", "finish_reason")}

    def reply(self, name: str, choices: list[dict[str, Any]], num_prompt: int, counts: list[int]) -> dict[str, Any]:
        """Return the whole reply: `usage` and timings are those of one choice."""
        timings = dict.fromkeys(("cache_n", "prompt_n", "predicted_n"), 0) | {
            f"{what}_{unit}": 0.5 for what in ("prompt", "predicted") for unit in ("ms", "per_token_ms", "per_second")
        }
        return _reply(name, [self.choice(c) for c in choices]) | {
            "system_fingerprint": self.fingerprint,
            "usage": _usage(num_prompt, counts[0]) | {"prompt_tokens_details": {"cached_tokens": 0}},
            "timings": timings,
        }


class TransformersServe(Dialect):
    """`transformers serve`: text prompts, `n` ignored, unknown fields rejected; sampling only by `generation_config`."""

    name = "transformers"
    fingerprint = None
    grammar_field = "none"
    shows_special = False
    keeps_stop = True
    # What OpenAI's interface has.
    fields = frozenset(
        [
            "model",
            "prompt",
            "max_tokens",
            "temperature",
            "top_p",
            "n",
            "best_of",
            "echo",
            "logprobs",
            "seed",
            "stop",
            "stream",
            "suffix",
            "user",
            "logit_bias",
            "frequency_penalty",
            "presence_penalty",
            "stream_options",
            "generation_config",
        ]
    )

    def read(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the request with the values of its `generation_config`."""
        unknown = set(given) - self.fields
        if unknown:
            raise BadRequest(f"Unexpected fields in the request: {unknown}", status=422)
        if not isinstance(given.get("prompt"), str):
            raise BadRequest("prompt must be a string.")
        config = json.loads(given.get("generation_config") or "{}")
        read = {k: v for k, v in given.items() if k not in ("n", "generation_config")} | config
        if not config.get("do_sample"):
            read["temperature"] = 0
        if "eos_token_id" in config:
            read |= {"stop_token_ids": config["eos_token_id"], "ignore_eos": True}
        return read

    def unknown_model(self, asked: str, served: str) -> dict[str, Any]:
        """Return message and status for a request that names another model."""
        return {"message": f"Server is pinned to '{served}'; requested '{asked}'.", "status": 400}

    def new_tokens(self, num_prompt: int, asked: int | None, limit: int) -> int:
        """Return the maximum number of new tokens (the real server continues beyond the context)."""
        return max(1, min(asked or limit, limit - num_prompt))

    def error(self, bad: BadRequest) -> dict[str, Any]:
        """Return the body of an error reply."""
        return {"detail": str(bad)}

    def models(self, name: str, root: str, limit: int, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to `/v1/models`: the models in the Hub cache, not the served model."""
        return {"object": "list", "data": []}

    def choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return a choice of three fields."""
        return {name: choice[name] for name in ("finish_reason", "index", "text")}

    def reply(self, name: str, choices: list[dict[str, Any]], num_prompt: int, counts: list[int]) -> dict[str, Any]:
        """Return the whole reply."""
        whole = _reply(f"{name}@main", [self.choice(c) for c in choices])
        return whole | {"usage": _usage(num_prompt, sum(counts))}


DIALECTS: dict[str, type[Dialect]] = {d.name: d for d in (Dialect, LlamaCpp, TransformersServe)}


def constrained(schema: dict[str, Any]) -> str | None:
    """Return the text of a weak model under a schema; None: white space until `max_tokens`, where it is allowed."""
    return json.dumps(schema["enum"][0]) if "enum" in schema else None


def _reply(name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    made = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": 0, "model": name}
    return made | {"choices": choices}


def _usage(num_prompt: int, num_new: int) -> dict[str, Any]:
    return {"prompt_tokens": num_prompt, "completion_tokens": num_new, "total_tokens": num_prompt + num_new}
