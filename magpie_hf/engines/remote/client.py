"""The HTTP client for all servers: a pool of connections in an event loop with a thread of its own.

Because of its own thread it also works inside of a running event loop (notebooks). Questions are sent and retried here;
the requests of `generate` go through `transport`, which uses the same pool.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeVar

from ...backoff import TRANSIENT, Attempts, Backoff
from ...errors import EngineError
from .exchange import Exchange
from .wire import Question, Reply, to_json


T = TypeVar("T")
IsFinal = Callable[[Question, Reply], bool]
GiveUp = Callable[[Question, Reply], Reply]

# Maximum seconds for the complete reply to a question: enough for the first request to a large model, with a few tokens.
ASK_TIMEOUT_S = 120.0
CLOSE_TIMEOUT_S = 10.0


def is_settled(_question: Question, reply: Reply) -> bool:
    """Whether a reply is more than a transient error."""
    return reply.fault is None and reply.status not in TRANSIENT


def last_reply(_question: Question, reply: Reply) -> Reply:
    """Return the last reply when there are no attempts left."""
    return reply


class HttpClient:
    """Sends JSON requests to servers and reads their untrusted replies.

    `headers` are sent to the given addresses only, because redirects are not followed. `key`: sent as a bearer token.
    `connections`: maximum number of open connections. `timeout_s`: longest silence of a server.
    """

    def __init__(
        self, *, key: str = "", headers: Mapping[str, str] | None = None, connections: int, timeout_s: float
    ) -> None:
        authorization = {"Authorization": f"Bearer {key}"} if key else {}
        self.timeout_s = timeout_s
        self.connections = connections
        self.exchange = Exchange(
            headers={**(headers or {}), **authorization}, connections=connections, timeout_s=timeout_s
        )
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="magpie-hf http", daemon=True)

    def __enter__(self) -> HttpClient:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_running(self) -> bool:
        """Whether the client was started and not closed."""
        return self._thread.is_alive()

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller runs in the client's thread, which must not wait for itself."""
        return threading.current_thread() is self._thread

    def start(self) -> None:
        """Start the thread and open the pool; no connection is made yet."""
        self._thread.start()
        self.run(self.exchange.open()).result()

    def close(self) -> None:
        """Cancel all requests, close the connections and end the thread."""
        if self.is_running:
            self.run(self._shut_down()).result(timeout=CLOSE_TIMEOUT_S)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(timeout=CLOSE_TIMEOUT_S)

    def run(self, work: Coroutine[object, object, T]) -> Future[T]:
        """Run a coroutine in the client's thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def ask(self, question: Question, *, timeout_s: float | None = None) -> Reply:
        """Send one request, once, and return the reply; see `ask_all`."""
        return self.ask_all([question], timeout_s=timeout_s)[0]

    def ask_all(
        self,
        questions: Sequence[Question],
        *,
        timeout_s: float | None = None,
        is_final: IsFinal = is_settled,
        give_up: GiveUp = last_reply,
        backoff: Backoff = Backoff(),  # noqa: B008 (immutable)
        attempts: int | None = 1,
        within_s: float | None = None,
    ) -> list[Reply]:
        """Send requests at the same time, and each again while its reply is not final; return the last replies.

        Args:
            questions: The requests.
            timeout_s: Maximum time for one reply. Default: the client's, at most `ASK_TIMEOUT_S`.
            is_final: Whether to accept a reply. Runs in the client's thread; an exception ends all of the requests.
            give_up: Returns the result of a request without a final reply, or raises, as `is_final` may.
            backoff: Waits between attempts; `Retry-After` makes them longer.
            attempts: Maximum number of attempts of each request; None: no limit.
            within_s: Time within which the last attempt of a request starts.
        """
        limit_s = min(self.timeout_s, ASK_TIMEOUT_S) if timeout_s is None else timeout_s
        if not self.is_running:
            raise EngineError("The engine is closed.")

        async def ask(question: Question, slots: asyncio.Semaphore) -> Reply:
            tries = Attempts(backoff, limit=attempts, timeout_s=within_s)
            body = None if question.body is None else to_json(question.body)
            while True:
                async with slots:
                    reply = await self.exchange.send(question.server, question.method, question.path, body, limit_s)
                if is_final(question, reply):
                    return reply
                wait_s = tries.next_wait_s(reply.headers.get("Retry-After"))
                if wait_s is None:
                    return give_up(question, reply)
                await asyncio.sleep(wait_s)

        async def gather() -> list[Reply]:
            slots = asyncio.Semaphore(self.connections)
            tasks = [asyncio.ensure_future(ask(question, slots)) for question in questions]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

        future = self.run(gather())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    async def _shut_down(self) -> None:
        # Also the questions of other threads: they would wait forever.
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.exchange.close()
