"""The HTTP client of the endpoint engines: one pool of connections, many requests at once, several endpoints.

It runs in a thread with an event loop of its own, so that it works inside a running loop (notebooks) and keeps every
slot busy while the caller is doing something else. It knows no protocol: a `Judge` says what a reply means.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Any

from ...errors import EngineError
from .calls import Batch, Call
from .dispatch import Dispatcher
from .wire import Endpoint, Reply, to_json


logger = logging.getLogger(__name__)

# Longest that a question outside of `generate` takes, first and last byte included: enough for a large model's first,
# cold request of a few tokens.
ASK_TIMEOUT_S = 120.0


class Transport(Dispatcher):
    """Sends calls to the endpoint with the fewest in flight, and again when that may help.

    These are the methods for the caller's thread; what they start runs in the loop's (`Dispatcher`).

    `headers` are sent to the endpoints only: redirects are not followed. `probe_path` is asked when an endpoint was set
    aside; `recognise` says what the reply tells of the server, and raises if it is the wrong one.
    """

    def start(self) -> None:
        """Start the thread and open the pool; no connection is made yet."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.exchange.open(), self._loop).result()

    def close(self) -> None:
        """Drop everything, close the connections and end the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(timeout=10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)

    def check(self) -> None:
        """Raise what ended the transport, if anything did."""
        if self._error is not None:
            raise self._error
        if not self._thread.is_alive():
            raise EngineError("The engine is closed.")

    def room(self) -> int:
        """Return how many samples may be out now, and a few more that wait so that a freed slot is filled at once."""
        limits = sum(int(e.limit.limit) for e in self.endpoints if not e.is_aside)
        most = max(1, min(self.concurrency, limits))
        return most + max(1, most // 8)

    def batch(self) -> Batch:
        """Return a new set of calls with results of its own."""
        self.check()
        batch = Batch(self)
        self._loop.call_soon_threadsafe(self._batches.add, batch)
        return batch

    def submit(self, call: Call) -> None:
        """Queue a call."""
        self._inbox.append(call)
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._take_inbox)

    def drop(self, batch: Batch) -> None:
        """Cancel a batch's calls; their connections are closed."""
        if self._thread.is_alive():
            future = asyncio.run_coroutine_threadsafe(self._cancel(batch), self._loop)
            # A generator that nobody holds any more may be closed by the garbage collector, in this very thread.
            if threading.current_thread() is not self._thread:
                future.result(timeout=10)

    def ask(
        self, endpoint: Endpoint, method: str, path: str, body: Any = None, *, timeout_s: float | None = None
    ) -> Reply:
        """Send one request to one endpoint, once, and wait for the reply."""
        return self.ask_all([(endpoint, method, path, body)], timeout_s=timeout_s)[0]

    def ask_all(
        self, questions: Sequence[tuple[Endpoint, str, str, Any]], *, timeout_s: float | None = None
    ) -> list[Reply]:
        """Send several requests at the same time, each once, and wait for all replies, `timeout_s` at most."""
        limit_s = min(self.timeout_s, ASK_TIMEOUT_S) if timeout_s is None else timeout_s

        async def gather() -> list[Reply]:
            sent = [
                self.exchange.send(e, method, path, None if body is None else to_json(body), limit_s)
                for e, method, path, body in questions
            ]
            return list(await asyncio.gather(*sent))

        self.check()
        future = asyncio.run_coroutine_threadsafe(gather(), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def set_most(self, limit: int) -> None:
        """Let each endpoint have up to `limit` in flight from the start: that is what it says it takes."""
        self._start_limit = self._most = limit
        for endpoint in self.endpoints:
            endpoint.limit = self._new_limit()

    def set_aside(self, endpoint: Endpoint) -> None:
        """Send an endpoint nothing until it answers `probe_path` again."""
        self._loop.call_soon_threadsafe(self._set_aside, endpoint)
