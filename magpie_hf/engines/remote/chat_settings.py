"""Settings of the engine for chat APIs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ArgumentError, quoted
from ..base import setting
from .endpoints import EndpointSettings


_SECRET = re.compile(r"(api|access|secret)[-_]?(key|token)|password|authorization", re.IGNORECASE)
OMITTABLE = ("temperature", "top_p", "seed", "stop")
_OWN_FIELDS = (
    *("model", "messages", "n", "stream", "max_tokens", "max_completion_tokens", "response_format", "top_k"),
    *("repetition_penalty", "min_p", "generation_config", *OMITTABLE),
)


@dataclass(frozen=True, kw_only=True)
class ChatSettings(EndpointSettings):
    """Settings of the engine `chat`."""

    served_model_name: str | None = setting(
        None,
        "The model's name in requests, e.g., with a provider. Default: the name that the server lists.",
        silent=True,
    )
    api_path: str = setting(
        "/v1", 'Path of the API below the URL; "" if the URL contains the whole path.', silent=True
    )
    omit: tuple[str, ...] = setting(
        (),
        "Fields that are not sent because the model refuses them, so that its own defaults apply: temperature, top_p, "
        "seed, stop.",
    )
    extra_body: Mapping[str, Any] | None = setting(
        None, "Further fields of every request, e.g., {reasoning_effort: low}; not for keys or other secrets."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.omit if name not in OMITTABLE]
        if unknown:
            raise ArgumentError(
                f"omit = {quoted(unknown[0])} is invalid.", hint=f"Fields: {', '.join(OMITTABLE)}.", key="omit"
            )
        taken = [name for name in self.extra_body or {} if name in _OWN_FIELDS]
        if taken:
            raise ArgumentError(
                f"extra_body contains {quoted(taken[0])}, which the engine sets itself.",
                hint="Use the sampling settings of the stage, or omit.",
                key="extra_body",
            )
        secret = next((name for name in self.extra_body or {} if _SECRET.search(str(name))), None)
        if secret is not None:
            raise ArgumentError(
                f"extra_body contains {quoted(secret)}, but it is saved and published with the recipe.",
                hint="Put the key in an environment variable, and its name in api_key_env.",
                key="extra_body",
            )
        try:
            json.dumps(self.extra_body)
        except (TypeError, ValueError):
            raise ArgumentError("extra_body contains a value that is not JSON.", key="extra_body") from None
