"""Servers with OpenAI's `/v1/completions`: vLLM, SGLang, llama.cpp, `transformers serve`, TGI."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ...errors import ArgumentError, CapabilityError, EngineError, ModelMismatchError, quoted
from ...models import ModelRef
from ...sampling import SamplingParams
from ..base import Capabilities, Generation, Request, Served, setting
from ..first_token import TwoRequests
from ..groups import fitted
from ..stops import Ending, end_text, to_send
from .endpoints import EndpointEngine, EndpointSettings
from .openai_features import (
    EXTRAS,
    MAX_STOP,
    PROBE_PROMPT,
    PROBE_SEED,
    PROBE_TEMPERATURE,
    PROBE_TOKENS,
    FeatureTests,
    ServerFeatures,
    common_features,
    generation_config,
    schema_fields,
)
from .probing import ask_probes
from .replies import completion_counts, context_of, is_choice, kept_ids, served_now, text_of, usage_of
from .servers import listed_models, named_entry
from .untrusted import JsonObject
from .wire import Address, Fault, Question, Reply, to_json


PATH = "/v1/completions"
CHAT_PATH = "/v1/chat/completions"
# Samples of a request are returned together when the longest is finished, and slots of short ones stay empty until then.
# Servers cache the prompt anyway, so one sample per request has the highest throughput.
DEFAULT_MAX_N = 1
_STOPPED = ("stop", "eos", "eos_token", "stop_sequence")


@dataclass(frozen=True, kw_only=True)
class OpenAISettings(EndpointSettings):
    """Settings of the engine `openai`."""

    served_model_name: str | None = setting(
        None, "The model's name in requests. Default: the name that the server lists.", silent=True
    )
    max_n: int = setting(DEFAULT_MAX_N, "Maximum number of samples of one prompt in a request (`n`).", silent=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_n < 1:
            raise ArgumentError(f"max_n = {self.max_n} is invalid.", hint="Use 1 or more.", key="max_n")


class OpenAIEngine(EndpointEngine):
    """Generates on servers that accept raw prompts at `/v1/completions`.

    Prompts are sent as token ids if the server accepts them, else as text. Samples of one prompt with consecutive seeds
    share a request if `max_n` is set and the server supports `n`. Servers report the prompt tokens of a request, not of
    a sample: they are counted for the first sample of a request, and 0 for the others.
    """

    name = "openai"
    settings_class = OpenAISettings
    settings: OpenAISettings
    info_path = "/v1/models"
    suffixes = (PATH, CHAT_PATH, "/v1")

    def __init__(
        self,
        model: str,
        *,
        endpoints: Sequence[str],
        token_texts: Mapping[int, str] | None = None,
        revision: str | None = None,
        ref: ModelRef | None = None,
        **settings: object,
    ) -> None:
        """Keep the settings; see `OpenAISettings`."""
        super().__init__(model, endpoints=endpoints, token_texts=token_texts, revision=revision, ref=ref, **settings)
        self._model_name = ""
        self._names: dict[str, str] = {}
        self._contexts: dict[str, int] = {}
        self._features = ServerFeatures()
        self._checked: set[str] = set()

    def open(self) -> None:
        """Identify every endpoint and detect what it supports; see EndpointEngine for errors."""
        if self._transport is None:
            self._model_name = ""
        super().open()

    def recognize(self, endpoint: Address, reply: Reply) -> Served | None:
        """Return what the server reports about itself."""
        self.check_access(endpoint, reply)
        if reply.status in (404, 405, 500):
            # `transformers serve` lists the Hub cache, and fails if there is none.
            self._names[endpoint.url] = self.settings.served_model_name or self.ref.source
            return None
        models = listed_models(reply.payload.get("data") if isinstance(reply.payload, dict) else None)
        if reply.status != 200 or models is None:
            raise CapabilityError(
                f"{endpoint.url} has no OpenAI interface: GET /v1/models returned "
                f"{'no list' if reply.status == 200 else reply.status}.",
                hint="Check the URL; for TGI's own interface use the engine tgi.",
                endpoint=endpoint.url,
            )
        model = self._select_model(endpoint, models)
        self._names[endpoint.url] = self.settings.served_model_name or (model["id"] if model else self.ref.source)
        if self._model_name and self._names[endpoint.url] != self._model_name:
            raise self._different_names([self._model_name, self._names[endpoint.url]])
        if model is None:
            return None
        context = context_of(model)
        if context is not None:
            self._contexts[endpoint.url] = context
        root = model.get("root")
        return Served(model=root if isinstance(root, str) and root else model["id"])

    def _select_model(self, endpoint: Address, models: list[JsonObject]) -> JsonObject | None:
        """Return the entry of `/v1/models` to use; None if the list is empty or does not contain `served_model_name`."""
        if self.settings.served_model_name:
            return next((m for m in models if m["id"] == self.settings.served_model_name), None)
        if (model := named_entry(self.ref, models)) is not None:
            return model
        if not models or self.settings.allow_model_mismatch:
            return models[0] if models else None
        listed = ", ".join(quoted(m["id"], 60) for m in models[:5])
        raise ModelMismatchError(
            f"{endpoint.url} has the model {listed}, not {quoted(self.ref.name)}.",
            hint="Use the URL of the right server, or --set engine.served_model_name=NAME if the model has another name there.",
            endpoint=endpoint.url,
            served=[m["id"] for m in models],
            asked=self.ref.name,
        )

    def _different_names(self, names: Iterable[str]) -> ModelMismatchError:
        return ModelMismatchError(
            f"The endpoints have different names for the model: {', '.join(sorted(quoted(name, 60) for name in names))}.",
            hint="Start them with the same name, and set it with --set engine.served_model_name=NAME.",
        )

    def detect_capabilities(self, servers: Sequence[Address]) -> Capabilities:
        """Return what all servers support."""
        names = {self._names[e.url] for e in servers}
        if len(names) > 1:
            raise self._different_names(names)
        self._model_name = names.pop()
        self._checked.clear()
        self._features = common_features([self._probe(endpoint) for endpoint in servers])
        features = self._features
        return Capabilities(
            token_ids=features.token_ids,
            seeded=features.seeded and (features.max_n == 1 or features.follows_seeds),
            max_n=features.max_n,
            first_token_ban=features.token_ids and features.returns_ids and features.bans,
            first_token_scale=features.token_ids and features.returns_ids,
            json_schema=bool(features.schema_field),
            special_tokens=features.special_tokens,
            max_context=min((self._contexts[e.url] for e in servers if e.url in self._contexts), default=None),
        )

    def _probe(self, endpoint: Address) -> ServerFeatures:
        refuse = partial(self._completions_error, endpoint)
        return FeatureTests(partial(self._ask, endpoint), refuse, self.settings.max_n, self.token_texts).run()

    def _ask(self, endpoint: Address, *fields: Mapping[str, object]) -> list[Reply]:
        """Send small completion requests with these fields; see `ask_probes`."""
        base = {"model": self._model_name, "prompt": PROBE_PROMPT, "max_tokens": 1}
        return ask_probes(self, endpoint, PATH, [{**base, **f} for f in fields])

    def _completions_error(self, endpoint: Address, reply: Reply) -> EngineError:
        """Return the error for a server that refused the simplest completion request."""
        message = self._message(reply)
        if reply.status in (404, 405) and self._model_name not in message and "model" not in message.lower():
            chat = self.transport.client.ask(
                Question(endpoint, "POST", CHAT_PATH, {"model": self._model_name, "messages": []})
            )
            if chat.fault is None and chat.status not in (404, 405):
                return CapabilityError(
                    f"{endpoint.url} only supports chat completions, which apply the chat template to every prompt. Magpie "
                    "requires raw prompts, so that the model writes the user's message.",
                    hint="Use a server with /v1/completions (vLLM, SGLang, llama.cpp, `transformers serve` of "
                    "transformers 5) or TGI. For a judge, guard or responder, use the engine chat.",
                    endpoint=endpoint.url,
                )
            return CapabilityError(
                f"{endpoint.url} has no /v1/completions ({reply.status}).", hint="Check the URL.", url=endpoint.url
            )
        if reply.status == 404 or "pinned" in message or "does not exist" in message:
            return ModelMismatchError(
                f"{endpoint.url} has no model {quoted(self._model_name)}: {quoted(message)}.",
                hint="Set the name that the server uses: --set engine.served_model_name=NAME.",
                endpoint=endpoint.url,
            )
        return CapabilityError(
            f"{endpoint.url} refuses a plain completion request ({reply.status}): {quoted(message)}.",
            endpoint=endpoint.url,
        )

    def count_prompt_tokens(self, endpoint: Address, text: str) -> int | None:
        """Return the server's token count of a prompt."""
        reply = self._ask(endpoint, {"prompt": text, "temperature": 0})[0]
        if reply.status != 200:
            raise EngineError(f"{endpoint.url} does not accept the prompt: {quoted(self._message(reply))}.")
        return usage_of(reply, "prompt_tokens")

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Generation]:
        """Yield a Generation for each Request; a first token with settings of its own is a request of its own."""
        name = f"The server at {', '.join(self.addresses[:3])}"
        yield from TwoRequests(name, self.capabilities()).run(requests, super().generate)

    def encode(self, group: Sequence[Request]) -> tuple[str, bytes]:
        """Return path and body of the request for a group of samples."""
        first = group[0]
        sampling = first.sampling
        self._check_supported(sampling)
        prompt = list(first.prompt.token_ids) if self._features.token_ids else self.prompt_text(first.prompt)
        body = {
            "model": self._model_name,
            "prompt": prompt,
            **self._sampling_fields(fitted(first, self.capabilities().max_context)),
        }
        if len(group) > 1:
            body["n"] = len(group)
        return PATH, to_json(body)

    def _sampling_fields(self, sampling: SamplingParams) -> dict[str, object]:
        features = self._features
        fields: dict[str, object] = {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.seed is not None:
            fields["seed"] = sampling.seed
        stops = self._stops_sent(sampling)
        if stops:
            fields["stop"] = stops
        if features.config_field:
            fields["generation_config"] = json.dumps(generation_config(sampling))
            return fields
        extras = EXTRAS | {"repetition_penalty": sampling.repetition_penalty}
        extras["stop_token_ids"] = list(sampling.stop_token_ids)
        if sampling.top_k is not None:
            extras["top_k"] = sampling.top_k
        fields |= {name: value for name, value in extras.items() if name in features.extras}
        if sampling.banned_first_token_ids:  # of one token only: a bias applies at every position
            fields["logit_bias"] = {str(token): -100 for token in sampling.banned_first_token_ids}
        if sampling.json_schema is not None:
            fields |= schema_fields(features.schema_field, sampling.json_schema)
        return fields

    def _stops_sent(self, sampling: SamplingParams) -> list[str]:
        texts = [] if self._takes_stop_ids else to_send(self._turn_ends(sampling))
        return list(dict.fromkeys([*texts, *sampling.stop]))[:MAX_STOP]

    @property
    def _takes_stop_ids(self) -> bool:
        return self._features.stop_ids or self._features.config_field

    def _turn_ends(self, sampling: SamplingParams) -> list[str]:
        return [text for i in sampling.stop_token_ids if (text := self.token_texts.get(i))]

    def _check_supported(self, sampling: SamplingParams) -> None:
        """Raise CapabilityError for parameters that the server refuses or ignores; each is tested once."""
        if sampling.json_schema is not None and not self._features.schema_field:
            raise self._unsupported("constrain a text to a JSON schema (json_schema)")
        if sampling.temperature > 0 and not self._features.samples:
            raise self._unsupported("sample: texts with different seeds are the same at any temperature")
        missing = [i for i in sampling.stop_token_ids if i not in self.token_texts]
        if missing and not self._takes_stop_ids:
            raise self._unsupported(f"stop at token ids ({missing[:5]}), and the texts of these tokens are unknown")
        if sampling.top_k is not None and "top_k" not in self._checked:
            self._check_field("top_k", sampling.top_k, self._applies_top_k)
        if sampling.repetition_penalty != 1 and "repetition_penalty" not in self._checked:
            self._check_field("repetition_penalty", sampling.repetition_penalty, self._applies_repetition_penalty)

    def _check_field(self, name: str, value: object, is_applied: Callable[[Address], bool]) -> None:
        takes = self._features.config_field or name in self._features.extras
        if not takes or not all(is_applied(e) for e in self.transport.endpoints if not e.is_down):
            raise self._unsupported(f"apply {name} = {value}: it {'ignores' if takes else 'refuses'} the field")
        self._checked.add(name)

    def _unsupported(self, what: str) -> CapabilityError:
        return CapabilityError(
            f"The server at {', '.join(self.addresses[:3])} cannot {what}.",
            hint="Remove the setting, or use a server that supports it, such as vLLM.",
        )

    def _applies_top_k(self, endpoint: Address) -> bool:
        """Whether texts with `top_k` = 1 are equal at a high temperature."""
        params = SamplingParams(temperature=PROBE_TEMPERATURE, top_k=1, max_tokens=PROBE_TOKENS)
        fields = [self._sampling_fields(params.with_seed(PROBE_SEED + i)) for i in range(2)]
        return len({text_of(reply) for reply in self._ask(endpoint, *fields)}) == 1

    def _applies_repetition_penalty(self, endpoint: Address) -> bool:
        """Whether a strong `repetition_penalty` changes a greedy text."""
        params = [SamplingParams(temperature=0, max_tokens=2 * PROBE_TOKENS, repetition_penalty=p) for p in (1.0, 5.0)]
        fields = [self._sampling_fields(p) | {"prompt": "one two one two one two one"} for p in params]
        return len({text_of(reply) for reply in self._ask(endpoint, *fields)}) == 2

    def check_payload(self, reply: Reply) -> Fault | None:
        """Return the fault in a reply's content, or None if it can be decoded."""
        choices = reply.payload.get("choices") if isinstance(reply.payload, dict) else None
        if not isinstance(choices, list) or not choices or not all(map(is_choice, choices)):
            return Fault("transient", "bad_reply", "the reply has no choices with text")
        odd = {str(c.get("finish_reason")) for c in choices} - {"length", *_STOPPED}
        if odd:
            return Fault("transient", "aborted", f"finish_reason {quoted(min(odd), 40)}")
        return None

    def decode(self, group: Sequence[Request], reply: Reply, served: Served | None) -> list[Generation]:
        """Return the generations of a group."""
        payload = reply.payload
        choices = sorted(payload["choices"], key=lambda choice: choice.get("index") or 0)
        if len(choices) < len(group):
            raise ValueError("fewer choices than requested")
        prompt_tokens = usage_of(reply, "prompt_tokens")
        total = usage_of(reply, "completion_tokens")
        counts = completion_counts(group, choices[: len(group)], total, is_sum=self._features.usage_sums)
        generations = []
        for i, (request, choice) in enumerate(zip(group, choices, strict=False)):
            ending = self._ending(request.sampling, choice)
            generations.append(
                Generation(
                    request.key,
                    ending.text,
                    ending.finish_reason,
                    token_ids=kept_ids(choice, request.sampling, ending),
                    prompt_tokens=prompt_tokens if i == 0 or prompt_tokens is None else 0,
                    completion_tokens=counts[i],
                    seed=request.sampling.seed,
                    served=served_now(payload, served, self._model_name),
                )
            )
        return generations

    def _ending(self, sampling: SamplingParams, choice: JsonObject) -> Ending:
        turn_ends = self._turn_ends(sampling)
        reason = "length" if choice["finish_reason"] == "length" else self._finish_reason(sampling, choice, turn_ends)
        return end_text(choice["text"], reason, turn_ends=turn_ends, stops=sampling.stop)

    def _finish_reason(self, sampling: SamplingParams, choice: JsonObject, turn_ends: list[str]) -> str:
        """Return "stop" or "stop_text" for a text that did not reach `max_tokens`, from the server's stop reason."""
        for name in ("stop_reason", "matched_stop"):
            if name in choice:
                stop = choice[name]
                return "stop_text" if isinstance(stop, str) and stop not in turn_ends else "stop"
        # Without a stop reason, a stop token ended the text if it is visible, or if the request had no stop texts.
        return "stop" if not sampling.stop or self._features.config_field else "stop_text"
