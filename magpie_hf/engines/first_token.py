"""A first token with sampling of its own, for engines that continue a text from token ids: two requests for a sample.

The first request generates one token, with the scaled temperature and the bans; the second continues from its id. Both
have the same stops, so a text that ends with its first token needs no second request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..errors import CapabilityError
from ..sampling import SamplingParams, seed_base
from .base import Capabilities, Failure, Generation, Prompt, Request
from .stops import first_stop


Generate = Callable[[Iterator[Request | None]], Iterator[Generation]]
Decode = Callable[[Sequence[int]], str]
_PARTIAL = "\ufffd"


def check_first_token(sampling: SamplingParams, capabilities: Capabilities, engine: str) -> None:
    """Raise CapabilityError for settings of the first token that an engine does not support; it is named in the error."""
    if sampling.banned_first_token_ids and not capabilities.first_token_ban:
        raise CapabilityError(
            f"{engine} cannot ban first tokens (banned_first_token_ids).",
            hint="Remove the setting; texts that begin this way can be rejected and sampled again (banned_starts).",
        )
    if sampling.first_token_scale != 1 and not (capabilities.first_token_scale or sampling.is_greedy):
        why = "" if capabilities.token_ids else ", because its prompts are texts"
        raise CapabilityError(
            f"{engine} cannot sample the first token at a temperature of its own (first_token_scale = "
            f"{sampling.first_token_scale:g}): it cannot continue a text from its token ids{why}.",
            hint="Use the engine transformers or vllm, or openai with a server that takes and returns token ids (vLLM); or "
            "remove first_token_scale.",
        )


def needs_two(sampling: SamplingParams) -> bool:
    """Return whether the first token of a sample has settings of its own."""
    return bool(sampling.banned_first_token_ids) or (sampling.first_token_scale != 1 and not sampling.is_greedy)


def first_of(sampling: SamplingParams) -> SamplingParams:
    """Return the sampling of the first token."""
    temperature = sampling.temperature * sampling.first_token_scale
    return replace(sampling, temperature=temperature, first_token_scale=1.0, max_tokens=1)


def rest_of(sampling: SamplingParams) -> SamplingParams:
    """Return the sampling of the other tokens.

    They have a seed of their own: with equal seeds, the first and the second token would be drawn with the same random
    numbers.
    """
    seed = None if sampling.seed is None else seed_base("after the first token", sampling.seed)
    return replace(
        sampling,
        first_token_scale=1.0,
        banned_first_token_ids=(),
        max_tokens=sampling.max_tokens - 1,
        seed=seed,
    )


@dataclass(slots=True)
class _Sample:
    """A sample in two requests: what was asked for, and its first token once it is known."""

    request: Request
    first: Generation | None = None


class TwoRequests:
    """Turns requests whose first token has settings of its own into two, and their generations into one.

    `name`, `capabilities`: of the engine. `decode` returns the text of token ids, for a first token that is a part of a
    character; by default that of the prompt.
    """

    def __init__(self, name: str, capabilities: Capabilities, decode: Decode | None = None) -> None:
        self._name = name
        self._capabilities = capabilities
        self._decode = decode
        self._samples: dict[int, _Sample] = {}
        self._ready: deque[Request] = deque()

    def run(self, requests: Iterable[Request | None], generate: Generate) -> Iterator[Generation]:
        """Yield a generation for each request; `generate` is the engine's own, for requests without such settings."""
        inner = generate(self._requests(iter(requests)))
        try:
            for generation in inner:
                whole = self._receive(generation)
                if whole is not None:
                    yield whole
        finally:
            close = getattr(inner, "close", None)
            if close is not None:
                close()

    def _requests(self, source: Iterator[Request | None]) -> Iterator[Request | None]:
        exhausted = False
        while True:
            if self._ready:
                yield self._ready.popleft()
            elif not exhausted:
                try:
                    request = next(source)
                except StopIteration:
                    exhausted = True
                    continue
                yield self._first(request) if request is not None and needs_two(request.sampling) else request
            elif any(sample.first is None for sample in self._samples.values()):
                yield None
            else:
                return

    def _first(self, request: Request) -> Request:
        check_first_token(request.sampling, self._capabilities, self._name)
        if request.sampling.json_schema is not None:
            raise CapabilityError(
                f"{self._name} cannot combine first_token_scale or banned_first_token_ids with a JSON schema.",
                hint="Remove one of them, or use the engine transformers.",
            )
        self._samples[request.key] = _Sample(request)
        return replace(request, sampling=first_of(request.sampling))

    def _receive(self, generation: Generation) -> Generation | None:
        """Return the whole generation of a sample, None if its second request follows."""
        sample = self._samples.get(generation.key)
        if sample is None:
            return generation
        if sample.first is None:
            sample.first = generation
            if self._continues(sample.request, generation):
                self._ready.append(self._second(sample.request, generation))
                return None
            del self._samples[generation.key]
            generation.seed = sample.request.sampling.seed
            return generation
        del self._samples[generation.key]
        return self._joined(sample.request, sample.first, generation)

    def _continues(self, request: Request, first: Generation) -> bool:
        """Return whether a text continues after its first token; a reply without the token's id becomes a failure."""
        context, used = self._capabilities.max_context, len(request.prompt.token_ids) + 1
        if first.failure is not None or first.finish_reason != "length":
            return False
        if request.sampling.max_tokens == 1 or (context is not None and used >= context):
            return False
        if not first.token_ids:
            first.failure = Failure("bad_reply", True, "the reply has no id of the first token")
            return False
        return True

    @staticmethod
    def _second(request: Request, first: Generation) -> Request:
        ids = (*request.prompt.token_ids, *(first.token_ids or ()))
        return Request(request.key, Prompt(request.prompt.text + first.text, ids), rest_of(request.sampling))

    def _joined(self, request: Request, first: Generation, rest: Generation) -> Generation:
        rest.seed = request.sampling.seed
        rest.prompt_tokens = first.prompt_tokens
        rest.seconds += first.seconds
        if rest.completion_tokens is not None:
            rest.completion_tokens += first.completion_tokens or 1
        if rest.failure is not None:
            return rest
        known = None if rest.token_ids is None else (*(first.token_ids or ()), *rest.token_ids)
        text = first.text + rest.text
        decode = self._decode or request.prompt.decode
        if known is not None and decode is not None and (_PARTIAL in first.text or not first.text):
            text = decode(known)
        rest.text, rest.token_ids = text, known
        found = first_stop(text, request.sampling.stop)
        if found is not None:  # a stop text that begins in the first token
            rest.text, rest.token_ids, rest.finish_reason = text[: found[0]], None, "stop_text"
        return rest
