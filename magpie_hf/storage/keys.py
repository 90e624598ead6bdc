"""Keys of rows, and content fingerprints of datasets that were not produced by a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .journal import KeyArray, key_halves


if TYPE_CHECKING:
    from datasets import Dataset


_seen: dict[tuple[str, int, tuple[str, ...]], str] = {}
"""Cache of content hashes by `Dataset._fingerprint`, which is valid within a process; hashing 1M rows takes 20 s."""


def content_fingerprint(dataset: Dataset) -> str:
    """Hash the column names and all values of a dataset, in order; its path and date do not matter.

    Included is what features say of the values: the names of a `ClassLabel`, and `Value.id`, where the order of labels
    is stored. Finished stages keep the features, and conditions depend on that order.
    """
    known = (str(dataset._fingerprint), len(dataset), tuple(dataset.column_names))
    if known not in _seen:
        _seen[known] = _hash_content(dataset)
    return _seen[known]


def _hash_content(dataset: Dataset) -> str:
    columns = sorted(dataset.column_names)
    digest = hashlib.blake2b(json.dumps(columns).encode(), digest_size=16)
    meanings = _meanings(dataset)
    if meanings:
        digest.update(json.dumps(meanings, sort_keys=True).encode())
    for keys in _key_batches(dataset, columns):
        digest.update(b"".join(keys))
    return digest.hexdigest()


def _meanings(dataset: Dataset) -> dict[str, list[object]]:
    """Return `id` and `names` of each column's feature that has one of them; of a list, those of its entries."""
    found: dict[str, list[object]] = {}
    for name, feature in dataset.features.items():
        entries = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
        given = [getattr(entries, "id", None), getattr(entries, "names", None)]
        if any(given):
            found[name] = given
    return found


def _key_batches(dataset: Dataset, columns: Sequence[str]) -> Iterator[list[bytes]]:
    blake2b, dumps = hashlib.blake2b, json.dumps
    # As Arrow, so that images and audio are hashed as stored, not decoded.
    for table in dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=1000):
        rows = zip(*(table.column(column).to_pylist() for column in columns), strict=True)
        yield [
            blake2b(dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace"), digest_size=16).digest()
            for row in rows
        ]


def row_keys(dataset: Dataset, reads: Sequence[str]) -> KeyArray:
    """Return the key of each row: (num_rows, 2) uint64.

    The key is a hash of the columns in `reads`, the `uuid` of the row (if any), and a counter for equal rows.
    """
    columns = [*reads, *(["uuid"] if "uuid" in dataset.column_names and "uuid" not in reads else [])]
    keys = np.empty((len(dataset), 2), dtype=np.uint64)
    at = 0
    for batch in _key_batches(dataset, columns):
        keys[at : at + len(batch)] = key_halves(batch)
        at += len(batch)
    _number_equal(keys)
    return keys


def _number_equal(keys: KeyArray) -> None:
    """Change the keys of equal rows in place: a counter makes them different."""
    if len(keys) < 2:
        return
    order = np.lexsort((np.arange(len(keys)), keys[:, 1], keys[:, 0]))
    repeats = np.r_[False, (keys[order][1:] == keys[order][:-1]).all(axis=1)]
    number = 0
    for place in np.flatnonzero(repeats):
        number = number + 1 if repeats[place - 1] else 1
        row = order[place]
        digest = hashlib.blake2b(keys[row].tobytes() + number.to_bytes(8, "little"), digest_size=16).digest()
        keys[row] = key_halves([digest])[0]
