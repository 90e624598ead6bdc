"""Text Generation Inference: the engine for its native `/generate`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ...errors import CapabilityError, PromptMismatchError, quoted
from ...sampling import SamplingParams, schema_of
from ..base import Capabilities, Generation, Request, Served
from ..first_token import check_first_token
from ..groups import fitted
from ..stops import Ending, end_text, end_tokens, to_send
from .endpoints import EndpointEngine
from .tgi_types import check_parameters, tgi_client, tgi_error
from .untrusted import JsonObject, count_or_none, header_count
from .wire import Address, Fault, Question, Reply, to_json


# TGI's default of --max-stop-sequences, for servers whose /info does not report it.
MAX_STOP_SEQUENCES = 4
# A failed generation (424) is usually caused by the row and sometimes by the device: two retries distinguish them.
GENERATION_RETRIES = 2
_REASONS = {"eos_token": "stop", "stop_sequence": "stop_text", "length": "length"}


class TgiEngine(EndpointEngine):
    """Generates on Text Generation Inference servers.

    TGI does not support stop token ids. The model's own end-of-sequence tokens end a text there; the texts of other stop
    tokens are sent as stop sequences, up to the server's maximum, and texts are cut here at stop token ids. Special
    tokens, which TGI removes from its text, are restored from its token list.
    """

    name = "tgi"
    info_path = "/info"
    suffixes = ("/generate_stream", "/generate")
    _max_stop = MAX_STOP_SEQUENCES

    def recognize(self, endpoint: Address, reply: Reply) -> Served:
        """Return what the server reports about itself."""
        self.check_access(endpoint, reply)
        info = reply.payload
        if reply.status != 200 or not isinstance(info, dict) or not isinstance(info.get("model_id"), str):
            raise CapabilityError(
                f"{endpoint.url} is not a Text Generation Inference server: GET /info returned "
                f"{'no model_id' if reply.status == 200 else reply.status}.",
                hint="Check the URL; for vLLM, SGLang, llama.cpp and `transformers serve` use the engine openai.",
                endpoint=endpoint.url,
            )
        self.check_model(endpoint, info["model_id"], _text_or_none(info.get("model_sha")))
        version = _text_or_none(info.get("version"))
        return Served(
            model=info["model_id"],
            revision=_text_or_none(info.get("model_sha")),
            dtype=_text_or_none(info.get("model_dtype")),
            version=f"tgi {version}" if version else "tgi",
        )

    def detect_capabilities(self, servers: Sequence[Address]) -> Capabilities:
        """Return what all servers support."""
        tgi_client()
        replies = self.transport.client.ask_all([Question(e, "GET", self.info_path) for e in servers], timeout_s=30.0)
        infos = [reply.payload if isinstance(reply.payload, dict) else {} for reply in replies]
        contexts, slots, stops = (
            [count for info in infos if (count := count_or_none(info.get(name), least)) is not None]
            for name, least in (("max_total_tokens", 1), ("max_concurrent_requests", 1), ("max_stop_sequences", 0))
        )
        self._max_stop = min(stops, default=MAX_STOP_SEQUENCES)
        if slots:
            self.transport.set_limit(min(slots))
        return Capabilities(
            token_ids=False,
            seeded=True,
            max_n=1,
            json_schema=all(self._supports_schemas(e) for e in servers),
            max_context=min(contexts, default=None),
        )

    def _supports_schemas(self, endpoint: Address) -> bool:
        """Whether the server supports JSON schemas: it can be started without."""
        grammar = {"type": "json", "value": {"type": "object", "properties": {"ok": {"type": "boolean"}}}}
        parameters = {"max_new_tokens": 1, "do_sample": False, "details": True, "grammar": grammar}
        reply = self.transport.client.ask(
            Question(endpoint, "POST", "/generate", {"inputs": "Hello", "parameters": parameters})
        )
        self.check_access(endpoint, reply)
        return reply.status != 422

    def count_prompt_tokens(self, endpoint: Address, text: str) -> int | None:
        """Return the server's token count of a prompt."""
        parameters = {"max_new_tokens": 1, "do_sample": False, "details": True, "decoder_input_details": True}
        reply = self.ask(endpoint, "POST", "/generate", {"inputs": text, "parameters": parameters})
        if reply.fault is not None or reply.status != 200:
            message = reply.fault.message if reply.fault is not None else self._message(reply)
            raise PromptMismatchError(
                f"{endpoint.url} does not accept the prompt: {quoted(message)}.", endpoint=endpoint.url
            )
        return _prompt_tokens(reply)

    def encode(self, group: Sequence[Request]) -> tuple[str, bytes]:
        """Return path and body of the request for a group of samples."""
        (request,) = group
        sampling = request.sampling
        if sampling.json_schema is not None and not self.capabilities().json_schema:
            raise CapabilityError(
                "The server does not support JSON schemas.",
                hint="Start TGI without --disable-grammar-support, or remove the setting json_schema.",
            )
        check_first_token(sampling, self.capabilities(), "TGI")
        parameters = dict(parameters_of(sampling.with_seed(None), self._stops_sent(sampling)))
        parameters["max_new_tokens"] = fitted(request, self.capabilities().max_context).max_tokens
        if sampling.seed is not None and not sampling.is_greedy:
            parameters["seed"] = sampling.seed
        return "/generate", to_json({"inputs": self.prompt_text(request.prompt), "parameters": parameters})

    def _stops_sent(self, sampling: SamplingParams) -> tuple[str, ...]:
        """Return the stop sequences for the server: ends of turn first, then the user's, up to its maximum."""
        stops = dict.fromkeys([*to_send(self._turn_ends(sampling)), *sampling.stop])
        return tuple(stops)[: self._max_stop]

    def _turn_ends(self, sampling: SamplingParams) -> list[str]:
        return [text for i in sampling.stop_token_ids if (text := self.token_texts.get(i))]

    def _classify(self, endpoint: Address, reply: Reply) -> Fault | None:
        client = tgi_client()
        error = None if reply.status == 200 else tgi_error(reply.payload)
        message = f"{reply.status}: {self._message(reply)}"
        if isinstance(error, client.generation):
            return Fault("transient", "generation", message, retries=GENERATION_RETRIES, ends_row=True)
        if isinstance(error, client.incomplete):
            return Fault("transient", "incomplete_generation", message)
        if isinstance(error, client.overloaded):
            reply = reply._replace(status=429)
        elif isinstance(error, client.validation):
            reply = reply._replace(status=422)
        return super()._classify(endpoint, reply)

    def check_payload(self, reply: Reply) -> Fault | None:
        """Return the fault in a reply's content, or None if it can be decoded."""
        answer = reply.payload
        details = answer.get("details") if isinstance(answer, dict) else None
        if not isinstance(details, dict) or not isinstance(answer.get("generated_text"), str):
            return Fault("transient", "bad_reply", "the reply has no generated_text or no details")
        if details.get("finish_reason") not in _REASONS:
            return Fault("transient", "bad_reply", f"finish_reason {quoted(details.get('finish_reason'), 40)}")
        return None

    def decode(self, group: Sequence[Request], reply: Reply, served: Served | None) -> list[Generation]:
        """Return the generations of a group."""
        (request,) = group
        details = reply.payload["details"]
        tokens = details.get("tokens") or []
        ids = [token["id"] for token in tokens]
        ending = self._ending(request.sampling, reply.payload["generated_text"], details, tokens, ids)
        seed = details.get("seed")
        return [
            Generation(
                request.key,
                ending.text,
                ending.finish_reason,
                token_ids=None if ending.num_tokens is None else ids[: ending.num_tokens],
                prompt_tokens=_prompt_tokens(reply),
                completion_tokens=details.get("generated_tokens"),
                seed=seed if isinstance(seed, int) else request.sampling.seed,
            )
        ]

    def _ending(
        self,
        sampling: SamplingParams,
        text: str,
        details: JsonObject,
        tokens: Sequence[JsonObject],
        ids: Sequence[int],
    ) -> Ending:
        """Return the text up to its first stop, from the tokens if the server lists them."""
        reason = _REASONS[details["finish_reason"]]
        turn_ends = self._turn_ends(sampling)
        if not tokens:
            return end_text(text, reason, turn_ends=turn_ends, stops=sampling.stop)
        texts = [token["text"] for token in tokens]
        if details["finish_reason"] == "eos_token":
            texts, ids = texts[:-1], ids[:-1]
        return end_tokens(
            ids, texts, reason, stop_token_ids=sampling.stop_token_ids, turn_ends=turn_ends, stops=sampling.stop
        )


