"""Detect the kind of server at an address: TGI, or a server with OpenAI's completions (vLLM, SGLang, llama.cpp)."""

from __future__ import annotations

import os

from ...errors import EngineUnavailableError
from .client import HttpClient
from .servers import normal_address
from .wire import Address, Question, Reply


TIMEOUT_S = 10.0
_SUFFIXES = ("/generate_stream", "/generate", "/v1/completions", "/v1/chat/completions", "/v1")


def server_kind(endpoint: str, api_key_env: str | None = None) -> str:
    """Return the engine for a server: "tgi" or "openai".

    The key, if there is one, is read from the environment variable `api_key_env` and sent to this address only.

    Raises:
        ArgumentError: the URL is invalid.
        EngineUnavailableError: no reply, or an unknown kind of server.
    """
    if not endpoint.startswith(("http://", "https://")):
        return "tgi"  # the check of the recipe reports the error in the URL
    server = Address(normal_address(endpoint, _SUFFIXES))
    key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
    with HttpClient(key=key, connections=1, timeout_s=TIMEOUT_S) as client:
        info = client.ask(Question(server, "GET", "/info"))
        if isinstance(info.payload, dict) and "model_id" in info.payload:
            return "tgi"
        models = client.ask(Question(server, "GET", "/v1/models"))
        if isinstance(models.payload, dict) and "data" in models.payload:
            return "openai"
    raise EngineUnavailableError(
        f"No supported server found ({_problem(models) or 'neither TGI nor OpenAI completions'}).",
        where=endpoint,
        hint="Check the URL, or select the engine: --engine tgi, openai, or chat (judge, guard and responder only).",
    )


def _problem(reply: Reply) -> str:
    if reply.fault is not None:
        return reply.fault.message
    return "" if reply.status == 200 else f"status {reply.status}"
