"""The test split of a dataset: which rows are in it depends on the rows and the seed only."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from datasets import Dataset

    from ..storage.journal import Int64Array

_UNITS = ("group_id", "instruction", "uuid")


def held_out(dataset: Dataset, share: float, seed: int) -> Int64Array:
    """Return the positions of the rows of the test split, in order: `share` of the rows, rounded up.

    Near-duplicates (rows of one `group_id`, else of one instruction) are never in different splits. Groups are taken in
    the order of a hash of the seed and the group, so the order of the rows does not matter; a group that is larger than
    the remaining part of the split is skipped.
    """
    units = list(_units(dataset))
    sizes = Counter(units)
    left = math.ceil(round(len(units) * share, 9))
    picked = set()
    for unit in sorted(sizes, key=lambda unit: _hash(seed, unit)):
        if sizes[unit] <= min(left, len(units) - 1):
            picked.add(unit)
            left -= sizes[unit]
        if not left:
            break
    return np.flatnonzero([unit in picked for unit in units]).astype(np.int64)


def _units(dataset: Dataset) -> Iterator[str | None]:
    column = next(name for name in _UNITS if name in dataset.column_names)
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=10_000):
        yield from table[column].to_pylist()


def _hash(seed: int, unit: str | None) -> bytes:
    return hashlib.blake2b(f"{seed}:{unit}".encode("utf-8", "replace"), digest_size=16).digest()
