"""What the status of a reply means for its request, and reading parts of replies that may be anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ...backoff import retry_after_s
from ...errors import CapabilityError, MagpieError
from ..base import Generation, Request, Served
from .servers import is_too_long
from .untrusted import checked, name_or_none
from .wire import MALFORMED, Reply, Verdict


T = TypeVar("T")

REFUSED = (401, 402, 403, 407, 451)
# The request is at fault, and the same one would be refused again. Any other 4xx may pass, and finishes no row.
_AT_FAULT = (400, 413, 414, 422, 431)
# The route was there when the engine opened: now something else answers at this address.
_GONE = (404, 405, 502, 504)


def judge_status(reply: Reply, message: str) -> Verdict:
    """Say what a reply means whose status is neither 200 nor one that ends the run."""
    status = reply.status
    if status in (429, 503):
        return Verdict("overload", "overloaded", message, retry_after_s(reply.headers.get("Retry-After")))
    if status in _GONE:
        return Verdict("transient", "server_error", message, is_connection=True)
    if status not in _AT_FAULT:
        return Verdict("transient", "server_error", message)
    return Verdict("never", "too_long" if is_too_long(message) else "validation", message)


@contextmanager
def readable(who: str) -> Iterator[None]:
    """Raise CapabilityError for replies of other types than the protocol says, while finding out what a server is."""
    try:
        yield
    except MagpieError:
        raise
    except MALFORMED as error:
        raise CapabilityError(
            f"{who} sent a reply that cannot be read ({type(error).__name__}).",
            hint="Check the address and the server's log.",
        ) from error


def recognised(recognise: Callable[..., Served | None]) -> Callable[..., Served | None]:
    """Return a `recognise` that raises nothing but MagpieErrors, and gives short, printable names."""

    def guarded(endpoint: object, reply: Reply) -> Served | None:
        with readable(str(getattr(endpoint, "url", "The server"))):
            served = recognise(endpoint, reply)
            return None if served is None else clean(served)

    return guarded


def clean(served: Served) -> Served:
    """Return what a server said of itself as short, printable names."""
    return Served(*map(name_or_none, served))


def checked_all(generations: Sequence[Generation], group: Sequence[Request], served: Served | None) -> None:
    """Check and clean the generations of a group, whose endpoint has said `served` of itself.

    Raises:
        ValueError: a value in them is impossible, or one is missing.
    """
    if len(generations) != len(group):
        raise ValueError("samples are missing")
    for generation, request in zip(generations, group, strict=True):
        checked(generation, request.sampling)
        if generation.served is not None and generation.served is not served:
            generation.served = clean(generation.served)
