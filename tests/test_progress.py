from __future__ import annotations

import subprocess
import sys

import pytest

from magpie_hf.errors import ArgumentError, BudgetExceeded
from magpie_hf.execution.budget import Budget, InFlight
from magpie_hf.execution.driver import StageCounters
from magpie_hf.execution.progress import Listener, rates


@pytest.mark.parametrize(
    ("budget", "tokens", "seconds", "said"),
    [
        ({}, 10**12, 10**9, None),
        ({"max_tokens_total": 100}, 99, 0, None),
        ({"max_tokens_total": 100}, 100, 0, "max_tokens_total = 100 is reached (100 tokens)"),
        ({"max_hours": 2}, 0, 7199, None),
        ({"max_hours": 2}, 0, 7200, "max_hours = 2 is reached (2.00 h)"),
        ({"max_cost": 6, "price_per_gpu_hour": 3}, 0, 7199, None),
        ({"max_cost": 6, "price_per_gpu_hour": 3}, 0, 7200, "max_cost = 6 is reached (6.00)"),
        ({"max_cost": 6, "price_per_gpu_hour": 3, "num_gpus": 4}, 0, 1800, "max_cost = 6 is reached (6.00)"),
    ],
)
def test_a_budget_says_which_limit_is_reached(budget, tokens, seconds, said):
    limit = Budget(**budget).exceeded(tokens, seconds)
    assert (limit and limit.words()) == said


def test_a_price_gives_a_cost_and_without_one_there_is_none():
    assert Budget(price_per_gpu_hour=2.0, num_gpus=3).cost(1800) == 3.0
    assert Budget().cost(1800) is None


@pytest.mark.parametrize("given", [{"max_hours": 0}, {"max_hours": float("nan")}, {"num_gpus": -1}, {"max_cost": 5}])
def test_a_budget_that_cannot_be_used_is_named(given):
    with pytest.raises(ArgumentError, match="|".join(given)):
        Budget(**given)


@pytest.mark.parametrize(
    ("budget", "row", "said"),
    [
        (
            {"max_tokens_total": 100},
            (11, 0),
            "max_tokens_total = 100 would be exceeded by another row (used: 90 tokens; ",
        ),
        (
            {"max_hours": 2},
            (0, 3601),
            "max_hours = 2 would be exceeded by another row (used: 1.00 h; a row may use 1.00 h)",
        ),
        ({"max_cost": 6, "price_per_gpu_hour": 4}, (0, 1801), "(used: 4.00; a row may use 2.00)"),
    ],
)
def test_a_row_that_would_pass_a_limit_is_not_started(budget, row, said):
    limit = Budget(**budget).exceeded(90, 3600, *row)
    assert said in limit.words()
    assert Budget(**budget).exceeded(90, 3600, row[0] - 1, row[1] - 1) is None


def test_all_stages_and_earlier_sessions_are_counted_in():
    listener = Listener(Budget(max_tokens_total=100, max_hours=1), show=False, spent=lambda stage: (40, 1800.0))
    counters, nothing = StageCounters(prompt_tokens=20, completion_tokens=39), InFlight()
    listener.stage_begins("responses", counters)
    counters.generated = 10**9
    assert listener.fits_budget(counters, nothing, 1)
    counters.completion_tokens += 1
    assert not listener.fits_budget(counters, nothing, 1)
    with pytest.raises(BudgetExceeded, match=r'stage "responses": max_tokens_total = 100 is reached') as caught:
        listener.stopped(counters, nothing, 1)
    assert "Raise the limit" in caught.value.hint
    assert {k: caught.value.data[k] for k in ("limit", "value", "spent")} == {
        "limit": "max_tokens_total", "value": 100, "spent": 100,
    }  # fmt: skip
    counters = StageCounters(seconds=1799.0)
    assert listener.fits_budget(counters, nothing, 1)
    assert not listener.fits_budget(counters, InFlight(finished=2, row_seconds=4.0), 1), "a row takes 2 s, 1 is left"
    counters.seconds = 1800.0
    assert not listener.fits_budget(counters, nothing, 1)


