"""`decontamination`: find rows that contain prompts of benchmarks, by word n-grams and by embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ..errors import ArgumentError, DatasetError, quoted
from ..nearest.cross import find_nearest
from ..nearest.ngrams import WORDS, NgramIndex
from ..nearest.search import THRESHOLD
from ..nearest.state import FloatArray, IntArray
from ..stage import SetResult, Values, Workspace
from ..storage.loading import PROMPT_COLUMNS, load_rows
from .neighbors import Embedding, vectors_of


if TYPE_CHECKING:
    from datasets import Dataset

MIN_SHARE = 0.5
"""Our choice: half of a prompt's n-grams; a single one may be a common phrase."""


class Match(NamedTuple):
    """The closest prompt of a benchmark."""

    benchmark: str | None
    prompt_index: int | None
    ngram_share: float
    distance: float | None


@dataclass(frozen=True)
class Decontamination(Embedding):
    """Adds `contaminated`, and the prompt and benchmark that a row is closest to.

    - `benchmarks`: datasets of prompts: paths or Hub ids, or mappings with `path`, `name`, `config`, `split`, `column`; or
      a list of texts: `name` and `prompts`.
    - `ngram`: number of words of an n-gram. `min_share`: share of a prompt's n-grams above which a row counts as contaminated.
    - `embeddings`: also compare embeddings; below the distance `threshold` (squared L2), a row counts as contaminated.
    - The embedder's settings are those of `neighbors`.
    """

    name: ClassVar[str] = "decontamination"
    version: ClassVar[int] = 1

    benchmarks: tuple[Any, ...] = ()
    ngram: int = WORDS
    min_share: float = MIN_SHARE
    embeddings: bool = True
    threshold: float = THRESHOLD

    def features(self) -> Values:
        """Return whether a row is contaminated, and the evidence."""
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
        """Raise if no benchmark is given, or if one cannot be loaded or has no column of prompts."""
        if not self.benchmarks:
            raise ArgumentError(
                "`decontamination` needs at least one benchmark.",
                hint="E.g., benchmarks: [{path: openai/gsm8k, config: main, split: test}].",
            )
        for given in self.benchmarks:
            load_benchmark(given)

    def apply(self, dataset: Dataset, work: Workspace) -> SetResult:
        """Compare the rows with each benchmark; the strongest match of a row is kept."""
        matches = [Match(None, None, 0.0, None)] * len(dataset)
        report: dict[str, object] = {}
        for given in self.benchmarks:
            name, prompts, column = load_benchmark(given)
            texts = prompts.with_format(None)[column]
            shares, indices = self._ngrams(dataset, list(texts))
            distances, nearest = self._distances(dataset, prompts, column, work)
            hits = (shares >= self.min_share) | (distances < self.threshold)
            for row in np.flatnonzero(hits | (shares > 0)):
                at = int(indices[row] if shares[row] >= self.min_share or not hits[row] else nearest[row])
                distance = None if np.isnan(distances[row]) else float(distances[row])
                found = Match(name, at, float(shares[row]), distance)
                if self._strength(found) > self._strength(matches[row]):
                    matches[row] = found
            prompts_hit = {match.prompt_index for match in matches if match.benchmark == name and self._is_hit(match)}
            report[name] = {"prompts": len(texts), "rows_hit": int(hits.sum()), "prompts_hit": len(prompts_hit)}
        contaminated = [self._is_hit(match) for match in matches]
        columns = {"contaminated": contaminated, "contamination": [match._asdict() for match in matches]}
        return SetResult(columns, None, {"benchmarks": report, "contaminated_rows": sum(contaminated)})

    def _is_hit(self, match: Match) -> bool:
        return match.ngram_share >= self.min_share or (match.distance is not None and match.distance < self.threshold)

    def _strength(self, match: Match) -> tuple[bool, float, float]:
        return self._is_hit(match), match.ngram_share, -(4.0 if match.distance is None else match.distance)

    def _ngrams(self, dataset: Dataset, texts: list[str]) -> tuple[FloatArray, IntArray]:
        index = NgramIndex(texts, self.ngram)
        shares, indices = np.zeros(len(dataset), dtype=np.float32), np.full(len(dataset), -1, dtype=np.int64)
        at = 0
        for table in dataset.select_columns([self.column]).with_format("arrow").iter(batch_size=1000):
            for overlap in index.overlaps(table[self.column].to_pylist()):
                shares[at], indices[at] = overlap.share, overlap.prompt
                at += 1
        return shares, indices

    def _distances(
        self, dataset: Dataset, prompts: Dataset, column: str, work: Workspace
    ) -> tuple[FloatArray, IntArray]:
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


def load_benchmark(given: str | Mapping[str, Any]) -> tuple[str, Dataset, str]:
    """Return the name of a benchmark, its rows, and the column with the prompts."""
    facts: dict[str, Any] = {"path": given} if isinstance(given, str) else dict(given)
    if "prompts" in facts:
        return _listed(facts)
    if not facts.get("path"):
        raise ArgumentError(
            f"The benchmark {quoted(given)} has neither a path nor prompts.",
            hint="E.g., {path: openai/gsm8k, config: main, split: test}, or {name: mine, prompts: [a prompt]}.",
        )
    rows = load_rows(
        facts["path"], config=facts.get("config"), split=facts.get("split"), revision=facts.get("revision")
    )
    column = facts.get("column") or next((name for name in PROMPT_COLUMNS if name in rows.column_names), None)
    if column is None or column not in rows.column_names:
        raise DatasetError(
            f"The benchmark {facts['path']!r} has no column of prompts; its columns are {', '.join(rows.column_names[:20])}.",
            hint="Give the column: {path: …, column: …}.",
        )
    return str(facts.get("name") or facts["path"].rstrip("/").rpartition("/")[2]), rows, column


def _listed(facts: Mapping[str, Any]) -> tuple[str, Dataset, str]:
    """Return the name, rows and column of a benchmark whose prompts are given as texts."""
    from datasets import Dataset

    prompts, name = facts["prompts"], facts.get("name")
    if not isinstance(name, str) or not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts):
        raise ArgumentError(
            "A benchmark of given texts needs a name and a list of texts.",
            hint="E.g., {name: mine, prompts: [a prompt, another one]}.",
        )
    return name, Dataset.from_dict({"prompt": prompts}), "prompt"
