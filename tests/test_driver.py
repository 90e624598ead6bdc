"""The loop between rows, engine and journal, on an engine whose every answer a test decides."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magpie_hf.engines.base import Capabilities, Engine, EngineStats, Failure, Generation, Prompt, Served
from magpie_hf.errors import BudgetExceeded, ModelMismatchError, TooManyFailures
from magpie_hf.execution.budget import Budget
from magpie_hf.execution.driver import FAILURE_WINDOW_MIN, Driver, OpenRow, StageCounters
from magpie_hf.execution.progress import Listener
from magpie_hf.sampling import SamplingParams
from magpie_hf.stage import CODE_NUMBERS, Ask, Outcome, failed
from magpie_hf.storage.journal import Journal, halves_key


DOWN = Failure("timeout", True, "no answer")
REFUSED = Failure("too_long", False, "too long")


class Scripted(Engine):
    """Has `window` requests in flight, finishes them in the order that `pick` says, answers what `answer` gives."""

    def __init__(self, answer=None, window=4, pick=lambda count: 0):
        self.answer = answer or (lambda request, number: Generation(request.key, text=request.prompt.text.upper()))
        self.window, self.pick = window, pick
        self.stats = EngineStats()
        self.asked: list[str] = []
        self.most_in_flight = self.pulled_nothing = 0
        self.closed = False

    def identity(self):
        return {}

    def open(self):
        pass

    def close(self):
        pass

    def capabilities(self):
        return Capabilities()

    def generate(self, requests):
        flying = deque()
        try:
            for request in requests:
                if request is None:
                    assert flying, "None comes only while something is in flight"
                    self.pulled_nothing += 1
                else:
                    self.asked.append(request.prompt.text)
                    assert request.key not in {other.key for other in flying}
                    flying.append(request)
                    self.most_in_flight = max(self.most_in_flight, len(flying))
                    if len(flying) < self.window:
                        continue
                yield self._finish(flying)
            while flying:
                yield self._finish(flying)
        finally:
            self.closed = True

    def _finish(self, flying):
        flying.rotate(-self.pick(len(flying)))
        self.stats.requests += 1
        return self.answer(flying.popleft(), self.stats.requests - 1)


class Quiet:
    """A listener that accepts no more rows after `stop_at` rows are finished."""

    counts_tokens = False

    def __init__(self, stop_at=None):
        self.stop_at, self.heard = stop_at, 0

    def row_finished(self, counters):
        self.heard += 1

    def fits_budget(self, counters, in_flight, bound):
        return self.stop_at is None or counters.done < self.stop_at

    def stopped(self, counters, in_flight, bound):
        raise BudgetExceeded("enough")


def conversation(row):
    """As many requests as the row says, the answers joined."""
    said = []
    for step in range(row["steps"]):
        generation = yield Ask(Prompt(f"{row['name']}.{step}"), SamplingParams())
        if generation.failure is not None:
            return failed(generation)
        said.append(generation.text)
    return Outcome({"said": said})


def rows_of(steps):
    for number, count in enumerate(steps):
        yield OpenRow(number, number.to_bytes(16, "big"), {"name": f"r{number}", "steps": count})


class Bench:
    """A driver with all that it needs."""

    def __init__(self, place, engine=None, listener=None, **options):
        self.engine, self.listener = engine or Scripted(), listener or Quiet()
        self.journal = Journal(place)
        self.counters = StageCounters()
        self.done: list[int] = []
        self.dropped: list[int] = []
        self.driver = Driver(
            self.engine,
            self.journal,
            conversation,
            finished=lambda row, location, code: self.done.append(row.position),
            counters=self.counters,
            listener=self.listener,
            code_numbers=CODE_NUMBERS,
            dropped=lambda row: self.dropped.append(row.position),
            **options,
        )

    def records(self):
        index = self.journal.index()
        return {
            int.from_bytes(halves_key(key), "big"): (self.journal.read(int(at)), int(code))
            for key, at, code in zip(index.keys, index.locations, index.codes, strict=True)
        }


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=25), st.integers(1, 9), st.randoms(use_true_random=False))
def test_every_row_is_finished_once_with_its_own_answers_in_any_order(tmp_path_factory, steps, window, random):
    engine = Scripted(window=window, pick=lambda count: random.randrange(count))
    bench = Bench(tmp_path_factory.mktemp("j"), engine)
    with bench.journal:
        bench.driver.run(rows_of(steps))
        found = bench.records()
    assert sorted(bench.done) == list(range(len(steps)))
    assert {n: record["said"] for n, (record, _) in found.items()} == {
        n: [f"R{n}.{step}" for step in range(count)] for n, count in enumerate(steps)
    }
    assert engine.most_in_flight <= window
    assert bench.counters.done == bench.listener.heard == len(steps)


def test_rows_are_opened_only_when_the_engine_has_capacity(tmp_path):
    opened = []

    def rows():
        for row in rows_of([1] * 1000):
            opened.append(row.position)
            assert len(opened) - len(bench.done) <= 4, "no more rows are open than are in flight"
            yield row

    bench = Bench(tmp_path)
    with bench.journal:
        bench.driver.run(rows())
    assert len(bench.done) == 1000


def test_one_slow_row_holds_up_no_other(tmp_path):
    """The first row's answer comes last of all: the others go through meanwhile."""
    bench = Bench(tmp_path, Scripted(window=4, pick=lambda count: 1 if count > 1 else 0))
    with bench.journal:
        bench.driver.run(rows_of([1] * 200))
    assert bench.done[-1] == 0
    assert bench.engine.most_in_flight == 4


