"""What the command line sets in a recipe."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..errors import ArgumentError
from .show import confirmed


_PUSH_FLAGS = {
    "push_to": "repo", "config": "config", "private": "private", "gated": "gated", "push_revision": "revision",
    "create_pr": "create_pr", "license": "license", "no_state": "state",
    "patience": "patience_s",
}  # fmt: skip


def overrides_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe keys that --set and the other flags set, by dotted key."""
    found: dict[str, Any] = {}
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise ArgumentError(f"--set {text!r} has no value.", hint="Write --set KEY=VALUE.")
        found[key.strip()] = _value_of(value)
    named = {"model": "model", "num_rows": "num_rows", "engine": "engine.kind", "endpoint": "engine.endpoints"}
    named |= {"api_key_env": "engine.api_key_env"}
    for name, key in named.items():
        value = getattr(options, name, None)
        if value is not None:
            found[key] = value
    if getattr(options, "endpoint_from", None):
        found |= _named_endpoint(options)
    if found.get("engine.endpoints") and "engine.kind" not in found:
        from ..engines.remote.detect import server_kind

        key_env = found.get("engine.api_key_env")
        found = {"engine.kind": server_kind(found["engine.endpoints"][0], key_env), **found}
    return found | push_overrides(options)


def _value_of(text: str) -> Any:
    """Return what --set sets: a value in YAML, else the text; "A title for:" is a text, and a mapping begins with "{"."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, dict) and not text.lstrip().startswith("{") else value


def _named_endpoint(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of an Inference Endpoint; one that sleeps is woken only if that is wanted."""
    from ..hub.inference_endpoints import PRICES, endpoint_of, wakes

    name = options.endpoint_from
    if wakes(name) and not confirmed(
        [f"The endpoint {name} sleeps; awake it costs by the hour ({PRICES}). It is put to sleep again at the end."],
        options.yes,
    ):
        raise ArgumentError(f"The endpoint {name} sleeps.", hint="Nothing was started.")
    address = endpoint_of(name)
    if not os.environ.get(address.api_key_env):  # a login that lies in a file
        from huggingface_hub import get_token

        os.environ[address.api_key_env] = get_token() or ""
    options.endpoint_model = address.model
    return {
        # The server itself only knows where the model is mounted; whose it is, the Hub has said.
        "engine.allow_model_mismatch": True,
        "engine.kind": address.engine,
        "engine.endpoints": [address.url],
        "engine.api_key_env": address.api_key_env,
    }


def check_endpoint_model(options: argparse.Namespace, model: str) -> None:
    """Raise ArgumentError if the named endpoint serves another model than the one asked for."""
    served = getattr(options, "endpoint_model", None)
    if served is not None and served != model:
        raise ArgumentError(
            f"The endpoint {options.endpoint_from} serves {served}, and the model asked for is {model}.",
            hint=f"Add --model {served}, or name another endpoint.",
        )


def push_overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the flags set in a recipe's `push`."""
    found = {}
    for flag, key in _PUSH_FLAGS.items():
        value = getattr(options, flag, None)
        if value is not None:
            found[f"push.{key}"] = not value if flag == "no_state" else value
    if found and "push.repo" not in found and not getattr(options, "repo", None):
        sets = [text.partition("=")[0].strip() for text in getattr(options, "set", [])]
        if not any(key in ("push", "push.repo") for key in sets):
            flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in _PUSH_FLAGS if getattr(options, flag, None))
            raise ArgumentError(f"{flags} without --push-to says nothing.", hint="Add --push-to me/my-dataset.")
    return found
