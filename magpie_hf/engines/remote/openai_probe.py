"""What a server behind `/v1/completions` can do, found out by asking it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CapabilityError, EngineError
from ...sampling import SamplingParams
from .replies import choices_of, ids_of, text_of, texts_of, usage_of
from .servers import error_text
from .tgi import schema_of
from .wire import Reply


Ask = Callable[..., list[Reply]]

PROBE_PROMPT = "Hello"
PROBE_TOKENS = 16
# The highest temperature that OpenAI's interface has: two samples of 16 tokens that are equal there come from one seed.
PROBE_TEMPERATURE = 2.0
PROBE_SEED = 11
# Special tokens that are forced, one a request; those that end a text are never shown, so one is not enough.
MAX_SPECIAL = 8
MAX_SIZES = 8


# Fields beyond OpenAI's, in values that change nothing. They are sent with every request where the server takes them:
# left out, vLLM takes the model's generation config instead, llama.cpp top_k 40 and min_p 0.05.
EXTRAS: dict[str, Any] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "stop_token_ids": [],
    "skip_special_tokens": False,
    "return_token_ids": True,
}


@dataclass(frozen=True, slots=True)
class Traits:
    """What one server can do, found out by asking it.

    `extras`: the fields of EXTRAS that it takes. `config_field`: sampling goes into `generation_config`
    (`transformers serve`, which has no other way to sample at all). `follows_seeds`: choice k of `n` is the sample
    of seed + k. `samples`: other seeds gave other texts. `max_n`: the largest `n` that it takes, as far as it was asked
    (1: it has none). `usage_sums`: with `n`, `completion_tokens` counts all choices (llama.cpp counts one).
    `schema_field`: the field that takes a JSON schema, "" if none is honored. The rest as in Capabilities.
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
    special_tokens: bool = True
    schema_field: str = ""


class Probe:
    """Finds out what one server can do, by some fifteen small requests.

    `ask` sends completion requests with the given fields to it, all at once; `refuse` gives the error for a server that
    refuses the plainest of them; `most_n` is the largest `n` of use; `special` are special tokens of the model.
    """

    def __init__(
        self, ask: Ask, refuse: Callable[[Reply], EngineError], most_n: int, special: Mapping[int, str]
    ) -> None:
        self._ask = ask
        self._refuse = refuse
        self._most_n = most_n
        self._special = special

    def run(self) -> Traits:
        """Ask, and return what was found."""
        extras, config_field = self._fields()
        ids, *held = self._ask({"prompt": [1, 2, 3]}, *self._schema_questions())
        max_n, usage_sums = self._largest_n()
        base = self._base(config_field)
        # All at once, as a server that sets one seed for everything it runs is found out only so.
        a1, b1, a2, b2 = self._ask(*(base | {"seed": PROBE_SEED + i} for i in (0, 1, 0, 1)))
        children = self._ask(base | {"seed": PROBE_SEED, "n": 2})[0] if max_n > 1 else None
        a, b = text_of(a1), text_of(b1)
        return Traits(
            extras=extras,
            config_field=config_field,
            token_ids=ids.status == 200 and usage_of(ids, "prompt_tokens") == 3,
            max_n=max_n,
            usage_sums=usage_sums,
            follows_seeds=children is not None and texts_of(children) == [a, b],
            seeded=a == text_of(a2) and b == text_of(b2) and a != b and a is not None,
            samples=len({a, b, text_of(a2), text_of(b2)}) > 1,
            stop_ids=self._heeds_stop_ids(extras),
            special_tokens=self._shows_special_tokens(extras),
            schema_field=next((f for f, r in zip(SCHEMA_FIELDS, held, strict=True) if _keeps_schema(text_of(r))), ""),
        )

    def _schema_questions(self) -> list[dict[str, Any]]:
        greedy = {"max_tokens": PROBE_TOKENS, "temperature": 0}
        return [greedy | schema_fields(field, _PROBE_SCHEMA) for field in SCHEMA_FIELDS]

    def _largest_n(self) -> tuple[int, bool]:
        """Return the largest `n` that the server takes, and whether `usage` then counts all choices."""
        if self._most_n == 1:
            return 1, True
        replies = self._ask(_samples(self._most_n))
        if replies[0].status != 200:
            replies = self._ask(*map(_samples, sizes_below(self._most_n, error_text(replies[0].payload))))
        best = max(replies, key=choices_of, default=Reply())
        found = max(1, min(choices_of(best), self._most_n))
        return found, (usage_of(best, "completion_tokens") or 0) >= found

    def _base(self, config_field: bool) -> dict[str, Any]:
        base = {"max_tokens": PROBE_TOKENS, "temperature": PROBE_TEMPERATURE, "top_p": 1.0}
        if config_field:
            params = SamplingParams(temperature=PROBE_TEMPERATURE, max_tokens=PROBE_TOKENS)
            base["generation_config"] = json.dumps(generation_config(params))  # type: ignore[assignment]
        return base

    def _fields(self) -> tuple[frozenset[str], bool]:
        """Return which of EXTRAS the server takes, and whether it wants a `generation_config`."""
        plain, full = self._ask({"temperature": 0}, {"temperature": 0} | EXTRAS)
        if plain.status != 200:
            raise self._refuse(plain)
        if full.status == 200:
            return frozenset(EXTRAS), False
        config = json.dumps(generation_config(SamplingParams(temperature=0, max_tokens=1)))
        singles = [{"temperature": 0, name: value} for name, value in EXTRAS.items()]
        # A server that takes a generation_config but no field that it does not know: nothing is ignored there.
        *replies, unknown, configured = self._ask(*singles, {"unknown_field": 1}, {"generation_config": config})
        taken = frozenset(name for name, reply in zip(EXTRAS, replies, strict=True) if reply.status == 200)
        return taken, unknown.status != 200 and configured.status == 200

    def _heeds_stop_ids(self, extras: frozenset[str]) -> bool:
        """Whether generation ends at a token of `stop_token_ids` that it passed without."""
        if not {"stop_token_ids", "return_token_ids"} <= extras:
            return False
        greedy = {"temperature": 0, "max_tokens": PROBE_TOKENS, "return_token_ids": True}
        free = self._ask(greedy)[0]
        ids = ids_of(free)
        if not ids:
            return False
        stopped = self._ask(greedy | {"stop_token_ids": [ids[0]]})[0]
        return stopped.status == 200 and (usage_of(stopped, "completion_tokens") or 0) < max(len(ids), 2)

    def _shows_special_tokens(self, extras: frozenset[str]) -> bool:
        """Whether token ids come with a text, or a special token that is forced to come first can be seen in it."""
        forced = [{"logit_bias": {str(i): 100}} for i in list(self._special)[:MAX_SPECIAL]]
        fields = {"temperature": 0} | {name: EXTRAS[name] for name in extras}
        free, *replies = self._ask(fields, *(fields | force for force in forced))
        shown = zip(self._special.values(), map(text_of, replies), strict=False)
        return not forced or bool(ids_of(free)) or any(token.strip() in (text or "") for token, text in shown)


