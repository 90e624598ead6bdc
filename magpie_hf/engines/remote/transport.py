"""Requests to several endpoints at once: which endpoint gets which request, retries, and endpoints that are down.

It uses an `HttpClient` (connections and their thread), `Endpoint`s (the state of each server) and `Batch`es (the requests
of one `generate`). It does not depend on a server's protocol: the engine's `classify` finds the errors in a reply.
"""

from __future__ import annotations

import asyncio
import logging
import queue
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import NamedTuple

from ...backoff import Backoff, retry_after_s
from ...errors import EngineError, MagpieError
from ..base import Failure, Request, Served
from .client import CLOSE_TIMEOUT_S, HttpClient
from .pacing import CONCURRENCY, SLOW_SHARE, START_LIMIT, AdaptiveLimit, has_capacity
from .replies import tokens_of
from .wire import MALFORMED, Address, Fault, Reply, unavailable


logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 10.0
# Consecutive broken connections and timeouts, without a reply between them, after which an endpoint counts as down. A
# refused connection counts as down at once.
FAILURES_UNTIL_DOWN = 3
MAX_MESSAGE = 200


class Endpoint(Address):
    """One server and its state. Only the client's thread may use it after the transport has started."""

    __slots__ = ("failures", "in_flight", "is_down", "is_reverifying", "limit", "outages", "paused_until", "served")

    def __init__(self, url: str, limit: AdaptiveLimit) -> None:
        super().__init__(url)
        self.limit = limit
        self.in_flight = 0
        self.failures = 0  # in a row
        self.outages = 0  # since the last success
        self.paused_until = 0.0
        self.is_down = False
        self.is_reverifying = False
        self.served: Served | None = None


Classify = Callable[[Endpoint, Reply], Fault | None]
Recognize = Callable[[Endpoint, Reply], Served | None]


IsAvailable = Callable[[Address, Reply], bool]


def is_ok(_server: Address, reply: Reply) -> bool:
    """Whether a reply has status 200."""
    return reply.fault is None and reply.status == 200


class Call:
    """An HTTP request for a group of samples, which may be sent more than once."""

    __slots__ = (
        *("attempts", "batch", "body", "discarded", "endpoint", "group", "overloads", "path", "samples", "sent_at"),
        "waited_from",
    )

    def __init__(self, batch: Batch, path: str, body: bytes, group: Sequence[Request]) -> None:
        self.batch = batch
        self.path = path
        self.body = body
        self.group = group
        self.samples = len(group)
        self.attempts = 0
        self.discarded = (0, 0)  # prompt and completion tokens of replies that cannot be used
        self.overloads = 0
        self.sent_at = 0.0
        self.waited_from: float | None = None
        self.endpoint: Endpoint | None = None


class CallResult(NamedTuple):
    """The result of a call: a reply or a failure; `served` and `seconds` are those of the last attempt."""

    call: Call
    reply: Reply | None
    failure: Failure | None
    served: Served | None
    seconds: float


