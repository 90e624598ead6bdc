"""Runs that are published while they are on: whole, once, resumable here and elsewhere."""

from __future__ import annotations

import json
import random
import shutil
import signal
import threading
import time

import pytest
import yaml
from datasets import load_dataset
from fastapi.responses import JSONResponse
from huggingface_hub import DatasetCard

import magpie_hf
from magpie_hf.errors import ArgumentError, HubError, RecipeError
from magpie_hf.hub.download import download_run, find_run
from magpie_hf.hub.manifest import public_name, public_recipe, public_state
from magpie_hf.hub.remote import Remote
from magpie_hf.storage.rundir import RunDir
from magpie_hf.storage.state import Pins, RunState, StageState, state_text
from magpie_hf.storage.typed_json import from_json
from tests.end_to_end.harness import finish, here, kill_when, nothing_twice, num_records, rows, start
from tests.servers.hub_server import HubFault, HubServer

from .conftest import TOKEN, hub_environment
from .readers import whole_at_every_commit


REPO = "me/mine"
RECIPE = {
    "name": "mine",
    "description": "For the tests.",
    "model": "demo",
    "num_rows": 24,
    "sampling": {"max_tokens": 48},
    "stages": [
        "instructions",
        {"stage": "responses", "sampling": {"temperature": 0, "max_tokens": 64}},
        "lengths",
        {"stage": "subset", "config": "raw"},
        {"stage": "flags"},
        {"stage": "select", "where": "response_length > 12"},
    ],
}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def publish(recipe, output, *more, code=0):
    return here(
        "run", recipe, "--output", output, "--push-to", REPO, "--config", "filtered", "--rows", 0, *more, code=code
    )


def test_a_run_is_published_with_its_subsets_recipe_and_state(hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run")
    assert whole_at_every_commit(hub, REPO).keys() == {"raw", "filtered"}
    for config, local in (("raw", tmp_path / "run" / "raw"), ("filtered", tmp_path / "run" / "data")):
        there = load_dataset(REPO, config, split="train")
        mine = load_dataset("parquet", data_files=str(local / "*.parquet"), split="train")
        assert there.to_list() == mine.to_list()
        assert there.features == mine.features
    files = hub.history(REPO)[-1].files
    (root,) = {path.partition("/run.json")[0] for path in files if path.endswith("/run.json")}
    assert yaml.safe_load(hub.read(REPO, f"{root}/recipe.yaml"))["stages"] == RECIPE["stages"]
    assert any(path.startswith(f"{root}/stages/responses-") and path.endswith(".jnl.bin") for path in files)
    card = DatasetCard.load(REPO)
    card.validate(repo_type="dataset")
    for words in ("| raw | 24 |", "response\\_length &gt; 12", "For the tests.", "Charts of raw", "SFTTrainer"):
        assert words in card.text or words in str(card), words
    assert "me/mine" in RunDir.read(tmp_path / "run").state.published.repo


def test_rejected_samples_are_published_last_as_a_config_with_their_reasons(hub, recipe, tmp_path):
    short = ("--set", "sampling.max_tokens=16", "--set", "output.rejected=true")
    publish(recipe, tmp_path / "run", *short)
    splits = whole_at_every_commit(hub, REPO)
    assert list(splits) == ["raw", "filtered", "rejected"]
    there = load_dataset(REPO, "rejected", split="train")
    assert len(there) == splits["rejected"]["train"] > 0
    assert {"instruction", "raw_instruction", "rejection_reason", "gen_input_configs"} <= set(there.column_names)
    assert "response" not in there.column_names
    assert None not in there["rejection_reason"][:]
    assert load_dataset(REPO, split="train").num_rows == 24, "the rejected samples are not the default config"
    card = DatasetCard.load(REPO)
    card.validate(repo_type="dataset")
    assert "100 % of the instructions are unusable samples" in card.text
    assert f"| rejected | {len(there)} |" in card.text
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "run", again)
    here("push", again, "me/again", "--license", "mit")
    assert set(whole_at_every_commit(hub, "me/again")) == {"raw", "default", "rejected"}


