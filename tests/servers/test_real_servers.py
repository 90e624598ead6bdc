"""Whole runs on real servers: `make test-servers`. Each that is not installed is skipped; `transformers serve` always runs.

Instructions are sampled on the server, and their greedy responses compared with those of the engine in this process.
"""

from __future__ import annotations

import shutil
import sys
import time

import pytest

import magpie_hf
from tests.end_to_end.harness import nothing_twice, rows

from . import transformers_serve
from .real_servers import LlamaServer, VllmServe, llama_server, vllm_python
from .transformers_serve import TransformersServe


pytestmark = [pytest.mark.servers, pytest.mark.timeout(1800)]

NUM_ROWS = 300
GREEDY = {"temperature": 0, "max_tokens": 64}
# Equal up to rounding: each server sums in an order of its own, so a near tie between two tokens can end the other way.
MOST_DIFFERENT = 0.01
SERVERS = {"vllm": VllmServe, "llama.cpp": LlamaServer, "transformers": TransformersServe}
MISSING = {
    "vllm": lambda: not vllm_python() and "MAGPIE_TEST_VLLM_PYTHON names no Python with vLLM, and none is on the PATH",
    "llama.cpp": lambda: (
        not llama_server() and "MAGPIE_TEST_LLAMA_SERVER is not set, and llama-server not on the PATH"
    ),
    "transformers": lambda: not transformers_serve.is_available() and "needs the extra serve",
}


@pytest.fixture(params=SERVERS)
def kind(request):
    missing = MISSING[request.param]()
    if missing:
        pytest.skip(missing)
    return request.param


@pytest.fixture
def server(kind, demo_model_dir, tmp_path):
    # A server names a model by its path: the last part must be the name asked for.
    model_dir = shutil.copytree(demo_model_dir, tmp_path / "served" / "demo")
    with SERVERS[kind](model_dir) as server:
        yield server


def test_a_run_on_a_real_server_is_whole_and_its_greedy_texts_are_those_of_this_process(
    kind, server, tmp_path, capsys
):
    engine = {"kind": "openai", "endpoint": server.url, "max_n": 8}
    if kind == "transformers":
        engine["served_model_name"] = server.model
    stages = ["instructions", {"stage": "responses", "sampling": GREEDY}]
    recipe = {
        "model": "demo",
        "num_rows": NUM_ROWS,
        "sampling": {"max_tokens": 64},
        "engine": engine,
        "stages": stages,
    }
    started = time.monotonic()
    magpie_hf.run(recipe, output=tmp_path / "run")
    seconds = time.monotonic() - started
    made = rows(tmp_path / "run")
    assert len(made) == NUM_ROWS
    assert len({row["instruction"] for row in made}) > NUM_ROWS / 2
    nothing_twice(tmp_path / "run")

    here = responses_here([row["instruction"] for row in made], tmp_path)
    different = [(a["instruction"], a["response"], b) for a, b in zip(made, here, strict=True) if a["response"] != b]
    with capsys.disabled():
        equal = NUM_ROWS - len(different)
        sys.stdout.write(f"\n{kind}: {NUM_ROWS} rows in {seconds:.1f} s, {equal} greedy responses equal\n")
    assert len(different) <= MOST_DIFFERENT * NUM_ROWS, different[:3]


def responses_here(instructions, tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"instruction": instructions}).to_parquet(tmp_path / "instructions.parquet")
    recipe = {
        "model": "demo",
        "dataset": str(tmp_path / "instructions.parquet"),
        "stages": [{"stage": "responses", "sampling": GREEDY}],
    }
    magpie_hf.run(recipe, output=tmp_path / "here")
    return [row["response"] for row in rows(tmp_path / "here")]


def test_a_responder_and_a_judge_behind_a_real_chat_api_give_the_texts_of_this_process(kind, server, tmp_path, capsys):
    from datasets import Dataset

    asked = [f"What is {a} + {b}?" for a in range(2, 12) for b in range(3, 9)] + ["Name two planets.", "Write a poem."]
    Dataset.from_dict({"instruction": asked}).to_parquet(tmp_path / "rows.parquet")
    # Without the schema: a real server applies it token by token, which changes what a weak model writes.
    stages = [{"stage": "responses", "sampling": GREEDY}, {"stage": "quality", "structured": False}, "safety"]
    recipe = {"model": "demo", "dataset": str(tmp_path / "rows.parquet"), "stages": stages}
    engine = {"kind": "chat", "endpoint": server.url, "served_model_name": server.model}
    roles = {role: {"model": "demo", "engine": engine} for role in ("responder", "judge", "guard")}
    found, local = (
        magpie_hf.run(recipe | roles, output=tmp_path / "chat"),
        magpie_hf.run(recipe, output=tmp_path / "l"),
    )
    columns = ("response", "input_quality", "quality_error", "safety")
    different = {name: sum(a != b for a, b in zip(found[name], local[name], strict=True)) for name in columns}
    structured = magpie_hf.annotate(
        Dataset.from_dict({"instruction": asked}), "quality", judge={"model": "demo", "engine": engine},
        output=tmp_path / "structured",
    )  # fmt: skip
    labeled = sum(label is not None for label in structured["input_quality"])
    with capsys.disabled():
        sys.stdout.write(
            f"\n{kind}, chat: {len(asked)} rows, different {different}, {labeled} labeled under a schema\n"
        )
    assert max(different.values()) <= MOST_DIFFERENT * len(asked)
    assert labeled == len(asked)
