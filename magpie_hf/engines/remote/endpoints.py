"""The base of all engines for servers: settings, identification of each server, and the request loop."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...backoff import Backoff
from ...errors import ArgumentError, EngineError, ModelMismatchError, quoted
from ...models import ModelRef
from ..base import Capabilities, Engine, EngineStats, Failure, Generation, Prompt, Request, Served, setting
from ..groups import Groups, halves
from .bos import adds_bos
from .classify import REFUSED, check_all, classify_status, guarded, parsing
from .client import ASK_TIMEOUT_S, HttpClient, is_settled
from .pacing import CONCURRENCY
from .servers import error_text, is_about_n, is_commit, is_starting, names_match, normal_address, read_key, redirected
from .transport import CallResult, Endpoint, Transport, is_ok
from .untrusted import Json, name_or_none
from .wire import MALFORMED, Address, Fault, Question, Reply, unavailable


logger = logging.getLogger(__name__)

# How often the caller checks for free capacity while no reply arrives.
POLL_S = 0.2
INFO_TIMEOUT_S = 10.0  # maximum time for one reply to `info_path`
# A group of samples uses its slots until the slowest is finished, so a group has at most this share of them.
GROUP_SHARE = 1 / 16


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """Settings of all engines for servers."""

    api_key_env: str | None = setting(
        None, "Name of the environment variable with the API key. Default: no Authorization is sent.", silent=True
    )
    concurrency: int = setting(
        CONCURRENCY,
        "Maximum number of samples in flight, over all endpoints (a request with `n` counts `n`); fewer while a server "
        "is overloaded or slow.",
        silent=True,
    )
    timeout_s: float = setting(600.0, "Longest silence of a server with a request, in seconds.", silent=True)
    max_retries: int = setting(8, "Maximum number of retries of one request.", silent=True)
    max_outage_s: float = setting(600.0, "How long all endpoints may be down before the run ends.", silent=True)
    startup_timeout_s: float = setting(30.0, "How long the endpoints may take to start.", silent=True)
    backoff_s: tuple[float, float] = setting((0.5, 30.0), "First and longest wait between retries.", silent=True)
    allow_model_mismatch: bool = setting(
        False, "Accept servers that report another model name, if you know that it is the same model.", silent=True
    )
    dtype: str | None = setting(None, "The dtype that the servers use, for identity and dataset card.")
    quantization: str | None = setting(None, "The quantization that the servers use, for identity and dataset card.")

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ArgumentError(f"concurrency = {self.concurrency} is invalid.", hint="Use 1 or more.")


class EndpointEngine(Engine):
    """Base class of the engines that generate on one or more servers with the same model.

    Connections, retries, several endpoints, overload, outages, keys and checks of untrusted replies are implemented here.
    A subclass implements a server's protocol: `recognize`, `detect_capabilities`, `count_prompt_tokens`, `encode`,
    `check_payload` and `decode`. Code that reads a reply may raise what Python raises for values of unexpected types
    (KeyError, TypeError, …): it counts as a malformed reply.
    """

    settings_class = EndpointSettings
    settings: EndpointSettings
    takes_endpoints = True
    info_path: str
    """Requested when the engine opens, and to find out whether an endpoint is available again."""
    suffixes: tuple[str, ...] = ()
    """Ends of a URL that are removed, because the engine adds its own paths."""

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
        """Keep the settings.

        Args:
            model: The model that the servers must have.
            endpoints: URLs, `http://host:port`.
            token_texts: Texts of the stop token ids, for servers that only support stop texts.
            revision: The model's revision.
            ref: The same model, already resolved.
            settings: Fields of `settings_class`.
        """
        super().__init__(model, revision=revision, ref=ref, **settings)
        given = [endpoints] if isinstance(endpoints, str) else list(endpoints)
        if not given:
            raise ArgumentError("No endpoint given.", hint="Set its URL, e.g., http://localhost:8080.")
        self.addresses = list(dict.fromkeys(normal_address(address, self.suffixes) for address in given))
        self.token_texts = dict(token_texts or {})
        self.backoff = Backoff(*self.settings.backoff_s)
        self._secret = ""
        self._transport: Transport | None = None
        self._capabilities: Capabilities | None = None
        self._drops_bos = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, endpoints={self.addresses!r})"

    @property
    def transport(self) -> Transport:
        """The open transport. Raises EngineError if the engine is not open."""
        if self._transport is None:
            raise EngineError("The engine is not open.", hint="Use it as a context manager, or call open().")
        return self._transport

    def open(self) -> None:
        """Identify every endpoint and detect what it supports.

        Raises:
            ArgumentError: the environment variable `api_key_env` is not set.
            EngineUnavailableError: no endpoint replies within `startup_timeout_s`.
            ModelMismatchError: an endpoint has another model.
            CapabilityError: an endpoint is another kind of server.
        """
        if self._transport is not None:
            return
        self._secret = read_key(self.settings.api_key_env)
        self.stats = EngineStats()
        connections = self.settings.concurrency + len(self.addresses)  # a request has at least one sample
        self._transport = Transport(
            self.addresses,
            HttpClient(key=self._secret, connections=connections, timeout_s=self.settings.timeout_s),
            classify=self._classify,
            recognize=guarded(self.recognize),
            info_path=self.info_path,
            is_available=self.is_available,
            concurrency=self.settings.concurrency,
            max_retries=self.settings.max_retries,
            max_outage_s=self.settings.max_outage_s,
            backoff=self.backoff,
        )
        self._transport.start()
        try:
            identified = self._identify_endpoints(self._transport)
            with parsing(", ".join(self.addresses[:3])):
                self._capabilities = self.detect_capabilities(identified)
            self._warn_of_limits(self._capabilities)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def capabilities(self) -> Capabilities:
        """Return what the servers support (all of them, if they differ)."""
        if self._capabilities is None:
            raise EngineError("The engine is not open.", hint="Use it as a context manager, or call open().")
        return self._capabilities

    @property
    def served(self) -> Served | None:
        """What the endpoints reported about themselves, if all reported the same."""
        said = {e.served for e in self._transport.endpoints if e.served} if self._transport else set()
        return said.pop() if len(said) == 1 else None

    def _warn_of_limits(self, capabilities: Capabilities) -> None:
        servers = ", ".join(self.addresses[:3])
        if not capabilities.seeded:
            logger.warning("%s: equal seeds give different texts, so rows cannot be reproduced exactly", servers)
        if not capabilities.special_tokens:
            logger.warning("%s: special tokens are not visible in texts, so they are not a reason to reject", servers)

    def check_prompt(self, prompt: Prompt) -> None:
        """Compare the server's count of prompt tokens with ours; remove the BOS from texts if the server adds it.

        Raises:
            PromptMismatchError: the counts differ otherwise; `data` has both.
            CapabilityError: the server does not report its count.
        """
        if self.capabilities().token_ids:
            return
        identified = [e for e in self.transport.endpoints if not e.is_down]
        self._drops_bos = adds_bos(identified, self.count_prompt_tokens, prompt)

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Generation]:
        """Yield a Generation for each Request, in completion order; see `Engine.generate`."""
        batch = self.transport.batch()
        source = Groups(requests, self._group_size)
        retries = self.transport.retries
        is_waiting = False
        try:
            while True:
                while not source.is_done and not is_waiting and batch.has_capacity():
                    group = source.next_group()
                    if group is None:
                        is_waiting = True
                        break
                    batch.submit(*self.encode(group), group)
                    self.stats.requests += 1
                if batch.outstanding == 0:
                    if source.is_done:
                        return
                    is_waiting = False
                    continue
                result = batch.get(POLL_S)
                if result is not None:
                    is_waiting = False
                    pieces = self._split_refused(result)
                    for piece in pieces:
                        batch.submit(*self.encode(piece), piece)
                    if not pieces:
                        yield from self._generations(result)
        finally:
            batch.close()
            if self._transport is not None:
                self.stats.retries += self._transport.retries - retries

    def _group_size(self) -> int:
        """Return how many samples may share a request."""
        return max(1, min(self.capabilities().max_n, int(GROUP_SHARE * self.settings.concurrency)))

    def _split_refused(self, result: CallResult) -> list[list[Request]]:
        """Return the smaller groups to send instead of one that the server refused, [] if the result is final.

        A server may refuse any group because of `n`; only if it refuses a single sample, the sample is invalid. If the
        message mentions `n`, later requests have fewer samples.
        """
        group, failure = result.call.group, result.failure
        if failure is None or failure.code != "validation" or len(group) == 1:
            return []
        pieces = halves(group)
        most = len(pieces[0])
        if is_about_n(failure.message) and most < self.capabilities().max_n:
            self._capabilities = replace(self.capabilities(), max_n=most)
            logger.warning("A server rejected n=%d; requests will have at most %d samples", len(group), most)
        self.stats.retries += 1
        self.stats.requests += len(pieces)
        return pieces

    def _generations(self, result: CallResult) -> list[Generation]:
        group = result.call.group
        failure = result.failure
        generations: list[Generation] = []
        if result.reply is not None:
            try:
                generations = self.decode(group, result.reply, result.served)
                check_all(generations, group, result.served)
            except MALFORMED as error:
                failure = Failure("bad_reply", True, f"the reply is malformed ({type(error).__name__})")
        if failure is not None:
            generations = [Generation(r.key, seed=r.sampling.seed, failure=failure) for r in group]
        for generation in generations:
            generation.seconds = result.seconds
            generation.served = generation.served or result.served
        _count_discarded(generations[0], *result.call.discarded)
        return generations

    def prompt_text(self, prompt: Prompt) -> str:
        """Return the text to send for a prompt: without its BOS if the server adds it."""
        return prompt.text_without_bos if self._drops_bos else prompt.text

    def _identify_endpoints(self, transport: Transport) -> list[Endpoint]:
        """Identify each endpoint, waiting for those that are starting; mark those that never reply as down."""
        identified: list[Endpoint] = []
        by_url = {endpoint.url: endpoint for endpoint in transport.endpoints}
        waiting: set[str] = set()
        recognize = guarded(self.recognize)

        def is_identified(question: Question, reply: Reply) -> bool:
            endpoint = by_url[question.server.url]
            if is_starting(reply):
                if endpoint.url not in waiting:
                    logger.warning("Waiting for %s to start", endpoint.url)
                waiting.add(endpoint.url)
                return False
            endpoint.served = recognize(endpoint, reply)
            identified.append(endpoint)
            return True

        replies = transport.client.ask_all(
            [Question(endpoint, "GET", self.info_path) for endpoint in transport.endpoints],
            timeout_s=min(INFO_TIMEOUT_S, self.settings.timeout_s),
            is_final=is_identified,
            backoff=self.backoff.limited(2),
            attempts=None,
            within_s=self.settings.startup_timeout_s,
        )
        if not identified:
            raise unavailable(self.addresses, self.settings.startup_timeout_s, replies[-1])
        for endpoint in transport.endpoints:
            if endpoint not in identified:
                transport.mark_down(endpoint)
        return [endpoint for endpoint in transport.endpoints if endpoint in identified]

    def ask(self, server: Address, method: str, path: str, body: Json = None) -> Reply:
        """Return the reply to a request outside of `generate`, sent again after transient errors.

        Raises:
            EngineError: the server refuses access.
        """

        def is_final(question: Question, reply: Reply) -> bool:
            self.check_access(question.server, reply)
            return is_settled(question, reply)

        (reply,) = self.transport.client.ask_all(
            [Question(server, method, path, body)],
            is_final=is_final,
            backoff=self.backoff,
            attempts=self.settings.max_retries + 1,
            within_s=ASK_TIMEOUT_S,
        )
        return reply

    def check_model(self, endpoint: Address, served: str, revision: str | None = None) -> None:
        """Raise ModelMismatchError unless the server has the requested model, and the revision if one was given."""
        if self.settings.allow_model_mismatch:
            return
        if not names_match(self.ref, served):
            raise ModelMismatchError(
                f"{endpoint.url} has the model {quoted(served)}, not {quoted(self.ref.name)}.",
                hint="Use the URL of the right server, or --set engine.allow_model_mismatch=true if both are the same model.",
                endpoint=endpoint.url,
                served=served,
                asked=self.ref.name,
            )
        asked = self.ref.revision
        if self.revision and revision and is_commit(asked) and is_commit(revision) and asked != revision:
            raise ModelMismatchError(
                f"{endpoint.url} has revision {revision} of {quoted(served)}, not {asked}.",
                hint="Start the server with that revision, or remove the revision.",
                endpoint=endpoint.url,
                served=revision,
                asked=asked,
            )

    def _refused(self, endpoint: Address, status: int) -> EngineError:
        """Return the error for a server that requires a key, or another one. Never shows the key."""
        if self.settings.api_key_env:
            hint = f"Check the key in the environment variable {self.settings.api_key_env} (api_key_env)."
        else:
            hint = "If it requires a key, set the name of the environment variable with the key: api_key_env (--api-key-env NAME)."
        return EngineError(
            f"{endpoint.url} refuses access ({status}).", hint=hint, endpoint=endpoint.url, status=status
        )

    def check_access(self, endpoint: Address, reply: Reply) -> None:
        """Raise for replies that mean a wrong URL or key."""
        if reply.fault is not None and reply.fault.error is not None:
            raise reply.fault.error
        if reply.status in REFUSED:
            raise self._refused(endpoint, reply.status)
        if 300 <= reply.status < 400:
            raise redirected(endpoint.url, reply)

    def _classify(self, endpoint: Address, reply: Reply) -> Fault | None:
        """Return the fault in the reply to a generation request, if any. Runs in the client's thread."""
        status = reply.status
        if status == 200:
            return self.check_payload(reply)
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

    def is_available(self, server: Address, reply: Reply) -> bool:
        """Whether a reply to `info_path` means that a server which did not reply is available again."""
        return is_ok(server, reply)

    @abstractmethod
    def recognize(self, server: Address, reply: Reply) -> Served | None:
        """Return what a server reports about itself in its reply to `info_path`.

        Call `check_access` first, and `check_model` with the reported name.

        Raises:
            CapabilityError: it is another kind of server.
            ModelMismatchError: it has another model.
        """

    @abstractmethod
    def detect_capabilities(self, servers: Sequence[Address]) -> Capabilities:
        """Return the features that all available servers support; send requests with `self.transport.client`."""

    @abstractmethod
    def count_prompt_tokens(self, server: Address, text: str) -> int | None:
        """Return the server's token count of a prompt, None if it does not report one."""

    @abstractmethod
    def encode(self, group: Sequence[Request]) -> tuple[str, bytes]:
        """Return path and body of the HTTP request for a group of samples, at most `max_n` of one prompt.

        Raises:
            CapabilityError: the server does not support a sampling parameter.
        """

    @abstractmethod
    def check_payload(self, reply: Reply) -> Fault | None:
        """Return the fault in the content of a reply with status 200, or None if it can be decoded."""

    @abstractmethod
    def decode(self, group: Sequence[Request], reply: Reply, served: Served | None) -> list[Generation]:
        """Return the generations of a group, in its order; `served` is what the endpoint reported about itself."""


def _count_discarded(generation: Generation, prompt_tokens: int, completion_tokens: int) -> None:
    """Add the tokens of replies that could not be used, so that budgets include them."""
    if prompt_tokens or completion_tokens:
        generation.prompt_tokens = (generation.prompt_tokens or 0) + prompt_tokens
        generation.completion_tokens = (generation.completion_tokens or 0) + completion_tokens
