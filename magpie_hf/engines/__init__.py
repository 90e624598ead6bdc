"""Engines: one file an engine, and one line here."""

from __future__ import annotations

import importlib
import inspect

from ..errors import ArgumentError, did_you_mean
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
