"""Runs against a TGI server: killed, moved, grown. Runs in both lanes of packages."""

from __future__ import annotations

import pytest

from tests.end_to_end.harness import (
    environment,
    finish,
    here,
    kill_when,
    moments,
    nothing_twice,
    num_records,
    rows,
    start,
    wait_until,
)
from tests.servers.faults import Fault
from tests.servers.tgi_server import TgiServer


NUM_ROWS = 24
SETTINGS = [
    *("--set", "sampling.max_tokens=48", "--set", "stages.responses.sampling.max_tokens=48"),
    # Sampled, so that each row's request has a seed of its own, and equal instructions make different requests.
    *("--set", "stages.responses.sampling.temperature=0.7"),
    *("--set", "engine.concurrency=8", "--rows", "0"),
]


def command(server, output, *more, num_rows=NUM_ROWS):
    return [
        *("synthesize", "--model", "demo", "--engine", "tgi", "--endpoint", server.url),
        *("--num-rows", num_rows, "--output", output, *SETTINGS, *more),
    ]


@pytest.fixture(scope="module")
def server(demo_model_dir):
    with TgiServer(demo_model_dir, model_id="demo") as running:
        yield running


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    """An uninterrupted run: its rows and how many requests it took."""
    place = tmp_path_factory.mktemp("reference") / "run"
    server.record.reset()
    here(*command(server, place))
    return rows(place), len(generating(server))


def generating(server):
    """Return the log's requests that make rows: all but those that count prompt tokens at the start."""
    log = server.stats["log"]
    first = next((n for n, entry in enumerate(log) if entry["seed"] is not None), len(log))
    counting = {entry["hash"] for entry in log[:first]}
    return [entry for entry in log if entry["hash"] not in counting]


def killed_run(server, place, seed, kills, total):
    """Kill a run at `kills` moments and let it end; return for each session its requests and newly finished rows."""
    sessions, finished_before = [], 0
    server.record.reset()
    for moment in [*moments(seed, kills, total), None]:
        seen = len(generating(server))
        process = start(*command(server, place))
        if moment is None:
            finish(process)
        else:
            kill_when(process, lambda moment=moment: len(server.record.entries) >= moment)
        finished = num_records(place) if place.exists() else 0
        sessions.append(([entry["hash"] for entry in generating(server)[seen:]], finished - finished_before))
        finished_before = finished
    return sessions


def check_kills(server, reference, place, seed, kills):
    expected, total = reference
    sessions = killed_run(server, place, seed, kills, total)
    assert rows(place) == expected
    nothing_twice(place)
    for number, (asked, finished) in enumerate(sessions):
        later = {h for hashes, _ in sessions[number + 1 :] for h in hashes}
        again = [h for h in asked if h in later]
        assert len(again) <= len(asked) - finished, "a finished row was asked for again"
        assert len(set(asked)) == len(asked), "a session asked for a row twice"


@pytest.mark.slow
def test_killed_at_seeded_moments_the_run_ends_with_the_same_rows(server, reference, tmp_path):
    check_kills(server, reference, tmp_path / "run", seed=1, kills=3)


@pytest.mark.full
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(2, 6))
def test_killed_at_twenty_moments_the_runs_end_with_the_same_rows(server, reference, tmp_path, seed):
    check_kills(server, reference, tmp_path / "run", seed=seed, kills=5)


@pytest.mark.slow
def test_growing_moving_and_changing_asks_for_the_difference_only(server, demo_model_dir, reference, tmp_path):
    place = tmp_path / "run"
    server.record.reset()
    here(*command(server, place, num_rows=8))
    small, asked_small = rows(place), {entry["hash"] for entry in generating(server)}

    server.record.reset()
    here(*command(server, place))
    grown = {entry["hash"] for entry in generating(server)}
    assert rows(place) == reference[0]
    assert rows(place)[:8] == small
    assert not grown & asked_small

    with TgiServer(demo_model_dir, model_id="demo") as other:
        here(*command(other, place, "--set", "engine.concurrency=3"))
        assert other.stats["requests"] == 0

    server.record.reset()
    here(*command(server, place, "--set", "stages.responses.sampling.max_tokens=40"))
    assert len(generating(server)) == NUM_ROWS, "responses are made again, instructions are not"

    server.record.reset()
    here(*command(server, place, "--temperature", "0.9"))
    assert len(generating(server)) >= 2 * NUM_ROWS


