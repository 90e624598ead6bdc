"""The built-in engines by name, and engines of other packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ..errors import ArgumentError, DependencyError, quoted
from ..plugins import find_class, types_of
from .base import Engine


ENGINES = {
    "transformers": "magpie_hf.engines.local.hf:TransformersEngine",
    "vllm": "magpie_hf.engines.local.vllm:VllmEngine",
    "tgi": "magpie_hf.engines.remote.tgi:TgiEngine",
    "openai": "magpie_hf.engines.remote.openai:OpenAIEngine",
    "chat": "magpie_hf.engines.remote.chat:ChatEngine",
}
_RESERVED = ("kind", "endpoint", "endpoints", "model", "revision", "ref", "token_texts")


def engine_class(kind: str) -> type[Engine]:
    """Return the class of an engine by its name in recipes, an entry point of `magpie_hf.engines`, or `module:Class`.

    Imports no model library.

    Raises:
        ArgumentError: the engine is unknown, or the class cannot be used.
    """
    found = find_class(kind, ENGINES, Engine, "engine")  # type: ignore[type-abstract]
    if not is_dataclass(found.settings_class):
        hint = "See docs/how-to/write-an-engine.md."
        raise ArgumentError(f"The settings_class of {quoted(kind)} is not a dataclass.", hint=hint, key="engine")
    taken = [field.name for field in fields(found.settings_class) if field.name in _RESERVED]
    if taken:
        hint = f"Rename it. Reserved names: {', '.join(_RESERVED)}."
        raise ArgumentError(
            f"A setting of the engine {quoted(kind)} has a reserved name: {quoted(taken[0])}.", hint=hint, key="engine"
        )
    return found


def takes_endpoints(kind: str) -> bool:
    """Return whether an engine sends its requests to servers, and so requires their URLs."""
    return engine_class(kind).takes_endpoints


def takes_messages(kind: str) -> bool:
    """Return whether an engine's server applies the chat template, so that raw prompts are not possible."""
    return engine_class(kind).takes_messages


def engine_options(kind: str) -> dict[str, Any]:
    """Return an engine's settings: the fields of its `settings_class` and their types."""
    settings_class = engine_class(kind).settings_class
    types = types_of(settings_class)
    return {field.name: types[field.name] for field in fields(settings_class)}


def check_installed(kind: str, options: Mapping[str, Any]) -> None:
    """Raise if a requirement of an engine with these settings is missing; imports no model library.

    Raises:
        DependencyError: a package is missing.
        ArgumentError: the environment variable with an endpoint's key is not set.
    """
    if kind == "vllm" and importlib.util.find_spec("vllm") is None:
        raise DependencyError(
            "The engine vllm requires vLLM.", hint='pip install "magpie_hf[vllm]" (or use the engine transformers)'
        )
    quantization = options.get("quantization")
    if kind == "transformers" and quantization and importlib.util.find_spec("bitsandbytes") is None:
        raise DependencyError(
            f"quantization = {quantization!r} requires bitsandbytes.", hint="pip install bitsandbytes"
        )
    if takes_endpoints(kind):
        from .remote.servers import read_key

        read_key(options.get("api_key_env"))
