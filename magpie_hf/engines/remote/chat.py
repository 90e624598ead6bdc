"""Servers with `/v1/chat/completions`: hosted APIs, Inference Providers, vLLM, and others that apply the chat template."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

from ...errors import CapabilityError, EngineError, ModelMismatchError, quoted
from ...models import ModelRef
from ...sampling import SamplingParams
from ..base import Capabilities, Failure, Generation, Prompt, Request, Served
from ..first_token import check_first_token
from ..stops import end_text
from .chat_features import PROBE_TEXT, ChatFeatures, ChatTests, common_features
from .chat_replies import (
    FILTERED,
    LENGTH,
    error_field,
    fault_in,
    first_choice,
    is_flagged,
    read_message,
    stop_reason,
    with_own_status,
)
from .chat_settings import OMITTABLE, ChatSettings
from .endpoints import EndpointEngine
from .openai_features import MAX_STOP, generation_config, schema_fields
from .probing import ask_probes
from .replies import context_of, served_now, usage_of
from .servers import is_too_long, listed_models, named_entry
from .transport import CallResult
from .untrusted import JsonObject
from .wire import Address, Fault, Reply, to_json


logger = logging.getLogger(__name__)

# Values that an omitted field has by default in OpenAI's interface.
_DEFAULTS = {"temperature": 1, "top_p": 1}
_FILTER_CODES = ("content_filter", "content_policy_violation", "moderation_blocked")
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached")
_UNKNOWN_MODEL = re.compile(
    r"pinned|model .*(does not exist|not found|not a valid|no access|unavailable)|unknown model", re.I
)
_LIMIT_TOO_LARGE = re.compile(
    r"max_(completion_)?tokens\b.{0,80}?(too large|at most|valid range|less than|exceed)", re.I
)
_SCHEMA = re.compile("response_format|schema|grammar|structured", re.I)
_SAMPLING_PARAMS = (*OMITTABLE, "top_k", "min_p", "repetition_penalty", "max_tokens", "max_completion_tokens")


class ChatEngine(EndpointEngine):
    """Generates with chat APIs, which apply the chat template themselves.

    It can serve the roles judge, guard and responder. One request is sent for each sample. A text that a content filter
    withholds and a refusal finish the row with this reason.
    """

    name = "chat"
    settings_class = ChatSettings
    settings: ChatSettings
    takes_messages: ClassVar[bool] = True
    suffixes = ("/chat/completions", "/v1")

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
        """Keep the settings; see `ChatSettings`."""
        super().__init__(model, endpoints=endpoints, token_texts=token_texts, revision=revision, ref=ref, **settings)
        base = "/" + self.settings.api_path.strip("/") if self.settings.api_path.strip("/") else ""
        self.path = base + "/chat/completions"
        self.info_path = base + "/models"
        self._model_name = ""
        self._names: dict[str, str] = {}
        self._list_status: dict[str, int] = {}
        self._contexts: dict[str, int] = {}
        self._features = ChatFeatures()
        self._checked: set[str] = set()
        self._unlimited: set[int] = set()
        self._refuses_schema = False

    # Identifying the server

    def recognize(self, endpoint: Address, reply: Reply) -> Served | None:
        """Find the model in the server's list; a server that lists no models gets the name as it was given."""
        if reply.status not in (401, 403):  # some APIs do not list models for every key; a chat request will tell
            self.check_access(endpoint, reply)
        self._list_status[endpoint.url] = reply.status
        models = _listed(reply)
        if models is None and reply.status == 200:
            raise CapabilityError(
                f"{endpoint.url} has no chat API: GET {self.info_path} returned no list of models.",
                hint="Check the URL; it usually ends with /v1. See also the setting api_path.",
                endpoint=endpoint.url,
            )
        model = self._listed_model(endpoint, models or [])
        self._names[endpoint.url] = self.settings.served_model_name or (model["id"] if model else self.ref.name)
        context = None if model is None else context_of(model)
        if context is not None:
            self._contexts[endpoint.url] = context
        return None  # replies name the model, including its version

    def is_available(self, server: Address, reply: Reply) -> bool:
        """Whether a server replies to the request for its models as before, which may be a refusal."""
        return reply.fault is None and reply.status in (200, self._list_status.get(server.url))

    def _listed_model(self, endpoint: Address, models: list[JsonObject]) -> JsonObject | None:
        """Return the entry of the model. APIs with many models may not list all names, and check the name themselves."""
        asked = self.settings.served_model_name or self.ref.name
        for model in models:
            if asked == model["id"]:
                return model
        if self.settings.served_model_name:
            return None
        if (named := named_entry(self.ref, models)) is not None:
            return named
        if len(models) != 1:
            return None
        if self.settings.allow_model_mismatch:
            return models[0]
        raise ModelMismatchError(
            f"{endpoint.url} has the model {quoted(models[0]['id'], 60)}, not {quoted(self.ref.name)}.",
            hint="Use the URL of the right server, or set served_model_name if the model has another name there.",
            endpoint=endpoint.url,
            served=[models[0]["id"]],
            asked=self.ref.name,
        )

    def detect_capabilities(self, servers: Sequence[Address]) -> Capabilities:
        """Return what all servers support."""
        names = {self._names[server.url] for server in servers}
        if len(names) > 1:
            raise ModelMismatchError(
                f"The endpoints have different names for the model: {', '.join(sorted(quoted(n, 60) for n in names))}.",
                hint="Set the name with served_model_name, or use one endpoint.",
            )
        self._model_name = names.pop()
        self._checked.clear()
        self._features = common_features([self._probe(server) for server in servers])
        return Capabilities(
            token_ids=False,
            seeded=self._features.seeded,
            json_schema=self._features.schema,
            special_tokens=False,
            max_context=min((self._contexts[s.url] for s in servers if s.url in self._contexts), default=None),
        )

    def _probe(self, server: Address) -> ChatFeatures:
        return ChatTests(partial(self._ask, server), partial(self._refusal, server), self.settings.omit).run()

    def _ask(self, server: Address, *fields: Mapping[str, object], text: str = PROBE_TEXT) -> list[Reply]:
        base = self._base([{"role": "user", "content": text}])
        return ask_probes(self, server, self.path, [base | {**f} for f in fields])

    def _base(self, messages: Sequence[Mapping[str, str]]) -> JsonObject:
        return {"model": self._model_name, "messages": list(messages), **(self.settings.extra_body or {})}

    def _refusal(self, endpoint: Address, reply: Reply) -> EngineError:
        """Return the error for a server that refused the simplest chat request."""
        message = self._message(reply)
        named = error_field(reply.payload, "code") + error_field(reply.payload, "param")
        if "model" in named or _UNKNOWN_MODEL.search(message) or (reply.status == 404 and "model" in message.lower()):
            return ModelMismatchError(
                f"{endpoint.url} does not accept the model {quoted(self._model_name)}: {quoted(message)}.",
                hint="Set the name that the server uses: served_model_name.",
                endpoint=endpoint.url,
            )
        if reply.status in (404, 405):
            return CapabilityError(
                f"{endpoint.url} has no {self.path} ({reply.status}).",
                hint="Check the URL and the setting api_path.",
                endpoint=endpoint.url,
            )
        return CapabilityError(
            f"{endpoint.url} refuses a plain chat request ({reply.status}): {quoted(message)}.", endpoint=endpoint.url
        )

    def check_access(self, endpoint: Address, reply: Reply) -> None:
        """Raise for replies that mean a wrong URL or key, or an account without quota, also while detecting features."""
        reply = with_own_status(reply)
        if _is_without_quota(reply):
            raise self._without_quota(endpoint)
        super().check_access(endpoint, reply)

    def _without_quota(self, endpoint: Address) -> EngineError:
        key = self.settings.api_key_env
        return EngineError(
            f"{endpoint.url} refuses requests: the quota of the account is used up.",
            hint=f"Check the account's credit and limits{f' (api_key_env: {key})' if key else ''}, then run the same command "
            "again: finished rows are kept.",
            endpoint=endpoint.url,
        )

    def _warn_of_limits(self, capabilities: Capabilities) -> None:
        """Warn of seeds only: special tokens are never visible in the texts of chat APIs."""
        super()._warn_of_limits(replace(capabilities, special_tokens=True))

    def check_prompt(self, prompt: Prompt) -> None:
        """Do nothing: the server renders the prompt."""

    def count_prompt_tokens(self, endpoint: Address, text: str) -> int | None:
        """Return None: the tokens of a text are not known."""
        return None

    # Requests

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Generation]:
        """Yield a Generation for each Request, in completion order; see `Engine.generate`."""
        self._unlimited.clear()
        return super().generate(requests)

    def encode(self, group: Sequence[Request]) -> tuple[str, bytes]:
        """Return path and body of the request for one sample."""
        (request,) = group
        if request.prompt.messages is None:
            raise CapabilityError(
                "The engine chat requires messages, but the prompt is raw text.", hint="Use another engine."
            )
        self._check_supported(request.sampling)
        fields = self._sampling_fields(request.sampling)
        if request.key in self._unlimited:
            fields.pop(self._features.limit)
        return self.path, to_json(self._base(request.prompt.messages) | fields)

    def _sampling_fields(self, sampling: SamplingParams) -> JsonObject:
        features = self._features
        standard = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "stop": list(dict.fromkeys(sampling.stop))[:MAX_STOP] or None,
        }
        extras = {
            "top_k": -1 if sampling.top_k is None else sampling.top_k,
            "min_p": 0.0,
            "repetition_penalty": sampling.repetition_penalty,
        }
        fields: JsonObject = {features.limit: sampling.max_tokens}
        fields |= {n: v for n, v in (standard | extras).items() if v is not None and n in features.fields}
        if features.config_field:
            fields["generation_config"] = json.dumps(generation_config(sampling))
        if sampling.json_schema is not None and not self._refuses_schema:
            fields |= schema_fields("response_format", sampling.json_schema)
        return fields

    def _check_supported(self, sampling: SamplingParams) -> None:
        """Raise CapabilityError for parameters that the server refuses or ignores."""
        check_first_token(sampling, self.capabilities(), "A chat API")
        if sampling.stop_token_ids:
            raise self._unsupported("stop at token ids (stop_token_ids)", "Use stop texts.")
        if sampling.json_schema is not None and not self._features.schema:
            raise self._unsupported("constrain a text to a JSON schema (json_schema)", "Remove the setting.")
        for name, default in _DEFAULTS.items():
            value = getattr(sampling, name)
            if value != default and name not in self._features.fields and name not in self.settings.omit:
                raise self._unsupported(
                    f"apply {name} = {value}: it refuses the field",
                    f"Set {name}: {default} for the stage, or leave the field out with the engine setting omit: [{name}]. "
                    "The API's own default then applies.",
                )
        self._check_extra("top_k", sampling.top_k, None)
        self._check_extra("repetition_penalty", sampling.repetition_penalty, 1)

    def _check_extra(self, name: str, value: object, off: object) -> None:
        if value == off or self._features.config_field or name in self._checked:
            return
        is_known = name in self._features.fields
        if not is_known or not all(self._applies(name, e) for e in self.transport.endpoints if not e.is_down):
            raise self._unsupported(
                f"apply {name} = {value}: it {'ignores' if is_known else 'refuses'} the field", "Remove the setting."
            )
        self._checked.add(name)

    def _applies(self, name: str, endpoint: Address) -> bool:
        """Whether `top_k` = 1 makes texts with different seeds equal, or a strong penalty changes a greedy text."""
        greedy = SamplingParams(temperature=0, max_tokens=32)
        if name == "top_k":
            pair = [SamplingParams(top_k=1, max_tokens=16, seed=seed) for seed in (1, 2)]
        else:
            pair = [greedy, replace(greedy, repetition_penalty=5.0)]
        text = "Repeat ten times: one two" if name != "top_k" else PROBE_TEXT
        replies = self._ask(endpoint, *map(self._sampling_fields, pair), text=text)
        texts = {read_message(choice).text for reply in replies if (choice := first_choice(reply))}
        return len(texts) == (1 if name == "top_k" else 2)

    def _unsupported(self, what: str, hint: str) -> CapabilityError:
        return CapabilityError(f"The chat API at {', '.join(self.addresses[:3])} cannot {what}.", hint=hint)

    def _split_refused(self, result: CallResult) -> list[list[Request]]:
        """Return the request again if it can be sent in another form: without the schema, or without the token limit.

        A limit is refused if prompt and limit do not fit the context, or if it is larger than the model's own. Without it, the
        text can use the rest of the context.
        """
        (request,), failure = result.call.group, result.failure
        limited = request.key not in self._unlimited
        self._unlimited.discard(request.key)
        if failure is None:
            return []
        if failure.code == "too_long" and limited:
            self._unlimited.add(request.key)
        elif (
            failure.code == "validation"
            and _SCHEMA.search(failure.message)
            and b'"response_format":' in result.call.body
        ):
            self._drop_schema(failure)
        else:
            return []
        self.stats.retries += 1
        self.stats.requests += 1
        return [[request]]

    def _drop_schema(self, failure: Failure) -> None:
        if not self._refuses_schema:
            logger.warning("The server refuses the JSON schema; replies are not constrained: %s", failure.message)
        self._refuses_schema = True

    # Replies

    def _classify(self, endpoint: Address, reply: Reply) -> Fault | None:
        """Return the fault in a reply, with the errors of hosted APIs."""
        reply = with_own_status(reply)
        payload, status = reply.payload, reply.status
        code, param = error_field(payload, "code"), error_field(payload, "param")
        if (status == 400 and code in _FILTER_CODES) or (status == 403 and is_flagged(payload)):
            return Fault("never", "content_filter", "The API's content filter refused the prompt.")
        if _is_without_quota(reply):
            return Fault("fatal", "refused", error=self._without_quota(endpoint))
        message = self._message(reply)
        if status in (400, 422) and _LIMIT_TOO_LARGE.search(message):  # e.g., that of a judge's retry
            return Fault("never", "too_long", f"{status}: {message}")
        if status in (400, 422) and param in _SAMPLING_PARAMS and not is_too_long(message):
            leave = f", or leave the field out with the engine setting omit: [{param}]" if param in OMITTABLE else ""
            error = self._unsupported(f"apply this {param}: {quoted(message)}", f"Change {param} of the stage{leave}.")
            return Fault("fatal", "refused", error=error)
        return super()._classify(endpoint, reply)

    def check_payload(self, reply: Reply) -> Fault | None:
        """Return the fault in a reply's content, or None if it can be decoded; routers report errors with status 200."""
        said = self._message(reply) if first_choice(reply) is None else ""
        return Fault("transient", "server_error", said) if said else fault_in(reply)

    def decode(self, group: Sequence[Request], reply: Reply, served: Served | None) -> list[Generation]:
        """Return the generation of a reply; a withheld text or a refusal is a permanent failure, whose tokens count."""
        (request,) = group
        choice = first_choice(reply)
        assert choice is not None  # noqa: S101 (checked by check_payload)
        message = read_message(choice)
        generation = Generation(
            request.key,
            prompt_tokens=usage_of(reply, "prompt_tokens"),
            completion_tokens=usage_of(reply, "completion_tokens"),
            seed=request.sampling.seed,
            served=served_now(reply.payload, served, ""),
            omitted=self.settings.omit,
        )
        if message.finish_reason in FILTERED:
            generation.failure = Failure("content_filter", False, "The API's content filter withheld the text.")
        elif message.refusal or message.finish_reason == "refusal":
            generation.failure = Failure("refusal", False, "The model refused to respond.")
        else:
            reason = "length" if message.finish_reason in LENGTH else stop_reason(choice, request.sampling.stop)
            ending = end_text(message.text or "", reason, turn_ends=(), stops=request.sampling.stop)
            generation.text, generation.finish_reason = ending.text, ending.finish_reason
            generation.reasoning = message.reasoning
        return [generation]


def _is_without_quota(reply: Reply) -> bool:
    said = {error_field(reply.payload, name) for name in ("code", "type")}
    return reply.status == 402 or (reply.status == 429 and not said.isdisjoint(_NO_MONEY))


def _listed(reply: Reply) -> list[JsonObject] | None:
    """Return the entries of a list of models; None if the reply is not one."""
    data = reply.payload.get("data") if isinstance(reply.payload, dict) else reply.payload
    return listed_models(data) if reply.status == 200 else None
