"""Whether a server puts a BOS in front of a text prompt: its count of prompt tokens against ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import CapabilityError, PromptMismatchError
from ..base import Prompt
from .classify import parsing
from .wire import Address


Count = Callable[[Address, str], int | None]


def adds_bos(endpoints: Sequence[Address], count: Count, prompt: Prompt) -> bool:
    """Return whether all servers add a BOS, so that it must be left out of the text; `count` asks one for its count.

    Raises:
        PromptMismatchError: the counts differ otherwise, or the servers differ from each other.
        CapabilityError: a server does not say how many tokens it counted.
    """
    verdicts = {_is_doubled(endpoint, count, prompt) for endpoint in endpoints}
    if len(verdicts) > 1:
        raise PromptMismatchError(
            "The endpoints disagree: some add a BOS to the prompt, others do not.",
            endpoints=[e.url for e in endpoints],
        )
    return verdicts == {True}


def _is_doubled(endpoint: Address, count: Count, prompt: Prompt) -> bool:
    wanted = len(prompt.token_ids)
    counted = _counted(endpoint, count, prompt.text)
    if counted == wanted:
        return False
    if counted == wanted + 1 and prompt.bos and _counted(endpoint, count, prompt.text_without_bos) == wanted:
        return True
    raise PromptMismatchError(
        f"{endpoint.url} counts {counted} tokens in the prompt, our tokenizer {wanted}.",
        hint="Does the server hold the same model and revision, with the same tokenizer?",
        server_tokens=counted,
        our_tokens=wanted,
    )


def _counted(endpoint: Address, count: Count, text: str) -> int:
    with parsing(endpoint.url):
        counted = count(endpoint, text)
    if counted is None:
        raise CapabilityError(
            f"{endpoint.url} does not report how many tokens the prompt has, so a doubled BOS would go unnoticed.",
            hint="Use a server that reports prompt tokens.",
        )
    return counted
