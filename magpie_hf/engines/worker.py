"""Engines in processes of their own: the only sure way to free a GPU, and one replica a device.

The parent starts this interpreter again with one end of a private socket pair, sends requests as it is
asked for them, and yields what comes back. What is pickled goes through that socket only. A child whose parent is
gone ends by itself; a child that dies is an EngineDiedError that names exit code or signal.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from ..errors import EngineDiedError, EngineError, MagpieError, quoted
from ..sampling import SamplingParams
from .base import Capabilities, Engine, EngineStats, Generation, Prompt, Request, Served


WINDOW = 256  # requests a worker holds, where its engine does not say
_CLOSE_S = 5.0  # time given to an idle worker to end by itself; a busy one ends at once
_POLL_S = 0.5  # how often the parent looks whether a silent worker still lives
_RUN = "from magpie_hf.engines.worker import main; main()"  # not -m: what it pickles must not be of __main__
_PROMPTS = 4096  # prompts that a child remembers, so that equal ones are the same object


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Which engine a worker runs.

    `target`: "module:Class" of an Engine; `settings`: its keyword arguments (picklable); `label`: how errors call the
    worker; `environment`: variables set for it (such as CUDA_VISIBLE_DEVICES).
    """

    target: str
    settings: Mapping[str, Any]
    label: str = "worker"
    environment: Mapping[str, str] = field(default_factory=dict)


class _Hello(NamedTuple):
    """What a worker says when its engine is open."""

    capabilities: Capabilities
    served: Served | None
    window: int


class _Wanted(NamedTuple):
    """A request on the wire; the prompt's tokens are one object for all requests of a message that share it."""

    key: int
    prompt: tuple[int, ...]
    sampling: SamplingParams


