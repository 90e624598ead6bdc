"""Texts with which a generated text must not begin (`banned_starts`), e.g., "#": the reference's "de-markdown".

Engines that can ban first tokens do so. The texts of other engines, and texts whose banned start consists of several
tokens, are rejected and sampled again. Both give the same distribution: that of the model, conditioned on texts that do
not begin this way.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from ..engines.base import Generation, Prompt
from ..errors import ArgumentError, CapabilityError
from ..sampling import SamplingParams
from ..stage import Ask, Context, entries_of


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ATTEMPTS = 16
"""Samples of a response before it is rejected; if half of them begin this way, one row in 65,536 is lost."""


def checked_starts(given: object) -> tuple[str, ...]:
    """Return the setting as a tuple, without leading white space, which is ignored in texts, too.

    Raises:
        ArgumentError: a text is empty or blank: every text begins with it.
    """
    starts = tuple(dict.fromkeys(str(start).lstrip() for start in entries_of(given)))
    if "" in starts:
        raise ArgumentError('banned_starts contains "" or a blank, with which every text begins.', hint="Remove it.")
    return starts


def begins_with(text: str, starts: tuple[str, ...]) -> bool:
    """Return whether a text begins with one of `starts`, leading white space ignored."""
    return bool(starts) and text.lstrip().startswith(starts)


def banned_tokens(context: Context, starts: tuple[str, ...], *samplings: SamplingParams) -> tuple[int, ...]:
    """Return the first tokens to ban, () if the engine cannot ban them: its texts are rejected instead.

    `samplings`: of texts that are sampled again if they are rejected.

    Raises:
        CapabilityError: one of `samplings` is greedy, so a rejected text would never change, and the engine cannot ban tokens.
    """
    capabilities = context.capabilities
    if not starts or capabilities is None:
        return ()
    if capabilities.first_token_ban:
        return first_tokens(context.template.tokenizer, starts)
    if any(sampling.is_greedy for sampling in samplings):
        raise CapabilityError(
            "banned_starts: this engine cannot ban first tokens, and greedy decoding (temperature 0) gives the same text "
            "again after a rejection.",
            hint="Use an engine that can: transformers, vllm, or openai with a vLLM server. Or set a temperature above 0.",
        )
    return ()


def first_tokens(tokenizer: PreTrainedTokenizerBase, starts: tuple[str, ...]) -> tuple[int, ...]:
    """Return the tokens whose text begins with one of `starts`, leading white space ignored; special tokens are no text."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)
    return tuple(token for token, text in enumerate(texts) if text.lstrip().startswith(starts))


def permitted(
    prompt: Prompt,
    sampling: SamplingParams,
    starts: tuple[str, ...],
    seed_of: Callable[[int], int],
    text_of: Callable[[Generation], str],
) -> Generator[Ask, Generation, tuple[Generation, int | None]]:
    """Ask until a text does not begin with one of `starts`; returns the last generation and its seed.

    `seed_of`: the seed of each attempt, counted from 0. Greedy texts have no seed and are asked for once. `text_of`: the
    text of a generation, without the model's reasoning.
    """
    attempts = ATTEMPTS if starts and not sampling.is_greedy else 1
    attempt = 0
    while True:
        seed = None if sampling.is_greedy else seed_of(attempt)
        generation = yield Ask(prompt, sampling.with_seed(seed))
        attempt += 1
        if attempt == attempts or generation.failure is not None or not begins_with(text_of(generation), starts):
            return generation, seed
