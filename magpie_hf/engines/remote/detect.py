"""What kind of server answers at an address: TGI, or one with OpenAI's completions (vLLM, SGLang, llama.cpp)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import EngineUnavailableError
from .servers import normal_address
from .transport import Transport
from .wire import Reply


TIMEOUT_S = 10.0
_SUFFIXES = ("/generate_stream", "/generate", "/v1/completions", "/v1/chat/completions", "/v1")


def server_kind(endpoint: str, api_key_env: str | None = None) -> str:
    """Return the engine for a server: "tgi" or "openai".

    The key, if there is one, comes from the environment variable named and goes to this address only.

    Raises:
        ArgumentError: the address cannot be used.
        EngineUnavailableError: nothing answers, or nothing that is known here.
    """
    if not endpoint.startswith(("http://", "https://")):
        return "tgi"  # the recipe's check names what is wrong with it
    with _connected(normal_address(endpoint, _SUFFIXES), api_key_env) as transport:
        info = transport.ask(transport.endpoints[0], "GET", "/info", timeout_s=TIMEOUT_S)
        if isinstance(info.payload, dict) and "model_id" in info.payload:
            return "tgi"
        models = transport.ask(transport.endpoints[0], "GET", "/v1/models", timeout_s=TIMEOUT_S)
        if isinstance(models.payload, dict) and "data" in models.payload:
            return "openai"
    raise EngineUnavailableError(
        f"No known server answers ({_trouble(models) or 'neither TGI nor OpenAI completions'}).",
        where=endpoint,
        hint="Check the address, or name the engine: --engine tgi or --engine openai.",
    )


@contextmanager
def _connected(address: str, api_key_env: str | None) -> Iterator[Transport]:
    key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
    transport = Transport(
        [address],
        judge=lambda *_: None,
        recognise=lambda *_: None,
        probe_path="/info",
        headers={"Authorization": f"Bearer {key}"} if key else None,
        concurrency=1,
    )
    transport.start()
    try:
        yield transport
    finally:
        transport.close()


def _trouble(reply: Reply) -> str:
    if reply.fault is not None:
        return reply.fault.message
    return "" if reply.status == 200 else f"status {reply.status}"