class Batch:
    """The calls of one `generate`; results arrive in completion order. Not thread-safe.

    `outstanding` and `sleeping` (waiting for a retry) are numbers of samples, like the limits of the transport.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.arrived: queue.SimpleQueue[CallResult | MagpieError] = queue.SimpleQueue()
        self.outstanding = 0
        self.sleeping = 0
        self.is_closed = False

    def submit(self, path: str, body: bytes, group: Sequence[Request]) -> None:
        """Queue a request for a group of samples; it is sent as soon as an endpoint has capacity."""
        self.outstanding += len(group)
        self._transport.submit(Call(self, path, body, group))

    def get(self, timeout_s: float) -> CallResult | None:
        """Wait for the next result; None after `timeout_s`. Raises the error that ended the transport."""
        try:
            result = self.arrived.get(timeout=timeout_s)
        except queue.Empty:
            self._transport.check()
            return None
        if isinstance(result, MagpieError):
            raise result
        self.outstanding -= result.call.samples
        return result

    def has_capacity(self) -> bool:
        """Whether another sample would be sent soon; samples that wait for a retry use no capacity."""
        capacity = self._transport.capacity()
        return self.outstanding - self.sleeping < capacity and self.outstanding < 2 * capacity

    def close(self) -> None:
        """Cancel the calls in flight."""
        if not self.is_closed:
            self.is_closed = True
            self._transport.cancel(self)


class Transport:
    """Sends each call to the endpoint with the fewest samples in flight, and retries it after transient errors.

    All limits are numbers of samples: a call for `n` texts counts `n`. Public methods are called in the caller's thread;
    private methods run in the client's thread.

    The transport starts and closes `client`. To find out whether an endpoint is available again, it requests `info_path`;
    `is_available` decides, by default by the status 200. `recognize` reads the reply, and raises if it is the wrong server.
    """

    def __init__(
        self,
        urls: Sequence[str],
        client: HttpClient,
        *,
        classify: Classify,
        recognize: Recognize,
        info_path: str,
        is_available: IsAvailable = is_ok,
        concurrency: int = CONCURRENCY,
        max_retries: int = 8,
        max_outage_s: float = 600.0,
        backoff: Backoff = Backoff(),  # noqa: B008 (immutable)
    ) -> None:
        self.client = client
        self._loop = client.loop
        self.concurrency = concurrency
        self.max_retries = max_retries
        self.max_outage_s = max_outage_s
        self.backoff = backoff
        self.retries = 0
        self._start_limit = START_LIMIT
        self._max_limit = concurrency
        self.endpoints = [Endpoint(url, self._new_limit()) for url in urls]
        self._classify = classify
        self._recognize = recognize
        self._info_path = info_path
        self._is_available = is_available
        self._in_flight = 0
        self._first_endpoint = 0
        self._pending: deque[Call] = deque()
        self._inbox: deque[Call] = deque()
        self._is_inbox_scheduled = False
        self._running: dict[asyncio.Task[None], Call] = {}
        self._sleeping: dict[Call, asyncio.TimerHandle] = {}
        self._batches: set[Batch] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._outage_from: float | None = None
        self._error: MagpieError | None = None

    def start(self) -> None:
        """Start the client; no connection is made yet."""
        self.client.start()

    def close(self) -> None:
        """End all batches and close the connections."""
        if self.client.is_running:
            self.client.run(self._end_batches()).result(timeout=CLOSE_TIMEOUT_S)
            self.client.close()

    def check(self) -> None:
        """Raise the error that ended the transport, if there is one."""
        if self._error is not None:
            raise self._error
        if not self.client.is_running:
            raise EngineError("The engine is closed.")

    def capacity(self) -> int:
        """Return how many samples may be submitted: the limit, and a few more so that free capacity is used at once."""
        limits = sum(int(e.limit.limit) for e in self.endpoints if not e.is_down)
        limit = max(1, min(self.concurrency, limits))
        return limit + max(1, limit // 8)

    def batch(self) -> Batch:
        """Return a new, empty batch."""
        self.check()
        batch = Batch(self)
        self._loop.call_soon_threadsafe(self._batches.add, batch)
        return batch

    def submit(self, call: Call) -> None:
        """Queue a call."""
        self._inbox.append(call)
        if not self._is_inbox_scheduled:
            self._is_inbox_scheduled = True
            self._loop.call_soon_threadsafe(self._read_inbox)

    def cancel(self, batch: Batch) -> None:
        """Cancel a batch's calls; their connections are closed."""
        if self.client.is_running:
            future = self.client.run(self._cancel(batch))
            # The garbage collector may close a generator without references in the client's thread.
            if not self.client.is_own_thread:
                future.result(timeout=CLOSE_TIMEOUT_S)

    def set_limit(self, limit: int) -> None:
        """Set the limit of samples in flight of each endpoint, as reported by the server, from the start."""
        self._start_limit = self._max_limit = limit
        for endpoint in self.endpoints:
            endpoint.limit = self._new_limit()

    def mark_down(self, endpoint: Endpoint) -> None:
        """Send no requests to an endpoint until it replies to `info_path` again."""
        self._loop.call_soon_threadsafe(self._mark_down, endpoint)

    def _new_limit(self) -> AdaptiveLimit:
        ceiling = max(1, min(self._max_limit, self.concurrency))
        return AdaptiveLimit(float(min(self._start_limit, ceiling)), float(ceiling))

    async def _end_batches(self) -> None:
        self._error = self._error or EngineError("The engine was closed while it was generating.")
        for batch in list(self._batches):
            await self._cancel(batch)
            batch.arrived.put(self._error)

    async def _cancel(self, batch: Batch) -> None:
        batch.is_closed = True
        self._batches.discard(batch)
        for call in [c for c in self._sleeping if c.batch is batch]:
            self._sleeping.pop(call).cancel()
        tasks = [task for task, call in self._running.items() if call.batch is batch]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._pending = deque(c for c in self._pending if c.batch is not batch)
        self._dispatch()

    def _read_inbox(self) -> None:
        self._is_inbox_scheduled = False
        while self._inbox:
            self._pending.append(self._inbox.popleft())
        self._dispatch()

    def _dispatch(self) -> None:
        while self._pending and self._error is None:
            call = self._pending[0]
            if not has_capacity(self._in_flight, call.samples, self.concurrency):
                return
            # A call that failed goes to another endpoint if one has capacity.
            other = self._least_loaded(call.samples, other_than=call.endpoint) if call.attempts else None
            endpoint = other or self._least_loaded(call.samples)
            if endpoint is None:
                return
            self._pending.popleft()
            if not call.batch.is_closed:
                self._start_call(call, endpoint)

    def _least_loaded(self, samples: int, other_than: Endpoint | None = None) -> Endpoint | None:
        now = self._loop.time()
        best: Endpoint | None = None
        # Starts with another endpoint each time, so that requests are distributed evenly among equally loaded endpoints.
        self._first_endpoint = (self._first_endpoint + 1) % len(self.endpoints)
        for endpoint in self.endpoints[self._first_endpoint :] + self.endpoints[: self._first_endpoint]:
            if (
                endpoint is other_than
                or endpoint.is_down
                or endpoint.is_reverifying
                or not has_capacity(endpoint.in_flight, samples, int(endpoint.limit.limit))
                or endpoint.paused_until > now
            ):
                continue
            if best is None or endpoint.in_flight < best.in_flight:
                best = endpoint
        if best is None:
            self._wake_after_pause(now)
        return best

    def _wake_after_pause(self, now: float) -> None:
        ends = [e.paused_until for e in self.endpoints if e.paused_until > now and not e.is_down]
        if ends and (self._timer is None or self._timer.when() > min(ends) or self._timer.when() <= now):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(min(ends) + 0.001, self._dispatch)

    def _start_call(self, call: Call, endpoint: Endpoint) -> None:
        self._in_flight += call.samples
        endpoint.in_flight += call.samples
        call.endpoint = endpoint
        self._running[self._loop.create_task(self._send(call, endpoint))] = call

    async def _send(self, call: Call, endpoint: Endpoint) -> None:
        call.sent_at = self._loop.time()
        in_flight = endpoint.in_flight
        try:
            reply = await self.client.exchange.send(endpoint, "POST", call.path, call.body)
            fault = reply.fault or self._fault_of(endpoint, reply)
            in_flight = endpoint.in_flight
        except Exception as error:
            # Without a result the caller would wait forever.
            self._fail(EngineError(f"The reply of {endpoint.url} cannot be parsed ({type(error).__name__})."))
            raise
        finally:
            self._in_flight -= call.samples
            endpoint.in_flight -= call.samples
            self._running.pop(asyncio.current_task(), None)  # type: ignore[arg-type]
        self._handle_reply(call, endpoint, reply, fault, in_flight)
        self._dispatch()

    def _fault_of(self, endpoint: Endpoint, reply: Reply) -> Fault | None:
        try:
            return self._classify(endpoint, reply)
        except MALFORMED as error:
            return Fault("transient", "bad_reply", f"the reply is malformed ({type(error).__name__})")

    def _handle_reply(self, call: Call, endpoint: Endpoint, reply: Reply, fault: Fault | None, in_flight: int) -> None:
        now = self._loop.time()
        if fault is None or fault.retry != "transient" or not fault.is_connection:
            endpoint.failures = 0
            self._outage_from = None
        if fault is None:
            endpoint.outages = 0
            self._increase_limit(call, endpoint, in_flight, now)
            self._finish(call, reply, None)
        elif fault.retry == "fatal":
            self._fail(fault.error or EngineError(fault.message))
        elif fault.retry == "never":
            self._increase_limit(call, endpoint, in_flight, now)
            self._finish(call, None, Failure(fault.code, False, fault.message[:MAX_MESSAGE]))
        elif fault.retry == "overload":
            self._handle_overload(call, endpoint, fault, in_flight, now)
        else:
            prompt, completion = call.discarded
            call.discarded = (
                prompt + tokens_of(reply, "prompt_tokens"),
                completion + tokens_of(reply, "completion_tokens"),
            )
            self._retry(call, endpoint, fault, in_flight, now)

    def _increase_limit(self, call: Call, endpoint: Endpoint, in_flight: int, now: float) -> None:
        if now - call.sent_at <= SLOW_SHARE * self.client.timeout_s:
            endpoint.limit.succeeded(in_flight, call.samples)

    def _finish(self, call: Call, reply: Reply | None, failure: Failure | None) -> None:
        served = call.endpoint.served if call.endpoint else None
        if not call.batch.is_closed:
            call.batch.arrived.put(CallResult(call, reply, failure, served, self._loop.time() - call.sent_at))

    def _handle_overload(self, call: Call, endpoint: Endpoint, fault: Fault, in_flight: int, now: float) -> None:
        endpoint.limit.overloaded(in_flight, call.sent_at, now)
        call.waited_from = now if call.waited_from is None else call.waited_from
        if now - call.waited_from > self.max_outage_s:
            self._finish(call, None, Failure(fault.code, True, fault.message[:MAX_MESSAGE]))
            return
        self.retries += 1
        retry_after = retry_after_s(fault.retry_after)
        if not retry_after:  # also for "0" or a date in the past: requests are not repeated without a pause
            self._sleep(call, self.backoff.wait_s(call.overloads))
        else:
            wait_s = min(retry_after, self.max_outage_s)
            if wait_s >= 1:
                logger.info("%s is overloaded and asks to wait %.0f s", endpoint.url, wait_s)
            endpoint.paused_until = max(endpoint.paused_until, now + wait_s)
            self._pending.appendleft(call)
        call.overloads += 1

    def _retry(self, call: Call, endpoint: Endpoint, fault: Fault, in_flight: int, now: float) -> None:
        call.attempts += fault.weight
        call.waited_from = None
        if fault.code == "timeout":
            # The server's queue may be longer than the timeout.
            endpoint.limit.overloaded(in_flight, call.sent_at, now)
        if fault.is_connection:
            endpoint.failures += 1
            if fault.weight == 0 or endpoint.failures >= FAILURES_UNTIL_DOWN:
                self._mark_down(endpoint, Reply(fault=fault))
            elif fault.code != "timeout":
                self._reverify(endpoint)
        most = self.max_retries if fault.retries is None else min(fault.retries, self.max_retries)
        if call.attempts > most:
            self._finish(call, None, Failure(fault.code, not fault.ends_row, fault.message[:MAX_MESSAGE]))
            return
        self.retries += 1
        if fault.weight == 0:
            # The request did not reach the server; another endpoint may accept it at once.
            self._pending.appendleft(call)
        else:
            self._sleep(call, self.backoff.wait_s(call.attempts - 1))

    def _sleep(self, call: Call, wait_s: float) -> None:
        call.batch.sleeping += 1
        self._sleeping[call] = self._loop.call_later(wait_s, self._wake, call)

    def _wake(self, call: Call) -> None:
        if self._sleeping.pop(call, None) is not None:
            call.batch.sleeping -= 1
            self._pending.appendleft(call)
            self._dispatch()

    def _mark_down(self, endpoint: Endpoint, reply: Reply | None = None) -> None:
        if endpoint.is_down:
            return
        endpoint.is_down = True
        endpoint.outages += 1
        others = sum(not e.is_down for e in self.endpoints)
        logger.warning(
            "%s does not reply; no requests are sent to it until it does. Other available endpoints: %d",
            endpoint.url,
            others,
        )
        if others == 0 and self._outage_from is None:
            self._outage_from = self._loop.time()
        if reply is not None and others == 0 and self._is_outage_too_long():
            # It replies to `info_path`, but not to requests.
            self._fail(unavailable([e.url for e in self.endpoints], self.max_outage_s, reply))
            return
        self._run_in_background(self._revive(endpoint))

    def _run_in_background(self, work: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _reverify(self, endpoint: Endpoint) -> None:
        """Identify an endpoint again after its connection broke, before sending more requests: it may be another server."""
        if not endpoint.is_down and not endpoint.is_reverifying:
            endpoint.is_reverifying = True
            self._run_in_background(self._identify(endpoint))

    async def _identify(self, endpoint: Endpoint) -> None:
        reply = await self.client.exchange.send(endpoint, "GET", self._info_path, None, PROBE_TIMEOUT_S)
        endpoint.is_reverifying = False
        if not self._is_available(endpoint, reply):
            self._mark_down(endpoint, reply)
        elif self._is_recognized(endpoint, reply):
            self._dispatch()

    def _is_recognized(self, endpoint: Endpoint, reply: Reply) -> bool:
        try:
            endpoint.served = self._recognize(endpoint, reply) or endpoint.served
        except MagpieError as error:
            self._fail(error)
            return False
        return True

    async def _revive(self, endpoint: Endpoint) -> None:
        attempt = 0
        while True:
            # If an endpoint replies to `info_path` but not to requests, the waits become longer.
            await asyncio.sleep(self._next_probe_s(attempt + endpoint.outages - 1))
            reply = await self.client.exchange.send(endpoint, "GET", self._info_path, None, PROBE_TIMEOUT_S)
            if self._is_available(endpoint, reply):
                break
            if attempt == 0:
                self._move_calls_from(endpoint)
            attempt += 1
            if self._is_outage_too_long():
                self._fail(unavailable([e.url for e in self.endpoints], self.max_outage_s, reply))
                return
        if not self._is_recognized(endpoint, reply):
            return
        logger.warning("%s replies again", endpoint.url)
        endpoint.is_down = False
        endpoint.failures = 0
        endpoint.paused_until = 0.0
        endpoint.limit = self._new_limit()
        self._dispatch()

    def _is_outage_too_long(self) -> bool:
        return self._outage_from is not None and self._loop.time() - self._outage_from >= self.max_outage_s

    def _next_probe_s(self, attempt: int) -> float:
        wait_s = self.backoff.wait_s(attempt)
        if self._outage_from is None:
            return wait_s
        left_s = self._outage_from + self.max_outage_s - self._loop.time()
        return max(0.0, min(wait_s, left_s))

    def _move_calls_from(self, endpoint: Endpoint) -> None:
        """Move the calls in flight from an endpoint that is down to other endpoints."""
        for task, call in [(t, c) for t, c in self._running.items() if c.endpoint is endpoint]:
            task.cancel()
            if not call.batch.is_closed:
                self.retries += 1
                self._pending.appendleft(call)
        self._loop.call_soon(self._dispatch)

    def _fail(self, error: MagpieError) -> None:
        self._error = error
        for batch in self._batches:
            batch.arrived.put(error)