def test_rows_that_depend_on_those_in_flight_are_waited_for(tmp_path):
    """`rows` gives None until all that is open is done, then more."""
    bench = Bench(tmp_path)

    def rows():
        for number, row in enumerate(rows_of([1] * 6)):
            while number == 3 and len(bench.done) < 3:
                yield None
            yield row

    with bench.journal:
        bench.driver.run(rows())
    assert len(bench.done) == 6
    assert bench.engine.pulled_nothing > 0


def test_nothing_in_flight_and_nothing_given_is_a_fault_of_ours(tmp_path):
    bench = Bench(tmp_path)
    with bench.journal, pytest.raises(RuntimeError, match="no row is in flight"):
        bench.driver.run(iter([None]))


def test_transient_failures_leave_the_row_open_and_permanent_ones_finish_it(tmp_path):
    def answer(request, number):
        failures = {"r1.0": DOWN, "r2.1": DOWN, "r3.0": REFUSED}
        return Generation(request.key, text="x", failure=failures.get(request.prompt.text))

    bench = Bench(tmp_path, Scripted(answer))
    with bench.journal:
        bench.driver.run(rows_of([2] * 5))
        found = bench.records()
    assert sorted(bench.dropped) == [1, 2]
    assert sorted(found) == [0, 3, 4]
    assert found[3] == ({"error": "too_long", "message": "too long"}, CODE_NUMBERS["too_long"])
    assert (bench.counters.pending, bench.counters.by_code) == (2, {"ok": 2, "too_long": 1})


def test_accepted_transient_failures_finish_the_row_as_failed(tmp_path):
    bench = Bench(tmp_path, Scripted(lambda r, n: Generation(r.key, failure=DOWN)), accept_failures=True)
    with bench.journal:
        bench.driver.run(rows_of([1]))
        assert bench.records()[0] == ({"error": "timeout", "message": "no answer"}, CODE_NUMBERS["failed"])


def test_the_breaker_opens_when_most_requests_fail_and_names_the_last_reason(tmp_path):
    bench = Bench(tmp_path, Scripted(lambda r, n: Generation(r.key, text="x", failure=DOWN if n % 3 else None)))
    with bench.journal, pytest.raises(TooManyFailures, match="no answer") as caught:
        bench.driver.run(rows_of([1] * 1000))
    assert caught.value.data["window"] == FAILURE_WINDOW_MIN
    assert bench.engine.closed


@pytest.mark.parametrize("code", ["content_filter", "refusal"])
def test_withheld_texts_do_not_open_the_breaker(tmp_path, code):
    withheld = Failure(code, False, "withheld")
    bench = Bench(tmp_path, Scripted(lambda r, n: Generation(r.key, failure=withheld)))
    with bench.journal:
        bench.driver.run(rows_of([1] * (2 * FAILURE_WINDOW_MIN)))
    assert bench.counters.by_code == {code: 2 * FAILURE_WINDOW_MIN}


def test_the_breaker_stays_shut_at_half_and_forgets_what_is_long_past(tmp_path):
    def answer(request, number):
        is_down = number % 2 == 1 if number < 900 else 900 <= number < 1100
        return Generation(request.key, text="x", failure=DOWN if is_down else None)

    bench = Bench(tmp_path, Scripted(answer))
    with bench.journal, pytest.raises(TooManyFailures):
        bench.driver.run(rows_of([1] * 2000))
    assert 900 < bench.engine.stats.requests < 910


def test_a_budget_opens_no_new_row_and_loses_nothing_in_flight(tmp_path):
    bench = Bench(tmp_path, Scripted(window=8), Quiet(stop_at=20))
    with bench.journal, pytest.raises(BudgetExceeded):
        bench.driver.run(rows_of([1] * 100))
    assert len(bench.engine.asked) == len(bench.done) == 27, "20 and the 7 that were in flight"


