"""Checks of a server's URL, API key and model name, and the meaning of its error messages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from ...backoff import NOT_READY
from ...errors import ArgumentError, EngineError, quoted
from ...models import ModelRef
from .untrusted import JsonObject
from .wire import Reply


_TOO_LONG = re.compile(
    r"context (length|size|window)|max_model_len|max_total_tokens|`inputs` (tokens|must have)|too long|"
    r"longer than the (model|max)|max_tokens must be at least 1, got -",
    re.IGNORECASE,
)


# "Field 'n': Value must be between…" (llama.cpp), "n must be at most…" (vLLM), "body.n: Input should be…" (pydantic).
_ABOUT_N = re.compile(
    r"['\"`](n|n_cmpl|best_of)['\"`]|\bbody\.(n|best_of)\b|\b(n|n_cmpl|best_of)\s*(=|>|<|must|should|cannot|exceeds|is\b)|"
    r"\bnumber of (choices|completions|samples|sequences)\b",
)


MAX_ERROR = 10_000  # characters of a message that are read
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_KEY_STARTS = ("hf_", "sk_")  # of keys: one that was given in place of a name is not shown
_CACHE_DIR = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


def is_starting(reply: Reply) -> bool:
    """Whether the server may still be starting: no connection, or a proxy replies in its place."""
    return (reply.fault is not None and reply.fault.error is None and reply.status == 0) or reply.status in NOT_READY


def read_key(name: str | None) -> str:
    """Return the key in the environment variable `name`, "" for None; HF_TOKEN also stands for the login of `hf auth login`.

    Raises ArgumentError; never shows the key.
    """
    if name is None:
        return ""
    if not _VARIABLE.fullmatch(name) or name.startswith(_KEY_STARTS):
        raise ArgumentError(
            "The value of api_key_env is not the name of an environment variable.",
            hint="Put the key in a variable, and give the name of the variable, e.g., --api-key-env OPENAI_API_KEY.",
            key="api_key_env",
        )
    key = os.environ.get(name, "").strip() or (_login() if name == "HF_TOKEN" else "")
    if not key:
        raise ArgumentError(
            f"The environment variable {quoted(name)}, named by api_key_env, is not set or empty.",
            hint=f"export {name}=…, or remove api_key_env if the endpoint requires no key.",
            key="api_key_env",
        )
    if not key.isascii() or not key.isprintable():
        raise ArgumentError(
            f"The environment variable {quoted(name)} contains invalid characters for a key.", key="api_key_env"
        )
    return key


def _login() -> str:
    from huggingface_hub import get_token

    return (get_token() or "").strip()


def normal_address(address: str, suffixes: Sequence[str] = ()) -> str:
    """Return an endpoint's URL as scheme, host, port and path, without the paths that the engine adds."""
    given = address.strip()
    if "://" not in given:
        given = "http://" + given
    try:
        parts = urlsplit(given)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        shown = quoted(address.rpartition("@")[2])
        raise ArgumentError(f"Invalid endpoint URL {shown}.", hint="Use a URL such as http://localhost:8080.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ArgumentError(
            f"The endpoint URL with the host {quoted(host)} contains a user, a password or a query.",
            hint="Put keys in an environment variable, and its name in api_key_env.",
        )
    path = parts.path.rstrip("/")
    for suffix in suffixes:
        path = path.removesuffix(suffix)
    shown_host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown_host}{f':{port}' if port else ''}{path}"


def names_match(ref: ModelRef, served: str) -> bool:
    """Whether a server's model name can be the requested model: by Hub id, or by the last part of a directory."""
    asked = {ref.name.casefold(), ref.source.casefold().rstrip("/")}
    name = served.strip().rstrip("/").casefold()
    cached = _CACHE_DIR.search(name)
    if cached:
        name = f"{cached[1]}/{cached[2]}"
    name = name.partition("@")[0].removesuffix(".gguf")
    if name in asked:
        return True
    if _HUB_ID.fullmatch(name) and _HUB_ID.fullmatch(ref.name):
        return False
    return name.rpartition("/")[2] in {a.rpartition("/")[2] for a in asked}


def listed_models(given: object) -> list[JsonObject] | None:
    """Return the entries with an id of a list of models, as in `/v1/models`; None if it is not a list."""
    if not isinstance(given, list):
        return None
    return [model for model in given if isinstance(model, dict) and isinstance(model.get("id"), str)]


def named_entry(ref: ModelRef, models: Iterable[JsonObject]) -> JsonObject | None:
    """Return the first entry of a list of models whose `id` or `root` can be the requested model."""
    for model in models:
        if any(isinstance(name, str) and names_match(ref, name) for name in (model["id"], model.get("root"))):
            return model
    return None


def is_commit(revision: str | None) -> bool:
    """Whether a revision is the full hash of a commit."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def error_text(payload: object) -> str:
    """Return the message of an error body: TGI's `error`, OpenAI's `error.message`, FastAPI's `detail`."""
    if isinstance(payload, str):
        return payload[:MAX_ERROR]
    if not isinstance(payload, dict):
        return ""
    for name in ("error", "message", "detail"):
        value = payload.get(name)
        if isinstance(value, str):
            return value[:MAX_ERROR]
        if isinstance(value, dict):
            return error_text(value)
        if isinstance(value, list):
            return "; ".join(_detail(item) for item in value[:10])[:MAX_ERROR]
    return ""


def _detail(item: object) -> str:
    if not isinstance(item, dict):
        return ""
    loc, said = item.get("loc"), item.get("msg")
    where = ".".join(str(part)[:40] for part in (loc if isinstance(loc, list) else ()) if isinstance(part, str | int))
    return f"{where}: {said if isinstance(said, str) else ''}"


def is_too_long(message: str) -> bool:
    """Whether an error message says that prompt and new tokens do not fit the context."""
    return _TOO_LONG.search(message) is not None


def is_about_n(message: str) -> bool:
    """Whether an error message says that a request has too many samples (`n`)."""
    return _ABOUT_N.search(message) is not None


def redirected(address: str, reply: Reply) -> EngineError:
    """Return the error for a server that redirects."""
    try:
        parts = urlsplit(str(reply.headers.get("Location", "")))
    except ValueError:
        parts = urlsplit("")
    target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "another path"
    return EngineError(
        f"{address} redirects to {quoted(target)}; redirects are not followed, because they would receive the key.",
        hint="Use the final URL.",
    )
