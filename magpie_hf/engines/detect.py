"""What kind of server answers at an address: TGI, or one with OpenAI's completions (vLLM, SGLang, llama.cpp)."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any

from ..errors import EngineUnavailableError


TIMEOUT_S = 10.0


def server_kind(endpoint: str, api_key_env: str | None = None) -> str:
    """Return the engine for a server: "tgi" or "openai".

    The key, if there is one, comes from the environment variable named and goes to this address only.

    Raises:
        EngineUnavailableError: nothing answers, or nothing that is known here.
    """
    if not endpoint.startswith(("http://", "https://")):
        return "tgi"  # the recipe's check names what is wrong with it
    base = endpoint.rstrip("/")
    info, trouble = _get(f"{base}/info", api_key_env)
    if isinstance(info, dict) and "model_id" in info:
        return "tgi"
    root = base.removesuffix("/v1")
    models, trouble = _get(f"{root}/v1/models", api_key_env)
    if isinstance(models, dict) and "data" in models:
        return "openai"
    raise EngineUnavailableError(
        f"No server that is known here answers ({trouble or 'neither TGI nor OpenAI completions'}).",
        where=endpoint,
        hint="Check the address, or name the engine: --engine tgi or --engine openai.",
    )


def _get(url: str, api_key_env: str | None) -> tuple[Any, str]:
    headers = {"Accept": "application/json"}
    key = os.environ.get(api_key_env) if api_key_env else None
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (http and https only, checked above)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            return json.loads(response.read(1 << 20)), ""
    except urllib.error.HTTPError as error:
        return None, f"status {error.code}"
    except (OSError, ValueError) as error:
        return None, str(getattr(error, "reason", error))
