"""What a server behind `/v1/completions` can do, found out by asking it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CapabilityError, EngineError
from ..sampling import SamplingParams
from .stops import Ending
from .tgi import schema_of
from .wire import Reply


Ask = Callable[..., list[Reply]]

PROBE_PROMPT = "Hello"


PROBE_TOKENS = 16


# The highest temperature that OpenAI's interface has: two samples of 16 tokens that are equal there come from one seed.
PROBE_TEMPERATURE = 2.0


PROBE_SEED = 11


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
    of seed + k. `samples`: other seeds gave other texts. The rest as in Capabilities.
    """

    extras: frozenset[str] = frozenset()
    config_field: bool = False
    token_ids: bool = False
    n: bool = False
    follows_seeds: bool = False
    seeded: bool = False
    samples: bool = True
    stop_ids: bool = False
    grammar: bool = False


class Probe:
    """Finds out what one server can do, by some fifteen small requests.

    `ask` sends completion requests with the given fields to it, all at once; `refuse` gives the error for a server that
    refuses the plainest of them.
    """

    def __init__(self, ask: Ask, refuse: Callable[[Reply], EngineError]) -> None:
        self._ask = ask
        self._refuse = refuse

    def run(self) -> Traits:
        """Ask, and return what was found."""
        extras, config_field = self._fields()
        ids, several, schema = self._ask(
            {"prompt": [1, 2, 3]},
            {"n": 2, "temperature": 1.0},
            {"max_tokens": 4 * PROBE_TOKENS, "temperature": 0, "response_format": response_format(_PROBE_SCHEMA)},
        )
        base = self._base(config_field)
        # All at once, as a server that sets one seed for everything it runs is found out only so.
        a1, b1, a2, b2 = self._ask(*(base | {"seed": PROBE_SEED + i} for i in (0, 1, 0, 1)))
        n = choices_of(several) == 2
        children = self._ask(base | {"seed": PROBE_SEED, "n": 2})[0] if n else None
        a, b = text_of(a1), text_of(b1)
        return Traits(
            extras=extras,
            config_field=config_field,
            token_ids=ids.status == 200 and usage_of(ids, "prompt_tokens") == 3,
            n=n,
            follows_seeds=children is not None and texts_of(children) == [a, b],
            seeded=a == text_of(a2) and b == text_of(b2) and a != b and a is not None,
            samples=len({a, b, text_of(a2), text_of(b2)}) > 1,
            stop_ids=self._heeds_stop_ids(extras),
            grammar=_is_object(text_of(schema)),
        )

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


_PROBE_SCHEMA = (
    '{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"],"additionalProperties":false}'
)


def common_traits(found: Iterable[Traits]) -> Traits:
    """Return what all servers can do. Raises CapabilityError if some want other fields than others."""
    traits = list(found)
    if len({t.config_field for t in traits}) > 1:
        raise CapabilityError("The endpoints are servers of different kinds.", hint="Use one kind of server in a run.")
    return Traits(
        extras=frozenset.intersection(*(t.extras for t in traits)),
        **{name: all(getattr(t, name) for t in traits) for name in Traits.__dataclass_fields__ if name != "extras"},
    )


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


def response_format(grammar: str) -> dict[str, Any]:
    """Return OpenAI's field for a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema_of(grammar), "strict": True}}


def usage_of(reply: Reply, name: str) -> int | None:
    """Return a count of the reply's `usage`, None if it is not there."""
    usage = reply.payload.get("usage") if isinstance(reply.payload, dict) else None
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else None


def texts_of(reply: Reply) -> list[str]:
    """Return the texts of a reply's choices in the order of their `index`."""
    choices = reply.payload.get("choices") if isinstance(reply.payload, dict) else None
    good = [c for c in choices or [] if is_choice(c)]
    return [c["text"] for c in sorted(good, key=lambda c: c.get("index") or 0)]


def text_of(reply: Reply) -> str | None:
    """Return the text of the only choice, None if there is none."""
    texts = texts_of(reply)
    return texts[0] if texts else None


def choices_of(reply: Reply) -> int:
    """Return how many choices a reply has."""
    return len(texts_of(reply))


def ids_of(reply: Reply) -> list[int]:
    """Return the token ids of the first choice, where the server gives them."""
    choices = reply.payload.get("choices") if isinstance(reply.payload, dict) else None
    ids = choices[0].get("token_ids") if choices and is_choice(choices[0]) else None
    return ids if isinstance(ids, list) and all(isinstance(i, int) for i in ids) else []


def is_choice(choice: Any) -> bool:
    """Whether an entry of `choices` has a text."""
    return isinstance(choice, dict) and isinstance(choice.get("text"), str)


def _is_object(text: str | None) -> bool:
    try:
        return isinstance(json.loads(text or ""), dict)
    except ValueError:
        return False


def completion_counts(choices: Sequence[dict[str, Any]], total: int | None) -> list[int | None]:
    """Return the completion tokens of each choice: its ids' number, else an even share of the total."""
    if all(isinstance(c.get("token_ids"), list) for c in choices):
        return [len(c["token_ids"]) for c in choices]
    if total is None:
        return [None] * len(choices)
    share, rest = divmod(total, len(choices))
    return [share + (i < rest) for i in range(len(choices))]


def kept_ids(choice: dict[str, Any], sampling: SamplingParams, ending: Ending) -> list[int] | None:
    """Return the ids of the text that is left, None where they are unknown or the text was cut inside."""
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or ending.text != choice["text"]:
        return None
    ended = choice["finish_reason"] != "length" and ending.finish_reason == "stop"
    if ids and (ids[-1] in sampling.stop_token_ids or (ended and "stop_reason" in choice)):
        return ids[:-1]
    return ids