def test_after_the_first_per_cent_a_budget_that_is_too_small_is_reported(caplog):
    listener = Listener(Budget(max_tokens_total=10_000), show=False)
    counters = StageCounters(total=10_000, seconds=1.0)
    listener.stage_begins("responses", counters)
    with caplog.at_level("INFO", "magpie_hf"):
        for _ in range(200):
            counters.done += 1
            counters.session_rows += 1
            counters.completion_tokens += 10
            listener.row_finished(counters)
    assert caplog.text.count("projected 100,000 tokens") == 1
    assert caplog.text.count("the limit is 10,000 tokens, and 100,000 tokens are projected") == 1


def test_a_bar_counts_accepted_rows_where_some_are_rejected(capsys):
    listener = Listener(show=True)
    counters = StageCounters(total=10, accepted=0)
    listener.stage_begins("instructions", counters)
    counters.done, counters.accepted, counters.by_code = 5, 3, {"ok": 3, "empty": 2}
    listener.row_finished(counters)
    assert listener._bar.n == 3
    listener.stage_ends("instructions", counters)
    assert "2 rejected" in rates(counters)
    assert "instructions" in capsys.readouterr().err


def test_nothing_is_drawn_when_it_is_not_wanted(capsys):
    listener = Listener(show=False)
    listener.stage_begins("instructions", StageCounters(total=10))
    listener.row_finished(StageCounters(total=10, done=1))
    listener.stage_ends("instructions", StageCounters(total=10, done=1))
    assert capsys.readouterr().err == ""


def test_a_bar_is_shown_as_datasets_shows_its_own(capsys, monkeypatch):
    import datasets

    def drawn():
        listener = Listener()
        listener.stage_begins("instructions", StageCounters(total=10))
        listener.stage_ends("instructions", StageCounters(total=10))
        return capsys.readouterr().err

    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    datasets.enable_progress_bars()
    assert "instructions" in drawn()
    datasets.disable_progress_bars()
    try:
        assert drawn() == ""
    finally:
        datasets.enable_progress_bars()


SCRIPT = """
import logging, sys
SETUP
from magpie_hf.execution.progress import log_lines_shown, logger, show_summary
with log_lines_shown():
    logger.info("a line")
    show_summary("Saved in here")
logging.basicConfig(format="mine: %(message)s", level=logging.INFO, force=True)
logger.info("a later line")
"""


@pytest.mark.parametrize(
    ("setup", "shown"),
    [
        ("", ["a line", "Saved in here", "mine: a later line"]),
        ("logging.basicConfig()", ["Saved in here", "mine: a later line"]),
        (
            "logging.basicConfig(level=logging.INFO, format='%(message)s')",
            ["a line", "Saved in here", "mine: a later line"],
        ),
        ("logging.getLogger('magpie_hf').setLevel(logging.WARNING)", []),
        ("logging.basicConfig(); logging.getLogger('magpie_hf').setLevel(logging.WARNING)", []),
    ],
    ids=["no logging", "root at WARNING", "root at INFO", "level of ours", "root and level of ours"],
)
def test_the_summary_is_shown_whatever_logging_the_script_has_set_up(setup, shown):
    script = SCRIPT.replace("SETUP", setup)
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert made.stderr.splitlines() == shown


def test_no_rate_is_named_before_there_is_a_time():
    counters = StageCounters(total=10, session_rows=1, session_tokens=40)
    assert rates(counters) == ""
    counters.session_seconds = 2.0
    assert rates(counters) == "0.5 rows/s, 20 tokens/s"
    assert rates(counters, rows=False) == "20 tokens/s", "the bar shows the rows itself"
    counters.session_tokens = 0
    assert rates(counters) == "0.5 rows/s", "embeddings and searches generate no tokens"
