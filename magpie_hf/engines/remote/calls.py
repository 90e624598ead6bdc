"""Requests on their way through a transport, and the sets that they belong to."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import MagpieError
from ..base import Failure, Served
from .wire import Endpoint, Reply


if TYPE_CHECKING:
    from .transport import Transport


class Call:
    """A request to a server that may be sent more than once, for `samples` texts; `tag` is the caller's."""

    __slots__ = (
        *("attempts", "batch", "body", "endpoint", "overloads", "path", "samples", "sent_at", "tag"),
        "waited_from",
    )

    def __init__(self, batch: Batch, path: str, body: bytes, tag: Any, samples: int = 1) -> None:
        self.batch = batch
        self.path = path
        self.body = body
        self.tag = tag
        self.samples = samples
        self.attempts = 0
        self.overloads = 0
        self.sent_at = 0.0
        self.waited_from: float | None = None
        self.endpoint: Endpoint | None = None


class Outcome(NamedTuple):
    """How a call ended: a reply, or a failure; `served` and `seconds` of the last time that it was sent."""

    call: Call
    reply: Reply | None
    failure: Failure | None
    served: Served | None
    seconds: float


class Batch:
    """The calls of one `generate`: what they come to arrives in completion order. For one thread.

    `outstanding` and `sleeping` count samples, as the limits of the transport do.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.arrived: queue.SimpleQueue[Outcome | MagpieError] = queue.SimpleQueue()
        self.outstanding = 0
        self.sleeping = 0
        self.is_closed = False

    def submit(self, path: str, body: bytes, tag: Any, samples: int = 1) -> None:
        """Queue a request for `samples` texts; it is sent as soon as an endpoint has room for them."""
        self.outstanding += samples
        self._transport.submit(Call(self, path, body, tag, samples))

    def get(self, timeout_s: float) -> Outcome | None:
        """Wait for the next outcome; None after `timeout_s`. Raises what ends the run."""
        try:
            outcome = self.arrived.get(timeout=timeout_s)
        except queue.Empty:
            self._transport.check()
            return None
        if isinstance(outcome, MagpieError):
            raise outcome
        self.outstanding -= outcome.call.samples
        return outcome

    def has_room(self) -> bool:
        """Whether another sample would be sent soon: those that wait for a retry hold no slot."""
        room = self._transport.room()
        return self.outstanding - self.sleeping < room and self.outstanding < 2 * room

    def close(self) -> None:
        """Drop what is in flight."""
        if not self.is_closed:
            self.is_closed = True
            self._transport.drop(self)
