"""Classifying replies by their status, and reading untrusted replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ...backoff import NOT_READY, OVERLOADED
from ...errors import CapabilityError, MagpieError
from ..base import Generation, Request, Served
from .servers import is_too_long
from .untrusted import checked, name_or_none
from .wire import MALFORMED, Address, Fault, Reply


REFUSED = (401, 402, 403, 407, 451)
INVALID = (400, 413, 414, 422, 431)
"""The request is invalid, and would be refused again. Any other 4xx may be transient, and finishes no row."""
# The path existed when the engine opened: now another program runs at this address.
_GONE = frozenset({404, 405}) | (NOT_READY - OVERLOADED)


def classify_status(reply: Reply, message: str) -> Fault:
    """Return the fault for a reply whose status is neither 200 nor one that ends the run."""
    status = reply.status
    if status in OVERLOADED:
        return Fault("overload", "overloaded", message, reply.headers.get("Retry-After"))
    if status in INVALID:
        return Fault("never", "too_long" if is_too_long(message) else "validation", message)
    return Fault("transient", "server_error", message, is_connection=status in _GONE)


@contextmanager
def parsing(server: str) -> Iterator[None]:
    """Raise CapabilityError for replies of other types than the protocol defines, while identifying a server."""
    try:
        yield
    except MagpieError:
        raise
    except MALFORMED as error:
        raise CapabilityError(
            f"{server} sent a reply that cannot be parsed ({type(error).__name__}).",
            hint="Check the URL and the server's log.",
        ) from error


def guarded(recognize: Callable[..., Served | None]) -> Callable[[Address, Reply], Served | None]:
    """Return a `recognize` that raises only MagpieErrors, and returns short, printable names."""

    def recognize_safely(server: Address, reply: Reply) -> Served | None:
        with parsing(server.url):
            served = recognize(server, reply)
            return None if served is None else clean(served)

    return recognize_safely


def clean(served: Served) -> Served:
    """Return a server's description of itself as short, printable names."""
    return Served(*map(name_or_none, served))


def check_all(generations: Sequence[Generation], group: Sequence[Request], served: Served | None) -> None:
    """Check and clean the generations of a group; `served` is the endpoint's description, which is clean already.

    Raises:
        ValueError: a value in them is impossible, or a generation is missing.
    """
    if len(generations) != len(group):
        raise ValueError("samples are missing")
    for generation, request in zip(generations, group, strict=True):
        checked(generation, request.sampling)
        if generation.served is not None and generation.served is not served:
            generation.served = clean(generation.served)