# OpenAI's field, which vLLM and SGLang have, and llama.cpp's for /v1/completions, which ignores the other one there.
SCHEMA_FIELDS = ("response_format", "json_schema")
# No white space is allowed inside: with an object, weak models go on with spaces and line breaks until the length ends.
_PROBE_SCHEMA = '{"type":"string","enum":["yes","no"]}'


def _samples(n: int) -> dict[str, Any]:
    return {"n": n, "temperature": 1.0}


def sizes_below(most: int, message: str) -> list[int]:
    """Return the values of `n` to try when `most` was refused: halves, and what the refusal itself names."""
    named = {int(number) for number in re.findall(r"\b\d{1,4}\b", message)}
    halves = {most >> shift for shift in range(1, most.bit_length())}
    return sorted({n for n in named | halves if 1 < n < most}, reverse=True)[:MAX_SIZES]


def common_traits(found: Iterable[Traits]) -> Traits:
    """Return what all servers can do. Raises CapabilityError if some want other fields than others."""
    traits = list(found)
    if len({t.config_field for t in traits}) > 1:
        raise CapabilityError("The endpoints are servers of different kinds.", hint="Use one kind of server in a run.")
    fields = {t.schema_field for t in traits}
    special = {
        "extras": frozenset.intersection(*(t.extras for t in traits)),
        "max_n": min(t.max_n for t in traits),
        "schema_field": fields.pop() if len(fields) == 1 else "",
    }
    plain = {
        name: all(getattr(t, name) for t in traits) for name in Traits.__dataclass_fields__ if name not in special
    }
    return Traits(**special, **plain)  # type: ignore[arg-type]


def generation_config(sampling: SamplingParams) -> dict[str, Any]:
    """Return a transformers generation config that says all of a sampling, so that no default of the model's counts."""
    config: dict[str, Any] = {
        "do_sample": not sampling.is_greedy,
        "max_new_tokens": sampling.max_tokens,
        "repetition_penalty": sampling.repetition_penalty,
    }
    if not sampling.is_greedy:
        config |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or 0}
    if sampling.stop_token_ids:
        config |= {"eos_token_id": list(sampling.stop_token_ids), "pad_token_id": sampling.stop_token_ids[0]}
    return config


def schema_fields(field: str, text: str) -> dict[str, Any]:
    """Return what holds a completion to a JSON schema, given with the field of that name."""
    schema = schema_of(text)
    if field == "json_schema":
        return {field: schema}
    return {field: {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}}


def _keeps_schema(text: str | None) -> bool:
    return (text or "").strip() in ('"yes"', '"no"')
