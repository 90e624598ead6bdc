"""Convert command-line flags to recipe keys."""

from __future__ import annotations

import argparse
import os
from typing import TypeAlias

from ..errors import ArgumentError
from .show import confirmed


Overrides: TypeAlias = dict[str, object]
_FLAGS = {
    "model": "model", "num_rows": "num_rows", "engine.kind": "engine", "engine.endpoints": "endpoint",
    "engine.api_key_env": "api_key_env",
}  # fmt: skip
_PUSH_FLAGS = {
    "push_to": "repo", "config": "config", "private": "private", "gated": "gated", "push_revision": "revision",
    "create_pr": "create_pr", "license": "license", "no_state": "state",
    "retry_timeout": "retry_timeout_s",
}  # fmt: skip


def overrides_of(options: argparse.Namespace) -> Overrides:
    """Return the recipe keys that the flags set, by dotted key; other flags take precedence over --set."""
    found = settings_of(options)
    for key, flag in _FLAGS.items():
        value = getattr(options, flag, None)
        if value is not None:
            found[key] = value
    if getattr(options, "endpoint_from", None):
        found |= _named_endpoint(options)
    return _with_engine_kind(found) | push_overrides(options)


def names_of(text: str) -> list[str]:
    """Return comma-separated names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def settings_of(options: argparse.Namespace) -> Overrides:
    """Return the recipe keys that --set sets, by dotted key."""
    found: Overrides = {}
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise ArgumentError(f"--set {text!r} has no value.", hint="Write --set KEY=VALUE.")
        found[key.strip()] = _value_of(value)
    return found


def _with_engine_kind(found: Overrides) -> Overrides:
    """Add the kind of engine if only the URL of a server is given."""
    endpoints = found.get("engine.endpoints")
    if not endpoints or "engine.kind" in found:
        return found
    from ..engines.remote.detect import server_kind

    first = endpoints[0] if isinstance(endpoints, list) else endpoints
    key_env = found.get("engine.api_key_env")
    return {"engine.kind": server_kind(str(first), None if key_env is None else str(key_env)), **found}


def _value_of(text: str) -> object:
    """Parse the value of --set as YAML, else as text. Only a value that starts with "{" is a mapping ("A title: x" is text).

    A value that starts with "#" is text: to YAML it would be a comment, so null.
    """
    import yaml

    if text.lstrip().startswith("#"):
        return text
    try:
        value: object = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, dict) and not text.lstrip().startswith("{") else value


def _named_endpoint(options: argparse.Namespace) -> Overrides:
    """Return the settings of an Inference Endpoint. If it is scaled to zero, it is started only if the user agrees."""
    from ..hub.inference_endpoints import PRICES, endpoint_of, wakes

    name = options.endpoint_from
    if wakes(name) and not confirmed(
        [
            f"The endpoint {name} is scaled to zero. While it is running, it costs money by the hour ({PRICES}). It is "
            "scaled to zero again at the end."
        ],
        options.yes,
    ):
        raise ArgumentError(f"The endpoint {name} is scaled to zero, and was not started.")
    address = endpoint_of(name)
    if not os.environ.get(address.api_key_env):  # a login saved in a file
        from huggingface_hub import get_token

        os.environ[address.api_key_env] = get_token() or ""
    options.endpoint_model = address.model
    return {
        # The server reports the path of the model in its container; the Hub knows the name of the model.
        "engine.allow_model_mismatch": True,
        "engine.kind": address.engine,
        "engine.endpoints": [address.url],
        "engine.api_key_env": address.api_key_env,
    }


def check_endpoint_model(options: argparse.Namespace, model: str) -> None:
    """Raise ArgumentError if the endpoint serves another model than the requested one."""
    served = getattr(options, "endpoint_model", None)
    if served is not None and served != model:
        raise ArgumentError(
            f"The endpoint {options.endpoint_from} serves {served}, but the requested model is {model}.",
            hint=f"Add --model {served}, or use another endpoint.",
        )


def push_overrides(options: argparse.Namespace) -> Overrides:
    """Return the keys of a recipe's `push` that the flags set."""
    found: Overrides = {}
    for flag, key in _PUSH_FLAGS.items():
        value = getattr(options, flag, None)
        if value is not None:
            found[f"push.{key}"] = not value if flag == "no_state" else value
    if found and "push.repo" not in found and not getattr(options, "repo", None):
        sets = [text.partition("=")[0].strip() for text in getattr(options, "set", [])]
        if not any(key in ("push", "push.repo") for key in sets):
            flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in _PUSH_FLAGS if getattr(options, flag, None))
            raise ArgumentError(f"{flags} has no effect without --push-to.", hint="Add --push-to me/my-dataset.")
    return found
