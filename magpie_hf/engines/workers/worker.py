"""Engines in processes of their own: the only sure way to free a GPU, and one replica a device.

The parent starts this interpreter again with one end of a private socket pair, sends requests as it is
asked for them, and yields what comes back. What is pickled goes through that socket only. A child whose parent is
gone ends by itself; a child that dies is an EngineDiedError that names exit code or signal.
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
from .child import Hello, Wanted, WorkerSpec


_CLOSE_S = 5.0  # time given to an idle worker to end by itself; a busy one ends at once
_POLL_S = 0.5  # how often the parent looks whether a silent worker still lives
_RUN = "from magpie_hf.engines.workers.child import main; main()"  # not -m: what it pickles must not be of __main__


class _Worker:
    """The parent's side of one child."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        ours, theirs = socket.socketpair()
        environment = os.environ | dict(spec.environment)
        # The child imports this very package, installed or not, whatever directory it starts in.
        root = str(Path(__file__).parents[3])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", _RUN, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's; and all that the child starts can be ended with it
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.hello: Hello | None = None
        self.call = 0
        self.in_flight = 0

    def start(self) -> None:
        self.send(("open", self.spec))

    def wait_open(self) -> Hello:
        """Wait until the child's engine is open. Raises what its `open` raised."""
        kind, payload = self.receive()
        if kind == "error":
            raise payload
        hello: Hello = payload
        self.hello = hello
        return hello

    def send(self, message: tuple[Any, ...]) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError, OSError) as error:
            raise self.died() from error

    def receive(self) -> tuple[str, Any]:
        """Return the next message of the child, waiting for it."""
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
        """Build the error that says how the child ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2.0)
        code = self.process.poll()
        how = "closed its pipe" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = f"was ended by signal {signal.Signals(-code).name}"
        hint = "Everything finished is kept: the same command goes on where it was."
        if code == -signal.SIGKILL:
            hint = "The system ends processes so when memory runs out: lower batch_size. " + hint
        return EngineDiedError(
            f"The engine's process {quoted(self.spec.label)} (pid {self.process.pid}) {how}.",
            hint=hint,
            exit_code=code,
        )

    def close(self) -> None:
        """End the child and everything that it started."""
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
    """An engine over one or more workers: each request is sent to the worker with the fewest in flight.

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
        """Keep the workers' specifications; the rest is as for any engine."""
        if not specs:
            raise EngineError("No worker to run.", hint="Set at least one device.")
        super().__init__(model, revision=revision, ref=ref, **settings)
        self._specs = tuple(specs)
        self._workers: list[_Worker] = []

    def open(self) -> None:
        """Start all workers and wait until their engines are open; raises what one of them raised."""
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

    def _hello(self) -> Hello:
        if not self._workers or self._workers[0].hello is None:
            raise EngineError("The engine is not open.", hint="Use it as a context manager, or call open() first.")
        return self._workers[0].hello

    def capabilities(self) -> Capabilities:
        """Return what the workers' engine can express."""
        return self._hello().capabilities

    @property
    def served(self) -> Served | None:
        """What the workers' engine found."""
        return self._workers[0].hello.served if self._workers and self._workers[0].hello else None

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [worker.process.pid for worker in self._workers]

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Generation]:
        """Yield a generation for each request, in the order in which the workers finish them.

        Raises:
            EngineDiedError: a worker's process ended.
        """
        self._hello()
        for worker in self._workers:
            worker.call += 1
            worker.in_flight = 0
        source = iter(requests)
        try:
            exhausted = self._hand_out(source)
            while not exhausted or any(worker.in_flight for worker in self._workers):
                if not any(worker.in_flight for worker in self._workers):
                    time.sleep(0.001)  # against the contract: None, though nothing is in flight
                yield from self._collect()
                exhausted = exhausted or self._hand_out(source)
        finally:
            for worker in self._workers:
                if worker.in_flight:
                    with contextlib.suppress(EngineDiedError):
                        worker.send(("cancel", worker.call))

    def _hand_out(self, source: Iterator[Request | None]) -> bool:
        """Pull what the workers have room for and send it; returns whether the requests are exhausted.

        Requests with the same prompt that follow each other stay together as far as a worker's share goes, so that
        its engine can send them as one.
        """
        room = sum(w.hello.window - w.in_flight for w in self._workers if w.hello)
        pulled: list[Wanted] = []
        exhausted = False
        while len(pulled) < room:
            try:
                request = next(source)
            except StopIteration:
                exhausted = True
                break
            if request is None:
                break
            pulled.append(Wanted(request.key, request.prompt.token_ids, request.sampling))
        self.stats.requests += len(pulled)
        self._share_out(pulled)
        return exhausted

    def _share_out(self, pulled: list[Wanted]) -> None:
        """Send every worker its part, so that all end with about the same number in flight."""
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
        """Wait for the next message of any worker; yield all generations that have arrived."""
        busy = [worker for worker in self._workers if worker.in_flight]
        wait([worker.connection for worker in busy], timeout=_POLL_S)
        for worker in busy:
            if not worker.connection.poll(0) and worker.process.poll() is not None and not worker.connection.poll(0):
                raise worker.died()
            # All that is there, so that the next hand-out fills all the places at once.
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
        """End all workers; returns when their processes are gone."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.close()
