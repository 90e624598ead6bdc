"""TGI's parameter checks and errors, from the `text-generation` package if it is installed, else from huggingface_hub.

Results are the same with both. TGI's own limits are checked first, because the types of huggingface_hub only know the names
of the parameters.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any, NamedTuple

from ...errors import ArgumentError, quoted


class TgiClient(NamedTuple):
    """The installed client library's classes for TGI's protocol."""

    package: str
    parameters: type
    validation: type[Exception]
    generation: type[Exception]
    overloaded: type[Exception]
    incomplete: type[Exception]


@lru_cache(maxsize=1)
def tgi_client() -> TgiClient:
    """Return the classes of the installed client library."""
    if importlib.util.find_spec("text_generation") is not None:
        from text_generation import errors, types

        parameters = types.Parameters
        package = "text_generation"
    else:
        from huggingface_hub import TextGenerationInputGenerateParameters, errors

        parameters = TextGenerationInputGenerateParameters
        package = "huggingface_hub"
    return TgiClient(
        package,
        parameters,
        errors.ValidationError,
        errors.GenerationError,
        errors.OverloadedError,
        errors.IncompleteGenerationError,
    )


# Name, check and description of TGI's limits (router/src/validation.rs of TGI 3.3); all parameters are optional.
_LIMITS: tuple[tuple[str, Any, str], ...] = (
    ("temperature", lambda v: v > 0, "strictly positive"),
    ("top_p", lambda v: 0 < v < 1, "> 0.0 and < 1.0"),
    ("top_k", lambda v: v > 0, "strictly positive"),
    ("repetition_penalty", lambda v: v > 0, "strictly positive"),
    ("max_new_tokens", lambda v: v > 0, "strictly positive"),
    ("seed", lambda v: v >= 0, "positive"),
    ("grammar", lambda v: "properties" in v["value"], 'a JSON schema with "properties"'),
)


def check_parameters(parameters: dict[str, Any]) -> None:
    """Check the `parameters` of a request before it is sent. Raises ArgumentError with the parameter's name."""
    for name, is_good, wanted in _LIMITS:
        if name in parameters and not is_good(parameters[name]):
            raise ArgumentError(
                f"TGI: {name} = {quoted(parameters[name])} cannot be sent.", hint=f"It must be {wanted}.", key=name
            )
    client = tgi_client()
    known = getattr(client.parameters, "model_fields", None) or getattr(client.parameters, "__dataclass_fields__", {})
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ArgumentError(f"TGI: unknown parameter {quoted(unknown[0])}.", key=unknown[0])
    try:
        client.parameters(**parameters)
    except (client.validation, TypeError, ValueError) as error:
        raise ArgumentError(f"TGI: the parameters cannot be sent: {quoted(error)}.", key="sampling") from None


def tgi_error(payload: object) -> Exception | None:
    """Return the library's exception for a TGI error body (`error`, `error_type`), None for other bodies."""
    if not isinstance(payload, dict) or not isinstance(payload.get("error_type"), str):
        return None
    client = tgi_client()
    kinds: dict[str, type[Exception]] = {
        "validation": client.validation,
        "generation": client.generation,
        "overloaded": client.overloaded,
        "incomplete_generation": client.incomplete,
    }
    kind = kinds.get(payload["error_type"])
    return None if kind is None else kind(str(payload.get("error", "")))
