"""A FastAPI application on a free port of 127.0.0.1, in a thread or as a process, with faults down to the socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from .faults import SPOILED, Behavior, Entry, Fault, Record


READY_TIMEOUT_S = 120.0
STOP_POLL_S = 0.01


class FaultyServer:
    """Base class of the test servers: clock, record of requests, faults and control routes.

    A subclass adds its routes to `self.app` and calls `answer` for whatever generates. Use as a context manager:
    `with TgiServer(model_dir, faults=[Fault("overloaded", every=7)]) as server: … server.url`.
    Control: `POST /_faults` (see `Behavior`), `GET /_stats` (`?log=1` for every request), `POST /_reset`.
    """

    def __init__(
        self,
        *,
        faults: tuple[Fault, ...] | list[Fault] = (),
        behavior: Behavior | None = None,
        refuse_s: float = 0.0,
        port: int = 0,
    ) -> None:
        self.behavior = behavior or Behavior()
        if faults:
            self.behavior = replace(self.behavior, faults=tuple(faults))
        self.refuse_s = refuse_s
        self.record = Record()
        self.app = FastAPI(openapi_url=None)
        self._since = time.monotonic()
        self._connections: dict[str, asyncio.Transport] = {}
        # asyncio sets TCP_NODELAY only on sockets that name TCP; without it each reply waits 40 ms for an ACK.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.in_process = True
        self._add_control_routes()

    def configure(self, **changes: Any) -> None:
        """Change the settings of a running server: `faults`, `model_id`, `model_sha`, `starting_s`, `latency_s`, …."""
        if "faults" in changes:
            changes["faults"] = tuple(changes["faults"])
        self.behavior = replace(self.behavior, **changes)
        self._since = time.monotonic()

    @property
    def stats(self) -> dict[str, Any]:
        """The counts that `GET /_stats` gives."""
        return self.record.stats(log=True)

    async def answer(
        self,
        request: Request,
        body: dict[str, Any],
        make: Callable[[], Awaitable[Response]],
        *,
        seed: int | None = None,
        n: int = 1,
    ) -> Response:
        """Record the request, inject its faults, or else return the reply of `make`."""
        connection = _connection(request)
        entry = self.record.arrive(body, connection, "authorization" in request.headers, seed, n)
        try:
            for fault in self.behavior.faults:
                if fault.hits(self.record.tries[entry.hash] if fault.each else entry.number):
                    hurt = await self._happen(fault, entry, make)
                    if hurt is not None:
                        return hurt
            await asyncio.sleep(self.behavior.delay_s(seed))
            response = await make()
            gone = self._connections.get(connection)
            lost = gone is None or gone.is_closing()
            outcome = "dropped" if lost else "completed" if response.status_code == 200 else str(response.status_code)
            self.record.end(entry, outcome)
            return response
        finally:
            self.record.end(entry, "canceled")

    async def _happen(self, fault: Fault, entry: Entry, make: Callable[[], Awaitable[Response]]) -> Response | None:
        if fault.kind == "delay":
            await asyncio.sleep(fault.seconds)
            return None
        if fault.kind in ("overloaded", "status"):
            status = 429 if fault.kind == "overloaded" else fault.status
            self.record.end(entry, str(status))
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return JSONResponse(self.error_body(status), status_code=status, headers=headers)
        self.record.end(entry, fault.kind)
        if fault.kind == "hang":
            await asyncio.sleep(3600)
        if fault.kind == "garbage":
            return Response("<html><body>Bad gateway</body></html>", media_type="text/html")
        if fault.kind in SPOILED:
            whole = json.loads(bytes((await make()).body))
            whole["choices"][0] |= SPOILED[fault.kind]
            return JSONResponse(whole)
        if fault.kind in ("cut", "truncate"):
            response = await make()
            half = bytes(response.body)[: len(response.body) // 2]
            if fault.kind == "truncate":
                return Response(half, media_type="application/json")
            return _CutResponse(half, len(response.body), lambda: self._abort(entry.connection))
        if fault.kind == "die":
            self.die()
        self._abort(entry.connection)
        return Response(status_code=500)

    def error_body(self, status: int) -> dict[str, Any]:
        """Return the body of an injected error; subclasses use the format of their protocol."""
        return {"error": f"error {status}"}

    def die(self) -> None:
        """End immediately: the process exits, or the sockets of the thread are reset."""
        if not self.in_process:
            os._exit(137)
        self._server.should_exit = self._server.force_exit = True
        for listener in self._server.servers:
            listener.close()
        for connection in list(self._connections):
            self._abort(connection)

    def _abort(self, connection: str) -> None:
        transport = self._connections.get(connection)
        if transport is not None:
            # With linger on and a time of zero, closing sends RST instead of FIN: "connection reset by peer".
            raw = transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()

    def _add_control_routes(self) -> None:
        @self.app.post("/_faults")
        async def set_faults(request: Request) -> Any:
            self.behavior = Behavior.from_json(json.loads(await request.body()))
            self._since = time.monotonic()
            return self.behavior.to_json()

        @self.app.get("/_stats")
        async def stats(log: bool = False) -> Any:
            return self.record.stats(log)

        @self.app.post("/_reset")
        async def reset() -> Any:
            self.record.reset()
            return {}

        self.app.add_middleware(_Front, server=self)

    def start(self) -> None:
        """Serve in a thread; return when the port accepts connections (immediately with `refuse_s`)."""
        self._server = _PromptServer(self._uvicorn_config())
        self._thread = threading.Thread(target=self._serve, name=f"server-{self.port}", daemon=True)
        self._thread.start()
        while not self.refuse_s and not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the server's thread ended before it was ready")
            time.sleep(0.005)

    def _serve(self) -> None:
        time.sleep(self.refuse_s)  # bound, but not listening yet: connections are refused
        self._socket.listen(1024)
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def _uvicorn_config(self) -> uvicorn.Config:
        server = self

        class Protocol(H11Protocol):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                self._name = _peer(transport.get_extra_info("peername"))
                server._connections[self._name] = transport

            def connection_lost(self, exc: Exception | None) -> None:
                server._connections.pop(self._name, None)
                super().connection_lost(exc)

        return uvicorn.Config(
            self.app, http=Protocol, loop="asyncio", log_level="critical", lifespan="off", timeout_graceful_shutdown=1
        )

    def stop(self) -> None:
        """End the thread and free the port."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=10)
        self._socket.close()

    def run_forever(self, print_port: bool) -> None:
        """Serve in this process; with `print_port` the port is printed as the first line, once it is listening."""
        self.in_process = False
        time.sleep(self.refuse_s)
        self._socket.listen(1024)
        if print_port:
            sys.stdout.write(f"{self.port}\n")
            sys.stdout.flush()
        self._server = uvicorn.Server(self._uvicorn_config())
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _PromptServer(uvicorn.Server):
    """Stops at once: uvicorn looks ten times a second whether to stop, and then waits a tenth of a second more."""

    async def main_loop(self) -> None:
        counter = 0
        while not await self.on_tick(counter):
            await asyncio.sleep(STOP_POLL_S)
            counter += 1

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()


