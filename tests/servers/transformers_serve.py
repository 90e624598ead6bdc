"""The real `transformers serve` on a model directory, for tests of `/v1/completions`; transformers 5 and newer.

Needs `transformers[serving]` (fastapi, uvicorn, openai, pydantic, accelerate). The directory given on the command line
is the only `model` that requests may name. What it does, found by trying (5.23.0):

- `prompt` must be a string (400 otherwise), tokenized with special tokens: a literal BOS is doubled.
- `n`, `best_of`, `echo`, `logprobs` are taken and ignored without a word: one choice comes back.
- Fields that OpenAI does not have (`top_k`, `stop_token_ids`, `skip_special_tokens`, …) are refused with 422.
- Whether it samples is up to the model's generation config: a `temperature` alone does not turn sampling on.
  `generation_config`, a JSON string with `do_sample` (and `eos_token_id`, which it then lacks), does.
- `seed` seeds torch for the whole process when the request arrives, so seeds hold for one request at a time only.
- Special tokens are left out of the text; a stop text stays at its end; `completion_tokens` counts the stop token.
- `/v1/models` lists the Hub cache, not the model served, and fails with 500 without a cache directory.
- The reply's `model` is `<directory>@main`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self


def is_available() -> bool:
    """Return whether this lane's transformers can serve."""
    from importlib.metadata import version

    needed = ("fastapi", "uvicorn", "openai", "pydantic", "accelerate")
    return int(version("transformers").split(".")[0]) >= 5 and all(map(importlib.util.find_spec, needed))


class ServerProcess:
    """A server in a process of its own: `with TransformersServe(model_dir) as server: server.url, server.model`."""

    ready_timeout_s = 90.0

    def __init__(self, model_dir: str | Path, *arguments: str) -> None:
        self.model_dir = self.model = str(model_dir)
        self.arguments = arguments

    def command(self, port: int) -> list[str]:
        """Return the command line."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return what its environment has beside the tests' own."""
        return {}

    def __enter__(self) -> Self:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._home = tempfile.TemporaryDirectory()
        self.home = self._home.name
        (Path(self.home) / "hub").mkdir()
        self._log = Path(self.home) / "log.txt"
        without = ("HF_TOKEN", "PYTHONPATH")
        environment = {k: v for k, v in os.environ.items() if k not in without} | self.environment()
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                self.command(port), stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.ready_timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{type(self).__name__} ended: {self._log.read_text()[-2000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"{type(self).__name__} was not ready in {self.ready_timeout_s:.0f} s")

    def __exit__(self, *_: object) -> None:
        # vLLM has processes of its own: all of the session are ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)
        self._home.cleanup()


class TransformersServe(ServerProcess):
    """`transformers serve` on a model directory; ended on exit."""

    def command(self, port: int) -> list[str]:
        """Return the command line."""
        address = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
        script = "from transformers.cli.transformers import main; main()"
        return [sys.executable, "-c", script, "serve", self.model, *address, *self.arguments]

    def environment(self) -> dict[str, str]:
        """Return what its environment has beside the tests' own."""
        return {"HF_HUB_OFFLINE": "1", "HF_HOME": self.home, "OMP_NUM_THREADS": "1"}
