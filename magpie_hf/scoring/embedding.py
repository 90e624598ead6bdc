"""A cache of text embeddings: float16 vectors by the hash of their text.

Two files are append-only: vectors and their keys. `facts.json` has the number of rows and the checksum of each block. A
block is valid once its checksum is written, so a killed process loses one block at most. When the store is opened, blocks
are compared with their checksums; the first one that differs, and all later ones, are dropped and embedded again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import ModelError, quoted
from ..models import DEMO, ModelRef
from ..storage.disk import writing
from ..storage.journal import KeyArray, key_halves
from ..storage.rundir import write_atomically


logger = logging.getLogger(__name__)
BLOCK_TEXTS = 2048
IntArray = npt.NDArray[np.int64]
Encode = Callable[[Sequence[str]], npt.NDArray[np.float32]]


def text_keys(texts: Sequence[str]) -> KeyArray:
    """Return each text's key, (num_texts, 2) uint64: a hash of its bytes."""
    if not len(texts):
        return np.empty((0, 2), dtype=np.uint64)
    return key_halves([hashlib.blake2b(t.encode("utf-8", "replace"), digest_size=16).digest() for t in texts])


def _block_checksum(keys: bytes, vectors: bytes) -> str:
    import xxhash

    digest = xxhash.xxh3_128(keys)
    digest.update(vectors)
    return str(digest.hexdigest())


class EmbeddingStore:
    """The vectors of one embedding model; use it as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.dim = 0
        self._blocks: list[tuple[int, str]] = []
        self._keys: KeyArray = np.empty((0, 2), dtype=np.uint64)
        self._order: IntArray = np.empty(0, dtype=np.int64)

    def __enter__(self) -> EmbeddingStore:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._read_facts()
        self._drop_damaged()
        self._read_keys()
        return self

    def __exit__(self, *_: object) -> None:
        return

    @property
    def _vector_file(self) -> Path:
        return self.directory / "vectors.f16"

    @property
    def _key_file(self) -> Path:
        return self.directory / "keys.u64"

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def _fact_file(self) -> Path:
        return self.directory / "facts.json"

    def _read_facts(self) -> None:
        """Read the dimension and the checksums of the blocks; a damaged file counts as an empty store."""
        if not self._fact_file.is_file():
            return
        try:
            facts = json.loads(self._fact_file.read_text("utf-8"))
            self.dim = int(facts["dim"])
            self._blocks = [(int(rows), str(checksum)) for rows, checksum in facts["blocks"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            logger.warning("%s is damaged: its texts will be embedded again.", self._fact_file)
            self.dim, self._blocks = 0, []

    def _drop_damaged(self) -> None:
        """Truncate both files to the blocks before the first damaged one."""
        whole, blocks = 0, []
        if self._blocks and self._key_file.is_file() and self._vector_file.is_file():
            with self._key_file.open("rb") as keys, self._vector_file.open("rb") as vectors:
                for rows, checksum in self._blocks:
                    if _block_checksum(keys.read(16 * rows), vectors.read(2 * self.dim * rows)) != checksum:
                        break
                    whole += rows
                    blocks.append((rows, checksum))
        if len(blocks) < len(self._blocks):
            lost = sum(rows for rows, _ in self._blocks) - whole
            logger.warning("%d embeddings in %s are damaged and will be computed again.", lost, self.directory)
        self._blocks = blocks
        for path, size in ((self._key_file, 16), (self._vector_file, 2 * self.dim)):
            if path.is_file() and path.stat().st_size != whole * size:
                os.truncate(path, whole * size)

    def _read_keys(self) -> None:
        if self._key_file.is_file():
            self._keys = np.fromfile(self._key_file, dtype=np.uint64).reshape(-1, 2)
        self._order = np.lexsort((self._keys[:, 1], self._keys[:, 0])).astype(np.int64)

    @property
    def matrix(self) -> npt.NDArray[np.float16]:
        """All vectors, (number, dim) float16, as a memory map."""
        if not len(self):
            return np.empty((0, self.dim), dtype=np.float16)
        return np.memmap(self._vector_file, dtype=np.float16, mode="r", shape=(len(self), self.dim))

    def find(self, keys: KeyArray) -> IntArray:
        """Return the row of each key's vector in `matrix`, or -1: (num_keys,) int64."""
        found = np.full(len(keys), -1, dtype=np.int64)
        if not len(self._keys) or not len(keys):
            return found
        kind = np.dtype([("a", np.uint64), ("b", np.uint64)])
        ours = np.ascontiguousarray(self._keys[self._order]).view(kind).ravel()
        theirs = np.ascontiguousarray(keys).view(kind).ravel()
        at = np.searchsorted(ours, theirs)
        inside = at < len(ours)
        hit = np.zeros(len(keys), dtype=bool)
        hit[inside] = ours[at[inside]] == theirs[inside]
        found[hit] = self._order[at[hit]]
        return found

    def append(self, keys: KeyArray, vectors: npt.NDArray[np.float32]) -> None:
        """Save vectors, (number, dim). Raises StorageError."""
        hint = "Free disk space and run the same command again: saved embeddings are kept."
        with writing("embeddings", self.directory, hint=hint):
            self.dim = int(vectors.shape[1])
            with np.errstate(over="ignore"):
                half = np.ascontiguousarray(vectors, dtype=np.float16)
            for path, data in ((self._vector_file, half.tobytes()), (self._key_file, keys.tobytes())):
                with path.open("ab") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            self._blocks.append((len(keys), _block_checksum(keys.tobytes(), half.tobytes())))
            write_atomically(self._fact_file, json.dumps({"dim": self.dim, "blocks": self._blocks}))
        self._keys = np.concatenate([self._keys, keys])

    def update_index(self) -> None:
        """Make the appended vectors available to `find`."""
        self._read_keys()


