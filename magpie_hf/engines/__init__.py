"""Engines: one file an engine, and one line here."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import ArgumentError, DependencyError, did_you_mean
from .base import Engine


ENGINES = {
    "transformers": "magpie_hf.engines.hf:TransformersEngine",
    "vllm": "magpie_hf.engines.vllm:VllmEngine",
    "tgi": "magpie_hf.engines.tgi:TgiEngine",
    "openai": "magpie_hf.engines.openai:OpenAIEngine",
}
ENDPOINT_ENGINES = ("tgi", "openai")


def engine_class(kind: str) -> type[Engine]:
    """Return the class of an engine by its name in recipes; imports no model library.

    Raises:
        ArgumentError: there is no such engine; names the nearest.
    """
    if kind not in ENGINES:
        raise ArgumentError(f'There is no engine "{kind}".', hint=did_you_mean(kind, ENGINES), key="engine")
    module, _, attribute = ENGINES[kind].partition(":")
    found: type[Engine] = getattr(importlib.import_module(module), attribute)
    return found


def engine_options(kind: str) -> set[str]:
    """Return the names of an engine's settings."""
    parameters = inspect.signature(engine_class(kind)).parameters
    return {
        name for name in parameters if name not in ("self", "model", "ref", "revision", "endpoints", "token_texts")
    }


def check_installed(kind: str, options: Mapping[str, Any]) -> None:
    """Raise for what an engine under these settings needs and this machine lacks; imports no model library.

    Raises:
        DependencyError: a package is missing.
        ArgumentError: the environment variable that holds an endpoint's key is not set.
    """
    if kind == "vllm" and importlib.util.find_spec("vllm") is None:
        raise DependencyError(
            "The engine vllm needs vLLM.", hint='pip install "magpie_hf[vllm]" (or use the engine transformers)'
        )
    quantization = options.get("quantization")
    if kind == "transformers" and quantization and importlib.util.find_spec("bitsandbytes") is None:
        raise DependencyError(f"quantization = {quantization!r} needs bitsandbytes.", hint="pip install bitsandbytes")
    if kind in ENDPOINT_ENGINES:
        from .servers import read_key

        read_key(options.get("api_key_env"))
