"""The contract between those who want text and those who generate it.

An engine is one method: requests in, generations out, as they are ready. It knows no stage, no dataset and no journal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from ..sampling import SamplingParams


class Prompt:
    """What is sent to a model: text, and its token ids, which are computed when first asked for.

    `text` is the rendered template with its BOS, if it has one, written out; `token_ids` have exactly one BOS where
    the model uses one. `bos` is the literal BOS that `text` begins with, or "": engines that send text leave it out
    exactly when their server adds it by itself (`text_without_bos`). `dropped`: characters that belong to the end of
    the prompt but merge with what follows into one token, so that the model writes them first.
    """

    __slots__ = ("_encode", "_token_ids", "bos", "dropped", "text")

    def __init__(
        self,
        text: str,
        token_ids: Sequence[int] | None = None,
        *,
        encode: Callable[[str], Sequence[int]] | None = None,
        bos: str = "",
        dropped: str = "",
    ) -> None:
        self.text = text
        self.bos = bos
        self.dropped = dropped
        self._token_ids = None if token_ids is None else tuple(token_ids)
        self._encode = encode

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt as the model sees it. Raises ValueError if neither ids nor an encoder were given."""
        if self._token_ids is None:
            if self._encode is None:
                raise ValueError("this prompt has text only")
            self._token_ids = tuple(self._encode(self.text))
        return self._token_ids

    def count_tokens(self, text: str) -> int | None:
        """Return how many tokens our tokenizer makes of a generated text, None if the prompt came without an encoder."""
        return None if self._encode is None else len(self._encode(text))

    @property
    def text_without_bos(self) -> str:
        """The text for a server that puts the BOS in front by itself."""
        return self.text.removeprefix(self.bos)

    def __repr__(self) -> str:
        return f"Prompt({self.text[:80]!r})"


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One sample wanted: a prompt, how to sample, and a key that comes back with the generation.

    `key` is unique among the requests in flight. Requests that follow each other with the *same* Prompt object, equal
    sampling but for the seed, and seeds that count up by one may be sent to a server as one request with `n`.
    """

    key: int
    prompt: Prompt
    sampling: SamplingParams


class Failure(NamedTuple):
    """Why a request has no text.

    `code`: a short name that is counted and stored (`too_long`, `validation`, `overloaded`, `timeout`, …).
    `transient`: True if the same request may succeed later: the row stays pending; False: the row is finished with `code`.
    `message`: at most 200 characters, without prompt text or secrets.
    """

    code: str
    transient: bool
    message: str


class Served(NamedTuple):
    """What the server said of itself when it made a text: per-row provenance, None where it did not say.

    `fingerprint` is the `system_fingerprint` of a reply. It also covers settings that change no text, and replicas of
    one model may have different ones: it is recorded, and another one does not end the run.
    """

    model: str | None = None
    revision: str | None = None
    dtype: str | None = None
    version: str | None = None
    fingerprint: str | None = None


@dataclass(slots=True)
class Generation:
    """What became of a request.

    `finish_reason`: "stop" (a stop token id or the end of sequence), "stop_text" (a stop text), "length"
    (`max_tokens` or the context ran out), or None with `failure`.
    `text`: without the stop, special tokens of the template left in it visible (they are a reason to reject).
    `token_ids`: the new tokens without the stop token, where the engine knows them.
    `prompt_tokens`, `completion_tokens`: counts, the latter with the stop token; None where the server did not say.
    `seconds`: from the time that the request was sent (or its batch began) to the text; 0 if unknown.
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


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can express; found out when it opens.

    `token_ids`: takes token-id prompts. `seeded`: equal seeds give equal texts (up to floating point).
    `max_n`: most samples a request to the server (1: no `n`). `max_stop`: most stop texts a request, the rest are cut
    on our side (None: no limit). `first_token_ban`: honours `banned_first_token_ids`. `grammar`: honours `grammar`.
    `logprobs`: has `score`. `special_tokens`: special tokens are visible in texts, or token ids come with them.
    `max_context`: most tokens of prompt and completion, None if unknown.
    """

    token_ids: bool = True
    seeded: bool = True
    max_n: int = 1
    max_stop: int | None = None
    first_token_ban: bool = False
    grammar: bool = False
    logprobs: bool = False
    special_tokens: bool = True
    max_context: int | None = None


@dataclass(slots=True)
class EngineStats:
    """What an engine did since it opened; the run's counters and the card read it."""

    requests: int = 0
    retries: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    busy_s: float = 0.0
    by_code: dict[str, int] = field(default_factory=dict)


class Engine(ABC):
    """Who generates. Use as a context manager, or `open()` and `close()`; both may be called twice.

    An engine is built from settings alone (cheap: no model, no connection); `open()` loads the model or asks the
    server who it is, and raises what the user must know before any row is paid for.
    """

    name: str = "engine"
    takes_endpoints: ClassVar[bool] = False
    """Whether requests go to servers: the constructor then takes `endpoints` and `token_texts`."""
    stats: EngineStats

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what was asked for and can change a text: model id, revision, dtype and quantization when set.

        Never the engine's kind, address, key, concurrency, batch size, device count or a path.
        """

    @abstractmethod
    def open(self) -> None:
        """Load the model or ask the server. Raises ModelError, EngineUnavailableError, ModelMismatchError, CapabilityError."""

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Return what this engine can express; open engines only."""

    def check_prompt(self, prompt: Prompt) -> None:  # noqa: B027 (most engines take token ids and have nothing to check)
        """Send the real pre-query prompt with one new token and compare the prompt token counts.

        A difference of one at a BOS corrects the text from then on; anything else raises PromptMismatchError with
        both numbers. Engines that take token ids have nothing to check.
        """

    @abstractmethod
    def generate(self, requests: Iterable[Request | None]) -> Iterator[Generation]:
        """Yield a Generation for each Request, in completion order.

        `requests` is pulled as the engine has room. It may give `None`: nothing is ready now, but what is in flight
        may lead to more; the engine then finishes (some of) what it has, yields it, and pulls again. `None` comes only
        while something is in flight. Pulling, and the code between two yields, happen in the caller's thread.
        Closing the iterator drops what is in flight.
        """

    @property
    def served(self) -> Served | None:
        """What was found when the engine opened (the server's model, revision, dtype, version), if anything."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Free the model and the connections."""

    def __enter__(self) -> Engine:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
