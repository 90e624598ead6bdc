"""The engine interface: requests in, generations out, in completion order.

An engine does not know stages, datasets or journals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

from ..errors import ArgumentError, CapabilityError, did_you_mean, quoted
from ..models import ModelRef, resolve_model
from ..sampling import SamplingParams


if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")
T = TypeVar("T")


class Prompt:
    """The text sent to a model, and its token ids, which are computed at first use.

    Attributes:
        text: The rendered template, including its BOS if it has one.
        token_ids: The tokens, with exactly one BOS if the model uses one.
        bos: The BOS that `text` begins with, or "". Engines that send text leave it out if, and only if, their server
            adds it (`text_without_bos`).
        dropped: Characters at the end of the template that merge with the following text into one token. They are not
            in `text`: the model writes them first.
        decode: Returns the text of generated tokens, special ones visible; None if the prompt has no tokenizer.
        messages: The conversation, for engines whose servers apply the chat template (`Engine.takes_messages`). `text`
            then contains the contents of the messages only. None for raw prompts.
    """

    __slots__ = ("_encode", "_token_ids", "bos", "decode", "dropped", "messages", "text")

    def __init__(
        self,
        text: str,
        token_ids: Sequence[int] | None = None,
        *,
        encode: Callable[[str], Sequence[int]] | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        bos: str = "",
        dropped: str = "",
        messages: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        self.text = text
        self.messages = None if messages is None else tuple(messages)
        self.bos = bos
        self.dropped = dropped
        self._token_ids = None if token_ids is None else tuple(token_ids)
        self._encode = encode
        self.decode = decode

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt as the model reads it. Raises ValueError if neither ids nor an encoder were given."""
        if self._token_ids is None:
            if self._encode is None:
                raise ValueError("this prompt has text only")
            self._token_ids = tuple(self._encode(self.text))
        return self._token_ids

    def count_tokens(self, text: str) -> int | None:
        """Return the number of tokens of a generated text, None if the prompt has no encoder."""
        return None if self._encode is None else len(self._encode(text))

    @property
    def text_without_bos(self) -> str:
        """The text for a server that adds the BOS."""
        return self.text.removeprefix(self.bos)

    def __repr__(self) -> str:
        return f"Prompt({self.text[:80]!r})"


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A request for one sample: a prompt, sampling parameters, and a key that is returned with the generation.

    `key` is unique among the requests in flight. Consecutive requests with the *same* Prompt object, equal sampling
    except for the seed, and seeds that increase by one may be sent to a server as one request with `n`.
    """

    key: int
    prompt: Prompt
    sampling: SamplingParams


class Failure(NamedTuple):
    """Why a request has no text.

    Attributes:
        code: A short name that is counted and saved (`too_long`, `validation`, `overloaded`, `timeout`, …).
        transient: True if the same request may succeed later: the row stays pending. False: it is finished with `code`.
        message: At most 200 characters, without prompt text or secrets.
    """

    code: str
    transient: bool
    message: str


class Served(NamedTuple):
    """What the server reported about itself in a reply: provenance of a row. Values that it did not report are None.

    `fingerprint` is the `system_fingerprint` of a reply. It also depends on settings that change no text, and replicas
    of one model may differ in it: it is saved, and a different one does not end the run.
    """

    model: str | None = None
    revision: str | None = None
    dtype: str | None = None
    version: str | None = None
    fingerprint: str | None = None


@dataclass(slots=True)
class Generation:
    """The result of a request.

    Attributes:
        key: The request's.
        text: The new text without the stop. Special tokens in it stay visible: they are a reason to reject it.
        finish_reason: "stop" (a stop token id or the end of sequence), "stop_text" (a stop text), "length"
            (`max_tokens`, or the context is full), or None with `failure`.
        token_ids: The new tokens without the stop token, if the engine knows them.
        prompt_tokens, completion_tokens: Token counts, the latter including the stop token; None if not reported.
        seconds: Time from sending the request (or the start of its batch) to the text; 0 if unknown.
        reasoning: The model's reasoning, if the server separates it from the text.
        omitted: Sampling parameters that were not sent, so that the server's own values applied.
    """

    key: int
    text: str = ""
    finish_reason: str | None = None
    token_ids: Sequence[int] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seed: int | None = None
    seconds: float = 0.0
    served: Served | None = None
    failure: Failure | None = None
    reasoning: str | None = None
    omitted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an open engine supports.

    Attributes:
        token_ids: Prompts are sent as token ids. If False, `check_prompt` compares the server's token count with ours.
        seeded: Equal seeds give equal texts (up to floating point).
        max_n: Maximum number of samples in a request to the server (1: no `n`).
        first_token_ban: Supports `banned_first_token_ids`.
        first_token_scale: Supports `first_token_scale`.
        json_schema: Supports `json_schema`.
        logprobs: Supports `score`.
        special_tokens: Special tokens are visible in texts, or token ids are returned with them.
        max_context: Maximum number of tokens of prompt and completion; None if unknown.
    """

    token_ids: bool = True
    seeded: bool = True
    max_n: int = 1
    first_token_ban: bool = False
    first_token_scale: bool = False
    json_schema: bool = False
    logprobs: bool = False
    special_tokens: bool = True
    max_context: int | None = None


@dataclass(slots=True)
class EngineStats:
    """Counts since the engine was opened: requests for samples, and retries, which a run's summary shows."""

    requests: int = 0
    retries: int = 0


