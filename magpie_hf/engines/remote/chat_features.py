"""Detecting what a server with `/v1/chat/completions` supports, with about eight small requests (more if it refuses some)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields

from ...errors import CapabilityError, EngineError
from ...sampling import SamplingParams
from .chat_replies import LENGTH, first_choice, read_message
from .openai_features import PROBE_SEED, generation_config, schema_fields
from .servers import error_text
from .wire import Reply


Ask = Callable[..., list[Reply]]

PROBE_TOKENS = 16
# Different seeds must give different texts, although aligned models have strong preferences.
PROBE_TEXT = "Write ten random words."
LIMITS = ("max_tokens", "max_completion_tokens")
"""Names of the limit of new tokens. OpenAI's reasoning models only accept the second one, older servers only the first."""
STANDARD: dict[str, object] = {"temperature": 0, "top_p": 1.0, "seed": PROBE_SEED, "stop": ["\n\n\n\n"]}
"""Fields of OpenAI's interface that some models or servers refuse."""
EXTRAS: dict[str, object] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Fields that OpenAI does not define, with values that disable them: otherwise, a server's defaults would apply."""
# The root is an object, because hosted APIs refuse any other schema.
_PROBE_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": ["yes", "no"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
)
_OUT_OF_TOKENS = "output limit was reached"


@dataclass(frozen=True, slots=True)
class ChatFeatures:
    """What a server accepts.

    Attributes:
        limit: The name of the field that limits new tokens.
        fields: The fields of STANDARD and EXTRAS that it accepts.
        config_field: Sampling parameters are sent as `generation_config` (`transformers serve`).
        schema: It constrains replies to a JSON schema (`response_format`).
        seeded: Equal seeds gave equal texts, and different ones different texts.
    """

    limit: str = LIMITS[0]
    fields: frozenset[str] = frozenset(STANDARD)
    config_field: bool = False
    schema: bool = False
    seeded: bool = False


class ChatTests:
    """Detects the features of one server.

    `ask` sends chat requests with the given fields, all at once; `refuse` returns the error for a server that refuses the
    simplest of them; `omitted`: fields that must not be sent.
    """

    def __init__(self, ask: Ask, refuse: Callable[[Reply], EngineError], omitted: Iterable[str] = ()) -> None:
        self._ask = ask
        self._refuse = refuse
        self._standard = {name: value for name, value in STANDARD.items() if name not in set(omitted)}

    def run(self) -> ChatFeatures:
        """Send the requests and return the features."""
        limit = self._limit()
        base = {limit: PROBE_TOKENS}
        whole, more, held = self._ask(
            base | self._standard,
            base | self._standard | EXTRAS,
            {limit: 4 * PROBE_TOKENS} | schema_fields("response_format", _PROBE_SCHEMA),
        )
        accepted = set(self._standard) if is_accepted(whole) else self._singly(base, self._standard)
        has_extras = is_accepted(more)
        accepted |= set(EXTRAS) if has_extras else self._singly(base, EXTRAS)
        config_field = not has_extras and self._takes_config(base)
        return ChatFeatures(
            limit,
            frozenset(accepted),
            config_field,
            keeps_schema(held),
            self._is_seeded(limit, accepted, config_field),
        )

    def _limit(self) -> str:
        """Return the name of the limit that the server accepts; raises the error of `refuse` if it accepts none."""
        first = self._ask({LIMITS[0]: PROBE_TOKENS})[0]
        if is_accepted(first):
            return LIMITS[0]
        if LIMITS[0] in error_text(first.payload) and is_accepted(self._ask({LIMITS[1]: PROBE_TOKENS})[0]):
            return LIMITS[1]
        raise self._refuse(first)

    def _singly(self, base: Mapping[str, object], given: Mapping[str, object]) -> set[str]:
        replies = self._ask(*({**base, name: value} for name, value in given.items()))
        return {name for name, reply in zip(given, replies, strict=True) if is_accepted(reply)}

    def _takes_config(self, base: Mapping[str, object]) -> bool:
        """Whether the server accepts a generation config and refuses unknown fields, i.e., ignores none."""
        config = json.dumps(generation_config(SamplingParams(temperature=0, max_tokens=PROBE_TOKENS)))
        unknown, configured = self._ask({**base, "unknown_field": 1}, {**base, "generation_config": config})
        return not is_accepted(unknown) and is_accepted(configured)

    def _is_seeded(self, limit: str, accepted: set[str], config_field: bool) -> bool:
        if "seed" not in accepted:
            return False
        fields: dict[str, object] = {limit: PROBE_TOKENS}
        if "temperature" in accepted:
            fields["temperature"] = 1.0
        if config_field:
            fields["generation_config"] = json.dumps(generation_config(SamplingParams(max_tokens=PROBE_TOKENS)))
        # At the same time, to detect servers that use one seed for all requests in a batch.
        a1, b1, a2, b2 = map(text_of, self._ask(*(fields | {"seed": PROBE_SEED + i} for i in (0, 1, 0, 1))))
        return a1 == a2 and b1 == b2 and a1 != b1


def is_accepted(reply: Reply) -> bool:
    """Whether the server accepts the fields of a request; also if a reasoning model needs more tokens for any text."""
    return reply.status == 200 or (reply.status == 400 and _OUT_OF_TOKENS in error_text(reply.payload))


def text_of(reply: Reply) -> str | None:
    """Return the text of a reply, None without one."""
    choice = first_choice(reply)
    return None if choice is None else read_message(choice).text


def keeps_schema(reply: Reply) -> bool:
    """Whether a reply matches the schema of the probe, or may be the beginning of a text that does.

    The probe's message does not ask for JSON. If a reasoning model's reply has no text yet, the schema was accepted.
    """
    choice = first_choice(reply)
    if reply.status != 200 or choice is None:
        return False
    message = read_message(choice)
    text = (message.text or "").strip()
    if message.finish_reason in LENGTH:
        return not text or (text.startswith("{") and (not text[1:].strip() or '"' in text[:80]))
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("answer") in ("yes", "no")


def common_features(found: Iterable[ChatFeatures]) -> ChatFeatures:
    """Return the features that all servers have. Raises CapabilityError if they require different fields."""
    several = list(found)
    if len({(f.limit, f.config_field) for f in several}) > 1:
        raise CapabilityError("The endpoints are different kinds of servers.", hint="Use one kind of server in a run.")
    shared = frozenset.intersection(*(f.fields for f in several))
    flags = {f.name: all(getattr(one, f.name) for one in several) for f in fields(ChatFeatures) if f.type == "bool"}
    return ChatFeatures(limit=several[0].limit, fields=shared, **flags)
