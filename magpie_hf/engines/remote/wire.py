"""What goes over the wire and comes back: endpoints, replies, and what is wrong with them."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from ...errors import EngineError, EngineUnavailableError, MagpieError
from ..base import Served
from .pacing import AdaptiveLimit
from .untrusted import load_json


CONNECT_TIMEOUT_S = 10.0
# A request that ran into the timeout has cost as much as many others: it counts as this many retries.
TIMEOUT_WEIGHT = 2
# Seconds of silence until the first probe, between probes, and how many go unanswered.
KEEP_ALIVE_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
JSON_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}
# What reading a reply raises whose parts are of other types than the protocol says.
MALFORMED = (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError)

Retry = Literal["never", "transient", "overload", "fatal"]


class Verdict(NamedTuple):
    """What is wrong with a reply, and whether to ask again.

    `retry`: "never" (the request is at fault), "transient" (try again), "overload" (try again, and send less), "fatal"
    (`error` ends the run). `code` and `message`: as in Failure. `retry_after_s`: the server's word. `weight`: how many
    of the allowed retries it uses up. `retries`: most retries of this kind; `ends_row`: whether the row is finished
    with `code` when they are used up.
    """

    retry: Retry
    code: str
    message: str = ""
    retry_after_s: float | None = None
    error: MagpieError | None = None
    weight: int = 1
    retries: int | None = None
    ends_row: bool = False
    is_connection: bool = False


class Reply(NamedTuple):
    """What came back: status, parsed JSON (None if it is none), headers; or `fault` when nothing usable did."""

    status: int = 0
    payload: Any = None
    headers: Mapping[str, str] = {}
    fault: Verdict | None = None


Judge = Callable[["Endpoint", Reply], Verdict | None]


class Endpoint:
    """One address and what is known of it. Belongs to the loop's thread once the transport has started."""

    __slots__ = (
        *("failures", "in_flight", "is_aside", "is_doubted", "limit", "paused_until", "proxy", "relapses", "served"),
        "url",
    )

    def __init__(self, url: str, limit: AdaptiveLimit) -> None:
        self.url = url
        self.proxy = proxy_for(url)
        self.limit = limit
        self.in_flight = 0
        self.failures = 0  # in a row
        self.relapses = 0  # times set aside since the last success
        self.paused_until = 0.0
        self.is_aside = False
        self.is_doubted = False
        self.served: Served | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"


def unavailable(urls: Sequence[str], seconds: float, last: Reply) -> EngineUnavailableError:
    """Return the error for endpoints none of which has answered for `seconds`; `last`: what came instead."""
    names = ", ".join(urls[:5]) + (", …" if len(urls) > 5 else "")
    return EngineUnavailableError(
        f"No endpoint answers: {names} ({last.fault.message if last.fault else last.status}, for {seconds:.0f} s).",
        hint="Is the server running, and are the address and the port right? The same command goes on where it was.",
        endpoints=list(urls),
        waited_s=seconds,
    )


def watched_socket(address: Any) -> socket.socket:
    """Return a socket whose silent connection is probed by the system, for an entry of `getaddrinfo`.

    A generation is silent for minutes: the probes keep routers from forgetting the connection, and break it within
    about a minute when the other machine is gone.
    """
    family, kind, protocol = address[:3]
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE_PROBES.items():
        if hasattr(socket, name):
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return opened


def to_json(value: Any) -> bytes:
    """Return compact UTF-8 JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for this address; never one for this machine itself."""
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
    """Return a reply with its JSON read; one with status 200 that is not valid JSON is a fault."""
    try:
        payload = load_json(raw)
    except ValueError:
        if status == 200:
            fault = Verdict("transient", "bad_reply", f"the reply is not valid JSON ({len(raw)} bytes)")
            return Reply(status, None, headers, fault)
        payload = None
    return Reply(status, payload, headers)


def fault_of(error: Exception) -> Verdict:
    """Name what kept a reply from arriving. The exceptions' own texts may hold headers: only their type is shown."""
    import aiohttp

    kind = type(error).__name__
    connect_timeout = getattr(aiohttp, "ConnectionTimeoutError", ())
    if isinstance(error, aiohttp.InvalidURL):
        return Verdict("fatal", "address", error=EngineError("The endpoint's address cannot be used."))
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError) or (
        connect_timeout and isinstance(error, connect_timeout)
    ):
        reason = f"no connection ({kind})"
        return Verdict("transient", "connection", reason, weight=0, is_connection=True)
    if isinstance(error, TimeoutError):
        return Verdict("transient", "timeout", "no reply in time", weight=TIMEOUT_WEIGHT, is_connection=True)
    if isinstance(error, aiohttp.ClientPayloadError):
        return Verdict("transient", "bad_reply", "the reply broke off", is_connection=False)
    if isinstance(error, aiohttp.ClientResponseError):
        return Verdict("transient", "bad_reply", f"the reply is not valid HTTP ({kind})")
    return Verdict("transient", "connection", f"the connection broke ({kind})", is_connection=True)
