"""Records how a real server answers, on the bundled demo model, as `tests/servers/recordings/NAME.json`.

    python -m tests.servers.record vllm|llama.cpp|transformers

Each exchange has the request as it was sent (under the model name "demo"), the status and the reply. Paths, times and
what is drawn anew for each reply are replaced by constants.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import magpie_hf.demo

from .real_servers import LlamaServer, VllmServe
from .transformers_serve import ServerProcess, TransformersServe


RECORDINGS = Path(__file__).with_name("recordings")
SERVERS: dict[str, type[ServerProcess]] = {
    "vllm": VllmServe,
    "llama.cpp": LlamaServer,
    "transformers": TransformersServe,
}
MODEL = Path(magpie_hf.demo.__file__).with_name("model")
NAME = "demo"
PROMPT = "<|start_header_id|>user<|end_header_id|>\n\n"
PROMPT_IDS = [0, 1, 9]
CHOICE = {"type": "string", "enum": ["yes", "no"]}
OBJECT = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
GREEDY = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8}
SAMPLED = {"prompt": PROMPT, "temperature": 1.0, "max_tokens": 5}
GENERATION_CONFIG = json.dumps({"do_sample": True, "temperature": 1.0, "max_new_tokens": 5})
QUESTIONS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "token ids": GREEDY | {"prompt": PROMPT_IDS},
    "extra fields": GREEDY | {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": []}
    | {"skip_special_tokens": False, "return_token_ids": True},
    "a field that nobody knows": GREEDY | {"unknown_field": 1},
    "seed": SAMPLED | {"seed": 5},
    "n": SAMPLED | {"seed": 5, "n": 3},
    "n of one token": SAMPLED | {"max_tokens": 1, "n": 2},
    "n, greedy": GREEDY | {"n": 2},
    "n, too many": SAMPLED | {"n": 20_000},
    "n, none": SAMPLED | {"n": 0},
    "a stop text": GREEDY | {"stop": ["e"]},
    "to the end": GREEDY | {"max_tokens": 200},
    "generation config": SAMPLED | {"seed": 5, "generation_config": GENERATION_CONFIG},
    "response_format, a choice": GREEDY
    | {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": CHOICE}}},
    "response_format, an object": GREEDY
    | {"max_tokens": 24, "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": OBJECT}}},
    "json_schema": GREEDY | {"json_schema": CHOICE},
    "too long": GREEDY | {"prompt": "one two three four five six seven eight nine ten " * 300},
    "another model": GREEDY | {"model": "other"},
}  # fmt: skip
# Ids of replies; `transformers serve` takes a UUID.
_DRAWN = re.compile(r"(cmpl|chatcmpl|modelperm)-\S+|[0-9a-f-]{32,36}")


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Send one request and return its status and its reply, JSON or text."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            status, raw = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, raw = error.code, error.read()
    try:
        return status, json.loads(raw)
    except ValueError:
        return status, raw.decode("utf-8", "replace")


def record(name: str) -> list[dict[str, Any]]:
    """Start the server and return its exchanges."""
    with tempfile.TemporaryDirectory() as directory:
        model_dir = shutil.copytree(MODEL, Path(directory) / NAME)
        with SERVERS[name](model_dir) as server:
            paths = (server.model, str(model_dir), server.home, directory)
            exchanges = [_exchange(server, paths, "models", None), _exchange(server, paths, "version", None)]
            return exchanges + [_exchange(server, paths, asked, body) for asked, body in QUESTIONS.items()]


def _exchange(server: ServerProcess, paths: tuple[str, ...], name: str, body: dict[str, Any] | None) -> dict[str, Any]:
    if body is None:
        path = {"models": "/v1/models", "version": "/version"}[name]
        status, reply = ask(server.url, path)
        return {"name": name, "path": path, "status": status, "reply": cleaned(reply, paths)}
    status, reply = ask(server.url, "/v1/completions", {"model": server.model} | body)
    return {"name": name, "request": {"model": NAME} | body, "status": status, "reply": cleaned(reply, paths)}


def cleaned(value: Any, paths: tuple[str, ...]) -> Any:
    """Return a reply without paths, times and what is drawn anew each time; of fractional numbers only that they are."""
    if isinstance(value, dict):
        return {key: 0 if key == "created" else cleaned(item, paths) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item, paths) for item in value]
    if isinstance(value, float):
        return 0.5
    if isinstance(value, str):
        for path in paths:
            value = value.replace(path, NAME)
        return "" if _DRAWN.fullmatch(value) else value
    return value


def main(make: Callable[[str], list[dict[str, Any]]] = record, suffix: str = ".json") -> None:
    """Record the servers named on the command line; `make`: returns the exchanges with one of them."""
    for name in sys.argv[1:]:
        RECORDINGS.mkdir(exist_ok=True)
        target = RECORDINGS / f"{name}{suffix}"
        lines = [json.dumps(exchange, ensure_ascii=False) for exchange in make(name)]
        target.write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")
        sys.stdout.write(f"{len(lines)} exchanges in {target}\n")


if __name__ == "__main__":
    main()
