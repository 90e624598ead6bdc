"""Detecting the features of a server with `/v1/completions` by test requests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ...errors import CapabilityError, EngineError
from ...sampling import SamplingParams, schema_of
from .replies import choices_of, ids_of, text_of, texts_of, usage_of
from .servers import error_text
from .wire import Reply


Ask = Callable[..., list[Reply]]

MAX_STOP = 4  # OpenAI's limit; texts are cut at further stops here
PROBE_PROMPT = "Hello"
PROBE_TOKENS = 16
# The highest temperature of OpenAI's interface: two samples of 16 tokens that are equal at it have the same seed.
PROBE_TEMPERATURE = 2.0
PROBE_SEED = 11
# Number of special tokens to force, one per request: several, because tokens that end a text are never visible.
MAX_SPECIAL = 8
MAX_SIZES = 8


# Fields that OpenAI does not define, with values that disable them. They are sent with every request if the server accepts
# them: otherwise vLLM uses the model's generation config, and llama.cpp top_k 40 and min_p 0.05.
EXTRAS: dict[str, object] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "stop_token_ids": [],
    "skip_special_tokens": False,
    "return_token_ids": True,
}


@dataclass(frozen=True, slots=True)
class ServerFeatures:
    """The features of one server.

    Attributes:
        extras: The fields of EXTRAS that it accepts.
        config_field: Sampling parameters are sent as `generation_config` (`transformers serve`, which has no others).
        max_n: The largest accepted `n`, up to the one that was tested (1: `n` is not supported).
        usage_sums: With `n`, `completion_tokens` counts all choices (llama.cpp counts one).
        follows_seeds: Choice k of `n` is the sample of seed + k.
        samples: Different seeds gave different texts.
        returns_ids: The token ids of texts are returned.
        bans: `logit_bias` keeps a token out of a text.
        schema_field: The field for a JSON schema, "" if none is supported.
    """

    extras: frozenset[str] = frozenset()
    config_field: bool = False
    token_ids: bool = False
    max_n: int = 1
    usage_sums: bool = True
    follows_seeds: bool = False
    seeded: bool = False
    samples: bool = True
    stop_ids: bool = False
    returns_ids: bool = False
    bans: bool = False
    special_tokens: bool = True
    schema_field: str = ""


class FeatureTests:
    """Detects the features of one server with about fifteen small requests.

    `ask` sends completion requests with the given fields, all at once; `refuse` returns the error for a server that
    refuses the simplest of them; `most_n` is the largest useful `n`; `special` are special tokens of the model.
    """

    def __init__(
        self, ask: Ask, refuse: Callable[[Reply], EngineError], most_n: int, special: Mapping[int, str]
    ) -> None:
        self._ask = ask
        self._refuse = refuse
        self._most_n = most_n
        self._special = special

    def run(self) -> ServerFeatures:
        """Send the requests and return the features."""
        extras, config_field = self._fields()
        ids, *held = self._ask({"prompt": [1, 2, 3]}, *self._schema_questions())
        max_n, usage_sums = self._largest_n()
        base = self._base(config_field)
        # Sent at the same time, to detect servers that use one seed for all requests in a batch.
        a1, b1, a2, b2 = self._ask(*(base | {"seed": PROBE_SEED + i} for i in (0, 1, 0, 1)))
        children = self._ask(base | {"seed": PROBE_SEED, "n": 2})[0] if max_n > 1 else None
        a, b = text_of(a1), text_of(b1)
        returns_ids, stop_ids, bans = self._token_features(extras)
        return ServerFeatures(
            extras=extras,
            config_field=config_field,
            token_ids=ids.status == 200 and usage_of(ids, "prompt_tokens") == 3,
            max_n=max_n,
            usage_sums=usage_sums,
            follows_seeds=children is not None and texts_of(children) == [a, b],
            seeded=a == text_of(a2) and b == text_of(b2) and a != b and a is not None,
            samples=len({a, b, text_of(a2), text_of(b2)}) > 1,
            stop_ids=stop_ids,
            returns_ids=returns_ids,
            bans=bans,
            special_tokens=self._shows_special_tokens(extras),
            schema_field=next((f for f, r in zip(SCHEMA_FIELDS, held, strict=True) if _keeps_schema(text_of(r))), ""),
        )

    def _schema_questions(self) -> list[dict[str, object]]:
        greedy = {"max_tokens": PROBE_TOKENS, "temperature": 0}
        return [greedy | schema_fields(field, _PROBE_SCHEMA) for field in SCHEMA_FIELDS]

    def _largest_n(self) -> tuple[int, bool]:
        """Return the largest `n` that the server accepts, and whether `usage` then counts all choices."""
        if self._most_n == 1:
            return 1, True
        replies = self._ask(_samples(self._most_n))
        if replies[0].status != 200:
            replies = self._ask(*map(_samples, sizes_below(self._most_n, error_text(replies[0].payload))))
        best = max(replies, key=choices_of, default=Reply())
        found = max(1, min(choices_of(best), self._most_n))
        return found, (usage_of(best, "completion_tokens") or 0) >= found

    def _base(self, config_field: bool) -> dict[str, object]:
        base: dict[str, object] = {"max_tokens": PROBE_TOKENS, "temperature": PROBE_TEMPERATURE, "top_p": 1.0}
        if config_field:
            params = SamplingParams(temperature=PROBE_TEMPERATURE, max_tokens=PROBE_TOKENS)
            base["generation_config"] = json.dumps(generation_config(params))
        return base

    def _fields(self) -> tuple[frozenset[str], bool]:
        """Return the fields of EXTRAS that the server accepts, and whether it requires a `generation_config`."""
        plain, full = self._ask({"temperature": 0}, {"temperature": 0} | EXTRAS)
        if plain.status != 200:
            raise self._refuse(plain)
        if full.status == 200:
            return frozenset(EXTRAS), False
        config = json.dumps(generation_config(SamplingParams(temperature=0, max_tokens=1)))
        singles = [{"temperature": 0, name: value} for name, value in EXTRAS.items()]
        # A server that accepts a generation_config and refuses unknown fields: it ignores no field.
        *replies, unknown, configured = self._ask(*singles, {"unknown_field": 1}, {"generation_config": config})
        taken = frozenset(name for name, reply in zip(EXTRAS, replies, strict=True) if reply.status == 200)
        return taken, unknown.status != 200 and configured.status == 200

    def _token_features(self, extras: frozenset[str]) -> tuple[bool, bool, bool]:
        """Return whether token ids are returned, `stop_token_ids` end a text, and `logit_bias` bans a token."""
        greedy = {"temperature": 0, "max_tokens": PROBE_TOKENS, "return_token_ids": True}
        ids = ids_of(self._ask(greedy)[0]) if "return_token_ids" in extras else []
        if not ids:
            return False, False, False
        stop = {"stop_token_ids": [ids[0]]} if "stop_token_ids" in extras else {}
        stopped, barred = self._ask(greedy | stop, greedy | {"max_tokens": 1, "logit_bias": {str(ids[0]): -100}})
        ends = stopped.status == 200 and (usage_of(stopped, "completion_tokens") or 0) < max(len(ids), 2)
        return True, bool(stop) and ends, barred.status == 200 and ids_of(barred)[:1] not in ([], ids[:1])

    def _shows_special_tokens(self, extras: frozenset[str]) -> bool:
        """Whether token ids are returned, or a forced first special token is visible in the text."""
        forced = [{"logit_bias": {str(i): 100}} for i in list(self._special)[:MAX_SPECIAL]]
        fields = {"temperature": 0} | {name: EXTRAS[name] for name in extras}
        free, *replies = self._ask(fields, *(fields | force for force in forced))
        shown = zip(self._special.values(), map(text_of, replies), strict=False)
        return not forced or bool(ids_of(free)) or any(token.strip() in (text or "") for token, text in shown)


# OpenAI's field, for vLLM and SGLang, and llama.cpp's for /v1/completions, where it ignores the other one.
SCHEMA_FIELDS = ("response_format", "json_schema")
# An enum has no white space: with an object, weak models write spaces and line breaks until `max_tokens`.
_PROBE_SCHEMA = '{"type":"string","enum":["yes","no"]}'


def _samples(n: int) -> dict[str, object]:
    return {"n": n, "temperature": 1.0}


def sizes_below(most: int, message: str) -> list[int]:
    """Return the values of `n` to try after `most` was refused: halves, and numbers in the error message."""
    named = {int(number) for number in re.findall(r"\b\d{1,4}\b", message)}
    halves = {most >> shift for shift in range(1, most.bit_length())}
    return sorted({n for n in named | halves if 1 < n < most}, reverse=True)[:MAX_SIZES]


def common_features(found: Iterable[ServerFeatures]) -> ServerFeatures:
    """Return the features that all servers have. Raises CapabilityError if they require different fields."""
    all_features = list(found)
    if len({t.config_field for t in all_features}) > 1:
        raise CapabilityError("The endpoints are different kinds of servers.", hint="Use one kind of server in a run.")
    fields = {t.schema_field for t in all_features}
    special = {
        "extras": frozenset.intersection(*(t.extras for t in all_features)),
        "max_n": min(t.max_n for t in all_features),
        "schema_field": fields.pop() if len(fields) == 1 else "",
    }
    plain = {
        name: all(getattr(t, name) for t in all_features)
        for name in ServerFeatures.__dataclass_fields__
        if name not in special
    }
    return ServerFeatures(**special, **plain)  # type: ignore[arg-type]


def generation_config(sampling: SamplingParams) -> dict[str, object]:
    """Return a transformers generation config with all sampling parameters, so that no default of the model applies."""
    config: dict[str, object] = {
        "do_sample": not sampling.is_greedy,
        "max_new_tokens": sampling.max_tokens,
        "repetition_penalty": sampling.repetition_penalty,
    }
    if not sampling.is_greedy:
        config |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or 0}
    if sampling.stop_token_ids:
        config |= {"eos_token_id": list(sampling.stop_token_ids), "pad_token_id": sampling.stop_token_ids[0]}
    return config


def schema_fields(field: str, text: str) -> dict[str, object]:
    """Return the fields of a request that constrain a completion to a JSON schema."""
    schema = schema_of(text)
    if field == "json_schema":
        return {field: schema}
    return {field: {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}}


def _keeps_schema(text: str | None) -> bool:
    return (text or "").strip() in ('"yes"', '"no"')
