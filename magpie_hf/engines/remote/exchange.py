"""One HTTP request and its reply, with limits on the size and the duration of a reply."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .untrusted import MAX_BODY_BYTES
from .wire import CONNECT_TIMEOUT_S, JSON_HEADERS, Address, Fault, Reply, fault_of, read_reply, watched_socket


if TYPE_CHECKING:
    import aiohttp

# uvicorn (vLLM, SGLang) closes idle connections after 5 s, which would cause a retry: close them earlier.
KEEP_ALIVE_S = 4.0
# Time for the body of a reply, in addition to the generation's timeout: a server may send it a byte at a time.
BODY_S = 60.0
# Open files of this process in addition to connections: models, datasets, journals.
OTHER_FILES = 1024


class Exchange:
    """A pool of connections for one event loop. Replies are untrusted: `send` never raises."""

    def __init__(self, *, headers: Mapping[str, str], connections: int, timeout_s: float) -> None:
        self._headers = {**JSON_HEADERS, **headers}
        self._connections = connections
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Open the pool; no connection is made yet."""
        import aiohttp

        allow_files(self._connections)
        # No trust_env: it would also read ~/.netrc and send its passwords as Authorization.
        # Older aiohttp has no `socket_factory`: there only `timeout_s` detects a machine that is gone.
        takes_sockets = "socket_factory" in inspect.signature(aiohttp.TCPConnector).parameters
        options: dict[str, Any] = {"socket_factory": watched_socket} if takes_sockets else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections, keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=300, **options
            ),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=self._timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def send(
        self, server: Address, method: str, path: str, body: bytes | None, timeout_s: float | None = None
    ) -> Reply:
        """Return the reply, or a fault if there is none; within `timeout_s`, if given, from first to last byte."""
        assert self._session is not None  # noqa: S101 (for the type checker; open() made it)
        try:
            async with (
                asyncio.timeout(self._timeout_s + BODY_S if timeout_s is None else timeout_s),
                self._session.request(
                    method, server.url + path, data=body, proxy=server.proxy, allow_redirects=False
                ) as response,
            ):
                raw = await _read(response)
                if raw is None:
                    return Reply(fault=Fault("transient", "bad_reply", "the reply is too large"))
                return read_reply(response.status, raw, response.headers)
        except Exception as error:  # noqa: BLE001 (any error that a server can cause in the client library)
            return Reply(fault=fault_of(error))


def allow_files(connections: int) -> None:
    """Raise this process's soft limit of open files, often 1,024, to allow so many connections."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """Return the body; None, after closing the connection, if it is larger than `MAX_BODY_BYTES`."""
    parts: list[bytes] = []
    left = MAX_BODY_BYTES
    async for part in response.content.iter_any():
        left -= len(part)
        if left < 0:
            response.close()
            return None
        parts.append(part)
    return b"".join(parts)
