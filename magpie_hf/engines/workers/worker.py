"""Engines in separate processes: the only reliable way to free a GPU, and one replica per device.

The parent starts this interpreter with one end of a private socket pair, sends requests and yields generations. Pickled
data is sent through that socket only. A child whose parent is gone ends itself; a child that dies is an EngineDiedError
with its exit code or signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ...errors import EngineDiedError, EngineError, quoted
from ...models import ModelRef
from ..base import Capabilities, Engine, Generation, Request, Served
from .child import WorkerInfo, WorkerRequest, WorkerSpec


_CLOSE_S = 5.0  # time for an idle worker to end; a busy one ends at once
_POLL_S = 0.5  # how often the parent checks whether a silent worker is alive
_RUN = "from magpie_hf.engines.workers.child import main; main()"  # not -m: pickled classes must not be in __main__


class _Worker:
    """The parent's side of one child."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        ours, theirs = socket.socketpair()
        environment = os.environ | dict(spec.environment)
        # The child imports this package, installed or not, from any working directory.
        root = str(Path(__file__).parents[3])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", _RUN, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # only the parent handles Ctrl-C; all processes of the child can be ended together
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.info: WorkerInfo | None = None
        self.call = 0
        self.in_flight = 0

    def start(self) -> None:
        self.send(("open", self.spec))

    def wait_open(self) -> WorkerInfo:
        """Wait until the child's engine is open. Raises what its `open` raised."""
        kind, payload = self.receive()
        if kind == "error":
            raise payload
        info: WorkerInfo = payload
        self.info = info
        return info

    def send(self, message: tuple[Any, ...]) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError, OSError) as error:
            raise self.died() from error

    def receive(self) -> tuple[str, Any]:
        """Wait for the next message of the child."""
        while True:
            try:
                if self.connection.poll(_POLL_S):
                    message: tuple[str, Any] = self.connection.recv()
                    return message
            except (EOFError, ConnectionResetError, OSError) as error:
                raise self.died() from error
            if self.process.poll() is not None and not self.connection.poll(0):
                raise self.died()

    def died(self) -> EngineDiedError:
        """Return the error with the exit code or signal of the child."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2.0)
        code = self.process.poll()
        how = "closed its connection" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = f"was killed by signal {signal.Signals(-code).name}"
        hint = "Finished rows are saved: run the same command again to resume."
        if code == -signal.SIGKILL:
            hint = "The system kills processes when memory is exhausted: lower batch_size. " + hint
        return EngineDiedError(
            f"The engine's process {quoted(self.spec.label)} (pid {self.process.pid}) {how}.",
            hint=hint,
            exit_code=code,
        )

    def close(self) -> None:
        """End the child and all of its processes."""
        with contextlib.suppress(OSError, EngineDiedError):
            if self.process.poll() is None:
                self.send(("close",))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_CLOSE_S)
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2.0)
        self.connection.close()


class ReplicatedEngine(Engine):
    """An engine with one or more workers: each request is sent to the worker with the fewest requests in flight.

    Workers stay open between `generate` calls.
    """

    name = "replicated"

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        *,
        model: str,
        revision: str | None = None,
        ref: ModelRef | None = None,
        **settings: object,
    ) -> None:
        """Store the workers' specifications. The other arguments are those of `Engine`."""
        if not specs:
            raise EngineError("No worker to run.", hint="Set at least one device.")
        super().__init__(model, revision=revision, ref=ref, **settings)
        self._specs = tuple(specs)
        self._workers: list[_Worker] = []

    def open(self) -> None:
        """Start all workers and wait until their engines are open; raises the first error of a worker."""
        if self._workers:
            return
        self._workers = [_Worker(spec) for spec in self._specs]
        try:
            for worker in self._workers:
                worker.start()
            self.window = sum(worker.wait_open().window for worker in self._workers)
        except BaseException:
            self.close()
            raise

    def _info(self) -> WorkerInfo:
        if not self._workers or self._workers[0].info is None:
            raise EngineError("The engine is not open.", hint="Use it as a context manager, or call open().")
        return self._workers[0].info

    def capabilities(self) -> Capabilities:
        """Return what the workers' engine supports."""
        return self._info().capabilities

    @property
    def served(self) -> Served | None:
        """What the workers' engine reports."""
        return self._workers[0].info.served if self._workers and self._workers[0].info else None

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [worker.process.pid for worker in self._workers]

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Generation]:
        """Yield a generation for each request, in the order in which the workers finish them.

        Raises:
            EngineDiedError: a worker's process ended.
        """
        self._info()
        for worker in self._workers:
            worker.call += 1
            worker.in_flight = 0
        source = iter(requests)
        try:
            exhausted = self._send_requests(source)
            while not exhausted or any(worker.in_flight for worker in self._workers):
                if not any(worker.in_flight for worker in self._workers):
                    time.sleep(0.001)  # the caller returned None although no request is in flight
                yield from self._collect()
                exhausted = exhausted or self._send_requests(source)
        finally:
            for worker in self._workers:
                if worker.in_flight:
                    with contextlib.suppress(EngineDiedError):
                        worker.send(("cancel", worker.call))

    def _send_requests(self, source: Iterator[Request | None]) -> bool:
        """Pull and send as many requests as the workers have capacity for; returns whether there are no more.

        Consecutive requests with the same prompt stay together within a worker's share, so that its engine can group
        them.
        """
        capacity = sum(w.info.window - w.in_flight for w in self._workers if w.info)
        pulled: list[WorkerRequest] = []
        exhausted = False
        while len(pulled) < capacity:
            try:
                request = next(source)
            except StopIteration:
                exhausted = True
                break
            if request is None:
                break
            pulled.append(WorkerRequest(request.key, request.prompt.token_ids, request.sampling))
        self.stats.requests += len(pulled)
        self._distribute(pulled)
        return exhausted

    def _distribute(self, pulled: list[WorkerRequest]) -> None:
        """Distribute requests so that all workers have about the same number in flight."""
        total = len(pulled) + sum(worker.in_flight for worker in self._workers)
        for position, worker in enumerate(sorted(self._workers, key=lambda w: w.in_flight)):
            level = -(-total // (len(self._workers) - position))
            part = pulled[: max(level - worker.in_flight, 0)]
            pulled = pulled[len(part) :]
            total -= worker.in_flight + len(part)
            if part:
                worker.in_flight += len(part)
                worker.send(("requests", worker.call, part))

    def _collect(self) -> Iterator[Generation]:
        """Wait for the next message of any worker; yield all arrived generations."""
        busy = [worker for worker in self._workers if worker.in_flight]
        wait([worker.connection for worker in busy], timeout=_POLL_S)
        for worker in busy:
            if not worker.connection.poll(0) and worker.process.poll() is not None and not worker.connection.poll(0):
                raise worker.died()
            # Read all messages that have arrived, so that the next requests use all free capacity at once.
            while worker.in_flight and worker.connection.poll(0):
                yield from self._received(worker)

    def _received(self, worker: _Worker) -> Iterator[Generation]:
        kind, payload = worker.receive()
        if kind == "error":
            raise payload
        call, generations = payload
        if call != worker.call:
            return
        worker.in_flight -= len(generations)
        yield from generations

    def close(self) -> None:
        """End all workers and wait for the end of their processes."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.close()
