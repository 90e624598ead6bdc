"""A map of topics: the positions of a sample of instructions, similar ones close together.

As in the paper's Figure 3, other datasets can be on the same map. The features are the column `embedding` if the datasets
have it, else TF-IDF reduced by SVD; the layout is the t-SNE of scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from ..columns import columns_of
from .statistics import FloatArray


if TYPE_CHECKING:
    from datasets import Dataset

SAMPLE = 1500
LEAST = 30
TEXT_CHARACTERS = 500


class TopicMap(NamedTuple):
    """Points: `xy` (number, 2) in [0, 1], `category` ("" if unknown), `source` dataset; `basis`: kind of the features."""

    xy: FloatArray
    category: list[str]
    source: list[str]
    basis: str


def topic_map(
    dataset: Dataset, compare: Mapping[str, Dataset] | None = None, *, name: str = "this dataset", seed: int = 0
) -> TopicMap | None:
    """Return the map of a sample of a dataset and of others; None if there are too few rows."""
    others = {key: other for key, other in (compare or {}).items() if "instruction" in columns_of(other.features)}
    if len(dataset) < LEAST or "instruction" not in columns_of(dataset.features):
        return None
    sets = {name: dataset} | {f"{key} (compared)" if key == name else key: other for key, other in others.items()}
    size = SAMPLE // len(sets)
    samples = {key: _sample(value, size, seed) for key, value in sets.items()}
    texts = [text for sample in samples.values() for text in sample["text"]]
    vectors = [sample["vectors"] for sample in samples.values() if sample["vectors"] is not None]
    if len(vectors) == len(samples) and len({matrix.shape[1] for matrix in vectors}) == 1:
        features, basis = np.concatenate(vectors), "embeddings"
    else:
        features, basis = _text_features(texts, seed), "words (TF-IDF)"
    xy = _layout(features, seed)
    if xy is None:
        return None
    category = [label for sample in samples.values() for label in sample["category"]]
    source = [key for key, sample in samples.items() for _ in sample["text"]]
    return TopicMap(xy, category, source, basis)


class _Sample(TypedDict):
    text: list[str]
    category: list[str]
    vectors: npt.NDArray[np.float32] | None


def _sample(dataset: Dataset, size: int, seed: int) -> _Sample:
    rows = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:size])
    names = [n for n in columns_of(dataset.features) if n in ("instruction", "task_category", "embedding")]
    part = dataset.select_columns(names).with_format(None)[rows.tolist()]
    texts = [(text or "")[:TEXT_CHARACTERS] for text in part["instruction"]]
    vectors = part.get("embedding") if _is_vector(dataset.features.get("embedding")) else None
    is_complete = vectors is not None and None not in vectors and len({len(vector) for vector in vectors}) == 1
    labels = part.get("task_category") or [None] * len(texts)
    return {
        "text": texts,
        "category": [label or "" for label in labels],
        "vectors": np.asarray(vectors, dtype=np.float32) if is_complete else None,
    }


def _is_vector(feature: object) -> bool:
    return str(getattr(getattr(feature, "feature", None), "dtype", "")).startswith("float")


def _text_features(texts: list[str], seed: int) -> npt.NDArray[np.float32]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        counts = TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=20_000).fit_transform(texts)
    except ValueError:  # no words at all
        return np.zeros((len(texts), 1), dtype=np.float32)
    parts = min(50, min(counts.shape) - 1)
    reduced = TruncatedSVD(parts, random_state=seed).fit_transform(counts) if parts >= 2 else counts.toarray()
    return np.asarray(reduced, dtype=np.float32)


def _layout(features: npt.NDArray[np.float32], seed: int) -> FloatArray | None:
    """Return positions in [0, 1], or None if all rows have the same features."""
    from sklearn.manifold import TSNE

    features = np.nan_to_num(np.asarray(features, dtype=np.float32))
    if len(features) < LEAST or not np.ptp(features, axis=0).any():
        return None
    perplexity = min(30.0, (len(features) - 1) / 4)
    xy = TSNE(2, perplexity=perplexity, init="random", random_state=seed, max_iter=500).fit_transform(features)
    low, high = np.quantile(xy, [0.005, 0.995], axis=0)
    return np.asarray(np.clip((xy - low) / np.maximum(high - low, 1e-9), 0, 1), dtype=np.float64)
