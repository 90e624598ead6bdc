"""What the endpoint engines have in common: settings, the first meeting with each server, and the request loop."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...backoff import Backoff
from ...errors import ArgumentError, EngineError, ModelMismatchError, quoted
from ...models import ModelRef, resolve_model
from ..base import Capabilities, Engine, EngineStats, Failure, Generation, Prompt, Request, Served
from ..groups import Groups, halves
from .bos import adds_bos
from .classify import REFUSED, check_all, classify_status, guarded, parsing
from .client import HttpClient
from .pacing import CONCURRENCY
from .servers import error_text, is_about_n, is_commit, is_starting, names_match, normal_address, read_key, redirected
from .transport import CallResult, Endpoint, Transport
from .untrusted import name_or_none
from .wire import MALFORMED, Address, Fault, Question, Reply, unavailable


logger = logging.getLogger(__name__)

# How often the caller looks whether there is room again while no answer arrives.
POLL_S = 0.2
MEET_S = 10.0  # longest wait for one answer to `info_path`
# A group of samples holds its slots until its slowest is done, so a group takes at most this share of them.
GROUP_SHARE = 1 / 16


class EndpointEngine(Engine):
    """Generates on one or more servers that hold the same model."""

    takes_endpoints = True
    # Asked when the engine opens and when an endpoint comes back; and ends of an address that are dropped, as the
    # engine adds its own paths.
    info_path: str
    suffixes: tuple[str, ...] = ()

    def __init__(
        self,
        model: str,
        *,
        endpoints: Sequence[str],
        revision: str | None = None,
        ref: ModelRef | None = None,
        api_key_env: str | None = None,
        concurrency: int = CONCURRENCY,
        timeout_s: float = 600.0,
        max_retries: int = 8,
        max_outage_s: float = 600.0,
        startup_timeout_s: float = 30.0,
        backoff_s: tuple[float, float] = (0.5, 30.0),
        allow_model_mismatch: bool = False,
        dtype: str | None = None,
        quantization: str | None = None,
        token_texts: Mapping[int, str] | None = None,
    ) -> None:
        """Keep the settings.

        - `model`, `revision`: what the servers must hold; `ref`: the same, already resolved.
        - `endpoints`: addresses, `http://host:port`.
        - `api_key_env`: name of the environment variable with the key; without it no Authorization is sent.
        - `concurrency`: most samples in flight, over all endpoints (a request for `n` counts `n`); fewer when a server
          refuses for overload or takes long to answer.
        - `timeout_s`: longest silence of a server that has a request; `max_retries`: of one request;
          `max_outage_s`: how long all endpoints may be down; `startup_timeout_s`: how long they may take to start;
          `backoff_s`: first and longest wait between retries.
        - `token_texts`: texts of the stop token ids, for servers that take stop texts only.
        """
        given = [endpoints] if isinstance(endpoints, str) else list(endpoints)
        if not given:
            raise ArgumentError("No endpoint was given.", hint="Give its address, such as http://localhost:8080.")
        if concurrency < 1:
            raise ArgumentError(f"concurrency = {concurrency} cannot be used.", hint="Give 1 or more.")
        self.model = model
        self.addresses = list(dict.fromkeys(normal_address(address, self.suffixes) for address in given))
        self.revision = revision
        self.api_key_env = api_key_env
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.max_retries = max_retries
        self.max_outage_s = max_outage_s
        self.startup_timeout_s = startup_timeout_s
        self.backoff = Backoff(*backoff_s)
        self.allow_model_mismatch = allow_model_mismatch
        self.dtype = dtype
        self.quantization = quantization
        self.token_texts = dict(token_texts or {})
        self.stats = EngineStats()
        self._ref = ref
        self._secret = ""
        self._transport: Transport | None = None
        self._capabilities: Capabilities | None = None
        self._drops_bos = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, endpoints={self.addresses!r})"

    @property
    def ref(self) -> ModelRef:
        """The model asked for, resolved when first needed."""
        if self._ref is None:
            self._ref = resolve_model(self.model, self.revision)
        return self._ref

    def identity(self) -> dict[str, Any]:
        """Return the model asked for, its revision, and dtype and quantization when set."""
        asked: dict[str, Any] = {"model": self.ref.name, "revision": self.ref.revision}
        for name in ("dtype", "quantization"):
            if getattr(self, name) is not None:
                asked[name] = getattr(self, name)
        return asked

    @property
    def transport(self) -> Transport:
        """The open transport. Raises EngineError if the engine is closed."""
        if self._transport is None:
            raise EngineError("The engine is not open.", hint="Use it in a with statement, or call open().")
        return self._transport

    def open(self) -> None:
        """Ask every endpoint who it is and what it can do.

        Raises:
            ArgumentError: the variable named by `api_key_env` is not set.
            EngineUnavailableError: no endpoint answers within `startup_timeout_s`.
            ModelMismatchError: an endpoint holds another model.
            CapabilityError: an endpoint speaks another protocol.
        """
        if self._transport is not None:
            return
        self._secret = read_key(self.api_key_env)
        self.stats = EngineStats()
        connections = self.concurrency + len(self.addresses)  # a request has at least one sample
        self._transport = Transport(
            self.addresses,
            HttpClient(key=self._secret, connections=connections, timeout_s=self.timeout_s),
            classify=self._classify,
            recognize=guarded(self._recognize),
            info_path=self.info_path,
            concurrency=self.concurrency,
            max_retries=self.max_retries,
            max_outage_s=self.max_outage_s,
            backoff=self.backoff,
        )
        self._transport.start()
        try:
            met = self._meet(self._transport)
            with parsing(", ".join(self.addresses[:3])):
                self._capabilities = self._learn(met)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def capabilities(self) -> Capabilities:
        """Return what the servers can do (all of them, if they differ)."""
        if self._capabilities is None:
            raise EngineError("The engine is not open.", hint="Use it in a with statement, or call open().")
        return self._capabilities

    @property
    def served(self) -> Served | None:
        """What the endpoints said of themselves, if they all said the same."""
        said = {e.served for e in self._transport.endpoints if e.served} if self._transport else set()
        return said.pop() if len(said) == 1 else None

    def check_prompt(self, prompt: Prompt) -> None:
        """Compare the server's count of prompt tokens with ours; leave out the BOS where the server adds it.

        Raises:
            PromptMismatchError: the counts differ otherwise; `data` has both.
            CapabilityError: the server does not say how many tokens it counted.
        """
        if self.capabilities().token_ids:
            return
        met = [e for e in self.transport.endpoints if not e.is_down]
        self._drops_bos = adds_bos(met, self._count_prompt, prompt)

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Generation]:
        """Yield a Generation for each Request, in completion order; see the contract in `base`."""
        batch = self.transport.batch()
        source = Groups(requests, self._group_size)
        started = time.monotonic()
        retries = self.transport.retries
        is_waiting = False
        try:
            while True:
                while not source.is_done and not is_waiting and batch.has_capacity():
                    group = source.next_group()
                    if group is None:
                        is_waiting = True
                        break
                    batch.submit(*self._encode(group), group)
                    self.stats.requests += 1
                if batch.outstanding == 0:
                    if source.is_done:
                        return
                    is_waiting = False
                    continue
                result = batch.get(POLL_S)
                if result is not None:
                    is_waiting = False
                    pieces = self._pieces(result)
                    for piece in pieces:
                        batch.submit(*self._encode(piece), piece)
                    if not pieces:
                        yield from self._generations(result)
        finally:
            batch.close()
            self.stats.busy_s += time.monotonic() - started
            if self._transport is not None:
                self.stats.retries += self._transport.retries - retries

    def _group_size(self) -> int:
        """Return how many samples may share a request now."""
        return max(1, min(self.capabilities().max_n, int(GROUP_SHARE * self.concurrency)))

    def _pieces(self, result: CallResult) -> list[list[Request]]:
        """Return the groups to ask for in place of one that the server refused, none if the result counts.

        A refusal may be about `n` whatever its words are: only a single sample's is about the sample. One that names
        `n` lowers it for what follows.
        """
        group, failure = result.call.group, result.failure
        if failure is None or failure.code != "validation" or len(group) == 1:
            return []
        pieces = halves(group)
        most = len(pieces[0])
        if is_about_n(failure.message) and most < self.capabilities().max_n:
            self._capabilities = replace(self.capabilities(), max_n=most)
            logger.warning("a server refused n=%d: at most %d samples share a request from now on", len(group), most)
        self.stats.retries += 1
        self.stats.requests += len(pieces)
        return pieces

    def _generations(self, result: CallResult) -> list[Generation]:
        group = result.call.group
        failure = result.failure
        generations: list[Generation] = []
        if result.reply is not None:
            try:
                generations = self._decode(group, result.reply, result.served)
                check_all(generations, group, result.served)
                self.stats.prompt_tokens += sum(g.prompt_tokens or 0 for g in generations)
                self.stats.completion_tokens += sum(g.completion_tokens or 0 for g in generations)
            except MALFORMED as error:
                failure = Failure("bad_reply", True, f"the reply is malformed ({type(error).__name__})")
        if failure is not None:
            self.stats.failures += len(group)
            self.stats.by_code[failure.code] = self.stats.by_code.get(failure.code, 0) + len(group)
            generations = [Generation(r.key, seed=r.sampling.seed, failure=failure) for r in group]
        for generation in generations:
            generation.seconds = result.seconds
            generation.served = generation.served or result.served
        return generations

    def _text(self, prompt: Prompt) -> str:
        return prompt.text_without_bos if self._drops_bos else prompt.text

    def _meet(self, transport: Transport) -> list[Endpoint]:
        """Ask each endpoint who it is, for as long as it may take to start; set aside those that never answer."""
        met: list[Endpoint] = []
        by_url = {endpoint.url: endpoint for endpoint in transport.endpoints}
        waiting: set[str] = set()
        recognize = guarded(self._recognize)

        def is_met(question: Question, reply: Reply) -> bool:
            endpoint = by_url[question.server.url]
            if is_starting(reply):
                if endpoint.url not in waiting:
                    logger.warning("Waiting for %s to start", endpoint.url)
                waiting.add(endpoint.url)
                return False
            endpoint.served = recognize(endpoint, reply)
            met.append(endpoint)
            return True

        replies = transport.client.ask_all(
            [Question(endpoint, "GET", self.info_path) for endpoint in transport.endpoints],
            timeout_s=min(MEET_S, self.timeout_s),
            is_final=is_met,
            backoff=self.backoff.limited(2),
            attempts=None,
            within_s=self.startup_timeout_s,
        )
        if not met:
            raise unavailable(self.addresses, self.startup_timeout_s, replies[-1])
        for endpoint in transport.endpoints:
            if endpoint not in met:
                transport.mark_down(endpoint)
        return [endpoint for endpoint in transport.endpoints if endpoint in met]

    def _check_model(self, endpoint: Address, served: str, revision: str | None = None) -> None:
        """Raise ModelMismatchError unless the server holds the model asked for, and its revision if one was given."""
        if self.allow_model_mismatch:
            return
        if not names_match(self.ref, served):
            raise ModelMismatchError(
                f"{endpoint.url} holds the model {quoted(served)}, not {quoted(self.ref.name)}.",
                hint="Give the address of the right server, or --set engine.allow_model_mismatch=true if both are the same model.",
                endpoint=endpoint.url,
                served=served,
                asked=self.ref.name,
            )
        asked = self.ref.revision
        if self.revision and revision and is_commit(asked) and is_commit(revision) and asked != revision:
            raise ModelMismatchError(
                f"{endpoint.url} holds revision {revision} of {quoted(served)}, not {asked}.",
                hint="Start the server with that revision, or leave the revision out.",
                endpoint=endpoint.url,
                served=revision,
                asked=asked,
            )

    def _refused(self, endpoint: Address, status: int) -> EngineError:
        """Return the error for a server that wants a key, or another one. Never shows the key."""
        if self.api_key_env:
            hint = f"Check the key in the environment variable {self.api_key_env} (api_key_env)."
        else:
            hint = "If it wants a key, name the environment variable that holds it: api_key_env (--api-key-env NAME)."
        return EngineError(
            f"{endpoint.url} refuses access ({status}).", hint=hint, endpoint=endpoint.url, status=status
        )

    def _check_access(self, endpoint: Address, reply: Reply) -> None:
        """Raise for replies that say the address or the key is wrong."""
        if reply.fault is not None and reply.fault.error is not None:
            raise reply.fault.error
        if reply.status in REFUSED:
            raise self._refused(endpoint, reply.status)
        if 300 <= reply.status < 400:
            raise redirected(endpoint.url, reply)

    def _classify(self, endpoint: Address, reply: Reply) -> Fault | None:
        """Say what a reply to a generation request means. Runs in the transport's thread."""
        status = reply.status
        if status == 200:
            return self._classify_payload(reply)
        message = f"{status}: {self._message(reply)}"
        if status in REFUSED:
            return Fault("fatal", "refused", error=self._refused(endpoint, status))
        if 300 <= status < 400:
            return Fault("fatal", "redirect", error=redirected(endpoint.url, reply))
        return classify_status(reply, message)

    def _message(self, reply: Reply) -> str:
        """Return the server's error text, without the key, at most 200 characters."""
        text = error_text(reply.payload).split("'input':")[0]
        if self._secret:
            text = text.replace(self._secret, "…")
        return name_or_none(text) or ""

    @abstractmethod
    def _recognize(self, endpoint: Address, reply: Reply) -> Served | None:
        """Say who answered `info_path`; raises if it is the wrong server."""

    @abstractmethod
    def _learn(self, met: Sequence[Address]) -> Capabilities:
        """Find out what the endpoints that answered can do."""

    @abstractmethod
    def _count_prompt(self, endpoint: Address, text: str) -> int | None:
        """Return how many tokens the server counts in a prompt, None if it does not say."""

    @abstractmethod
    def _classify_payload(self, reply: Reply) -> Fault | None:
        """Say what is wrong with the content of a 200 reply, None if it can be decoded."""

    @abstractmethod
    def _encode(self, group: Sequence[Request]) -> tuple[str, bytes]:
        """Return path and body of the HTTP request for a group of samples."""

    @abstractmethod
    def _decode(self, group: Sequence[Request], reply: Reply, served: Served | None) -> list[Generation]:
        """Return the generations of a group, in its order; `served`: what the endpoint has said of itself."""
