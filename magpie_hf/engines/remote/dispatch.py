"""The side of the transport that runs in the event loop's thread: who is sent what, what failed, who is down."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from ...backoff import Backoff
from ...errors import EngineError, MagpieError
from ..base import Failure, Served
from .calls import Batch, Call, Outcome
from .exchange import Exchange
from .pacing import CONCURRENCY, SLOW_SHARE, START_LIMIT, AdaptiveLimit, has_room
from .wire import MALFORMED, Endpoint, Judge, Reply, Verdict, unavailable


logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 10.0
# Broken connections and timeouts in a row, with no answer between them, until an endpoint is set aside; one that takes
# no connection at all is at once.
FAILURES_UNTIL_ASIDE = 3
MAX_MESSAGE = 200


class Dispatcher:
    """Sends calls to the endpoint with the fewest in flight, and again when that may help; see `Transport`.

    All limits count samples: a call for `n` texts counts `n`.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        judge: Judge,
        recognise: Callable[[Endpoint, Reply], Served | None],
        probe_path: str,
        headers: Mapping[str, str] | None = None,
        concurrency: int = CONCURRENCY,
        start_limit: int = START_LIMIT,
        timeout_s: float = 600.0,
        max_retries: int = 8,
        max_outage_s: float = 600.0,
        backoff: Backoff = Backoff(),  # noqa: B008 (immutable)
    ) -> None:
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.max_retries = max_retries
        self.max_outage_s = max_outage_s
        self.backoff = backoff
        self.retries = 0
        self._start_limit = start_limit
        self._most = concurrency
        self.endpoints = [Endpoint(url, self._new_limit()) for url in addresses]
        self._judge = judge
        self._recognise = recognise
        self._probe_path = probe_path
        self.exchange = Exchange(
            headers=headers or {},
            connections=concurrency + len(self.endpoints),  # a request holds at least one sample
            timeout_s=timeout_s,
        )
        self._in_flight = 0
        self._turn = 0
        self._pending: deque[Call] = deque()
        self._inbox: deque[Call] = deque()
        self._is_woken = False
        self._running: dict[asyncio.Task[None], Call] = {}
        self._sleeping: dict[Call, asyncio.TimerHandle] = {}
        self._batches: set[Batch] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._outage_from: float | None = None
        self._error: MagpieError | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="magpie-hf transport", daemon=True)

    def _new_limit(self) -> AdaptiveLimit:
        ceiling = max(1, min(self._most, self.concurrency))
        return AdaptiveLimit(float(min(self._start_limit, ceiling)), float(ceiling))

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _shut_down(self) -> None:
        self._error = self._error or EngineError("The engine was closed while it was generating.")
        for batch in list(self._batches):
            await self._cancel(batch)
            batch.arrived.put(self._error)
        # Questions of other threads too: nobody would ever answer them.
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.exchange.close()

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

    def _take_inbox(self) -> None:
        self._is_woken = False
        while self._inbox:
            self._pending.append(self._inbox.popleft())
        self._dispatch()

    def _dispatch(self) -> None:
        while self._pending and self._error is None:
            call = self._pending[0]
            if not has_room(self._in_flight, call.samples, self.concurrency):
                return
            # One that was tried in vain goes to another endpoint if there is room at one.
            other = self._freest(call.samples, but=call.endpoint) if call.attempts else None
            endpoint = other or self._freest(call.samples)
            if endpoint is None:
                return
            self._pending.popleft()
            if not call.batch.is_closed:
                self._launch(call, endpoint)

    def _freest(self, samples: int, but: Endpoint | None = None) -> Endpoint | None:
        now = self._loop.time()
        best: Endpoint | None = None
        # Another one comes first each time, so that equals take turns.
        self._turn = (self._turn + 1) % len(self.endpoints)
        for endpoint in self.endpoints[self._turn :] + self.endpoints[: self._turn]:
            if (
                endpoint is but
                or endpoint.is_aside
                or endpoint.is_doubted
                or not has_room(endpoint.in_flight, samples, int(endpoint.limit.limit))
                or endpoint.paused_until > now
            ):
                continue
            if best is None or endpoint.in_flight < best.in_flight:
                best = endpoint
        if best is None:
            self._wake_after_pause(now)
        return best

    def _wake_after_pause(self, now: float) -> None:
        ends = [e.paused_until for e in self.endpoints if e.paused_until > now and not e.is_aside]
        if ends and (self._timer is None or self._timer.when() > min(ends) or self._timer.when() <= now):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(min(ends) + 0.001, self._dispatch)

    def _launch(self, call: Call, endpoint: Endpoint) -> None:
        self._in_flight += call.samples
        endpoint.in_flight += call.samples
        call.endpoint = endpoint
        self._running[self._loop.create_task(self._send(call, endpoint))] = call

    async def _send(self, call: Call, endpoint: Endpoint) -> None:
        call.sent_at = self._loop.time()
        out = endpoint.in_flight
        try:
            reply = await self.exchange.send(endpoint, "POST", call.path, call.body)
            verdict = reply.fault or self._judged(endpoint, reply)
            out = endpoint.in_flight
        except Exception as error:
            # Without an outcome the caller would wait for ever.
            self._end(EngineError(f"The reply of {endpoint.url} cannot be read ({type(error).__name__})."))
            raise
        finally:
            self._in_flight -= call.samples
            endpoint.in_flight -= call.samples
            self._running.pop(asyncio.current_task(), None)  # type: ignore[arg-type]
        self._settle(call, endpoint, reply, verdict, out)
        self._dispatch()

    def _judged(self, endpoint: Endpoint, reply: Reply) -> Verdict | None:
        try:
            return self._judge(endpoint, reply)
        except MALFORMED as error:
            return Verdict("transient", "bad_reply", f"the reply is malformed ({type(error).__name__})")

    def _settle(self, call: Call, endpoint: Endpoint, reply: Reply, verdict: Verdict | None, out: int) -> None:
        now = self._loop.time()
        if verdict is None or verdict.retry != "transient" or not verdict.is_connection:
            endpoint.failures = 0
            self._outage_from = None
        if verdict is None:
            endpoint.relapses = 0
            self._grow(call, endpoint, out, now)
            self._finish(call, reply, None)
        elif verdict.retry == "fatal":
            self._end(verdict.error or EngineError(verdict.message))
        elif verdict.retry == "never":
            self._grow(call, endpoint, out, now)
            self._finish(call, None, Failure(verdict.code, False, verdict.message[:MAX_MESSAGE]))
        elif verdict.retry == "overload":
            self._overloaded(call, endpoint, verdict, out, now)
        else:
            self._failed(call, endpoint, verdict, out, now)

    def _grow(self, call: Call, endpoint: Endpoint, out: int, now: float) -> None:
        if now - call.sent_at <= SLOW_SHARE * self.timeout_s:
            endpoint.limit.succeeded(out, call.samples)

    def _finish(self, call: Call, reply: Reply | None, failure: Failure | None) -> None:
        served = call.endpoint.served if call.endpoint else None
        if not call.batch.is_closed:
            call.batch.arrived.put(Outcome(call, reply, failure, served, self._loop.time() - call.sent_at))

    def _overloaded(self, call: Call, endpoint: Endpoint, verdict: Verdict, out: int, now: float) -> None:
        endpoint.limit.overloaded(out, call.sent_at, now)
        call.waited_from = now if call.waited_from is None else call.waited_from
        if now - call.waited_from > self.max_outage_s:
            self._finish(call, None, Failure(verdict.code, True, verdict.message[:MAX_MESSAGE]))
            return
        self.retries += 1
        if verdict.retry_after_s is None:
            self._sleep(call, self.backoff.wait_s(call.overloads))
        else:
            wait_s = min(verdict.retry_after_s, self.max_outage_s)
            if wait_s >= 1:
                logger.info("%s is overloaded and asks for %.0f s of rest", endpoint.url, wait_s)
            endpoint.paused_until = max(endpoint.paused_until, now + wait_s)
            self._pending.appendleft(call)
        call.overloads += 1

    def _failed(self, call: Call, endpoint: Endpoint, verdict: Verdict, out: int, now: float) -> None:
        call.attempts += verdict.weight
        call.waited_from = None
        if verdict.code == "timeout":
            # The queue there may be longer than the timeout.
            endpoint.limit.overloaded(out, call.sent_at, now)
        if verdict.is_connection:
            endpoint.failures += 1
            if verdict.weight == 0 or endpoint.failures >= FAILURES_UNTIL_ASIDE:
                self._set_aside(endpoint, Reply(fault=verdict))
            elif verdict.code != "timeout":
                self._doubt(endpoint)
        most = self.max_retries if verdict.retries is None else min(verdict.retries, self.max_retries)
        if call.attempts > most:
            self._finish(call, None, Failure(verdict.code, not verdict.ends_row, verdict.message[:MAX_MESSAGE]))
            return
        self.retries += 1
        if verdict.weight == 0:
            # It never reached the server, and another one may take it at once.
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

    def _set_aside(self, endpoint: Endpoint, reply: Reply | None = None) -> None:
        if endpoint.is_aside:
            return
        endpoint.is_aside = True
        endpoint.relapses += 1
        others = sum(not e.is_aside for e in self.endpoints)
        logger.warning("%s does not answer and is set aside; %d other endpoint(s) left", endpoint.url, others)
        if others == 0 and self._outage_from is None:
            self._outage_from = self._loop.time()
        if reply is not None and others == 0 and self._is_out_for_too_long():
            # It answers probes, and no request.
            self._end(unavailable([e.url for e in self.endpoints], self.max_outage_s, reply))
            return
        self._run_beside(self._revive(endpoint))

    def _run_beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _doubt(self, endpoint: Endpoint) -> None:
        """Ask an endpoint whose connection broke who it is, before it gets more: it may have been restarted."""
        if not endpoint.is_aside and not endpoint.is_doubted:
            endpoint.is_doubted = True
            self._run_beside(self._ask_who(endpoint))

    async def _ask_who(self, endpoint: Endpoint) -> None:
        reply = await self.exchange.send(endpoint, "GET", self._probe_path, None, PROBE_TIMEOUT_S)
        endpoint.is_doubted = False
        if reply.fault is not None or reply.status != 200:
            self._set_aside(endpoint, reply)
        elif self._is_recognised(endpoint, reply):
            self._dispatch()

    def _is_recognised(self, endpoint: Endpoint, reply: Reply) -> bool:
        try:
            endpoint.served = self._recognise(endpoint, reply) or endpoint.served
        except MagpieError as error:
            self._end(error)
            return False
        return True

    async def _revive(self, endpoint: Endpoint) -> None:
        attempt = 0
        while True:
            # One that answers probes and then no request is asked less and less often.
            await asyncio.sleep(self._until_next_probe(attempt + endpoint.relapses - 1))
            reply = await self.exchange.send(endpoint, "GET", self._probe_path, None, PROBE_TIMEOUT_S)
            if reply.fault is None and reply.status == 200:
                break
            if attempt == 0:
                self._move_from(endpoint)
            attempt += 1
            if self._is_out_for_too_long():
                self._end(unavailable([e.url for e in self.endpoints], self.max_outage_s, reply))
                return
        if not self._is_recognised(endpoint, reply):
            return
        logger.warning("%s answers again", endpoint.url)
        endpoint.is_aside = False
        endpoint.failures = 0
        endpoint.paused_until = 0.0
        endpoint.limit = self._new_limit()
        self._dispatch()

    def _is_out_for_too_long(self) -> bool:
        return self._outage_from is not None and self._loop.time() - self._outage_from >= self.max_outage_s

    def _until_next_probe(self, attempt: int) -> float:
        wait_s = self.backoff.wait_s(attempt)
        if self._outage_from is None:
            return wait_s
        left_s = self._outage_from + self.max_outage_s - self._loop.time()
        return max(0.0, min(wait_s, left_s))

    def _move_from(self, endpoint: Endpoint) -> None:
        """Send elsewhere what was in flight at an endpoint that is gone: no answer will come from there."""
        for task, call in [(t, c) for t, c in self._running.items() if c.endpoint is endpoint]:
            task.cancel()
            if not call.batch.is_closed:
                self.retries += 1
                self._pending.appendleft(call)
        self._loop.call_soon(self._dispatch)

    def _end(self, error: MagpieError) -> None:
        self._error = error
        for batch in self._batches:
            batch.arrived.put(error)