class _Front:
    """ASGI middleware: records every request, and replies with 503 while the server is configured as starting."""

    def __init__(self, app: Any, server: FaultyServer) -> None:
        self.app = app
        self.server = server

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        server = self.server
        if scope["type"] == "http" and not scope["path"].startswith("/_"):
            headers = {name.decode("latin1"): value.decode("latin1") for name, value in scope["headers"]}
            server.record.saw(scope["path"], _peer(scope["client"]), headers)
            if time.monotonic() < server._since + server.behavior.starting_s:
                await JSONResponse(server.error_body(503), status_code=503)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class _CutResponse(Response):
    """Promises `length` bytes, sends fewer, and breaks the connection."""

    def __init__(self, content: bytes, length: int, abort: Callable[[], None]) -> None:
        super().__init__(content, headers={"content-length": str(length)}, media_type="application/json")
        self._then_abort = abort

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await asyncio.sleep(0.02)
        self._then_abort()


def _peer(address: tuple[str, int] | None) -> str:
    return f"{address[0]}:{address[1]}" if address else ""


def _connection(request: Request) -> str:
    return _peer((request.client.host, request.client.port)) if request.client else ""


class ServerProcess:
    """One of these servers in a separate process: `with ServerProcess("tgi_server", model_dir) as server: server.url`."""

    def __init__(self, module: str, model_dir: str | Path, *arguments: str, port: int = 0) -> None:
        root = Path(__file__).parents[2]
        command = [sys.executable, "-m", f"tests.servers.{module}", "--model", str(model_dir)]
        self._command = [*command, "--port", str(port), "--print-port", *arguments]
        self._root = root

    def __enter__(self) -> ServerProcess:
        self.process = subprocess.Popen(self._command, cwd=self._root, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.strip().isdigit():
            raise RuntimeError(f"the server did not start: exit code {self.process.wait(timeout=10)}")
        self.port = int(line)
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def get(self, path: str) -> Any:
        """Return the JSON at this path, for example `/_stats?log=1`."""
        with urllib.request.urlopen(self.url + path, timeout=READY_TIMEOUT_S) as response:
            return json.loads(response.read())

    def post(self, path: str, body: Any) -> Any:
        """Post JSON and return the JSON reply."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=READY_TIMEOUT_S) as response:
            return json.loads(response.read())

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        self.process.kill()
        self.process.wait(timeout=30)

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()
