"""Records how a real server answers at `/v1/chat/completions`, on the demo model, as `recordings/NAME.chat.json`.

    python -m tests.servers.record_chat vllm|llama.cpp|transformers

The exchanges have the form of those of `record`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from .record import CHOICE, GENERATION_CONFIG, MODEL, NAME, OBJECT, SERVERS, ask, cleaned, main


PATH = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "What is a list?"}]}
GREEDY = HELLO | {"temperature": 0, "max_tokens": 8}
SAMPLED = HELLO | {"temperature": 1.0, "max_tokens": 5}
# What hosted APIs accept: the schema of an object without further properties.
ANSWER = {
    "type": "object",
    "properties": {"answer": CHOICE},
    "required": ["answer"],
    "additionalProperties": False,
}
QUESTIONS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "max_completion_tokens": HELLO | {"temperature": 0, "max_completion_tokens": 8},
    "a system message": GREEDY | {"messages": [{"role": "system", "content": "Be short."}, *HELLO["messages"]]},
    "a conversation": GREEDY
    | {"messages": [*HELLO["messages"], {"role": "assistant", "content": "Some items."}, {"role": "user", "content": "Why?"}]},
    "extra fields": GREEDY | {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "a field that nobody knows": GREEDY | {"unknown_field": 1},
    "template arguments": GREEDY | {"chat_template_kwargs": {"enable_thinking": False}},
    "seed": SAMPLED | {"seed": 5},
    "a stop text": GREEDY | {"stop": ["e"]},
    "to the end": GREEDY | {"max_tokens": 200},
    "generation config": SAMPLED | {"seed": 5, "generation_config": GENERATION_CONFIG},
    "response_format, a choice": GREEDY
    | {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": CHOICE, "strict": True}}},
    "response_format, an answer": GREEDY
    | {"max_tokens": 24, "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER, "strict": True}}},
    "response_format, an object": GREEDY
    | {"max_tokens": 24, "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": OBJECT}}},
    "too long": GREEDY | {"messages": [{"role": "user", "content": "one two three four five six seven eight nine ten " * 300}]},
    "too many new tokens": GREEDY | {"max_tokens": 100_000, "stop": ["e"]},
    "a temperature that is too high": GREEDY | {"temperature": 100.0},
    "another model": GREEDY | {"model": "other"},
}  # fmt: skip


def record(name: str) -> list[dict[str, Any]]:
    """Start the server and return its exchanges."""
    with tempfile.TemporaryDirectory() as directory:
        model_dir = shutil.copytree(MODEL, Path(directory) / NAME)
        with SERVERS[name](model_dir) as server:
            paths = (server.model, str(model_dir), server.home, directory)
            exchanges = []
            for asked, body in QUESTIONS.items():
                status, reply = ask(server.url, PATH, {"model": server.model} | body)
                exchange = {"name": asked, "request": {"model": NAME} | body, "status": status}
                exchanges.append(exchange | {"reply": cleaned(reply, paths)})
            return exchanges


if __name__ == "__main__":
    main(record, ".chat.json")
