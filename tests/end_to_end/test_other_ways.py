"""The same rows on other servers and other days; a slow row that holds up nobody; budgets; retries."""

from __future__ import annotations

import datetime as dt

import pytest

import magpie_hf
from magpie_hf.errors import BudgetExceeded
from magpie_hf.storage.rundir import RunDir
from tests.end_to_end.harness import here, nothing_twice, num_records, rows
from tests.servers.completions_server import CompletionsServer
from tests.servers.faults import Fault
from tests.servers.tgi_server import TgiServer


NUM_ROWS = 12
RECIPE = {
    "model": "demo",
    "num_rows": NUM_ROWS,
    "sampling": {"max_tokens": 48},
    "stages": ["instructions", {"stage": "responses", "sampling": {"temperature": 0, "max_tokens": 48}}, "lengths"],
}


def run(engine, place, **more):
    return magpie_hf.run({**RECIPE, "engine": engine, **more}, output=place)


@pytest.mark.slow
def test_a_completions_server_with_token_ids_and_n_gives_whole_runs_and_takes_over_a_tgi_run(tmp_path, demo_model_dir):
    with CompletionsServer(demo_model_dir, model_id="demo") as server:
        run({"kind": "openai", "endpoint": server.url}, tmp_path / "run")
        asked = server.stats["requests"]
        assert asked < 2 * NUM_ROWS + 20, "instructions are asked for several at a time"
    assert len(rows(tmp_path / "run")) == NUM_ROWS
    with TgiServer(demo_model_dir, model_id="demo") as server:
        run({"kind": "tgi", "endpoint": server.url}, tmp_path / "run")
        assert server.stats["requests"] == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_transformers_serve_gives_a_whole_run(tmp_path, demo_model_dir):
    from tests.servers.transformers_serve import TransformersServe

    with TransformersServe(demo_model_dir) as server:
        engine = {"kind": "openai", "endpoint": server.url, "served_model_name": server.model}
        run(engine, tmp_path / "run", num_rows=4)
    table = rows(tmp_path / "run")
    assert len(table) == 4
    assert all(row["response"] for row in table)


@pytest.mark.slow
def test_a_slow_row_among_fast_ones_holds_up_nobody(tmp_path, demo_model_dir):
    """While the slow one is open, far more others are done than a window holds: nothing waits for it but the end."""
    with TgiServer(demo_model_dir, model_id="demo") as server:
        server.configure(faults=[Fault("delay", at=(6,), seconds=8.0)])
        engine = {"kind": "tgi", "endpoint": server.url, "concurrency": 4}
        magpie_hf.run(
            {**RECIPE, "num_rows": 80, "engine": engine, "stages": ["instructions"]}, output=tmp_path / "run"
        )
        log = [entry for entry in server.stats["log"] if entry["seed"] is not None]
    slow = max(log, key=lambda entry: entry["ended"] - entry["arrived"])
    others = [entry for entry in log if entry is not slow]
    assert slow["ended"] - slow["arrived"] > 7
    done_meanwhile = [entry for entry in others if slow["arrived"] < entry["ended"] < slow["ended"]]
    assert len(done_meanwhile) > 10 * engine["concurrency"]


DATED = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday is {{ strftime_now('%d %b %Y') }}.<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.mark.slow
def test_a_run_resumed_tomorrow_sends_the_same_bytes(tmp_path, demo_model_dir, monkeypatch):
    class Tomorrow(dt.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + dt.timedelta(days=1)

    settings = {"template": {"chat_template": DATED}, "budget": {"max_tokens_total": 900}}
    with TgiServer(demo_model_dir, model_id="demo") as server:
        engine = {"kind": "tgi", "endpoint": server.url, "concurrency": 4}
        with pytest.raises(BudgetExceeded):
            run(engine, tmp_path / "run", **settings)
        today = dt.datetime.now().astimezone().date()
        monkeypatch.setattr("magpie_hf.templates.template.dt.datetime", Tomorrow)
        run(engine, tmp_path / "run", **settings | {"budget": {}})
        other_day = run(engine, tmp_path / "other", **settings | {"budget": {}})
    prompts = {row["gen_input_configs"]["pre_query_template"] for row in rows(tmp_path / "run")}
    assert len(prompts) == 1
    assert today.strftime("%d %b %Y") in prompts.pop()
    assert today.strftime("%d %b %Y") not in other_day[0]["gen_input_configs"]["pre_query_template"]
    nothing_twice(tmp_path / "run")


@pytest.mark.slow
def test_a_budget_ends_a_run_that_then_goes_on(tmp_path, demo_model_dir):
    arguments = ["run", "quickstart", "--set", "num_rows=40", "--output", tmp_path / "run", "--rows", "0"]
    output = here(*arguments, "--set", "budget.max_tokens_total=1500", code=75)
    assert "max_tokens_total = 1,500 would be exceeded by another row" in output
    totals = RunDir.read(tmp_path / "run").state.totals
    assert 1000 < totals.tokens <= 1650, "what is in flight counts at its expected size"
    assert "magpie-hf run quickstart" in output
    kept = num_records(tmp_path / "run")
    assert kept > 0
    here(*arguments)
    assert len(rows(tmp_path / "run")) == 40
    nothing_twice(tmp_path / "run")


@pytest.mark.slow
def test_a_price_gives_the_cost_of_a_thousand_kept_rows(tmp_path, demo_model_dir):
    arguments = ["run", "quickstart", "--set", "num_rows=10", "--output", tmp_path / "run", "--rows", "0"]
    output = here(*arguments, "--set", "budget.price_per_gpu_hour=3.6")
    totals = RunDir.read(tmp_path / "run").state.totals
    assert totals.cost == pytest.approx(totals.engine_seconds / 1000)
    assert totals.cost_per_1000_rows == pytest.approx(totals.cost * 100)
    assert "per 1,000 kept rows" in output


@pytest.mark.slow
def test_rows_that_failed_for_good_are_retried_when_asked(tmp_path, demo_model_dir):
    with TgiServer(demo_model_dir, model_id="demo") as server:
        engine = {"kind": "tgi", "endpoint": server.url, "backoff_s": [0.01, 0.05]}
        run(engine, tmp_path / "run", stages=["instructions"])
        so_far = len(server.record.entries)  # then come two or three questions about the prompt, then the rows
        server.configure(faults=[Fault("status", at=(so_far + 6, so_far + 9), status=422)])
        run(engine, tmp_path / "run")
        server.configure(faults=[])
        failed = [row for row in rows(tmp_path / "run") if row["response"] is None]
        assert failed
        assert all(row["response_finish_reason"].startswith("error: ") for row in failed)
        output = here("retry", tmp_path / "run", "--errors", "validation", "--rows", "0")
        assert f"responses: {len(failed)} rows reopened" in output
    assert all(row["response"] is not None for row in rows(tmp_path / "run"))


@pytest.mark.slow
def test_a_probe_grades_the_demo_model(demo_model_dir):
    output = here("probe", "demo", "--num-samples", "16")
    assert "grade" in output
    assert "Best setting: temperature" in output
