"""How long trouble with the Hub may last, and time limits on the requests meanwhile.

`huggingface_hub` waits without limit for a Hub that takes a connection and never answers, and tries again by itself, each
time as long. Within `Patience.asking` every request of the thread has a limit, and its failures are raised at once, so
that there is one count of tries and one clock. Requests of other threads, and of the user's own code, are not touched,
except that transfers that they begin meanwhile go over HTTP where they would use Xet (`_without_xet`).
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
SILENCE_S = 60.0
"""Longest silence in a request. A commit that takes the Hub longer is not lost: the next try finds it made."""
LEAST_SILENCE_S = 1.0
_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
_xet_guard = threading.Lock()
_xet_off: list[bool] = []
"""What HF_HUB_DISABLE_XET was, once for each `_without_xet` that is open."""
_limit: ContextVar[Callable[[], float] | None] = ContextVar("magpie_hub_limit", default=None)


class NoAnswer(TimeoutError):
    """A request was not answered in time."""


class Unavailable(ConnectionError):
    """A request was answered with a status under which it may succeed later; `response` has it."""

    def __init__(self, message: str, response: Any) -> None:
        super().__init__(message)
        self.response = response


class Patience:
    """The clock of a `Remote`: trouble is counted from the Hub's last good answer, or from when asking began."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since = time.monotonic()
        self._depth = 0
        self._is_held = False
        self._is_last = False

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Limit the requests made inside; the outermost of several starts the clock."""
        if not self._depth and not self._is_last:
            self._since = time.monotonic()
        self._depth += 1
        _watch_session()
        token = _limit.set(self.silence_s)
        try:
            with _without_xet():
                yield
        finally:
            _limit.reset(token)
            self._depth -= 1
            self._is_held = self._is_held and bool(self._depth)

    def answered(self, *, is_progress: bool = False) -> None:
        """Start the clock again: the Hub did what it was asked. In the last round only progress counts as that."""
        if not self._is_held and (is_progress or not self._is_last):
            self._since = time.monotonic()

    def hold(self, since: float) -> None:
        """Count from `since` until the outermost `asking` ends: what fails again and again is not helped by what succeeds."""
        if not self._is_held and not self._is_last:
            self._since = since
        self._is_held = True

    def last(self) -> None:
        """Begin the last round: all that is still asked shares one clock, which starts now and again with each file sent."""
        self._since, self._is_last = time.monotonic(), True

    def left_s(self) -> float:
        """Return how much of the patience is left, negative where it is used up."""
        return self._since + self.seconds - time.monotonic()

    def silence_s(self) -> float:
        """Return how long the next request may be silent: at most half of what is left, so that a second try fits in."""
        return max(LEAST_SILENCE_S, min(SILENCE_S, self.left_s() / 2))


@contextlib.contextmanager
def _without_xet() -> Iterator[None]:
    """Make `huggingface_hub` transfer files over HTTP, for as long as any thread is in here.

    `hf_xet` transfers in threads of its own, which know no time limit and cannot be stopped. Both versions of the library
    look at this constant, which has HF_HUB_DISABLE_XET, before every transfer; none takes an argument for it.
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
    """Whether an error is one of the HTTP libraries that `huggingface_hub` uses: its versions differ in them."""
    return bool({kind.__module__.partition(".")[0] for kind in type(error).__mro__} & _LIBRARIES)


def _watch_session() -> None:
    """Make the session that `huggingface_hub` uses in this thread heed the limit; once a session."""
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
    """Send a request of httpx or requests; raise NoAnswer, ConnectionError or Unavailable where it may succeed later."""
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
            raise NoAnswer("no answer") from error
        raise ConnectionError(type(error).__name__) from error
    if response.status_code in TRANSIENT:
        response.close()
        raise Unavailable(f"status {response.status_code}", response)
    return response


def _shorter(given: Any, seconds: float) -> float:
    return min(float(given), seconds) if isinstance(given, (int, float)) else seconds
