"""Fork processes from one that has imported torch and other slow libraries: 3 s of CPU time per start instead of 8 s.

A forked process is a real process with its own pid, environment, memory and locks, and `kill -9` ends it. No library
of Hugging Face is imported before the fork, because these read the environment when they are imported.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence


POSSIBLE = hasattr(os, "fork") and hasattr(os, "pidfd_open")
PRELOADED = (
    *("torch", "torch._dynamo", "torch.distributed.tensor", "torch.export", "sympy", "numpy"),
    *("scipy.optimize", "scipy.sparse.linalg", "pandas", "pyarrow.parquet", "pyarrow.dataset", "fsspec", "aiohttp"),
)
MESSAGE_BYTES = 2**20


class WarmProcess:
    """The methods of `subprocess.Popen` that tests use, for a process that another process forked."""

    def __init__(self, pid: int, output: int, status: int) -> None:
        self.pid, self.returncode = pid, None
        self.stdout = os.fdopen(output, encoding="utf-8", errors="replace")
        self._status = status

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired("magpie-hf", timeout)
        return self.returncode

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(os.read(self._status, 16))
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        watchdog = threading.Timer(timeout or threading.TIMEOUT_MAX, self.kill)
        watchdog.start()
        output = self.stdout.read()
        in_time = watchdog.is_alive()
        watchdog.cancel()
        self.stdout.close()
        self.wait(timeout)
        if not in_time:
            raise subprocess.TimeoutExpired("magpie-hf", timeout, output)
        return output, None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Warm:
    """The process that forks the others. It ends with this one."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
            self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
        atexit.register(self.close)

    def start(self, arguments: Sequence[str], environment: dict[str, str]) -> WarmProcess:
        """Start `magpie-hf ARGUMENTS` with this environment."""
        (output, output_there), (status, status_there) = os.pipe(), os.pipe()
        message = json.dumps({"arguments": arguments, "environment": environment, "directory": os.getcwd()})
        socket.send_fds(self._socket, [message.encode()], [output_there, status_there])
        os.close(output_there)
        os.close(status_there)
        return WarmProcess(int(self._socket.recv(16)), output, status)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(timeout=10)


def _serve(listener: socket.socket) -> None:
    """Fork a process for each message and send back its exit code; return when the socket is closed."""
    children: dict[int, tuple[int, int]] = {}
    while True:
        for ready in select.select([listener.fileno(), *children], [], [])[0]:
            if ready in children:
                _report(ready, *children.pop(ready))
                continue
            message, handles, *_ = socket.recv_fds(listener, MESSAGE_BYTES, 2)
            if not message:
                return
            output, status = handles
            pid = os.fork()
            if not pid:
                listener.close()
                _close(status, *children, *(pipe for _, pipe in children.values()))
                _become(json.loads(message), output)
                return
            _close(output)
            children[os.pidfd_open(pid)] = (pid, status)
            listener.send(str(pid).encode())


def _report(watched: int, pid: int, status: int) -> None:
    _, code = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(status, str(os.waitstatus_to_exitcode(code)).encode())
    _close(watched, status)


def _close(*handles: int) -> None:
    for handle in handles:
        os.close(handle)


def _become(request: dict, output: int) -> None:
    """Act as `python -m magpie_hf ARGUMENTS` with this environment and directory."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    paths = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [request["directory"], *(path for path in paths if path and path not in sys.path)]
    sys.argv = ["magpie-hf", *request["arguments"]]
    runpy.run_module("magpie_hf", run_name="__main__", alter_sys=True)


def main() -> None:
    """Import the slow libraries, then fork on request."""
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
