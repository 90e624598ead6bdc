"""The tests' own isolation holds: see conftest.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).parents[1]
INNER = """
import socket
import pytest

def test_reaches_out():
    with pytest.raises(OSError):
        socket.create_connection(("192.0.2.1", 80), timeout=1)

def test_stays_here():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        socket.create_connection(listener.getsockname()).close()

@pytest.mark.full
def test_takes_hours():
    raise AssertionError
"""


def inner_run(tmp_path, *arguments):
    (tmp_path / "test_inner.py").write_text(INNER)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", str(REPOSITORY / "pyproject.toml")]
    ended = subprocess.run([*command, str(tmp_path), *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    return ended.stdout


def test_a_test_that_reaches_out_fails_even_if_it_swallows_the_error(tmp_path):
    out = inner_run(tmp_path)
    assert "this test tried to reach ['192.0.2.1']" in out
    assert "2 passed, 1 skipped, 1 error" in out


def test_full_tests_run_when_asked_for(tmp_path):
    assert "1 failed" in inner_run(tmp_path, "--full", "-k", "hours")


def test_names_that_cannot_be_resolved_may_be_tried():
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("nowhere.invalid", 80)


def test_no_token_and_temporary_caches():
    import huggingface_hub

    assert huggingface_hub.get_token() is None
    assert "magpie-tests-" in os.environ["HF_HOME"]
    assert "magpie-tests-" in str(huggingface_hub.constants.HF_HUB_CACHE)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_waits_between_retries_are_cut_short():
    from magpie_hf.backoff import Backoff

    assert Backoff(first_s=30.0).wait_s(5) < 0.1


@pytest.mark.waits
def test_waits_are_real_where_marked():
    from magpie_hf.backoff import Backoff

    start = time.monotonic()
    time.sleep(Backoff(first_s=0.2).wait_s(0))
    assert time.monotonic() - start >= 0.1
