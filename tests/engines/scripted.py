"""A server that answers as a test's script says, and notes what arrived: for faults, headers and request bodies."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import web


RESET, HANG = "reset", "hang"


class Arrived:
    """One request as it came in."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: Any, connection: Any, time_s: float):
        self.method, self.path, self.headers, self.body = method, path, headers, body
        self.connection, self.time_s = connection, time_s


class Scripted:
    """`script(arrived, number)` returns (status, body, headers) or a part of it, RESET or HANG, or a coroutine.

    `number` counts the POSTs 1, 2, 3, …. `log`: all that arrived; `canceled`: requests whose client went away.
    """

    def __init__(self, script: Callable[[Arrived, int], Any], port: int = 0) -> None:
        self.script = script
        self.log: list[Arrived] = []
        self.canceled = self.num_posts = self.num_open = self.max_open = 0
        self._port = port

    @property
    def posts(self) -> list[Arrived]:
        return [a for a in self.log if a.method == "POST"]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        loop = asyncio.get_running_loop()
        body = json.loads(raw) if raw else None
        connection = request.transport.get_extra_info("peername")
        arrived = Arrived(request.method, request.path, dict(request.headers), body, connection, loop.time())
        self.log.append(arrived)
        self.num_posts += request.method == "POST"
        self.num_open += 1
        self.max_open = max(self.max_open, self.num_open)
        try:
            answer = self.script(arrived, self.num_posts)
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer == HANG:
                await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.canceled += 1
            raise
        finally:
            self.num_open -= 1
        if answer == RESET:
            request.transport.abort()
            return web.Response()
        status, content, headers = (*(answer if isinstance(answer, tuple) else (200, answer)), {})[:3]
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        return web.Response(status=status, body=raw, headers={"Content-Type": "application/json", **headers})

    def start(self) -> Scripted:
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()

        async def end(site: web.TCPSite) -> None:
            await site.stop()
            await asyncio.sleep(0.02)  # what was accepted just now becomes a connection, which cleanup() closes
            await self._runner.cleanup()

        def serve() -> None:
            asyncio.set_event_loop(self.loop)
            app = web.Application(client_max_size=1 << 24)
            app.router.add_route("*", "/{path:.*}", self._handle)
            self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
            self.loop.run_until_complete(self._runner.setup())
            site = web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=1024, reuse_address=True)
            self.loop.run_until_complete(site.start())
            self._port = self._runner.addresses[0][1]
            ready.set()
            self.loop.run_forever()
            self.loop.run_until_complete(end(site))
            self.loop.close()

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        assert ready.wait(10)
        self.url = f"http://127.0.0.1:{self._port}"
        return self

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(10)

    def __enter__(self) -> Scripted:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def tgi(answer: Callable[[Arrived, int], Any] | None = None, **info: Any) -> Callable[[Arrived, int], Any]:
    """Return a script for a TGI server whose generations are `answer`'s, by default a text that ended."""
    says = {"model_id": "org/model", "model_sha": None, "version": "3.3.6", "max_concurrent_requests": 512} | info

    def script(arrived: Arrived, number: int) -> Any:
        if arrived.path == "/info":
            return says
        if "grammar" in arrived.body["parameters"] and arrived.body["inputs"] == "Hello":
            return generated("{")
        return (answer or (lambda a, n: generated(a.body["inputs"])))(arrived, number)

    return script


def generated(text: str, reason: str = "eos_token", tokens: Any = (), **details: Any) -> dict[str, Any]:
    """Return TGI's answer with this text."""
    tokens = [{"id": i, "text": t, "logprob": -1.0, "special": s} for i, t, s in tokens]
    known = {"finish_reason": reason, "generated_tokens": 3, "seed": None, "prefill": [], "tokens": tokens}
    return {"generated_text": text, "details": known | details}
