from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

import magpie_hf
from magpie_hf.backoff import TRANSIENT, Attempts, Backoff
from magpie_hf.hub.remote import wait_s


PACKAGE = Path(magpie_hf.__file__).parent


def files_with(pattern):
    return {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py") if re.search(pattern, p.read_text("utf-8"))}


def test_transient_statuses_are_listed_in_one_module():
    assert files_with(r"\b(429|50[234])(, \d| =|:)") == {"backoff.py"}


def test_retry_after_is_parsed_in_one_module():
    assert files_with(r"parsedate_to_datetime") == {"backoff.py"}
    assert files_with(r"\bretry_after_s\(") == {"backoff.py", "engines/remote/transport.py", "hub/remote.py"}


def test_connections_to_endpoints_are_opened_in_one_module():
    assert files_with(r"aiohttp\.ClientSession\(|httpx\.|requests\.(get|post|Session)") == {
        "engines/remote/exchange.py"
    }


def test_attempts_end_with_their_limit():
    attempts = Attempts(Backoff(0.0), limit=3)
    assert [attempts.next_wait_s() is None for _ in range(3)] == [False, False, True]


def test_the_last_attempt_starts_within_the_time_limit(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    attempts = Attempts(Backoff(), timeout_s=5.0)
    assert attempts.next_wait_s("60") == 5.0
    now[0] += 5
    assert attempts.next_wait_s() is None


@pytest.mark.waits
def test_retry_after_makes_the_wait_longer_up_to_the_longest():
    assert Attempts(Backoff(1.0, 30.0)).next_wait_s("7") == 7.0
    assert Attempts(Backoff(1.0, 30.0)).next_wait_s("700") == 30.0
    assert 0.5 <= Attempts(Backoff(1.0, 30.0)).next_wait_s("tomorrow") <= 1.0


@pytest.mark.waits
@pytest.mark.parametrize("said", ["0", "-1", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_retry_after_that_is_over_does_not_shorten_the_wait(said):
    attempts = Attempts(Backoff(1.0, 30.0))
    waits = [attempts.next_wait_s(said) for _ in range(4)]
    assert all(0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits)), waits


def test_the_hub_is_retried_by_the_same_rules():
    class Response:
        status_code = 503
        headers = {"Retry-After": "Fri, 31 Dec 9999 00:00:00 GMT"}  # noqa: RUF012

    error = OSError()
    error.response = Response()
    assert wait_s(1, error) > 1e9, "an HTTP date is parsed"
    error.response.headers = {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}
    assert wait_s(1, error) > 0, "a date in the past, e.g., of a clock that is slow, does not repeat without a pause"
    assert {408, 429, 500, 502, 503, 504} <= TRANSIENT
    assert not TRANSIENT & {401, 403, 404, 409, 412, 422}