class _Worker:
    """The parent's side of one child."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        ours, theirs = socket.socketpair()
        environment = os.environ | dict(spec.environment)
        # The child imports this very package, installed or not, whatever directory it starts in.
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
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
        self.hello: _Hello | None = None
        self.call = 0
        self.in_flight = 0

    def start(self) -> None:
        self.send(("open", self.spec))

    def wait_open(self) -> _Hello:
        """Wait until the child's engine is open. Raises what its `open` raised."""
        kind, payload = self.receive()
        if kind == "error":
            raise payload
        hello: _Hello = payload
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
    """One engine over one or more workers: each request goes to the worker with the fewest in flight.

    Open workers stay open between `generate` calls. `identity` is the parent's to know: it is the same for all workers
    and must not need a model.
    """

    def __init__(self, specs: Sequence[WorkerSpec], *, identity: Mapping[str, Any], name: str = "replicated") -> None:
        if not specs:
            raise EngineError("There is no worker to run.", hint="Give at least one device.")
        self.name = name
        self.stats = EngineStats()
        self._specs = tuple(specs)
        self._identity = dict(identity)
        self._workers: list[_Worker] = []

    def identity(self) -> dict[str, Any]:
        """Return what the workers' engine was asked for."""
        return dict(self._identity)

    def open(self) -> None:
        """Start all workers and wait until their engines are open; raises what one of them raised."""
        if self._workers:
            return
        self._workers = [_Worker(spec) for spec in self._specs]
        try:
            for worker in self._workers:
                worker.start()
            for worker in self._workers:
                worker.wait_open()
        except BaseException:
            self.close()
            raise

    def _hello(self) -> _Hello:
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
    def window(self) -> int:
        """How many requests all workers can use at once."""
        return sum(worker.hello.window for worker in self._workers if worker.hello)

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
        pulled: list[_Wanted] = []
        exhausted = False
        while len(pulled) < room:
            try:
                request = next(source)
            except StopIteration:
                exhausted = True
                break
            if request is None:
                break
            pulled.append(_Wanted(request.key, request.prompt.token_ids, request.sampling))
        self.stats.requests += len(pulled)
        self._share_out(pulled)
        return exhausted

    def _share_out(self, pulled: list[_Wanted]) -> None:
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
        """Wait for the next message of any worker; yield the generations of all that have one."""
        busy = [worker for worker in self._workers if worker.in_flight]
        began = time.perf_counter()
        wait([worker.connection for worker in busy], timeout=_POLL_S)
        self.stats.busy_s += time.perf_counter() - began
        for worker in busy:
            if not worker.connection.poll(0):
                if worker.process.poll() is not None and not worker.connection.poll(0):
                    raise worker.died()
                continue
            kind, payload = worker.receive()
            if kind == "error":
                raise payload
            call, generations = payload
            if call != worker.call:
                continue
            worker.in_flight -= len(generations)
            for generation in generations:
                self._count(generation)
                yield generation

    def _count(self, generation: Generation) -> None:
        self.stats.prompt_tokens += generation.prompt_tokens or 0
        self.stats.completion_tokens += generation.completion_tokens or 0
        if generation.failure is not None:
            self.stats.failures += 1
            code = generation.failure.code
            self.stats.by_code[code] = self.stats.by_code.get(code, 0) + 1

    def close(self) -> None:
        """End all workers; returns when their processes are gone."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.close()


# The child's side


class _Cancelled(Exception):
    """The parent dropped the call that was running."""


class _Child:
    """Runs an engine for the parent at the other end of the connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.call = 0
        self.in_flight = 0
        self.busy = False
        self._prompts: dict[tuple[int, ...], Prompt] = {}
        self._backlog: list[_Wanted] = []

    def serve(self) -> None:
        """Open the engine, then serve calls until told to close."""
        threading.Thread(target=self._read, daemon=True).start()
        _, spec = self.inbox.get()
        try:
            module, _, attribute = spec.target.partition(":")
            engine: Engine = getattr(importlib.import_module(module), attribute)(**spec.settings)
            engine.open()
        except BaseException as error:  # noqa: BLE001 (told to the parent, which raises it)
            self.connection.send(("error", _portable(error)))
            return
        window = int(getattr(engine, "window", WINDOW))
        self.connection.send(("open", _Hello(engine.capabilities(), engine.served, window)))
        try:
            while self._serve_call(engine):
                pass
        finally:
            engine.close()

    def _read(self) -> None:
        """Move messages from the socket to the inbox, so that a parent that sends never waits for a busy engine."""
        try:
            while True:
                message = self.connection.recv()
                if message[0] == "close" and self.busy:
                    _end_session()  # what runs is wanted no more, and the engine may be deep in a forward
                self.busy = self.busy or message[0] == "requests"
                self.inbox.put(message)
        except (EOFError, OSError):
            _end_session()  # the parent is gone, even by kill -9: nobody wants the work

    def _serve_call(self, engine: Engine) -> bool:
        """Run one `generate` call; returns False when the parent wants no more."""
        message = self.inbox.get()
        if message[0] == "close":
            return False
        if message[0] != "requests":
            return True
        _, self.call, self._backlog = message
        self.in_flight, self.busy = 0, True
        stream = engine.generate(self._requests())
        try:
            for generation in stream:
                self.in_flight -= 1
                self.connection.send(("generations", (self.call, [generation])))
        except _Cancelled:
            pass
        except SystemExit:
            return False
        except Exception as error:  # noqa: BLE001 (told to the parent, which raises it)
            self.connection.send(("error", _portable(error)))
        finally:
            if hasattr(stream, "close"):
                stream.close()
            self._backlog, self.busy = [], False
        return True

    def _requests(self) -> Iterator[Request | None]:
        """Yield what the parent sent; None while it may still send more because of what is in flight."""
        while True:
            for key, prompt, sampling in self._drained():
                self.in_flight += 1
                yield Request(key, self._prompt(prompt), sampling)
            if self.in_flight:
                yield None
            else:
                # Nothing runs, so nothing is lost by leaving `generate`: the next message opens it again.
                self._wait_for_more()

    def _drained(self) -> Iterator[_Wanted]:
        while True:
            backlog, self._backlog = self._backlog, []
            for number, wanted in enumerate(backlog):
                self._backlog = backlog[number + 1 :]
                yield wanted
            try:
                message = self.inbox.get_nowait()
            except queue.Empty:
                return
            self._take(message)

    def _wait_for_more(self) -> None:
        self.busy = False
        message = self.inbox.get()
        self.busy = True
        self._take(message)

    def _take(self, message: tuple[Any, ...]) -> None:
        if message[0] == "close":
            raise SystemExit
        if message[0] == "cancel":
            if message[1] == self.call:
                raise _Cancelled
            return
        _, call, wanted = message
        if call != self.call:
            self.call = call
        self._backlog = self._backlog + wanted

    def _prompt(self, token_ids: tuple[int, ...]) -> Prompt:
        prompt = self._prompts.get(token_ids)
        if prompt is None:
            if len(self._prompts) >= _PROMPTS:
                self._prompts.clear()
            prompt = self._prompts[token_ids] = Prompt("", token_ids)
        return prompt


def _portable(error: BaseException) -> BaseException:
    """Return an error that pickles: our own as they are, others as an EngineError that names them."""
    if isinstance(error, MagpieError):
        return error
    return EngineError(f"The engine's process failed: {type(error).__name__}: {quoted(error)}")


def _end_session() -> None:
    """End this process and all that it started, at once."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """Run a worker on the socket whose file descriptor is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Child(Connection(int(sys.argv[1]))).serve()
