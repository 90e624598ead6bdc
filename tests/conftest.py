"""The environment of every test: network access to this machine only, no token, temporary caches, short waits.

The environment is set when this file is imported, before any Hugging Face library reads it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings


MEMORY = Path("/dev/shm")
MEMORY_NEEDED_BYTES = 6 * 2**30


def _temporary_files_in_memory():
    """Keep temporary files in memory if there is enough: runs replace their state often, which is slow on a disk."""
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_NEEDED_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    return os.environ.get("PYTEST_DEBUG_TEMPROOT")


HOME = Path(tempfile.mkdtemp(prefix="magpie-tests-", dir=_temporary_files_in_memory()))
REPOSITORY = Path(__file__).parents[1]
TOKEN_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "OPENAI_API_KEY")
SHORT_WAIT_S = 0.01
LONG_FIRST = ("hub", "end_to_end", "engines", "demo", "stages")
# A name that can never be resolved (RFC 6761), for tests of servers that do not exist.
UNRESOLVABLE = ".invalid"

os.environ |= {
    "HF_HOME": str(HOME / "hf"),
    "HF_DATASETS_CACHE": str(HOME / "hf" / "datasets"),
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_PROXY": "127.0.0.1,localhost",
}
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Waiting threads release the core. By default they spin, which is slow if there are more threads than cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
for _name in TOKEN_NAMES:
    os.environ.pop(_name, None)
# A shell starts background commands with SIGINT ignored. Every process of the tests would inherit that.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the tests marked `full` too")
    parser.addoption("--servers", action="store_true", help="run the tests marked `servers` too")


def pytest_configure(config):
    """Draw the same examples in each run, so that results are reproducible; new ones with --full."""
    settings.register_profile("steady", derandomize=True, deadline=None)
    settings.register_profile("full", deadline=None)
    settings.load_profile("full" if config.getoption("--full") else "steady")


def pytest_collection_modifyitems(config, items):
    items.sort(key=_folder_rank)
    reasons = {}
    if not config.getoption("--full"):
        reasons["full"] = "requires --full (make test-full)"
    if not config.getoption("--servers"):
        reasons["servers"] = "requires --servers (make test-servers)"
    if any(item.get_closest_marker("gpu") for item in items) and not _has_cuda():
        reasons["gpu"] = "requires a CUDA device"
    if any(item.get_closest_marker("vllm") for item in items) and not _has_vllm():
        reasons["vllm"] = "requires vllm"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _folder_rank(item):
    """Sort folders with long tests first, so that the workers finish at about the same time."""
    folder = item.nodeid.removeprefix("tests/").partition("/")[0]
    return LONG_FIRST.index(folder) if folder in LONG_FIRST else len(LONG_FIRST)


def _has_cuda():
    import torch

    return torch.cuda.is_available()


def _has_vllm():
    import importlib.util

    return importlib.util.find_spec("vllm") is not None


def pytest_unconfigure(config):
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_login_and_own_caches(monkeypatch, tmp_path_factory, request):
    """Give each test its own Hugging Face home, in the environment of its subprocesses too."""
    home = HOME / f"test-{os.getpid()}-{abs(hash(request.node.nodeid)):x}"
    for name in TOKEN_NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(home / "datasets"))
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")
    if "huggingface_hub" in sys.modules:
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(home))
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(home / "token"))
    yield
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch, request):
    """Shorten the waits between retries, except in tests marked `waits`."""
    if request.node.get_closest_marker("waits"):
        return
    from magpie_hf.backoff import Backoff

    real = Backoff.wait_s
    monkeypatch.setattr(Backoff, "wait_s", lambda *args, **kwargs: min(SHORT_WAIT_S, real(*args, **kwargs)))


@pytest.fixture(autouse=True)
def _no_waits_for_the_disk(monkeypatch):
    """Replace `fsync` by a function that does nothing: it is slow, and only a power failure would show a difference.

    Separate processes (`kill -9`) call the real one, and tests of a failing `fsync` set their own.
    """
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class NetworkUsed(OSError):
    """A test tried to reach another machine."""


@pytest.fixture(autouse=True)
def _this_machine_only(monkeypatch):
    """Refuse, and fail the test for, every connection that leaves this machine."""
    tried = []

    def check(host):
        name = host.decode() if isinstance(host, bytes) else str(host or "")
        if name in ("", "localhost", "::1", "0.0.0.0") or name.startswith("127."):
            return
        if not name.endswith(UNRESOLVABLE) and name != "datasets-server.127.0.0.1":  # the test Hub has no viewer
            tried.append(name)
        raise NetworkUsed(f"tests reach 127.0.0.1 only, not {name}")

    def guarded(connect):
        def inner(self, address):
            if self.family in (socket.AF_INET, socket.AF_INET6):
                check(address[0])
            return connect(self, address)

        return inner

    resolve = socket.getaddrinfo

    def guarded_resolve(host, *args, **kwargs):
        try:
            check(host)
        except NetworkUsed as error:
            raise socket.gaierror(socket.EAI_NONAME, str(error)) from None
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", guarded_resolve)
    yield
    assert not tried, f"this test tried to reach {tried}"


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory):
    """Return the directory of a very small Llama with random weights."""
    from tests.servers.tiny_model import build_tiny_model

    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def demo_model_dir():
    """Return the directory of the demo model."""
    import magpie_hf

    directory = Path(magpie_hf.__file__).parent / "demo" / "model"
    assert (directory / "config.json").exists(), "The demo model is missing. Train it with: python -m tools.demo.train"
    return directory


@pytest.fixture(scope="session")
def demo_generator(demo_model_dir):
    """Return a generator on the demo model that the servers of all tests share."""
    from tests.servers.generation import Generator

    generator = Generator(demo_model_dir)
    yield generator
    generator.close()


@pytest.fixture
def tgi_server(demo_model_dir, demo_generator):
    """Start a TGI server on the demo model, without faults and with an empty record."""
    from tests.servers.tgi_server import TgiServer

    with TgiServer(demo_model_dir, generator=demo_generator, model_id="demo") as server:
        yield server
