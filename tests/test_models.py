from __future__ import annotations

import os
import shutil

import pytest

from magpie_hf.errors import ModelError
from magpie_hf.models import content_hash, resolve_commit, resolve_model


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copy(tiny_model_dir, tmp_path):
    return shutil.copytree(tiny_model_dir, tmp_path / "tiny")


def test_a_directory_is_known_by_its_content_and_not_by_its_path_or_date(copy, tiny_model_dir):
    os.utime(copy / "config.json", (0, 0))
    here, there = resolve_model(str(copy)), resolve_model(str(tiny_model_dir))
    assert here.revision == there.revision
    assert here.revision.startswith("sha:")
    assert (here.name, here.source, here.load_revision) == ("tiny", str(copy), None)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"])
def test_a_changed_file_makes_another_revision(copy, file):
    before = content_hash(copy)
    data = bytearray((copy / file).read_bytes())
    data[-2] ^= 1
    (copy / file).write_bytes(data)
    assert content_hash(copy) != before


def test_a_file_beside_the_model_changes_nothing(copy):
    before = content_hash(copy)
    (copy / "README.md").write_text("notes")
    assert content_hash(copy) == before


def test_the_same_content_under_another_name_is_another_model(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    before = content_hash(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "vocab.json")
    assert content_hash(tmp_path) != before


def test_large_files_are_told_apart_by_size_and_both_ends(tmp_path):
    def hashed(data):
        (tmp_path / "model.bin").write_bytes(data)
        return content_hash(tmp_path)

    assert hashed(b"m" * (3 << 20)) != hashed(b"m" * (4 << 20))
    middle = b"m" * (3 << 20)
    assert len({hashed(d) for d in (b"a" + middle, b"b" + middle, middle + b"a", middle + b"b", middle + b"aa")}) == 5


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("./nowhere", "Model directory .* not found"),
        ("~nobody/nowhere", "Model directory .* not found"),
        ("a/b/c", "Model directory .* not found"),
        ("", "contains no model"),
        ("not a model!", "not found"),
    ],
)
def test_what_is_no_model_is_named(name, part):
    with pytest.raises(ModelError, match=part):
        resolve_model(name)


def test_a_full_commit_needs_no_look_up():
    assert resolve_commit("some/model", COMMIT) == COMMIT
    ref = resolve_model("some/model", COMMIT)
    assert (ref.name, ref.source, ref.revision, ref.load_revision) == ("some/model", "some/model", COMMIT, COMMIT)


def test_offline_the_cached_commit_is_taken(tmp_path, monkeypatch):
    folder = tmp_path / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert resolve_model("some/model").revision == COMMIT
    with pytest.raises(ModelError, match="not cached"):
        resolve_model("some/other")


def test_the_demo_models_are_named_demo_and_pinned_by_content(demo_model_dir):
    assert resolve_model("demo") == ("demo", str(demo_model_dir), "sha:" + content_hash(demo_model_dir), None)
