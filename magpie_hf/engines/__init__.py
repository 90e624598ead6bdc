"""Engines: one file an engine, and one line here."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import DependencyError
from ..plugins import find_class, types_of
from .base import Engine


ENGINES = {
    "transformers": "magpie_hf.engines.local.hf:TransformersEngine",
    "vllm": "magpie_hf.engines.local.vllm:VllmEngine",
    "tgi": "magpie_hf.engines.remote.tgi:TgiEngine",
    "openai": "magpie_hf.engines.remote.openai:OpenAIEngine",
}


def engine_class(kind: str) -> type[Engine]:
    """Return the class of an engine by its name in recipes, an entry point of `magpie_hf.engines`, or `module:Class`.

    Imports no model library.

    Raises:
        ArgumentError: there is no such engine (names the nearest), or the class cannot be used.
    """
    return find_class(kind, ENGINES, Engine, "engine")  # type: ignore[type-abstract]


def takes_endpoints(kind: str) -> bool:
    """Return whether an engine sends its requests to servers, whose addresses it has to be given."""
    return engine_class(kind).takes_endpoints


def engine_options(kind: str) -> dict[str, Any]:
    """Return an engine's settings: the arguments of its constructor by name, and their types."""
    given = ("self", "model", "ref", "revision", "endpoints", "token_texts")
    kind_ = engine_class(kind)
    types = types_of(kind_.__init__)
    return {name: types.get(name, Any) for name in inspect.signature(kind_).parameters if name not in given}


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
    if takes_endpoints(kind):
        from .remote.servers import read_key

        read_key(options.get("api_key_env"))
