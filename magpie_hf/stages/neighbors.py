"""`neighbors`: near-duplicates of instructions, by embeddings.

Source of columns, embedder and threshold: the releases' script (all-mpnet-base-v2, squared L2 under 0.05). Unlike
in that script, groups are transitive, the row that is kept does not depend on the row order, and duplicates are not capped at 500.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..errors import ArgumentError, DatasetError
from ..models import ModelRef
from ..nearest.search import BYTES_PER_ROW, METHODS, THRESHOLD, SearchReport, SearchResult, find_neighbors
from ..nearest.state import IntArray, PickedRows
from ..scoring.embedding import EmbeddingStore, Encode, embed_texts, load_embedder, text_keys
from ..stage import ModelChoice, SetResult, SetStage, Values, Workspace, resolved, silent
from ..storage.hashing import stable_hash


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

MODEL = "sentence-transformers/all-mpnet-base-v2"
"""The embedder of the releases."""
PRECISIONS = ("float32", "tf32", "float16")


@dataclass(frozen=True)
class Embedding(SetStage):
    """Settings and methods of all stages that use embeddings; see `Neighbors`."""

    model: str | None = resolved(None)
    revision: str | None = resolved(None)
    column: str = "instruction"
    prompt: str = ""
    max_seq_length: int | None = None
    device: str | None = silent(None)
    batch_size: int = silent(64)
    trust_remote_code: bool = silent(False)

    @property
    def needs(self) -> tuple[str, ...]:
        """The text, and the row's uuid."""
        return (self.column, "uuid")

    def models(self, generator: str) -> dict[str, ModelChoice]:
        """Return the embedder: the demo embedder with the demo model, otherwise that of the releases."""
        name = self.model or ("demo" if generator == "demo" else MODEL)
        return {"embedder": ModelChoice(name, self.revision, "embedder")}

    def store(self, work: Workspace) -> EmbeddingStore:
        """Return the stored vectors of this embedder: shared by all stages and sizes of a run."""
        ref = work.context.refs["embedder"]
        name = stable_hash([ref.name, ref.revision, self.prompt, self.max_seq_length], 12)
        return EmbeddingStore(work.shared / f"embeddings-{name}")

    def embed(self, store: EmbeddingStore, dataset: Dataset, column: str, work: Workspace) -> None:
        """Embed the texts of the column that are not yet in the store."""

        def texts() -> Iterator[Sequence[str]]:
            for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=4096):
                yield [text for text in table[column].to_pylist() if has_text(text)]

        with work.listener.steps(f"{self.label}: embeddings", len(dataset)) as done:
            embed_texts(store, texts(), lambda: self._load(work.context.refs["embedder"]), done)

    def _load(self, ref: ModelRef) -> Encode:
        return load_embedder(
            ref,
            device=self.device,
            batch_size=self.batch_size,
            prompt=self.prompt,
            max_seq_length=self.max_seq_length,
            trust_remote_code=self.trust_remote_code,
        )


