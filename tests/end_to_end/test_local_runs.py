"""Runs of the bundled demo model on this machine: killed, locked out, grown, and called from everywhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

from magpie_hf.storage.rundir import RunDir
from tests.end_to_end.harness import (
    environment,
    finish,
    here,
    journal_bytes,
    kill_when,
    moments,
    nothing_twice,
    records,
    rows,
    start,
    start_cold,
    wait_until,
)


NUM_ROWS = 16
SETTINGS = [
    *("--set", "sampling.max_tokens=48", "--set", "stages.responses.sampling.max_tokens=48"),
    *("--set", "stages.turns.sampling.max_tokens=48", "--set", "stages.turns.response_sampling.max_tokens=48"),
    *("--set", "engine.batch_size=16", "--rows", "0"),
]


def command(output, *more, num_rows=NUM_ROWS):
    return [
        "synthesize",
        "--model",
        "demo",
        "--num-rows",
        num_rows,
        "--turns",
        2,
        "--output",
        output,
        *SETTINGS,
        *more,
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory, demo_model_dir):
    """An uninterrupted run: its rows and the size of its journals."""
    place = tmp_path_factory.mktemp("reference") / "run"
    here(*command(place))
    return rows(place), journal_bytes(place)


def check_kills(reference, place, seed, kills):
    """Kill at moments measured in journal bytes, so that each falls into the work and not into the start-up."""
    expected, size = reference
    for moment in moments(seed, kills, size):
        kill_when(start(*command(place)), lambda moment=moment: journal_bytes(place) >= moment)
    finish(start(*command(place)))
    assert rows(place) == expected
    nothing_twice(place)


@pytest.mark.slow
def test_killed_at_seeded_moments_the_run_ends_with_the_same_rows(reference, tmp_path):
    check_kills(reference, tmp_path / "run", seed=1, kills=2)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(2, 6))
def test_killed_at_twenty_moments_the_runs_end_with_the_same_rows(reference, tmp_path, seed):
    check_kills(reference, tmp_path / "run", seed=seed, kills=5)


@pytest.mark.slow
def test_another_batch_size_makes_the_same_rows(reference, tmp_path):
    here(*command(tmp_path / "run", "--set", "engine.batch_size=5"))
    assert rows(tmp_path / "run") == reference[0]


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_finished_and_prints_the_command_that_goes_on(reference, tmp_path):
    process = start(*command(tmp_path / "run"))
    wait_until(process, lambda: journal_bytes(tmp_path / "run") >= reference[1] / 3)
    process.terminate()
    output = finish(process, 130)
    assert "Traceback" not in output
    assert "Finished rows are kept" in output
    assert "magpie-hf synthesize --model demo" in output
    here(*command(tmp_path / "run"))
    assert rows(tmp_path / "run") == reference[0]
    nothing_twice(tmp_path / "run")


@pytest.mark.slow
def test_a_second_process_is_told_who_owns_the_run_and_can_take_it_over_without_loss(reference, tmp_path):
    place = tmp_path / "run"
    first = start(*command(place, num_rows=400))
    wait_until(first, lambda: journal_bytes(place) >= reference[1] / 4)
    refused = here(*command(place), code=1)
    assert f"belongs to process {first.pid}" in refused
    assert "Traceback" not in refused
    assert "instructions" in here("status", place)
    before = records(place)
    here(*command(place, "--take-over"))
    said = finish(first, 1)
    assert "was taken over by" in said
    assert "Traceback" not in said
    assert rows(place) == reference[0]
    after = records(place)
    assert all(set(counts) <= set(after[stage]) for stage, counts in before.items()), "no finished row was lost"
    assert len(RunDir.read(place).state.sessions) == 2, "the first owner wrote nothing over the second's state"


CALL = (
    "import magpie_hf; ds = magpie_hf.synthesize('demo', num_rows=3, output={output!r}, batch_size=16); print(len(ds))"
)


def test_a_run_works_inside_a_running_event_loop(tmp_path, demo_model_dir):
    import asyncio

    import magpie_hf

    async def cell():
        return magpie_hf.synthesize("demo", num_rows=3, output=tmp_path / "run", batch_size=16)

    assert len(asyncio.run(cell())) == 3


@pytest.mark.slow
def test_a_run_works_in_a_script_and_under_python_m(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(CALL.format(output=str(tmp_path / "run")))
    done = subprocess.run(
        [sys.executable, script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["3"]
    assert "3 rows" in finish(
        start_cold("synthesize", "--model", "demo", "--num-rows", 3, "--output", tmp_path / "run2", "--rows", 0)
    )


@pytest.mark.slow
def test_a_run_works_in_a_notebook(tmp_path):
    """IPython's kernel runs cells inside an event loop; its own shell does the same here, without a browser."""
    pytest.importorskip("IPython")
    cell = f"async def cell():\n    {CALL.format(output=str(tmp_path / 'run'))}\nawait cell()\n"
    notebook = tmp_path / "cell.ipy"
    notebook.write_text(cell)
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", str(notebook)],
        env=environment(IPYTHONDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert "3" in done.stdout.split()


def test_quickstart_ends_with_rows_counts_and_where_the_dataset_lies(tmp_path, demo_model_dir):
    place = tmp_path / "q"
    output = here("run", "quickstart", "--set", "num_rows=20", "--output", place)
    assert "USER:" in output
    assert "ASSISTANT:" in output
    assert "instructions" in output
    assert f"The dataset: {place}" in output
    table = rows(place)
    assert len(table) == 20
    assert list(table[0])[:6] == ["uuid", "model", "gen_input_configs", "instruction", "response", "instruction_2"]
    assert table[0]["messages"][0] == {"role": "user", "content": table[0]["instruction"]}
    state = RunDir.read(place).state
    assert state.ended_done
    assert state.totals.tokens > 0


def test_a_dataset_that_was_pushed_nowhere_is_a_plain_dataset(tmp_path, demo_model_dir):
    import datasets

    import magpie_hf

    dataset = magpie_hf.synthesize("demo", num_rows=4, output=tmp_path / "run", batch_size=16)
    assert type(dataset) is datasets.Dataset
    again = magpie_hf.synthesize("demo", num_rows=4, output=tmp_path / "run", batch_size=16)
    assert again._fingerprint == dataset._fingerprint
    assert dataset.filter(lambda row: len(row["instruction"]) > 0).num_rows == 4
