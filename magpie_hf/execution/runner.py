"""Run a stage on a dataset: from its cache file, from its journal, or by computing the missing rows."""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import RowsPending
from ..sampling import SEED_MODULUS
from ..stage import (
    CODE_NUMBERS,
    CODES,
    ROW_INDEX,
    Batch,
    BatchStage,
    Columns,
    ModelStage,
    RowStage,
    SetStage,
    Stage,
    Workspace,
)
from ..storage.journal import Int64Array, Journal, KeyArray
from ..storage.keys import row_keys
from .budget import InFlight, mean_tokens
from .driver import Driver, OpenRow, StageCounters
from .environment import Environment
from .store import StageStore


if TYPE_CHECKING:
    from datasets import Dataset


def run_stage(stage: Stage, dataset: Dataset, env: Environment) -> Dataset:
    """Apply a stage to a dataset: from the cache, from the journal, or by computing the missing rows.

    Raises:
        DatasetError: a column is missing.
        RowsPending: some rows had transient failures only; all finished rows are kept.
        RunStopped: a budget or the circuit breaker stopped the run.
    """
    stage.check_columns(dataset)
    store = StageStore(stage, env, env.fingerprint_of(dataset), stage.shown or None)
    cached = store.cached()
    if cached is not None:
        return cached
    if isinstance(stage, (RowStage, ModelStage)):
        return _run_row_stage(stage, dataset, env, store)
    if isinstance(stage, SetStage):
        return _run_set_stage(stage, dataset, env, store)
    assert isinstance(stage, BatchStage)  # noqa: S101 (the only other kind)
    function = stage.bind(env.context(stage))
    store.write(dataset, lambda batch, _: function(batch))
    store.done(len(dataset), len(dataset))
    return store.require_cached()


def _run_set_stage(stage: SetStage, dataset: Dataset, env: Environment, store: StageStore) -> Dataset:
    env.close_engine()
    directory = store.directory / f"work-{store.fingerprint[:12]}"
    work = Workspace(directory, env.run_dir.path / "stages" / "shared", env.context(stage), env.listener)
    started = time.monotonic()
    store.state.status = "running"
    env.run_dir.save()
    result = stage.apply(dataset, work)
    if result.indices is None:
        store.write_columns(dataset, result.columns)
        kept = len(dataset)
    else:
        store.write_rows(dataset, result.indices)
        kept = len(result.indices)
    store.state.report = dict(result.report)
    store.state.seconds += time.monotonic() - started
    store.done(len(dataset), kept)
    shutil.rmtree(directory, ignore_errors=True)
    return store.require_cached()


def _run_row_stage(stage: RowStage | ModelStage, dataset: Dataset, env: Environment, store: StageStore) -> Dataset:
    keys = row_keys(dataset, stage.needs)
    with Journal(store.directory / "journal", segment_age_s=env.segment_age_s) as journal:
        index = journal.index()
        note_damage(env, journal, stage.label)
        at = index.find(keys)
        locations = np.where(at >= 0, index.locations[at] if len(index.locations) else -1, -1).astype(np.int64)
        codes = np.where(at >= 0, index.codes[at] if len(index.codes) else 0, 0).astype(np.uint8)
        counters = store.counters(journal, index, at[at >= 0])
        counters.total = len(dataset)
        del index, at
        missing = np.flatnonzero(locations < 0)
        if len(missing):

            def finished(row: OpenRow, location: int, code: int) -> None:
                locations[row.position], codes[row.position] = location, code

            if isinstance(stage, RowStage):
                with drive(stage, env, store, journal, counters, finished) as driver:
                    driver.run(_open_rows(dataset, stage.needs, missing, keys))
            else:
                rows = _open_rows(dataset, stage.needs, missing, keys)
                score_rows(stage, env, store, journal, counters, rows, finished)
        check_pending(stage.label, int((locations < 0).sum()), len(dataset))
        collect = collector(stage, env, journal, locations, codes)
        store.write(dataset, collect, remove=_outdated(dataset, stage, env))
    store.done(len(dataset), len(dataset), counters)
    return store.require_cached()


def _outdated(dataset: Dataset, stage: Stage, env: Environment) -> list[str]:
    """Return the columns of the input that a stage makes outdated, and log their names: they are dropped."""
    names = [name for name in stage.drops if name in dataset.column_names]
    if names:
        env.listener.note(f"{stage.label}: outdated columns of the earlier texts are dropped: {', '.join(names)}.")
    return names