@dataclass(frozen=True)
class Neighbors(Embedding):
    """Finds the nearest other instruction of each instruction, and its group of near-duplicates.

    - `model`, `revision`: the embedder: a sentence-transformers model, or "demo". `column`: the text to embed.
    - `prompt`: put before each text, for embedders that need one. `max_seq_length`: maximum number of tokens of a text.
    - `threshold`: squared L2 distance below which two rows are near-duplicates.
    - `method`: "exact", "approximate" (its recall is measured), or "auto": by size and device.
    - `precision`: of the products on a GPU: "float32", "tf32", "float16". `device`, `batch_size`: of the embedder.
    - `embeddings`: keep each row's vector (float16) as the column `embedding`.
    """

    name: ClassVar[str] = "neighbors"
    version: ClassVar[int] = 2

    threshold: float = THRESHOLD
    method: str = "auto"
    precision: str = silent("float32")
    embeddings: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (("method", self.method, METHODS), ("precision", self.precision, PRECISIONS)):
            if value not in known:
                raise ArgumentError(
                    f"{name} = {value!r} is invalid.", hint=f"Use one of {', '.join(known)}.", key=name
                )
        if not 0 < self.threshold <= 4:
            raise ArgumentError(f"threshold = {self.threshold} is invalid.", hint="Give a number above 0, at most 4.")

    def features(self) -> Values:
        """Return the columns of the releases, and the group."""
        from datasets import List, Value

        own: Values = {
            "min_neighbor_distance": Value("float64"),
            "repeat_count": Value("int64"),
            "min_similar_uuid": Value("string"),
            "group_id": Value("string"),
        }
        return own | ({"embedding": List(Value("float16"))} if self.embeddings else {})

    def apply(self, dataset: Dataset, work: Workspace) -> SetResult:
        """Embed the texts and search; the group id is the uuid of the row of the group that is kept."""
        check_memory(len(dataset))
        with self.store(work) as store:
            self.embed(store, dataset, self.column, work)
            check_memory(len(dataset), store.dim)
            at = vectors_of(dataset, self.column, store)
            uuids = column_of(dataset, "uuid")
            rank = ranks(uuids)
            text = np.flatnonzero(at >= 0)
            used, copies = np.unique(at[text], return_inverse=True)
            with work.listener.steps(f"{self.label}: search", len(dataset)) as done:
                found = find_neighbors(
                    PickedRows(store.matrix, used),
                    rank=rank[text],
                    copies=copies.astype(np.int64),
                    threshold=self.threshold,
                    method=self.method,
                    device=self._search_device(),
                    precision=self.precision,
                    directory=work.directory,
                    progress=lambda part, whole: done(len(dataset) * part // max(whole, 1)),
                )
            columns = _columns(len(dataset), text, found, uuids, rank)
            if self.embeddings:
                columns["embedding"] = [None if n < 0 else store.matrix[n] for n in at]
        self._report(found.report, work)
        return SetResult(columns, None, {**found.report, "rows_without_text": len(dataset) - len(text)})

    def _report(self, report: SearchReport, work: Workspace) -> None:
        """Log rows with unusable embeddings, and the recall of an approximate search."""
        if report["invalid_rows"]:
            work.listener.note(
                f"{self.label}: {report['invalid_rows']} rows have an embedding that is zero or not finite."
            )
        if report["recall"]:
            shares = (f"{name} {value:.1%}" for name, value in report["recall"].items() if isinstance(value, float))
            work.listener.note(f"{self.label}: approximate search; measured recall: {', '.join(shares) or 'unknown'}.")

    def _search_device(self) -> str:
        import torch

        if self.device is not None:
            return self.device
        return "cuda:0" if torch.cuda.is_available() else "cpu"


def has_text(text: str | None) -> bool:
    """Return whether a text can be embedded: not null, and not only white space."""
    return text is not None and bool(text.strip())


def vectors_of(dataset: Dataset, column: str, store: EmbeddingStore) -> IntArray:
    """Return the index of each row's vector in the store, or -1 for rows without text: (num_rows,) int64."""
    at = np.full(len(dataset), -1, dtype=np.int64)
    start = 0
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=4096):
        texts = table[column].to_pylist()
        is_text = np.array([has_text(text) for text in texts], dtype=bool)
        at[start : start + len(texts)][is_text] = store.find(text_keys([text for text in texts if has_text(text)]))
        start += len(texts)
    return at


def column_of(dataset: Dataset, name: str) -> pa.StringArray:
    """Return a column of text as one Arrow array."""
    import pyarrow as pa

    data = dataset.select_columns([name]).with_format("arrow")[:][name]
    return data.combine_chunks() if isinstance(data, pa.ChunkedArray) else data


def ranks(uuids: pa.StringArray) -> IntArray:
    """Return each row's rank in the order of uuids, (num_rows,) int64: it decides which row of a group is kept."""
    import pyarrow.compute as pc

    if uuids.null_count:
        raise DatasetError(f"{uuids.null_count} rows have no uuid.", hint="Drop the column so that new ones are made.")
    order = np.asarray(pc.sort_indices(uuids)).astype(np.int64)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank


def check_memory(num_rows: int, dim: int = 0) -> None:
    """Raise ArgumentError if the arrays of the search, and an index of float32 vectors, do not fit into memory.

    Called before the texts are embedded, and again when the size of the vectors is known.
    """
    from ..engines.local.hf import available_memory

    wanted = num_rows * (2 * BYTES_PER_ROW + 4 * dim)
    if wanted > available_memory():
        raise ArgumentError(
            f"A search over {num_rows:,} rows needs about {wanted / 1e9:.0f} GB of memory, which is more than the free memory.",
            hint="Use a machine with more memory, or annotate parts of the dataset.",
        )


def _columns(
    num_rows: int, text: IntArray, found: SearchResult, uuids: pa.StringArray, rank: IntArray
) -> dict[str, object]:
    import pyarrow as pa

    by_rank = uuids.take(pa.array(np.argsort(rank)))
    distance = np.full(num_rows, np.nan)  # float64, as in the releases
    repeats = np.zeros(num_rows, dtype=np.int64)
    similar = np.full(num_rows, -1, dtype=np.int64)
    group = rank.copy()
    distance[text], repeats[text], similar[text], group[text] = (
        found.distance,
        found.repeats,
        found.smallest,
        found.group,
    )
    # A rank is a position in the sorted uuids of the whole dataset.
    return {
        "min_neighbor_distance": pa.array(distance, mask=np.isnan(distance)),
        "repeat_count": repeats,
        "min_similar_uuid": by_rank.take(pa.array(similar, mask=similar < 0)),
        "group_id": by_rank.take(pa.array(group)),
    }
