"""The types of requests to servers: addresses, questions, replies, and faults of a reply."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from ...errors import EngineError, EngineUnavailableError, MagpieError
from .untrusted import Json, load_json


CONNECT_TIMEOUT_S = 10.0
# A request that timed out counts as this many retries, because it took as long as many others.
TIMEOUT_WEIGHT = 2
# Seconds of silence until the first TCP keep-alive probe, between probes, and how many may stay unanswered.
KEEP_ALIVE_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
JSON_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}
# Raised by code that reads a reply whose parts have other types than the protocol defines.
MALFORMED = (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError)

Retry = Literal["never", "transient", "overload", "fatal"]


class Fault(NamedTuple):
    """An error in a reply, and whether to retry the request.

    Attributes:
        retry: "never" (the request is invalid), "transient" (try again), "overload" (try again, and send fewer requests
            at once), "fatal" (`error` ends the run).
        code, message: As in `Failure`.
        retry_after: The server's `Retry-After` header.
        weight: How many of the allowed retries it uses up.
        retries: Maximum number of retries for this kind of fault.
        ends_row: Whether the row is finished with `code` when the retries are used up.
        is_connection: Whether no usable connection exists, rather than a reply with an error.
    """

    retry: Retry
    code: str
    message: str = ""
    retry_after: str | None = None
    error: MagpieError | None = None
    weight: int = 1
    retries: int | None = None
    ends_row: bool = False
    is_connection: bool = False


class Reply(NamedTuple):
    """A server's reply: status, parsed JSON (None if it is not JSON) and headers; or `fault` if no valid reply arrived."""

    status: int = 0
    payload: Json = None
    headers: Mapping[str, str] = {}
    fault: Fault | None = None


class Address:
    """The URL of a server and the proxy to reach it through."""

    __slots__ = ("proxy", "url")

    def __init__(self, url: str) -> None:
        self.url = url
        self.proxy = proxy_for(url)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


class Question(NamedTuple):
    """One request to one server."""

    server: Address
    method: str
    path: str
    body: Json = None


def unavailable(urls: Sequence[str], seconds: float, last: Reply) -> EngineUnavailableError:
    """Return the error if no endpoint has replied for `seconds`; `last`: the result of the last attempt."""
    names = ", ".join(urls[:5]) + (", …" if len(urls) > 5 else "")
    reason = last.fault.message if last.fault else f"status {last.status}"
    return EngineUnavailableError(
        f"No endpoint replies: {names} ({reason}, for {seconds:.0f} s).",
        hint="Is the server running, and are host and port correct? Run the same command again to resume.",
        endpoints=list(urls),
        waited_s=seconds,
    )


def watched_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a socket with TCP keep-alive probes, for an entry of `getaddrinfo`.

    A generation is silent for minutes: the probes prevent routers from dropping the connection, and close it within
    about a minute when the other machine is gone.
    """
    family, kind, protocol = address[:3]
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE_PROBES.items():
        if hasattr(socket, name):
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return opened


def to_json(value: Json) -> bytes:
    """Return compact UTF-8 JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment sets for this URL; always None for this machine itself."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host == "localhost" or _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def read_reply(status: int, raw: bytes, headers: Mapping[str, str]) -> Reply:
    """Return a reply with its JSON parsed; status 200 without valid JSON is a fault."""
    try:
        payload = load_json(raw)
    except ValueError:
        if status == 200:
            fault = Fault("transient", "bad_reply", f"the reply is not valid JSON ({len(raw)} bytes)")
            return Reply(status, None, headers, fault)
        payload = None
    return Reply(status, payload, headers)


def fault_of(error: Exception) -> Fault:
    """Return the fault for an exception of the HTTP library. Only its type is reported, because its text may contain headers."""
    import aiohttp

    kind = type(error).__name__
    connect_timeout = getattr(aiohttp, "ConnectionTimeoutError", ())
    if isinstance(error, aiohttp.InvalidURL):
        return Fault("fatal", "address", error=EngineError("The endpoint's URL is invalid."))
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError) or (
        connect_timeout and isinstance(error, connect_timeout)
    ):
        reason = f"no connection ({kind})"
        return Fault("transient", "connection", reason, weight=0, is_connection=True)
    if isinstance(error, TimeoutError):
        return Fault("transient", "timeout", "no reply in time", weight=TIMEOUT_WEIGHT, is_connection=True)
    if isinstance(error, aiohttp.ClientPayloadError):
        return Fault("transient", "bad_reply", "the reply ended early", is_connection=False)
    if isinstance(error, aiohttp.ClientResponseError):
        return Fault("transient", "bad_reply", f"the reply is not valid HTTP ({kind})")
    return Fault("transient", "connection", f"the connection broke ({kind})", is_connection=True)
