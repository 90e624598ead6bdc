"""Everything a person can get wrong ends with one readable error, exit code not 0, and no traceback."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess

import pytest

from tests.end_to_end.harness import here, magpie, rows
from tests.servers.completions_server import CompletionsServer
from tests.servers.tgi_server import TgiServer


SMALL = ["--num-rows", "4", "--rows", "0"]
QUICK = ["--set", "engine.startup_timeout_s=0.5", "--set", "engine.max_retries=1", "--set", "engine.max_outage_s=1"]


def complaint(*arguments, code=1):
    output = here(*arguments, code=code)
    assert "Traceback" not in output
    assert len(output) < 2000, "one message, not a flood"
    return output


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_directory_that_is_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    output = complaint("synthesize", "--model", tmp_path / "empty", "--output", tmp_path / "run", *SMALL)
    assert "contains no model" in output
    assert "config.json" in output


def test_a_path_that_is_not_there(tmp_path):
    output = complaint("synthesize", "--model", "./nowhere", "--output", tmp_path / "run", *SMALL)
    assert "Model directory './nowhere' not found" in output


def test_a_model_that_the_hub_does_not_give(tmp_path):
    output = complaint("synthesize", "--model", "nobody/no-such-model", "--output", tmp_path / "run", *SMALL)
    assert "nobody/no-such-model" in output
    assert "HF_HUB_OFFLINE" in output


def test_a_model_without_chat_template(tmp_path, tiny_model_dir):
    model = shutil.copytree(tiny_model_dir, tmp_path / "bare")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config.pop("chat_template")
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    for beside in model.glob("chat_template*"):
        beside.unlink()
    output = complaint("synthesize", "--model", model, "--output", tmp_path / "run", *SMALL)
    assert "chat template" in output
    assert "TemplateError" in output


@pytest.mark.parametrize("engine", ["tgi", "openai"])
def test_a_server_that_is_down_or_a_wrong_port(tmp_path, engine, demo_model_dir):
    address = f"http://127.0.0.1:{free_port()}"
    output = complaint(
        *(
            "synthesize",
            "--model",
            "demo",
            "--engine",
            engine,
            "--endpoint",
            address,
            "--output",
            tmp_path / "run",
            *SMALL,
            *QUICK,
        )
    )
    assert address in output
    assert "EngineUnavailableError" in output


def test_a_server_of_another_model(tmp_path, tiny_model_dir, demo_model_dir):
    with TgiServer(tiny_model_dir, model_id="somebody/another-model") as server:
        output = complaint(
            "synthesize",
            "--model",
            "demo",
            "--engine",
            "tgi",
            "--endpoint",
            server.url,
            "--output",
            tmp_path / "r",
            *SMALL,
        )
    assert "ModelMismatchError" in output
    assert "somebody/another-model" in output


def test_a_server_with_chat_completions_only(tmp_path, tiny_model_dir, demo_model_dir):
    with CompletionsServer(tiny_model_dir, model_id="demo", chat_only=True) as server:
        output = complaint(
            *(
                "synthesize",
                "--model",
                "demo",
                "--engine",
                "openai",
                "--endpoint",
                server.url,
                "--output",
                tmp_path / "r",
                *SMALL,
            )
        )
    assert "CapabilityError" in output
    assert "raw prompts" in output


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        ("model: demo\nnum_rows: -1\n", ["line 2", "num_rows", "1 or more"]),
        ("model: demo\nnum_row: 5\n", ["line 2", "num_row: unknown key", '"num_rows"']),
        ("model: demo\nsampling: {temperature: [\n", ["line", "YAML cannot be read"]),
        ("model: demo\nengine: tgi\n", ["engine.endpoint", "needs the URL"]),
        ("model: !!python/object/apply:os.system ['true']\n", ["line 1", "YAML cannot be read"]),
    ],
    ids=["num_rows", "unknown key", "unreadable", "no endpoint", "python tag"],
)
def test_a_recipe_with_a_mistake(tmp_path, recipe, wanted):
    (tmp_path / "mine.yaml").write_text(recipe)
    output = complaint("run", tmp_path / "mine.yaml", "--output", tmp_path / "run")
    for part in ["mine.yaml", *wanted]:
        assert part in output
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_not_there(tmp_path):
    assert '"quickstart"' in complaint("run", "quickstrat", "--output", tmp_path / "run")


def test_a_run_that_is_not_there(tmp_path):
    assert "No run found" in complaint("status", tmp_path)


def test_debug_shows_where_an_error_comes_from(tmp_path):
    output = here("status", tmp_path, "--debug", code=1)
    assert "Traceback" in output


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB; skipped where mounting is not allowed."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle_keeps_what_is_finished(small_disk, tmp_path, demo_model_dir):
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (900 << 10))
    arguments = ["synthesize", "--model", "demo", "--num-rows", "400", "--output", small_disk / "run", "--rows", "0"]
    arguments += ["--set", "sampling.max_tokens=32", "--set", "stages.responses.sampling.max_tokens=48"]
    output = magpie(*arguments, code=1)
    assert "Traceback" not in output
    assert "full" in output
    assert "StorageError" in output
    from tests.end_to_end.harness import nothing_twice, num_records

    kept = num_records(small_disk / "run")
    assert kept > 0
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    magpie(*arguments)
    assert len(rows(small_disk / "run")) == 400
    nothing_twice(small_disk / "run")


def test_a_place_that_cannot_be_written(small_disk, demo_model_dir):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    output = complaint("synthesize", "--model", "demo", "--output", small_disk / "run", *SMALL)
    assert "StorageError" in output
    assert "--output" in output