def test_rows_in_flight_are_finished_when_a_budget_ends_the_run_and_rows_without_requests_too(tmp_path):
    bench = Bench(tmp_path, Scripted(window=8), Quiet(stop_at=20))
    with bench.journal, pytest.raises(BudgetExceeded):
        bench.driver.run(rows_of([1] * 20 + [5] * 50))
    assert len(bench.done) == 27, "the 7 conversations in flight are paid for: they are finished"
    assert len(bench.engine.asked) == 20 + 7 * 5
    assert (bench.driver.in_flight.rows, bench.driver.in_flight.bound, bench.driver.in_flight.received) == (0, 0, 0)


def test_a_limit_that_does_not_fit_unneeded_rows_stops_nothing(tmp_path):
    bench = Bench(tmp_path, Scripted(window=8), Quiet(stop_at=20))
    with bench.journal:
        bench.driver.run(rows_of([1] * 100), is_short=lambda: len(bench.done) < 20)
    assert len(bench.done) == 27


def spending(tokens):
    """Answer with that many tokens by request number, after prompts of 2."""
    return lambda request, number: Generation(
        request.key, text="x", prompt_tokens=2, completion_tokens=tokens[number % len(tokens)]
    )


@pytest.mark.parametrize("window", [1, 8, 512])
@pytest.mark.parametrize("limit", [1500, 2600, 20_000])
@pytest.mark.parametrize("sizes", [[38], [8, 58, 20, 100], [5] * 9 + [400]], ids=["equal", "mixed", "long tail"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_limit_of_tokens_is_kept_whatever_is_in_flight(tmp_path, window, limit, sizes, steps):
    budget = Listener(Budget(max_tokens_total=limit), show=False)
    bench = Bench(tmp_path, Scripted(spending(sizes), window=window), budget)
    with bench.journal, pytest.raises(BudgetExceeded, match=f"max_tokens_total = {limit:,}") as caught:
        bench.driver.run(rows_of([steps] * 3000))
    total = bench.counters.prompt_tokens + bench.counters.completion_tokens
    assert 0.5 * limit < total < 1.1 * limit
    assert caught.value.data["spent"] == total


def test_a_limit_below_a_rows_longest_size_starts_nothing(tmp_path):
    bench = Bench(tmp_path, Scripted(spending([10])), Listener(Budget(max_tokens_total=900), show=False))
    with (
        bench.journal,
        pytest.raises(BudgetExceeded, match=r"would be exceeded .*used: 0 tokens; a row may use 1,0\d\d tokens"),
    ):
        bench.driver.run(rows_of([1] * 10))
    assert bench.engine.asked == bench.done == []


def test_a_limit_that_is_never_in_the_way_ends_nothing(tmp_path):
    bench = Bench(tmp_path, Scripted(spending([10])), Listener(Budget(max_tokens_total=50_000), show=False))
    with bench.journal:
        bench.driver.run(rows_of([1] * 100))
    assert len(bench.done) == 100


def test_an_interrupt_closes_the_engines_iterator_and_keeps_what_is_finished(tmp_path):
    def answer(request, number):
        if number == 10:
            raise KeyboardInterrupt
        return Generation(request.key, text="x")

    bench = Bench(tmp_path, Scripted(answer))
    with bench.journal, pytest.raises(KeyboardInterrupt):
        bench.driver.run(rows_of([1] * 100))
    assert bench.engine.closed
    assert set(bench.records()) == set(bench.done) == set(range(10))
    bench.journal.close()


def test_a_change_of_model_is_reported_before_the_row_is_saved(tmp_path):
    def answer(request, number):
        return Generation(request.key, text="x", served=Served(model="m", revision="new" if number >= 5 else "old"))

    seen = []

    def check(served):
        seen.append(served.revision)
        if served.revision == "new":
            raise ModelMismatchError("changed")

    bench = Bench(tmp_path, Scripted(answer), check_served=check)
    with bench.journal, pytest.raises(ModelMismatchError):
        bench.driver.run(rows_of([1] * 20))
    assert seen == ["old", "new"], "asked only when it differs from the last reply"
    assert len(bench.done) == 5


def test_tokens_and_retries_are_those_of_this_stage(tmp_path):
    def answer(request, number):
        bench.engine.stats.retries += 1
        return Generation(request.key, text="x", prompt_tokens=3, completion_tokens=None if number else 5)

    bench = Bench(tmp_path, Scripted(answer))
    bench.engine.stats.retries = 100  # of an earlier stage on the same engine
    with bench.journal:
        bench.driver.run(rows_of([2, 2]))
        index = bench.journal.index()
    assert (bench.counters.prompt_tokens, bench.counters.completion_tokens, bench.counters.retries) == (12, 5, 4)
    assert (int(index.prompt_tokens.sum()), int(index.completion_tokens.sum())) == (12, 5)
    assert bench.counters.counts().completion_tokens == 5, "without the counts of this session"
