"""`decontamination`: rows that hold a benchmark's prompts, by word n-grams and by embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import ArgumentError, DatasetError
from ..nearest.cross import find_nearest
from ..nearest.ngrams import WORDS, NgramIndex
from ..nearest.search import THRESHOLD
from ..stage import SetResult, Workspace
from ..storage.loading import PROMPT_COLUMNS, load_rows
from .neighbors import Embedding, vectors_of


if TYPE_CHECKING:
    from datasets import Dataset

MIN_SHARE = 0.5
"""Our choice: half of a prompt's n-grams; a single one may be a phrase that everybody uses."""


@dataclass(frozen=True)
class Decontamination(Embedding):
    """Adds `contaminated`, and which prompt of which benchmark a row is nearest to.

    - `benchmarks`: datasets of prompts: paths or Hub ids, or mappings with `path`, `name`, `config`, `split`, `column`.
    - `ngram`: words of an n-gram. `min_share`: share of a prompt's n-grams from which a row counts as contaminated.
    - `embeddings`: also compare by embedding: below `threshold` (squared L2) a row counts as contaminated.
    - The embedder's settings are those of `neighbors`.
    """

    name: ClassVar[str] = "decontamination"
    version: ClassVar[int] = 1

    benchmarks: tuple[Any, ...] = ()
    ngram: int = WORDS
    min_share: float = MIN_SHARE
    embeddings: bool = True
    threshold: float = THRESHOLD

    def features(self) -> dict[str, Any]:
        """Return the verdict, and what it rests on."""
        from datasets import Value

        return {
            "contaminated": Value("bool"),
            "contamination": {
                "benchmark": Value("string"),
                "prompt_index": Value("int64"),
                "ngram_share": Value("float32"),
                "distance": Value("float32"),
            },
        }

    def check_ready(self) -> None:
        """Raise if no benchmark is named, or one cannot be loaded or has no column of prompts."""
        if not self.benchmarks:
            raise ArgumentError(
                "decontamination has no benchmark.",
                hint="E.g., benchmarks: [{path: openai/gsm8k, config: main, split: test}].",
            )
        for given in self.benchmarks:
            load_benchmark(given)

    def apply(self, dataset: Dataset, work: Workspace) -> SetResult:
        """Compare the rows with each benchmark in turn; the strongest finding of a row is kept."""
        verdicts: list[dict[str, Any]] = [
            {"benchmark": None, "prompt_index": None, "ngram_share": 0.0, "distance": None}
            for _ in range(len(dataset))
        ]
        report: dict[str, Any] = {}
        for given in self.benchmarks:
            name, prompts, column = load_benchmark(given)
            texts = prompts.with_format(None)[column]
            shares, indices = self._ngrams(dataset, list(texts))
            distances, nearest = self._distances(dataset, prompts, column, work)
            hits = (shares >= self.min_share) | (distances < self.threshold)
            for row in np.flatnonzero(hits | (shares > 0)):
                at = int(indices[row] if shares[row] >= self.min_share or not hits[row] else nearest[row])
                found = {
                    "benchmark": name,
                    "prompt_index": at,
                    "ngram_share": float(shares[row]),
                    "distance": None if np.isnan(distances[row]) else float(distances[row]),
                }
                if self._strength(found) > self._strength(verdicts[row]):
                    verdicts[row] = found
            prompts_hit = {v["prompt_index"] for v in verdicts if v["benchmark"] == name and self._is_hit(v)}
            report[name] = {"prompts": len(texts), "rows_hit": int(hits.sum()), "prompts_hit": len(prompts_hit)}
        contaminated = [self._is_hit(verdict) for verdict in verdicts]
        columns: dict[str, Any] = {"contaminated": contaminated, "contamination": verdicts}
        return SetResult(columns, None, {"benchmarks": report, "contaminated_rows": sum(contaminated)})

    def _is_hit(self, verdict: Mapping[str, Any]) -> bool:
        distance = verdict["distance"]
        return verdict["ngram_share"] >= self.min_share or (distance is not None and distance < self.threshold)

    def _strength(self, verdict: Mapping[str, Any]) -> tuple[bool, float, float]:
        distance = verdict["distance"]
        return self._is_hit(verdict), verdict["ngram_share"], -(4.0 if distance is None else distance)

    def _ngrams(self, dataset: Dataset, texts: list[str]) -> tuple[Any, Any]:
        index = NgramIndex(texts, self.ngram)
        shares, indices = np.zeros(len(dataset), dtype=np.float32), np.full(len(dataset), -1, dtype=np.int64)
        at = 0
        for table in dataset.select_columns([self.column]).with_format("arrow").iter(batch_size=1000):
            for overlap in index.overlaps(table[self.column].to_pylist()):
                shares[at], indices[at] = overlap.share, overlap.prompt
                at += 1
        return shares, indices

    def _distances(self, dataset: Dataset, prompts: Dataset, column: str, work: Workspace) -> tuple[Any, Any]:
        distance = np.full(len(dataset), np.nan, dtype=np.float32)
        nearest = np.full(len(dataset), -1, dtype=np.int64)
        if not self.embeddings:
            return distance, nearest
        with self.store(work) as store:
            self.embed(store, dataset, self.column, work)
            self.embed(store, prompts, column, work)
            rows, others = vectors_of(dataset, self.column, store), vectors_of(prompts, column, store)
            mine, theirs = np.flatnonzero(rows >= 0), np.flatnonzero(others >= 0)
            found = find_nearest(store.matrix[rows[mine]], store.matrix[others[theirs]])
        distance[mine] = found.distance
        nearest[mine] = np.where(found.nearest >= 0, theirs[found.nearest], -1) if len(theirs) else -1
        return distance, nearest


def load_benchmark(given: Any) -> tuple[str, Dataset, str]:
    """Return a benchmark's name, its rows, and the column that holds the prompts."""
    facts = {"path": given} if isinstance(given, str) else dict(given)
    rows = load_rows(
        facts["path"], config=facts.get("config"), split=facts.get("split"), revision=facts.get("revision")
    )
    column = facts.get("column") or next((name for name in PROMPT_COLUMNS if name in rows.column_names), None)
    if column is None or column not in rows.column_names:
        raise DatasetError(
            f"The benchmark {facts['path']!r} has no column of prompts; there are {', '.join(rows.column_names[:20])}.",
            hint="Name it: {path: …, column: …}.",
        )
    return str(facts.get("name") or facts["path"].rstrip("/").rpartition("/")[2]), rows, column