def test_the_raw_config_is_there_while_later_stages_are_not_even_begun(hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run", "--set", "push.every_s=0.1")
    titles = [commit.title for commit in hub.history(REPO)]
    assert titles.index("Publish raw with magpie_hf") < titles.index("Publish filtered with magpie_hf")


def test_nothing_that_was_published_names_this_machine_or_its_token(hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run", "--set", "output.report=true")
    commit = hub.history(REPO)[-1]
    assert any(path.endswith("report.html") for path in commit.files)
    for path in commit.files:
        content = hub.read(REPO, path, commit)
        assert str(tmp_path).encode() not in content, path
        assert TOKEN.encode() not in content, path
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_the_path_of_a_local_model_is_published_nowhere(hub, demo_model_dir, recipe, tmp_path):
    copy = tmp_path / "models" / "my-model"
    shutil.copytree(demo_model_dir, copy)
    publish(recipe, tmp_path / "run", "--model", copy, "--license", "mit", "--set", "output.report=true")
    commit = hub.history(REPO)[-1]
    for path in commit.files:
        content = hub.read(REPO, path, commit)
        assert str(tmp_path).encode() not in content, path
    assert b"my-model" in hub.read(REPO, "README.md", commit)
    local = rows(tmp_path / "run")
    back = magpie_hf.resume_from_hub(REPO, output=tmp_path / "there", overrides={"model": str(copy)}, push=False)
    assert back.to_list() == local
    nothing_twice(tmp_path / "there")


def test_the_same_run_again_sends_nothing_and_makes_no_commit_of_data(hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run")
    commits, uploads = len(hub.history(REPO)), dict(hub.uploads)
    publish(recipe, tmp_path / "run")
    assert dict(hub.uploads) == uploads
    assert {commit.title for commit in hub.history(REPO)[commits:]} <= {"Start a run", "Finished rows"}


def test_a_release_recipe_on_an_endpoint_is_published_as_the_readme_says(hub, tgi_server, tmp_path):
    here("run", "magpie-air", "--model", "demo", "--set", "num_rows=12", "--endpoint", tgi_server.url, "--push-to", REPO,
         "--output", tmp_path / "run", "--rows", 0)  # fmt: skip
    assert whole_at_every_commit(hub, REPO) == {"default": {"train": 12}}
    ds = load_dataset(REPO, split="train")
    assert {"instruct_reward", "input_quality", "safety", "min_neighbor_distance", "language"} <= set(ds.column_names)
    card = hub.read(REPO, "README.md").decode()
    assert "Three million instructions" in card
    assert tgi_server.url not in card
    for path in (path for path in hub_files(hub) if path.startswith(".magpie/runs")):
        assert tgi_server.url.encode() not in hub.read(REPO, path), path


def test_a_larger_run_replaces_the_config_and_sends_new_rows_only(hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run")
    segments = {path for path in hub.history(REPO)[-1].files if path.endswith(".jnl.bin")}
    publish(recipe, tmp_path / "run", "--set", "num_rows=30")
    assert whole_at_every_commit(hub, REPO)["raw"] == {"train": 30}
    assert segments < {path for path in hub.history(REPO)[-1].files if path.endswith(".jnl.bin")}
    assert set(hub.uploads.values()) == {1}


def test_a_reader_finds_no_data_before_a_config_is_whole(hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run")
    first = next(commit for commit in hub.history(REPO) if commit.title == "Start a run")
    assert any(path.startswith(".magpie/") for path in first.files)
    with pytest.raises((FileNotFoundError, ValueError)):
        load_dataset(REPO, revision=first.oid)


def test_a_commit_holds_no_more_files_than_the_hub_advises(hub, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("magpie_hf.hub.publisher.FILES_PER_COMMIT", 2)
    here("run", recipe, "--output", tmp_path / "run", "--set", "push.repo=me/other", "--set", "push.every_s=0.05",
         "--set", "engine.batch_size=2", "--set", "push.state=false", "--rows", 0)  # fmt: skip
    segments = list((tmp_path / "run").glob("stages/*/journal/*.jnl"))
    assert len(segments) > 6
    here("push", tmp_path / "run", REPO)
    added, before = [], set()
    for commit in hub.history(REPO):
        now = {path for path in commit.files if path.endswith(".jnl.bin")}
        added.append(len(now - before))
        before = now
    assert max(added) == 2
    assert sum(added) == len(segments)


def test_a_gated_model_is_named_with_what_to_do(hub, recipe, tmp_path):
    real = hub._route

    def gated(request, what, path, body):
        if path.startswith("api/models/meta/gated"):
            return JSONResponse(
                {"error": "gated"}, 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
            )
        return real(request, what, path, body)

    hub._route = gated
    said = publish(recipe, tmp_path / "run", "--model", "meta/gated", "--license", "mit", code=1)
    assert "gated" in said
    assert "Request access on its page" in said
    assert TOKEN not in said


def test_a_finished_run_can_be_pushed_later(hub, recipe, tmp_path):
    here("run", recipe, "--output", tmp_path / "run", "--rows", 0)
    said = here("push", tmp_path / "run", REPO, "--config", "filtered", "--private")
    assert f"{hub.url}/datasets/{REPO}" in said
    assert whole_at_every_commit(hub, REPO).keys() == {"raw", "filtered"}
    assert hub.repos[REPO].private


def test_a_config_that_nothing_passed_into_is_left_out(hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run", "--set", "stages.select.where=response_length > 100000")
    assert whole_at_every_commit(hub, REPO).keys() == {"raw"}


def test_what_cannot_be_pushed_of_a_run_is_said_before_the_hub_is_touched(hub, recipe, demo_model_dir, tmp_path):
    copy = tmp_path / "my-model"
    shutil.copytree(demo_model_dir, copy)
    here("run", recipe, "--output", tmp_path / "run", "--model", copy, "--rows", 0)
    assert "--license" in here("push", tmp_path / "run", REPO, code=1)
    assert "also the name of a subset" in here(
        "push", tmp_path / "run", REPO, "--license", "mit", "--config", "raw", code=1
    )
    assert hub.repos == {}
    here(
        "run",
        recipe,
        "--output",
        tmp_path / "empty",
        "--rows",
        0,
        "--set",
        "stages.select.where=response_length > 100000",
    )
    here("push", tmp_path / "empty", REPO)
    assert whole_at_every_commit(hub, REPO).keys() == {"raw"}


SPLIT = ("--set", "output.test_size=0.25", "--set", "output.columns=llama-3-filtered")


def test_a_run_with_a_test_split_is_published_with_both_splits_and_the_columns_of_the_release(hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run", *SPLIT)
    sizes = whole_at_every_commit(hub, REPO)["filtered"]
    assert list(sizes) == ["train", "test"]
    read, mine = load_dataset(REPO, "filtered"), load_dataset(str(tmp_path / "run"))
    assert {name: len(rows) for name, rows in read.items()} == sizes
    for name in sizes:
        assert read[name].column_names == ["conversations", "uuid"]
        assert read[name].to_list() == mine[name].to_list()
    assert not {*read["train"]["uuid"]} & {*read["test"]["uuid"]}
    card = str(DatasetCard.load(REPO))
    assert "Charts of filtered" in card  # the card describes all columns
    assert "statistics of all splits" in card


def test_a_run_with_a_test_split_resumes_elsewhere_with_the_same_rows_in_the_same_split(hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run", *SPLIT)
    back = magpie_hf.resume_from_hub(REPO, output=tmp_path / "there")
    mine = load_dataset(str(tmp_path / "run"))
    assert {name: rows.to_list() for name, rows in back.items()} == {n: rows.to_list() for n, rows in mine.items()}
    nothing_twice(tmp_path / "there")
    here("push", tmp_path / "run", "me/again", "--config", "filtered")
    assert "Charts of filtered" in str(DatasetCard.load("me/again"))
    again = load_dataset("me/again", "filtered")
    assert {name: rows.to_list() for name, rows in again.items()} == {n: rows.to_list() for n, rows in mine.items()}


def test_a_test_split_that_the_recipe_no_longer_has_is_removed_as_its_rows_are_in_train(hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run", "--set", "output.test_size=0.25")
    publish(recipe, tmp_path / "run")
    kept = whole_at_every_commit(hub, REPO)["filtered"]
    assert kept == {"train": len(rows(tmp_path / "run"))}
    assert list(load_dataset(REPO, "filtered")) == ["train"]


def test_two_recipes_can_share_a_repository(hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run")
    here("run", recipe, "--set", "name=other", "--set", "seed=1", "--set", "stages=[instructions, responses]",
         "--set", "num_rows=5", "--output", tmp_path / "other", "--push-to", REPO, "--config", "other", "--rows", 0)  # fmt: skip
    assert whole_at_every_commit(hub, REPO).keys() == {"raw", "filtered", "other"}
    with pytest.raises(ArgumentError, match="several runs"):
        magpie_hf.resume_from_hub(REPO, output=tmp_path / "x")


def test_a_run_goes_on_elsewhere_and_makes_no_finished_row_again(hub, recipe, tmp_path):
    first = start("run", recipe, "--output", tmp_path / "run", "--push-to", REPO, "--config", "filtered",
                  "--set", "push.every_s=0.1", "--set", "engine.batch_size=2", **hub_environment(hub))  # fmt: skip
    assert kill_when(first, lambda: sum(path.endswith(".jnl.bin") for path in hub_files(hub)) >= 3)
    sent = {path for path in hub_files(hub) if path.endswith(".jnl.bin")}
    magpie_hf.resume_from_hub(REPO, output=tmp_path / "elsewhere", overrides={"push.every_s": 0.2})
    here("run", recipe, "--output", tmp_path / "straight", "--rows", 0)
    assert rows(tmp_path / "elsewhere") == rows(tmp_path / "straight")
    nothing_twice(tmp_path / "elsewhere")
    assert sent <= set(hub_files(hub))
    assert whole_at_every_commit(hub, REPO).keys() == {"raw", "filtered"}
    assert set(hub.uploads.values()) == {1}


def test_the_same_command_on_another_machine_goes_on_too(hub, recipe, tmp_path):
    """As a job does that the Hub starts again: its disk is empty."""
    publish(recipe, tmp_path / "run")
    sent = dict(hub.uploads)
    publish(recipe, tmp_path / "fresh", "--set", "num_rows=30")
    assert rows(tmp_path / "fresh")[:20] == rows(tmp_path / "run")[:20]
    here("run", recipe, "--output", tmp_path / "straight", "--set", "num_rows=30", "--rows", 0)
    assert rows(tmp_path / "fresh") == rows(tmp_path / "straight")
    nothing_twice(tmp_path / "fresh")
    assert all(hub.uploads[oid] == count for oid, count in sent.items())
    assert whole_at_every_commit(hub, REPO)["raw"] == {"train": 30}


def test_a_finished_run_comes_back_without_a_model(hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run")
    said = here("resume", REPO, "--output", tmp_path / "there", "--no-push", "--rows", 0)
    assert [line.split()[1] for line in said.splitlines() if line.startswith(("instructions ", "lengths "))] == [
        "done"
    ] * 2
    assert f"The dataset: {tmp_path / 'there'}" in said
    assert rows(tmp_path / "there") == rows(tmp_path / "run")
    assert num_records(tmp_path / "there") == num_records(tmp_path / "run")


@pytest.mark.timeout(60)
def test_finished_rows_come_over_http_where_time_is_limited_and_not_through_xet(xet_hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run")
    magpie_hf.resume_from_hub(REPO, output=tmp_path / "there", push=False)
    assert rows(tmp_path / "there") == rows(tmp_path / "run")
    assert not [path for _, path, _ in xet_hub.requests if "xet" in path or "_cas" in path]


def test_a_run_from_elsewhere_cannot_send_keys_or_run_code():
    """What a stranger's run.json could ask of this machine."""
    from magpie_hf.hub.download import trusted

    evil = {
        "recipe": {
            "model": "a/b",
            "engine": {
                "kind": "openai",
                "endpoint": "http://evil.example",
                "api_key_env": "HF_TOKEN",
                "trust_remote_code": True,
            },
            "output": {"path": "/etc"},
            "stages": [
                {
                    "stage": "reward",
                    "endpoint": "http://evil.example",
                    "api_key_env": "HF_TOKEN",
                    "trust_remote_code": True,
                }
            ],
            "dataset": {"path": "/etc/passwd"},
        },
        "stages": {
            "../../x": {"name": "x", "identity": "x"},
            "responses-0123": {"name": "responses", "identity": "0123"},
            "lengths-0123": {"name": "../../../evil", "identity": "0123"},
        },
        "plan": ["responses-0123", "evil/\x1b[31m"],
        "budget": {"evil": 1},
        "published": {"repo_asked": "evil/x", "repo": "evil/x", "revision": "refs/pr/9"},
        "pins": {"models": {"a/b@main": "refs/pr/evil", "c/d@main": "1" * 40}, "dates": {"x": "2026-01-01"}},
    }
    kept = trusted(from_json(RunState, evil))
    text = state_text(kept)
    assert "evil" not in text
    assert "HF_TOKEN" not in text
    assert "trust_remote_code" not in text
    assert "/etc" not in text
    assert set(kept.stages) == {"responses-0123"}
    assert kept.pins == Pins({"c/d@main": "1" * 40}, {"x": "2026-01-01"})


def test_rows_of_others_need_a_license_before_they_are_annotated(hub, tmp_path):
    path = tmp_path / "annotate.yaml"
    path.write_text(yaml.safe_dump({"name": "a", "dataset": str(_lines(tmp_path)), "stages": ["flags"]}))
    common = ["run", path, "--output", tmp_path / "run", "--push-to", REPO, "--rows", 0]
    assert "--license" in here(*common, code=1)
    assert hub.repos == {}
    here(*common, "--license", "cc-by-4.0")
    assert hub.metadata(REPO)["license"] == "cc-by-4.0"
    assert "a.jsonl" in hub.read(REPO, "README.md").decode()
    assert str(tmp_path) not in hub.read(REPO, "README.md").decode()


def test_a_run_in_another_format_is_published_as_parquet_too(hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run", "--set", "output.format=arrow")
    assert whole_at_every_commit(hub, REPO).keys() == {"raw", "filtered"}


def test_a_subset_that_the_recipe_no_longer_has_is_not_published(hub, recipe, tmp_path):
    here("run", recipe, "--output", tmp_path / "run", "--rows", 0)
    here(
        "run",
        recipe,
        "--output",
        tmp_path / "run",
        "--rows",
        0,
        "--set",
        "stages=[instructions, responses]",
        "--set",
        "name=mine",
    )
    here("push", tmp_path / "run", REPO)
    assert whole_at_every_commit(hub, REPO).keys() == {"default"}


def test_a_refusal_is_said_before_anything_is_generated(hub, recipe, tmp_path, monkeypatch):
    hub.tokens[TOKEN] = ("me", "read")
    said = publish(recipe, tmp_path / "run", code=1)
    assert "only has read permission" in said
    assert f"magpie-hf push {tmp_path / 'run'} {REPO} --config filtered" in said
    assert not list((tmp_path / "run").glob("stages/*/journal/*.jnl"))


def test_an_unknown_license_is_asked_for_before_anything_is_generated(hub, recipe, tiny_model_dir, tmp_path):
    said = publish(recipe, tmp_path / "run", "--model", tiny_model_dir, code=1)
    assert "--license" in said
    assert hub.repos == {}


def test_a_network_that_goes_down_in_the_middle_costs_no_row(hub, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("magpie_hf.hub.remote.RETRY_TIMEOUT_S", 0.3)
    hub.hub_faults = [HubFault("reset", "POST /api/datasets/.*/commit", times=10_000, skip=1)]
    said = publish(recipe, tmp_path / "run", code=1)
    assert "could not be reached" in said
    assert "HubError" in said
    (line,) = [line for line in said.splitlines() if "magpie-hf push" in line]
    assert len(rows(tmp_path / "run")) > 0
    hub.hub_faults = []
    here(*line.partition("resume with: magpie-hf ")[2].split())
    assert whole_at_every_commit(hub, REPO).keys() == {"raw", "filtered"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("route", "skip"), [("GET /api/datasets/.*/tree", 2), ("PUT /_lfs", 1)])
def test_a_hub_that_stops_answering_in_the_middle_costs_no_row_and_no_more_time_than_the_retry_timeout(
    hub, recipe, tmp_path, route, skip
):
    hub.hub_faults = [HubFault("hang", route, times=10_000, skip=skip)]
    said = publish(recipe, tmp_path / "run", "--retry-timeout", 1, "--set", "push.every_s=0.1", code=1)
    assert "could not be reached for 1 s (no reply" in said
    (line,) = [line for line in said.splitlines() if "magpie-hf push" in line]
    assert len(rows(tmp_path / "run")) > 0
    hub.hub_faults = []
    here(*line.partition("resume with: magpie-hf ")[2].split())
    assert whole_at_every_commit(hub, REPO).keys() == {"raw", "filtered"}


@pytest.mark.timeout(60)
def test_a_hub_that_hangs_holds_up_no_row_and_no_interrupt(recipe, tmp_path):
    """With the whole retry timeout of ten minutes left."""
    with HubServer() as server:
        server.hub_faults = [HubFault("hang", "POST /api/datasets/.*/commit", times=10_000, skip=1)]
        process = start("run", recipe, "--output", tmp_path / "run", "--push-to", REPO, "--config", "filtered",
                        "--set", "push.every_s=0.05", "--rows", 0, **hub_environment(server))  # fmt: skip
        while process.poll() is None and not list((tmp_path / "run").glob("data/*.parquet")):
            time.sleep(0.01)
        assert process.poll() is None, "the rows are finished and the publishing is not"
        process.send_signal(signal.SIGINT)
        said = finish(process, 130)
    assert "Traceback" not in said
    assert len(rows(tmp_path / "run")) > 0


@pytest.mark.timeout(60)
def test_a_transfer_that_no_limit_reaches_does_not_hold_the_end_of_a_run(hub, recipe, tmp_path, monkeypatch):
    stuck = threading.Event()
    monkeypatch.setattr("magpie_hf.hub.publisher.push_config", lambda *a: stuck.wait(300))
    monkeypatch.setattr("magpie_hf.hub.publisher.SLOWEST_FILE_S", 0.1)
    said = publish(recipe, tmp_path / "run", "--retry-timeout", 1, code=1)
    stuck.set()
    assert "last upload to the Hub did not finish" in said
    assert "Resume with: magpie-hf push" in said
    assert len(rows(tmp_path / "run")) > 0


@pytest.mark.timeout(60)
def test_an_interrupt_ends_a_run_that_a_hub_holds_before_its_first_row(recipe, tmp_path):
    with HubServer() as server:
        server.hub_faults = [HubFault("hang", "GET /api/whoami", times=10_000)]
        process = start("run", recipe, "--output", tmp_path / "run", "--push-to", REPO, **hub_environment(server))
        while process.poll() is None and not server.requests:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        finish(process, 130)


@pytest.mark.parametrize(
    "fault",
    [
        HubFault("status", "/commit", 999, status=403),
        HubFault("status", "whoami", 999, status=500),
        HubFault("reset", "preupload", 999),
    ],
    ids=lambda f: f.match,
)
def test_no_traceback_or_log_shows_the_token(hub, recipe, tmp_path, fault):
    """In a process of its own, with everything it can say."""
    hub.hub_faults = [fault]
    process = start("push", _lines(tmp_path), REPO, "--license", "mit", "--debug", "--retry-timeout", 0.5, **hub_environment(hub),
                    HF_HUB_VERBOSITY="debug", DATASETS_VERBOSITY="debug")  # fmt: skip
    said = finish(process, 1)
    assert "HubError" in said
    assert "Traceback" in said
    assert TOKEN not in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"push": {"config": "x"}}, "push.repo"),
        ({"push": {"repo": "me/x", "config": "raw"}}, "also the name of a subset"),
        ({"push": {"repo": "me/x", "privat": True}}, "private"),
        ({"push": {"repo": "me/x", "gated": "perhaps"}}, "auto"),
        ({"stages": ["instructions", {"stage": "subset", "config": "stages"}]}, "Invalid name of a subset"),
        ({"order": "lean"}, "other rows"),
        ({"output": {"rejected": True}, "push": {"repo": "me/x", "config": "rejected"}}, "output.rejected"),
        (
            {"output": {"rejected": True}, "stages": ["instructions", {"stage": "subset", "config": "rejected"}]},
            "also the name of another config",
        ),
    ],
)
def test_settings_that_cannot_be_are_named(changes, words):
    base = {
        **RECIPE,
        "stages": [*RECIPE["stages"][:-1], {"stage": "select", "where": "not endswith(instruction, ':')"}],
    }
    with pytest.raises(RecipeError, match=words):
        magpie_hf.load_recipe({**base, **changes})


def test_flags_without_a_repository_are_refused(recipe, tmp_path):
    assert "--push-to" in here("run", recipe, "--output", tmp_path / "run", "--private", code=1)


def test_a_repository_without_a_run_is_named(hub, tmp_path):
    load = load_dataset("json", data_files=[str(_lines(tmp_path))], split="train")
    magpie_hf.push_to_hub(load, REPO, license="mit")
    with pytest.raises(HubError, match="contains no run"):
        magpie_hf.resume_from_hub(REPO, output=tmp_path / "x")


def _lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "a", "response": "b"}\n')
    return path


def test_what_belongs_to_this_machine_does_not_travel():
    shown = public_recipe(
        {
            "model": "/data/models/My-Model",
            "judge": {"model": "a/b", "engine": {"kind": "tgi", "endpoint": "http://10.0.0.1", "api_key_env": "K"}},
            "engine": {"kind": "openai", "endpoints": ["http://10.0.0.2"]},
            "output": {"path": "/data/x"},
            "stages": ["instructions", {"stage": "reward", "endpoint": "http://10.0.0.3", "model": "./rm"}],
        }
    )
    assert "10.0.0" not in json.dumps(shown)
    assert "/data" not in json.dumps(shown)
    assert (shown["model"], shown["stages"][1]["model"]) == ("My-Model", "rm")
    paths = {
        "judge": "/data/judge",
        "stages": [
            {"stage": "decontamination", "benchmarks": ["/data/b.jsonl", "openai/gsm8k"]},
            {"stage": "rubric", "rubric": "/data/tone.yaml"},
            {"stage": "lengths", "tokenizer": "/data/tok"},
        ],
    }
    assert public_recipe(paths) == {
        "judge": "judge",
        "stages": [
            {"stage": "decontamination", "benchmarks": ["b.jsonl", "openai/gsm8k"]},
            {"stage": "rubric", "rubric": "tone.yaml"},
            {"stage": "lengths", "tokenizer": "tok"},
        ],
    }
    assert public_name("meta-llama/Meta-Llama-3-8B-Instruct") == "meta-llama/Meta-Llama-3-8B-Instruct"


def test_no_key_and_no_path_is_published_with_a_state():
    settings = {"api_key": "sk-1", "hf_token": "sk-2", "max_tokens": 7, "endpoint": "http://10.0.0.1"}
    fields = {"stage": "a", "parameters": {"benchmarks": ["/data/b.jsonl"], **settings}, "engine": settings}
    recipe = {"engine": {"kind": "mine:Engine", **settings}, "stages": [{"stage": "mine:Stage", **settings}]}
    state = RunState(recipe=recipe, stages={"a-1": StageState("a", "1", identity_fields=fields)})
    text = state_text(public_state(state))
    assert not [secret for secret in ("sk-1", "sk-2", "10.0.0.1", "/data") if secret in text]
    assert text.count('"max_tokens": 7') == 4
    assert state.stages["a-1"].identity_fields == fields


def hub_files(server):
    return [] if REPO not in server.repos else list(server.history(REPO)[-1].files)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("seed", "kills"), [(0, 3), pytest.param(1, 10, marks=pytest.mark.full)], ids=["3 kills", "10 kills"]
)
def test_killed_at_any_moment_everything_goes_up_once(recipe, tmp_path, seed, kills):
    draw = random.Random(seed)
    with HubServer() as server:
        arguments = ["run", recipe, "--output", tmp_path / "run", "--push-to", REPO, "--config", "filtered", "--rows", 0,
                     "--set", "push.every_s=0.1", "--set", "engine.batch_size=4", "--set", "num_rows=60"]  # fmt: skip
        environment = hub_environment(server)
        killed = 0
        while killed < kills:
            process = start(*arguments, **environment)
            enough = len(server.requests) + draw.randint(1, 40)
            kill_when(process, lambda enough=enough: len(server.requests) >= enough)
            time.sleep(draw.random() * 0.02)
            killed += 1
            whole_at_every_commit(server, REPO) if REPO in server.repos else None
        finish(start(*arguments, **environment))
        assert whole_at_every_commit(server, REPO).keys() == {"raw", "filtered"}
        assert set(server.uploads.values()) == {1}, "an object was sent twice"
        last = server.history(REPO)[-1].files
        local = {path.name for path in (tmp_path / "run").glob("stages/*/journal/*.jnl")}
        assert {path.rpartition("/")[2].removesuffix(".bin") for path in last if path.endswith(".jnl.bin")} == local
    nothing_twice(tmp_path / "run")
    here("run", recipe, "--output", tmp_path / "straight", "--set", "num_rows=60", "--rows", 0)
    assert rows(tmp_path / "run") == rows(tmp_path / "straight")


def test_an_interrupted_run_leaves_no_thread_that_publishes(hub, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("magpie_hf.api.synthesis.run_stage", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    said = publish(recipe, tmp_path / "run", code=130)
    assert "Resume with" in said
    deadline = time.monotonic() + 10
    while any(thread.name == "magpie-hub" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(thread.name == "magpie-hub" for thread in threading.enumerate())


def test_a_run_that_stops_at_its_budget_sends_what_is_finished(hub, recipe, tmp_path):
    said = publish(
        recipe, tmp_path / "run", "--set", "budget.max_tokens_total=600", "--set", "engine.batch_size=1", code=75
    )
    assert "BudgetExceeded" in said
    local = {path.name for path in (tmp_path / "run").glob("stages/*/journal/*.jnl")}
    assert local
    assert {
        path.rpartition("/")[2].removesuffix(".bin") for path in hub_files(hub) if path.endswith(".jnl.bin")
    } == local


@pytest.mark.slow
def test_a_push_that_is_killed_goes_on_with_what_is_missing(recipe, tmp_path):
    here("run", recipe, "--output", tmp_path / "run", "--rows", 0)
    draw = random.Random(3)
    with HubServer() as server:
        arguments = ["push", tmp_path / "run", REPO, "--config", "filtered"]
        for _ in range(3):
            process = start(*arguments, **hub_environment(server))
            enough = len(server.requests) + draw.randint(3, 25)
            kill_when(process, lambda enough=enough: len(server.requests) >= enough)
            whole_at_every_commit(server, REPO) if REPO in server.repos else None
        finish(start(*arguments, **hub_environment(server)))
        assert whole_at_every_commit(server, REPO).keys() == {"raw", "filtered"}
        assert set(server.uploads.values()) == {1}


def test_a_run_that_has_only_the_copy_of_its_state_is_pushed_as_a_run(hub, recipe, tmp_path):
    here("run", recipe, "--output", tmp_path / "run", "--rows", 0)
    (tmp_path / "run" / "run.json").unlink()
    here("push", tmp_path / "run", REPO, "--config", "filtered")
    assert whole_at_every_commit(hub, REPO).keys() == {"raw", "filtered"}
    assert any(path.endswith("/recipe.yaml") for path in hub_files(hub))


def test_the_state_that_came_from_the_hub_has_a_copy_and_a_checksum(hub, recipe, tmp_path):
    publish(recipe, tmp_path / "run")
    remote = Remote(REPO, resume="")
    name, head = find_run(remote)
    state = download_run(remote, name, head, tmp_path / "there")
    text = (tmp_path / "there" / "run.json").read_text()
    assert "checksum" in json.loads(text)
    (tmp_path / "there" / "run.json").write_text(text[:99])
    again = RunDir.read(tmp_path / "there").state
    assert (again.recipe, again.pins) == (state.recipe, state.pins)