@pytest.mark.slow
def test_four_shards_merged_equal_one_run(server, reference, tmp_path):
    for part in range(4):
        here(*command(server, tmp_path / f"s{part}", "--shard", f"{part}/4"))
    here("merge", *(tmp_path / f"s{i}" for i in range(4)), "--output", tmp_path / "all", "--rows", 0)
    assert rows(tmp_path / "all") == reference[0]


@pytest.mark.slow
def test_no_key_arrives_unless_one_was_named(server, tmp_path, monkeypatch):
    secret = "hf_" + "x" * 34
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("MY_KEY", "s3cret-key-value")
    server.record.reset()
    here(*command(server, tmp_path / "run", num_rows=3))
    assert server.stats["authorization"] == 0
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path

    here(*command(server, tmp_path / "named", "--api-key-env", "MY_KEY", num_rows=3))
    assert server.stats["authorization"] > 0
    for path in (tmp_path / "named").rglob("*"):
        assert not path.is_file() or b"s3cret-key-value" not in path.read_bytes(), path


FAULTS = {
    "overloaded": [Fault("overloaded", every=3)],
    "overloaded with Retry-After": [Fault("overloaded", first=4, retry_after=1)],
    "server errors": [Fault("status", every=4, status=500)],
    "connection resets": [Fault("reset", every=5)],
    "truncated JSON": [Fault("truncate", every=5)],
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_survived_with_the_same_rows(server, reference, tmp_path, name):
    server.configure(faults=FAULTS[name])
    try:
        here(*command(server, tmp_path / "run", "--set", "engine.backoff_s=[0.01, 0.1]"))
    finally:
        server.configure(faults=[])
    assert rows(tmp_path / "run") == reference[0]
    nothing_twice(tmp_path / "run")


@pytest.mark.slow
def test_a_server_that_dies_ends_the_run_with_one_message_and_a_restart_resumes_it(
    demo_model_dir, reference, tmp_path
):
    quick = ["--set", "engine.max_outage_s=1", "--set", "engine.backoff_s=[0.01, 0.1]"]
    quick += ["--set", "engine.startup_timeout_s=1", "--set", "engine.max_retries=2"]
    with TgiServer(demo_model_dir, model_id="demo", faults=[Fault("reset", at=tuple(range(20, 10_000)))]) as dying:
        output = here(*command(dying, tmp_path / "run", *quick), code=None)
        assert "Traceback" not in output
        assert "magpie-hf synthesize" in output, "the resume command"
    before = num_records(tmp_path / "run")
    assert before > 0
    with TgiServer(demo_model_dir, model_id="demo") as restarted:
        here(*command(restarted, tmp_path / "run"))
    assert rows(tmp_path / "run") == reference[0]
    nothing_twice(tmp_path / "run")


def test_the_environment_of_runs_has_no_token():
    assert "HF_TOKEN" not in environment()


@pytest.mark.slow
def test_two_endpoints_share_the_work_and_one_that_dies_is_set_aside(server, demo_model_dir, reference, tmp_path):
    server.record.reset()
    dies = [Fault("reset", at=tuple(range(12, 10_000)))]
    with TgiServer(demo_model_dir, model_id="demo", faults=dies) as dying:
        settings = ["--endpoint", dying.url, "--set", "engine.backoff_s=[0.01, 0.1]"]
        here(*command(server, tmp_path / "run", *settings))
        assert dying.stats["completed"] > 0
    assert len(generating(server)) > 0
    assert rows(tmp_path / "run") == reference[0]
    nothing_twice(tmp_path / "run")


@pytest.mark.slow
def test_an_interrupt_does_not_wait_for_a_server_that_hangs(demo_model_dir, tmp_path):
    with TgiServer(demo_model_dir, model_id="demo", faults=[Fault("hang", at=tuple(range(20, 10_000)))]) as hanging:
        process = start(*command(hanging, tmp_path / "run"))
        wait_until(process, lambda: len(hanging.record.entries) >= 24)
        process.terminate()
        assert "Finished rows are kept" in finish(process, 130)
    assert num_records(tmp_path / "run") > 0
