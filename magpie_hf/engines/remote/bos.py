"""Whether a server adds a BOS to a text prompt: its count of prompt tokens is compared with ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import CapabilityError, PromptMismatchError
from ..base import Prompt
from .classify import parsing
from .wire import Address


Count = Callable[[Address, str], int | None]


def adds_bos(endpoints: Sequence[Address], count: Count, prompt: Prompt) -> bool:
    """Return whether all servers add a BOS, so that it must be removed from the text; `count` returns a server's count.

    Raises:
        PromptMismatchError: the counts differ otherwise, or the servers differ from each other.
        CapabilityError: a server does not report its count.
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
        f"{endpoint.url} counts {counted} tokens in the prompt, our tokenizer counts {wanted}.",
        hint="Does the server have the same model and revision, with the same tokenizer?",
        server_tokens=counted,
        our_tokens=wanted,
    )


def _counted(endpoint: Address, count: Count, text: str) -> int:
    with parsing(endpoint.url):
        counted = count(endpoint, text)
    if counted is None:
        raise CapabilityError(
            f"{endpoint.url} does not report the number of prompt tokens, so a duplicate BOS cannot be detected.",
            hint="Use a server that reports prompt tokens.",
        )
    return counted
