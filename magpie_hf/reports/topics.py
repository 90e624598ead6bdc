"""A map of topics: a sample of instructions laid out so that alike ones lie together.

As in the paper's Figure 3, other datasets can be laid out together with it. Embeddings are used where the dataset has
them (`embedding`), else TF-IDF reduced by SVD; the layout is t-SNE of scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np


if TYPE_CHECKING:
    from datasets import Dataset

SAMPLE = 1500
LEAST = 30
TEXT_CHARACTERS = 500


class TopicMap(NamedTuple):
    """`xy`: (number, 2) in [0, 1]. `category`: of each point, "" unknown. `source`: which dataset. `basis`: of what."""

    xy: Any
    category: list[str]
    source: list[str]
    basis: str


def topic_map(
    dataset: Dataset, compare: Mapping[str, Dataset] | None = None, *, name: str = "this dataset", seed: int = 0
) -> TopicMap | None:
    """Lay out a sample of a dataset and of others; None where there are too few rows for a map."""
    others = {key: other for key, other in (compare or {}).items() if "instruction" in other.column_names}
    if len(dataset) < LEAST or "instruction" not in dataset.column_names:
        return None
    sets = {name: dataset} | {f"{key} (compared)" if key == name else key: other for key, other in others.items()}
    size = SAMPLE // len(sets)
    samples = {key: _sample(value, size, seed) for key, value in sets.items()}
    texts = [text for sample in samples.values() for text in sample["text"]]
    sizes = {None if sample["vectors"] is None else sample["vectors"].shape[1] for sample in samples.values()}
    has_vectors = len(sizes) == 1 and None not in sizes
    if has_vectors:
        features, basis = np.concatenate([sample["vectors"] for sample in samples.values()]), "embeddings"
    else:
        features, basis = _text_features(texts, seed), "words (TF-IDF)"
    xy = _layout(features, seed)
    if xy is None:
        return None
    category = [label for sample in samples.values() for label in sample["category"]]
    source = [key for key, sample in samples.items() for _ in sample["text"]]
    return TopicMap(xy, category, source, basis)


def _sample(dataset: Dataset, size: int, seed: int) -> dict[str, Any]:
    rows = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:size])
    names = [n for n in ("instruction", "task_category", "embedding") if n in dataset.column_names]
    part = dataset.select_columns(names).with_format(None)[rows.tolist()]
    texts = [(text or "")[:TEXT_CHARACTERS] for text in part["instruction"]]
    vectors = part.get("embedding")
    whole = vectors is not None and len({None if v is None else len(v) for v in vectors} | {None}) == 2
    whole = whole and all(vector is not None for vector in vectors)
    labels = part.get("task_category") or [None] * len(texts)
    return {
        "text": texts,
        "category": [label or "" for label in labels],
        "vectors": np.asarray(vectors, dtype=np.float32) if whole else None,
    }


def _text_features(texts: list[str], seed: int) -> Any:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        counts = TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=20_000).fit_transform(texts)
    except ValueError:  # no words at all
        return np.zeros((len(texts), 1), dtype=np.float32)
    parts = min(50, min(counts.shape) - 1)
    return TruncatedSVD(parts, random_state=seed).fit_transform(counts) if parts >= 2 else counts.toarray()


def _layout(features: Any, seed: int) -> Any:
    """Return positions in [0, 1], or None where all rows are alike."""
    from sklearn.manifold import TSNE

    features = np.nan_to_num(np.asarray(features, dtype=np.float32))
    if len(features) < LEAST or not np.ptp(features, axis=0).any():
        return None
    perplexity = min(30.0, (len(features) - 1) / 4)
    xy = TSNE(2, perplexity=perplexity, init="random", random_state=seed, max_iter=500).fit_transform(features)
    low, high = np.quantile(xy, [0.005, 0.995], axis=0)
    return np.clip((xy - low) / np.maximum(high - low, 1e-9), 0, 1)
