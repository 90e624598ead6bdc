"""Real servers for the tests: vLLM and llama.cpp's, where they are installed, started on a model directory.

Found by environment variables, or on the PATH: `MAGPIE_TEST_VLLM_PYTHON`, a Python that has vLLM (its CPU build too), and
`MAGPIE_TEST_LLAMA_SERVER`, the binary `llama-server`. `transformers serve` is in the extra `serve`; see its own module.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .gguf import write_gguf
from .transformers_serve import ServerProcess


def vllm_python() -> str | None:
    """Return the Python that has vLLM, None if there is none."""
    named = os.environ.get("MAGPIE_TEST_VLLM_PYTHON")
    if named:
        return named
    script = shutil.which("vllm")
    beside = Path(script).resolve().with_name("python") if script else Path(sys.executable)
    found = subprocess.run([beside, "-c", "import vllm"], capture_output=True, timeout=120).returncode == 0
    return str(beside) if found else None


def llama_server() -> str | None:
    """Return the path of llama.cpp's server, None if there is none."""
    return os.environ.get("MAGPIE_TEST_LLAMA_SERVER") or shutil.which("llama-server")


class VllmServe(ServerProcess):
    """vLLM's server on a model directory, under the name that it gives the model itself (the path)."""

    ready_timeout_s = 300.0

    def command(self, port: int) -> list[str]:
        """Return the command line."""
        module = ["-m", "vllm.entrypoints.openai.api_server", "--model", self.model_dir]
        limits = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"]
        return [str(vllm_python()), *module, *limits, "--host", "127.0.0.1", "--port", str(port), *self.arguments]

    def environment(self) -> dict[str, str]:
        """Return what its environment has beside the tests' own."""
        quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        return {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HOME": self.home, **quiet}


class LlamaServer(ServerProcess):
    """llama.cpp's server on the model as GGUF, with its own four slots."""

    ready_timeout_s = 60.0

    def command(self, port: int) -> list[str]:
        """Return the command line; writes the GGUF."""
        source = Path(self.model_dir)
        self.model = str(write_gguf(source, Path(self.home) / f"{source.name}.gguf"))
        address = ["--host", "127.0.0.1", "--port", str(port)]
        return [str(llama_server()), "-m", self.model, "-c", "8192", "-t", "1", *address, *self.arguments]
