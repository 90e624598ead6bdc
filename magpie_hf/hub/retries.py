"""Time limits for requests to the Hub and for their retries.

`huggingface_hub` waits without a limit if the Hub accepts a connection and never replies, and has its own retries.
Within `RetryClock.limited`, every request of the thread has a time limit and its failures are raised at once, so that
there is one retry policy with one clock. Requests of other threads and of the user's own code are not affected, except
that transfers that they start in the meantime use HTTP instead of Xet (`_without_xet`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from ..backoff import TRANSIENT


logger = logging.getLogger("magpie_hf")
REQUEST_TIMEOUT_S = 60.0
"""Maximum seconds to wait for a reply. If a commit takes longer, it is not lost: the next try finds it."""
MIN_REQUEST_TIMEOUT_S = 1.0
_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
_xet_guard = threading.Lock()
_xet_off: list[bool] = []
"""The previous value of HF_HUB_DISABLE_XET, once for each active `_without_xet`."""
_limit: ContextVar[Callable[[], float] | None] = ContextVar("magpie_hub_limit", default=None)


class NoAnswer(TimeoutError):
    """A request got no reply in time."""


class Unavailable(ConnectionError):
    """A request got a reply with a transient error status, which is saved as `response`."""

    def __init__(self, message: str, response: object) -> None:
        super().__init__(message)
        self.response = response


class RetryClock:
    """The clock of a `Remote`: measures for how long the Hub has failed, since its last success or the first request."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since = time.monotonic()
        self._depth = 0
        self._is_held = False
        self._is_last = False

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """Limit the requests made inside; the outermost of nested calls starts the clock."""
        if not self._depth and not self._is_last:
            self._since = time.monotonic()
        self._depth += 1
        _watch_session()
        token = _limit.set(self.request_timeout_s)
        try:
            with _without_xet():
                yield
        finally:
            _limit.reset(token)
            self._depth -= 1
            self._is_held = self._is_held and bool(self._depth)

    def restart(self, *, is_progress: bool = False) -> None:
        """Restart the clock after a success. In the last round only progress counts as one."""
        if not self._is_held and (is_progress or not self._is_last):
            self._since = time.monotonic()

    def hold(self, since: float) -> None:
        """Measure from `since` until the outermost `limited` ends: other successes do not restart the clock of a commit."""
        if not self._is_held and not self._is_last:
            self._since = since
        self._is_held = True

    def last_round(self) -> None:
        """Begin the last round: all remaining requests share one clock, which restarts with each uploaded file."""
        self._since, self._is_last = time.monotonic(), True

    def left_s(self) -> float:
        """Return the remaining seconds for retries, negative if the time is over."""
        return self._since + self.seconds - time.monotonic()

    def request_timeout_s(self) -> float:
        """Return the time limit of the next request: at most half of the remaining time, so that there is a second try."""
        return max(MIN_REQUEST_TIMEOUT_S, min(REQUEST_TIMEOUT_S, self.left_s() / 2))


@contextlib.contextmanager
def _without_xet() -> Iterator[None]:
    """Make `huggingface_hub` transfer files over HTTP while any thread is inside this block.

    `hf_xet` transfers in its own threads, which have no time limit and cannot be stopped. Both supported versions of the
    library read this constant (HF_HUB_DISABLE_XET) before every transfer; neither takes an argument for it.
    """
    from huggingface_hub import constants

    with _xet_guard:
        _xet_off.append(_xet_off[0] if _xet_off else constants.HF_HUB_DISABLE_XET)
        constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        with _xet_guard:
            before = _xet_off.pop()
            constants.HF_HUB_DISABLE_XET = bool(_xet_off) or before


def is_of_library(error: BaseException) -> bool:
    """Whether an error comes from an HTTP library that `huggingface_hub` uses; its versions use different ones."""
    return bool({kind.__module__.partition(".")[0] for kind in type(error).__mro__} & _LIBRARIES)


def _watch_session() -> None:
    """Make the session that `huggingface_hub` uses in this thread respect the limit; done once per session."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    session: Any = get_session()
    send = session.send
    if getattr(send, "is_limited", False):
        return

    def limited(request: Any, **options: Any) -> Any:
        limit = _limit.get()
        return send(request, **options) if limit is None else _send(send, request, options, limit())

    limited.is_limited = True  # type: ignore[attr-defined]
    session.send = limited


def _send(send: Callable[..., Any], request: Any, options: dict[str, Any], seconds: float) -> Any:
    """Send a request of httpx or requests; raise NoAnswer, ConnectionError or Unavailable if it may succeed later."""
    if hasattr(request, "extensions"):
        given = request.extensions.get("timeout") or {}
        timeout = {kind: _shorter(given.get(kind), seconds) for kind in ("connect", "read", "write", "pool")}
        request.extensions = {**request.extensions, "timeout": timeout}
    else:
        given = options.get("timeout")
        pair = given if isinstance(given, tuple) else (given, given)
        options = {**options, "timeout": tuple(_shorter(one, seconds) for one in pair)}
    try:
        response = send(request, **options)
    except Exception as error:
        if not is_of_library(error):
            raise
        if any("Timeout" in kind.__name__ for kind in type(error).__mro__):
            raise NoAnswer("no reply") from error
        raise ConnectionError(type(error).__name__) from error
    if response.status_code in TRANSIENT:
        response.close()
        raise Unavailable(f"status {response.status_code}", response)
    return response


def _shorter(given: object, seconds: float) -> float:
    return min(float(given), seconds) if isinstance(given, (int, float)) else seconds