def embed_texts(
    store: EmbeddingStore,
    texts: Iterator[Sequence[str]],
    load: Callable[[], Encode],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Embed the texts that are not in the store, in blocks sorted by length; loads the model only if needed."""
    encode: Encode | None = None
    pending: list[str] = []
    waiting: set[bytes] = set()
    done = 0

    def flush() -> None:
        nonlocal encode, done
        if not pending:
            return
        encode = encode or load()
        pending.sort(key=len)
        store.append(text_keys(pending), encode(pending))
        done += len(pending)
        pending.clear()
        if progress is not None:
            progress(done)

    for batch in texts:
        keys = text_keys(batch)
        for text, key, at in zip(batch, keys, store.find(keys), strict=True):
            mark = key.tobytes()
            if at < 0 and mark not in waiting:
                waiting.add(mark)
                pending.append(text)
                if len(pending) >= BLOCK_TEXTS:
                    flush()
    flush()
    store.update_index()


def load_embedder(
    ref: ModelRef, *, device: str | None = None, batch_size: int = 64, prompt: str = "", max_seq_length: int | None = None,
    trust_remote_code: bool = False,
) -> Encode:  # fmt: skip
    """Load a sentence-transformers model, or the demo embedder (mean-pooled hidden states), and return its `encode`.

    Raises:
        ModelError: it cannot be loaded.
    """
    if ref.name == DEMO:
        from ..demo.embedder import DemoEmbedder

        demo = DemoEmbedder()
        return lambda texts: np.asarray(demo.encode([prompt + text for text in texts]), dtype=np.float32)
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            ref.source, revision=ref.load_revision, device=device, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise ModelError(
            f"The embedder {quoted(ref.name)} cannot be loaded: {quoted(error)}.",
            hint='Use a sentence-transformers model: a Hub id, a directory, or "demo".',
            model=ref.name,
        ) from error
    if max_seq_length is not None:
        model.max_seq_length = max_seq_length

    def encode(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        found = model.encode(
            [prompt + text for text in texts],
            batch_size=batch_size,
            convert_to_numpy=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return np.asarray(found, dtype=np.float32)

    return encode
