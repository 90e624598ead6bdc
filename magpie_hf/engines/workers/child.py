"""The child's side of an engine in a separate process: it runs the engine for the parent."""

from __future__ import annotations

import importlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from ...errors import EngineError, MagpieError, quoted
from ...sampling import SamplingParams
from ..base import Capabilities, Engine, Prompt, Request, Served


_PROMPTS = 4096  # cached prompts, so that equal ones are the same object


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Which engine a worker runs.

    `target`: "module:Class" of an Engine; `settings`: its keyword arguments (picklable); `label`: the worker's name in
    errors; `environment`: variables set for it (such as CUDA_VISIBLE_DEVICES).
    """

    target: str
    settings: Mapping[str, object]
    label: str = "worker"
    environment: Mapping[str, str] = field(default_factory=dict)


class WorkerInfo(NamedTuple):
    """A worker's message when its engine is open."""

    capabilities: Capabilities
    served: Served | None
    window: int


class WorkerRequest(NamedTuple):
    """A request in a message; requests with the same prompt share its tokens as one object."""

    key: int
    prompt: tuple[int, ...]
    sampling: SamplingParams


class _Cancelled(Exception):
    """The parent canceled the running call."""


class _Child:
    """Runs an engine for the parent at the other end of the connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.call = 0
        self.in_flight = 0
        self.busy = False
        self._prompts: dict[tuple[int, ...], Prompt] = {}
        self._backlog: list[WorkerRequest] = []

    def serve(self) -> None:
        """Open the engine, then run calls until the parent closes it."""
        threading.Thread(target=self._read, daemon=True).start()
        _, spec = self.inbox.get()
        try:
            module, _, attribute = spec.target.partition(":")
            engine: Engine = getattr(importlib.import_module(module), attribute)(**spec.settings)
            engine.open()
        except BaseException as error:  # noqa: BLE001 (sent to the parent, which raises it)
            self.connection.send(("error", _portable(error)))
            return
        self.connection.send(("open", WorkerInfo(engine.capabilities(), engine.served, engine.window)))
        try:
            while self._serve_call(engine):
                pass
        finally:
            engine.close()

    def _read(self) -> None:
        """Move messages from the socket to the inbox, so that the parent never waits for a busy engine to read."""
        try:
            while True:
                message = self.connection.recv()
                if message[0] == "close" and self.busy:
                    _end_session()  # the results are no longer needed, and the engine may be in a long forward
                self.busy = self.busy or message[0] == "requests"
                self.inbox.put(message)
        except (EOFError, OSError):
            _end_session()  # the parent is gone, e.g., by kill -9: the work is no longer needed

    def _serve_call(self, engine: Engine) -> bool:
        """Run one `generate` call; returns False when the parent closes the engine."""
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
        except Exception as error:  # noqa: BLE001 (sent to the parent, which raises it)
            self.connection.send(("error", _portable(error)))
        finally:
            if hasattr(stream, "close"):
                stream.close()
            self._backlog, self.busy = [], False
        return True

    def _requests(self) -> Iterator[Request | None]:
        """Yield the parent's requests; None while requests in flight may lead to more."""
        while True:
            for key, prompt, sampling in self._arrived_requests():
                self.in_flight += 1
                yield Request(key, self._prompt(prompt), sampling)
            if self.in_flight:
                yield None
            else:
                # Nothing is in flight: wait for the next message.
                self._wait_for_more()

    def _arrived_requests(self) -> Iterator[WorkerRequest]:
        while True:
            backlog, self._backlog = self._backlog, []
            for number, request in enumerate(backlog):
                self._backlog = backlog[number + 1 :]
                yield request
            try:
                message = self.inbox.get_nowait()
            except queue.Empty:
                return
            self._handle_message(message)

    def _wait_for_more(self) -> None:
        self.busy = False
        message = self.inbox.get()
        self.busy = True
        self._handle_message(message)

    def _handle_message(self, message: tuple[Any, ...]) -> None:
        if message[0] == "close":
            raise SystemExit
        if message[0] == "cancel":
            if message[1] == self.call:
                raise _Cancelled
            return
        _, call, requests = message
        if call != self.call:
            self.call = call
        self._backlog = self._backlog + requests

    def _prompt(self, token_ids: tuple[int, ...]) -> Prompt:
        prompt = self._prompts.get(token_ids)
        if prompt is None:
            if len(self._prompts) >= _PROMPTS:
                self._prompts.clear()
            prompt = self._prompts[token_ids] = Prompt("", token_ids)
        return prompt


def _portable(error: BaseException) -> BaseException:
    """Return an error that can be pickled: MagpieErrors unchanged, others as an EngineError with their text."""
    if isinstance(error, MagpieError):
        return error
    return EngineError(f"The engine's process failed: {type(error).__name__}: {quoted(error)}")


def _end_session() -> None:
    """End this process and its children at once."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """Run a worker on the socket whose file descriptor is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Child(Connection(int(sys.argv[1]))).serve()
