"""The rejected samples of a run, read from the journal with their reasons.

These are the rejected samples before the last accepted one that the dataset needs, so they do not depend on how many samples
were in flight at the end. Samples without a text, because their request failed, are left out.
"""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..sampling import GridPoint
from ..stage import CODE_NUMBERS
from ..stages.instructions import REASONS, Instructions, point_key
from ..storage.hashing import stable_hash
from ..storage.journal import Index, Journal
from .candidates import WHOLE, Candidates, Shard, needed_per_point, samples_key
from .environment import Environment
from .runner import collector
from .store import StageStore


if TYPE_CHECKING:
    from datasets import Dataset


_CODES = [CODE_NUMBERS[reason] for reason in (*REASONS, "banned_start")]


class RejectedStore(StageStore):
    """The store of the instructions, with an Arrow file of its own for the rejected samples."""

    def __init__(self, stage: Instructions, env: Environment, num_rows: int, shard: Shard) -> None:
        super().__init__(stage, env, "samples", samples_key(stage, num_rows, shard))
        self.stage = self.all_kept = replace(stage, reject=())  # its rows have the column `rejection_reason`

    @property
    def cache_file(self) -> Path:
        """The Arrow file of the rejected samples."""
        return self.directory / f"{self.fingerprint}-rejected.arrow"


def rejected_samples(stage: Instructions, num_rows: int, env: Environment, shard: Shard = WHOLE) -> Dataset:
    """Return the rejected samples of a run whose instructions are finished, by grid point and number.

    Their columns are those of the instructions and `rejection_reason`.
    """
    store = RejectedStore(stage, env, num_rows, shard)
    if not store.is_whole():
        with Journal(store.directory / "journal") as journal:
            needs = needed_per_point([point.share for point in stage.grid], num_rows, shard)
            _write(stage, env, store, journal, needs, shard)
    rows = store.require_cached()
    rows._fingerprint = stable_hash([store.fingerprint, "rejected"], 32)
    return rows


def _write(
    stage: Instructions, env: Environment, store: RejectedStore, journal: Journal, needs: list[int], shard: Shard
) -> None:
    from datasets import Dataset, Features, Value

    index = journal.index()
    rows = {"grid_point": array("q"), "sample_index": array("q")}
    locations, codes = array("q"), array("B")
    for number, point in enumerate(stage.grid):
        for sample, location, code in _rejected(number, point, index, needs[number], shard):
            rows["grid_point"].append(number)
            rows["sample_index"].append(sample)
            locations.append(location)
            codes.append(code)
    columns = {name: np.frombuffer(values, dtype=np.int64) for name, values in rows.items()}
    source = Dataset.from_dict(columns, features=Features({name: Value("int64") for name in rows}))
    found = np.frombuffer(locations, dtype=np.int64), np.frombuffer(codes, dtype=np.uint8)
    store.write(source, collector(store.all_kept, env, journal, *found), remove=list(rows))


def _rejected(number: int, point: GridPoint, index: Index, needed: int, shard: Shard) -> list[tuple[int, int, int]]:
    """Return the number, location and code of each rejected sample before the last one that was chosen."""
    candidates = Candidates(number, point_key(point), needed, shard)
    at = candidates.load(index)
    chosen, _ = candidates.chosen()
    if not chosen:
        return []
    is_before = (index.keys[at, 1] < chosen[-1]) & np.isin(index.codes[at], _CODES)
    found = at[is_before]
    return list(
        zip(index.keys[found, 1].tolist(), index.locations[found].tolist(), index.codes[found].tolist(), strict=True)
    )