@lru_cache(maxsize=1024)
def parameters_of(sampling: SamplingParams, stop: tuple[str, ...]) -> JsonObject:
    """Return the `parameters` for TGI without the seed; parameters that are off are left out, none is changed.

    Raises ArgumentError if TGI, or the client library, would refuse them.
    """
    parameters: JsonObject = {"max_new_tokens": sampling.max_tokens, "details": True}
    parameters["do_sample"] = not sampling.is_greedy
    if not sampling.is_greedy:
        if sampling.temperature != 1:
            parameters["temperature"] = sampling.temperature
        if sampling.top_p < 1:
            parameters["top_p"] = sampling.top_p
        if sampling.top_k is not None:
            parameters["top_k"] = sampling.top_k
    if sampling.repetition_penalty != 1:
        parameters["repetition_penalty"] = sampling.repetition_penalty
    if stop:
        parameters["stop"] = list(stop)
    if sampling.json_schema is not None:
        parameters["grammar"] = {"type": "json", "value": schema_of(sampling.json_schema)}
    check_parameters(parameters)
    return parameters


def _prompt_tokens(reply: Reply) -> int | None:
    """Return the server's count of prompt tokens: from its header, or else from the prefill list."""
    counted = header_count(reply.headers.get("x-prompt-tokens"))
    if counted is not None:
        return counted
    details = reply.payload.get("details") if isinstance(reply.payload, dict) else None
    prefill = details.get("prefill") if isinstance(details, dict) else None
    return len(prefill) if prefill else None


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