IDENTITY = "identity"
"""Key in the metadata of a settings field: False if the setting cannot change a text."""
HELP = "help"
"""Key in the metadata of a settings field: its documentation, for the reference pages."""


def setting(default: T, help: str, *, silent: bool = False) -> T:
    """Return a field of a settings dataclass.

    Args:
        default: The default value.
        help: Documentation for the reference pages.
        silent: Whether the setting cannot change a text, e.g., a batch size, and so is not part of the identity.
    """
    return field(default=default, metadata={HELP: help, IDENTITY: not silent})


@dataclass(frozen=True)
class NoSettings:
    """Settings of an engine that has none."""


class Engine(ABC):
    """Generates text. Use it as a context manager, or call `open()` and `close()`; both may be called twice.

    An engine is created from settings alone, without loading a model or connecting to a server; `open()` does that, and
    raises all errors that can be detected before the first row. A subclass

    - declares its settings as a frozen dataclass, `settings_class`; recipes, the command line and the reference pages
      read it. It is created with `settings_class(**settings)`, so `__post_init__` can check values;
    - implements `open`, `capabilities`, `generate` and `close`;
    - keeps the constructor's arguments if it overrides the constructor, and calls `super().__init__`.
    """

    name: str = "engine"
    settings_class: ClassVar[type[DataclassInstance]] = NoSettings
    """Frozen dataclass of the settings. Use `setting` for fields with documentation."""
    takes_endpoints: ClassVar[bool] = False
    """Whether requests are sent to servers: the constructor then also takes `endpoints` (URLs) and `token_texts` (the
    texts of stop token ids). Such engines derive from `remote.endpoints.EndpointEngine`."""
    takes_messages: ClassVar[bool] = False
    """Whether requests contain messages (`Prompt.messages`), to which the server applies its own chat template. Such an
    engine can serve the roles responder, judge and guard, but not the generator and the base model: they need raw prompts."""
    settings: DataclassInstance
    window: int = 256
    """How many requests the engine can use at once; a parent process sends no more than this ahead."""

    def __init__(
        self, model: str, *, revision: str | None = None, ref: ModelRef | None = None, **settings: object
    ) -> None:
        """Keep the settings.

        Args:
            model: Hub id, directory or "demo".
            revision: Commit, branch or tag.
            ref: The same model, already resolved.
            settings: Fields of `settings_class`.

        Raises:
            ArgumentError: a setting is unknown, missing or invalid.
        """
        self.model = model
        self.revision = revision
        self.settings = make_settings(self.settings_class, settings)
        self.stats = EngineStats()
        self._ref = ref

    @property
    def ref(self) -> ModelRef:
        """The model, resolved at first use: its name for cards and rows, its source, its pinned revision."""
        if self._ref is None:
            self._ref = resolve_model(self.model, self.revision)
        return self._ref

    def identity(self) -> dict[str, object]:
        """Return the request's model, revision, and all settings that can change a text and are not None.

        Settings that are declared `silent` are left out: URLs, keys, batch sizes, devices.
        """
        kept = {
            f.name: getattr(self.settings, f.name) for f in fields(self.settings) if f.metadata.get(IDENTITY, True)
        }
        asked = {name: value for name, value in kept.items() if value is not None}
        return {"model": self.ref.name, "revision": self.ref.revision, **asked}

    @abstractmethod
    def open(self) -> None:
        """Load the model or connect to the server.

        Raises:
            ModelError, EngineUnavailableError, ModelMismatchError, CapabilityError: it cannot be used.
        """

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Return what this engine supports; for open engines only."""

    def check_prompt(self, prompt: Prompt) -> None:  # noqa: B027 (most engines send token ids and have nothing to check)
        """Send the pre-query prompt with one new token and compare the prompt token counts.

        A difference of one at a BOS corrects all later texts; any other raises PromptMismatchError with both numbers.
        Engines that send token ids have nothing to check.
        """

    @abstractmethod
    def generate(self, requests: Iterable[Request | None]) -> Iterator[Generation]:
        """Yield a Generation for each Request, in completion order.

        Pull from `requests` whenever the engine has capacity. None means: no request is ready now, but those in flight
        may lead to more; finish (some of) them, yield their generations, and pull again. None is only given while
        requests are in flight. `requests` is pulled, and the code between two yields runs, in the caller's thread.
        Closing the iterator cancels the requests in flight.

        A request that fails is a Generation with a `failure`. What the engine does not support raises CapabilityError;
        a setting is never ignored.
        """

    def score(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """Return the log-probability (nats) of each completion token after the prompt, at temperature 1.

        Raises:
            CapabilityError: the engine does not support it (`Capabilities.logprobs`).
        """
        raise CapabilityError(f"The engine {self.name} does not compute log-probabilities.")

    @property
    def served(self) -> Served | None:
        """What was detected when the engine opened: the server's model, revision, dtype, version; None if unknown."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Free the model and the connections."""

    def __enter__(self) -> Engine:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_settings(kind: type[S], given: Mapping[str, object]) -> S:
    """Return the settings dataclass of an engine. Raises ArgumentError for an unknown or missing setting."""
    known = {f.name: f for f in fields(kind)}
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) or f"Known: {', '.join(known) or 'none'}."
            raise ArgumentError(f"Unknown engine setting {quoted(name)}.", hint=hint, key=name)
    missing = [n for n, f in known.items() if n not in given and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise ArgumentError(f"The engine setting {quoted(missing[0])} is required.", key=missing[0])
    return kind(**given)
