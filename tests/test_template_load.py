from __future__ import annotations

import base64
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from magpie_hf.templates import load as _template_load
from magpie_hf.templates.load import generation_config_of, load_tokenizer
from magpie_hf.templates.template import ChatTemplate

from .servers.http_server import STOP_POLL_S
from .template_families import make_tokenizer, template
from .template_families.table import TOKENIZERS


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def mistral_dir(tmp_path: Path) -> Path:
    """Give a Mistral repository that has its tokenizer twice: as tokenizer.json and as tekken.json."""
    tokenizer = make_tokenizer(**TOKENIZERS["mistral-nemo"], chat_template=template("mistral-nemo"))
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    settings.pop("tokenizer_class")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "mistral", "architectures": ["MistralForCausalLM"]}')
    marks = [{"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(["<unk>", "<s>", "</s>"])]
    pieces = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)]
    sizes = {"num_vocab_tokens": 256, "default_vocab_size": 259, "default_num_special_tokens": 3}
    config = {"pattern": r"\S+|\s+", "version": "v3", **sizes}
    content = {"config": config, "vocab": pieces, "special_tokens": marks}
    (tmp_path / "tekken.json").write_text(json.dumps(content), "utf-8")
    return tmp_path


def test_a_repository_with_tekken_json_keeps_its_chat_template_beside_mistral_common(mistral_dir: Path) -> None:
    pytest.importorskip("mistral_common")
    assert ChatTemplate.load(str(mistral_dir)).pre_query().text == "<s>[INST]"


@pytest.mark.parametrize("fails", [False, True], ids=["loads-another-class", "refuses-arguments"])
def test_a_tokenizer_of_mistral_common_is_replaced_by_the_repositorys_own(
    mistral_dir: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    class MistralCommonBackend:
        chat_template = None

    def auto(*args: object, **kwargs: object) -> MistralCommonBackend:
        if fails:
            raise ValueError("Kwargs ['_from_auto'] are not supported by `MistralCommonTokenizer.from_pretrained`.")
        return MistralCommonBackend()

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", auto)
    assert load_tokenizer(str(mistral_dir), None, "m").chat_template == template("mistral-nemo")


def test_transformers_is_asked_for_the_repositorys_own_tokenizer_where_it_can_be() -> None:
    import inspect

    from transformers.models.auto import tokenization_auto

    known = "mistral_format" in inspect.getsource(tokenization_auto)
    assert _template_load._hugging_face_format() == ({"mistral_format": False} if known else {})


class OneFileHub(ThreadingHTTPServer):
    """A Hub with one model that has a generation config, or none; the first `broken` requests fail in a way that clients do not retry."""

    content: bytes | None = b'{"eos_token_id": [7, 8]}'
    broken = 0
    asked = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), OneFileHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class OneFileHandler(BaseHTTPRequestHandler):
    server: OneFileHub

    def do_HEAD(self) -> None:
        self.server.asked += 1
        content = self.server.content
        broken, self.server.broken = self.server.broken, max(0, self.server.broken - 1)
        self.send_response(520 if broken else 404 if content is None else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"one"')
        if content is None and not broken:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(0 if broken else len(content or b"")))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.server.content or b"")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def model_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from .hub.conftest import use_hub

    with OneFileHub() as server:
        use_hub(server, monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        threading.Thread(target=server.serve_forever, args=(STOP_POLL_S,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_generation_config_is_read_after_failed_connections(model_hub: OneFileHub, caplog) -> None:
    model_hub.broken = 2
    assert generation_config_of("me/model", None)["eos_token_id"] == [7, 8]
    assert "magpie_hf" not in {record.name for record in caplog.records}


def test_a_generation_config_that_stays_unreadable_is_named(model_hub: OneFileHub, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("magpie_hf"), "propagate", True)
    model_hub.broken = 1000
    assert generation_config_of("me/model", None, "me/model") == {}
    assert "generation config of 'me/model' cannot be read" in caplog.text


def test_a_model_without_a_generation_config_needs_no_warning(model_hub: OneFileHub, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("magpie_hf"), "propagate", True)
    model_hub.content = None
    assert generation_config_of("me/model", None) == {}
    assert "magpie_hf" not in {record.name for record in caplog.records}
    assert model_hub.asked == 1


def test_a_damaged_generation_config_is_named(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("magpie_hf"), "propagate", True)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7,')
    assert generation_config_of(str(tmp_path), None, "mine") == {}
    assert "generation config of 'mine' cannot be read" in caplog.text