def note_damage(env: Environment, journal: Journal, name: str) -> None:
    """Log the number of damaged segments, whose rows are computed again."""
    if journal.damaged:
        env.listener.note(f"{name}: {journal.damaged} damaged journal segment(s); their rows are computed again.")


def check_pending(name: str, pending: int, total: int) -> None:
    """Raise RowsPending if rows are unfinished."""
    if pending:
        raise RowsPending(
            f'Stage "{name}": {pending} of {total} rows are unfinished after transient failures.',
            hint="Run the same command again to retry only these rows, or add --accept-failures to finish them as errors.",
            pending=pending,
        )


def _open_rows(dataset: Dataset, reads: Sequence[str], missing: Int64Array, keys: KeyArray) -> Iterator[OpenRow]:
    """Yield the missing rows with the columns that the stage reads, a block of rows at a time."""
    narrow = dataset.select_columns([*reads]).with_format(None)
    for start in range(0, len(missing), 256):
        positions = missing[start : start + 256]
        batch = narrow[positions]
        for offset, position in enumerate(positions):
            values = {column: batch[column][offset] for column in reads}
            values[ROW_INDEX] = int(keys[position, 0] % SEED_MODULUS)
            yield OpenRow(int(position), keys[position].astype(">u8").tobytes(), values)


def collector(
    stage: RowStage | ModelStage,
    env: Environment,
    journal: Journal,
    locations: Int64Array,
    codes: npt.NDArray[np.uint8],
) -> Callable[[Batch, Sequence[int]], Columns]:
    """Return the function for `Dataset.map`: it only collects finished rows, in order."""
    context = env.context(stage)
    names = list(stage.features())

    def collect(batch: Batch, indices: Sequence[int]) -> Columns:
        out: Columns = {name: [] for name in names}
        columns = {name: batch[name] for name in batch}
        for offset, position in enumerate(indices):
            row = {name: values[offset] for name, values in columns.items()}
            record = journal.read(int(locations[position]))
            new = stage.columns(context, row, record, CODES[codes[position]])
            for name in names:
                out[name].append(new[name])
        return out

    return collect


def score_rows(
    stage: ModelStage,
    env: Environment,
    store: StageStore,
    journal: Journal,
    counters: StageCounters,
    rows: Iterator[OpenRow],
    finished: Callable[[OpenRow, int, int], None],
) -> None:
    """Score rows with the stage's own model and journal them, in blocks that fit into the budget."""
    env.close_engine()
    context = env.context(stage)
    with report_progress(stage, env, store, counters), stage.open(context) as scorer:
        started, base = time.monotonic(), counters.seconds
        for row in rows:
            count = env.listener.rows_that_fit(counters, stage.block_rows)
            if not count:
                env.listener.stopped(counters, InFlight(), math.ceil(mean_tokens(counters)))
            block = [row, *itertools.islice(rows, count - 1)]
            for scored, outcome in zip(block, scorer([row.values for row in block]), strict=True):
                number = CODE_NUMBERS[outcome.code]
                location = journal.append(scored.key, outcome.record, code=number, prompt_tokens=outcome.tokens)
                counters.session_seconds = time.monotonic() - started
                counters.add_row(outcome.code, outcome.tokens)
                counters.seconds = base + counters.session_seconds
                finished(scored, location, number)
                env.listener.row_finished(counters)


@contextlib.contextmanager
def report_progress(stage: Stage, env: Environment, store: StageStore, counters: StageCounters) -> Iterator[None]:
    """Show the progress of the stage, and save its counts in run.json."""
    env.listener.stage_begins(stage.label, counters, key=store.directory.name)
    env.listener.on_save = store.save
    store.begin(counters)
    try:
        yield
    finally:
        env.listener.stage_ends(stage.label, counters)
        store.save(counters)


@contextlib.contextmanager
def drive(
    stage: RowStage,
    env: Environment,
    store: StageStore,
    journal: Journal,
    counters: StageCounters,
    finished: Callable[[OpenRow, int, int], None],
    dropped: Callable[[OpenRow], None] | None = None,
) -> Iterator[Driver]:
    """Open the engine, bind the stage, and yield a driver; the counts are saved regularly and at the end."""
    engine = env.open_engine()
    store.check_served(engine)
    steps = stage.bind(env.context(stage, engine))
    driver = Driver(
        engine,
        journal,
        steps,
        finished=finished,
        counters=counters,
        listener=env.listener,
        accept_failures=env.accept_failures,
        code_numbers=CODE_NUMBERS,
        check_served=store.check_reply,
        dropped=dropped,
    )
    with report_progress(stage, env, store, counters):
        yield driver
