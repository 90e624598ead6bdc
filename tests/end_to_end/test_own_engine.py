"""Engines written only from the how-to pages run in a recipe, with their settings."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

import magpie_hf
from magpie_hf.engines import engine_class, engine_options
from magpie_hf.engines.base import Engine
from magpie_hf.errors import ArgumentError, RecipeError

from .harness import magpie, rows


PAGES = Path(__file__).parents[2] / "docs" / "how-to"


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """Save the code of both pages as modules that can be imported."""
    for page, module in (("write-an-engine", "parrot"), ("write-an-endpoint-engine", "writer")):
        (code,) = re.findall(r"```python runnable\n(.*?)```", (PAGES / f"{page}.md").read_text("utf-8"), re.DOTALL)
        (tmp_path / f"{module}.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def recipe_of(page):
    (text,) = re.findall(r"```yaml\n(.*?)```", (PAGES / f"{page}.md").read_text("utf-8"), re.DOTALL)
    return text


class WriterServer(ThreadingHTTPServer):
    """The server of the page on endpoint engines, on the demo model's tokenizer."""

    def __init__(self):
        tokenizer = magpie_hf.ChatTemplate.load("demo").tokenizer
        bodies = self.bodies = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply({"model": "demo", "version": "writer 1"})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                bodies.append(body)
                text = f"How many apples are in basket number {body.get('seed')}?"
                count = len(tokenizer(body["prompt"], add_special_tokens=False)["input_ids"])
                self.reply({"text": text, "finished": True, "prompt_tokens": count, "completion_tokens": 9})

            def reply(self, payload):
                data = json.dumps(payload).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def test_an_engine_written_from_the_page_runs_in_a_recipe(pages, tmp_path):
    (tmp_path / "mine.yaml").write_text(recipe_of("write-an-engine"), "utf-8")
    paths = os.pathsep.join([str(pages), *filter(None, [os.environ.get("PYTHONPATH")])])
    magpie("run", tmp_path / "mine.yaml", "--output", tmp_path / "run", PYTHONPATH=paths)
    found = rows(tmp_path / "run")
    assert len(found) == 20
    assert {len(row["instruction"].split()) for row in found} == {8}, "the setting of the recipe is used"


def test_an_endpoint_engine_written_from_the_page_runs_in_a_recipe(pages, tmp_path):
    with WriterServer() as server:
        text = recipe_of("write-an-endpoint-engine").replace("http://localhost:8080", server.url)
        (tmp_path / "mine.yaml").write_text(text, "utf-8")
        ds = magpie_hf.run(tmp_path / "mine.yaml", output=tmp_path / "run", show_progress=False)
        assert len(ds) == 20
        assert {body["style"] for body in server.bodies} == {"formal"}
        assert all("apples" in row["response"] for row in ds)


def test_settings_of_both_pages_are_read_from_their_dataclasses(pages):
    assert engine_options("parrot:Parrot") == {"words": int, "shout": bool}
    assert {"style", "concurrency", "api_key_env"} <= engine_options("writer:Writer").keys()
    with pytest.raises(RecipeError, match=r"engine\.words.*whole number"):
        magpie_hf.load_recipe({"model": "demo", "engine": {"kind": "parrot:Parrot", "words": "many"}})
    with pytest.raises(RecipeError, match="wrods"):
        magpie_hf.load_recipe({"model": "demo", "engine": {"kind": "parrot:Parrot", "wrods": 3}})


def test_settings_that_can_change_a_text_are_part_of_the_identity(pages):
    parrot, writer = engine_class("parrot:Parrot"), engine_class("writer:Writer")
    plain = parrot("demo").identity()
    assert plain["words"] == 12
    assert parrot("demo", words=3).identity() != plain
    identity = writer("demo", endpoints=["http://h:1"], concurrency=3, api_key_env="KEY").identity()
    assert identity.keys() == {"model", "revision", "style"}, "silent settings are left out"


def test_an_unknown_or_missing_setting_is_named(pages):
    with pytest.raises(ArgumentError, match="wrods") as caught:
        engine_class("parrot:Parrot")("demo", wrods=3)
    assert "words" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("class Mine: words = 3", "settings_class .* is not a dataclass"),
        ("@dataclass(frozen=True)\nclass Mine: model: str = 'x'", "reserved name: 'model'"),
        ("@dataclass(frozen=True)\nclass Mine: endpoint: str = 'x'", "reserved name: 'endpoint'"),
    ],
)
def test_settings_that_could_not_be_passed_are_refused_before_a_run(pages, monkeypatch, settings, message):
    code = f"{settings}\n\nclass Own(Parrot):\n    name = 'own'\n    settings_class = Mine\n"
    (pages / "own_engine.py").write_text("from dataclasses import dataclass\nfrom parrot import Parrot\n" + code)
    monkeypatch.delitem(sys.modules, "own_engine", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(RecipeError, match=message):
        magpie_hf.load_recipe({"model": "demo", "engine": "own_engine:Own"})
    sys.modules.pop("own_engine", None)


def test_the_interface_needs_four_methods_only():
    assert Engine.__abstractmethods__ == {"open", "capabilities", "generate", "close"}
