"""The demo embedder: mean-pooled hidden states of the demo chat model, without the components that all texts share.

Raw pooled states of a language model all point in a similar direction. Therefore frequent tokens weigh less, and the
mean over instructions and the directions of the largest variance are removed ("smooth inverse frequency", Arora et al.,
2017). Token embeddings separate topics best; the states of the first layer also depend on the word order. All numbers
are saved in embedder.json of the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ModelError


if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATISTICS = "embedder.json"
_PROMPT = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"


_SMOOTHING = 1e-3
_LAYER_SHARES = (1.0, 1.0)
_NUM_DIRECTIONS = 4


class Statistics(NamedTuple):
    """The embedder's parameters in addition to the model's weights; all float32.

    `layer_shares`: (layers,) factors of the states before the first layer, after it, and so on. `token_weights`:
    (vocab,), rare tokens near 1. `mean`: (dim,). `directions`: (number, dim), orthonormal.
    """

    layer_shares: np.ndarray
    token_weights: np.ndarray
    mean: np.ndarray
    directions: np.ndarray


class DemoEmbedder:
    """Converts texts to unit vectors; called like `SentenceTransformer.encode`.

    Runs on the CPU in float32. Texts are embedded as a user's turn, as the model was trained on these.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        """Use the model in `directory` (default: the bundled chat model); it is loaded at the first `encode`."""
        self.directory = Path(directory) if directory is not None else Path(__file__).parent / "model"
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
        self._statistics: Statistics | None = None

    @property
    def dim(self) -> int:
        """Number of dimensions of the vectors."""
        return len(self._read_statistics().mean)

    def encode(
        self,
        sentences: Sequence[str],
        batch_size: int = 256,
        *,
        show_progress_bar: bool = False,
        normalize_embeddings: bool = True,
    ) -> np.ndarray:
        """Return (len(sentences), dim) float32 with rows of unit length.

        Texts longer than the model's context are truncated. `show_progress_bar` exists for compatibility only.

        Raises:
            ModelError: the directory does not contain the model or its embedder.json.
        """
        import numpy as np

        if isinstance(sentences, str):
            raise TypeError("encode takes a list of texts, not a single text")
        statistics = self._read_statistics()
        pooled = pooled_states(*self._load(), sentences, statistics, batch_size=batch_size)
        centered: np.ndarray = pooled - statistics.mean
        centered -= (centered @ statistics.directions.T) @ statistics.directions
        if normalize_embeddings:
            centered /= np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
        return np.asarray(centered, dtype=np.float32)

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._loaded is None:
            from transformers import AutoModel, AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.directory)
            self._loaded = AutoModel.from_pretrained(self.directory).float().eval(), tokenizer
        return self._loaded

    def _read_statistics(self) -> Statistics:
        if self._statistics is None:
            import numpy as np

            path = self.directory / STATISTICS
            if not path.is_file():
                raise ModelError(
                    f"The directory of the demo embedder has no {STATISTICS}.",
                    hint="Train it again: python -m tools.demo.train --what model",
                )
            stored = json.loads(path.read_text(encoding="utf-8"))
            self._statistics = Statistics(*(np.asarray(stored[name], np.float32) for name in Statistics._fields))
        return self._statistics


def pooled_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    statistics: Statistics,
    *,
    batch_size: int = 256,
) -> np.ndarray:
    """Return the weighted mean of the hidden states of each text, (len(texts), hidden) float32.

    Of the prompt before the text, only the last token is included, so that an empty text has a state.
    """
    import numpy as np
    import torch

    prompt = tokenizer(_PROMPT, add_special_tokens=False)["input_ids"]
    limit = model.config.max_position_embeddings - len(prompt)
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"][:limit] for text in texts]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    result = np.zeros((len(rows), model.config.hidden_size), dtype=np.float32)
    token_weights = torch.from_numpy(statistics.token_weights)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids = torch.full((len(chosen), len(prompt) + len(rows[chosen[-1]])), tokenizer.pad_token_id)
            weights = torch.zeros(ids.shape)
            for position, index in enumerate(chosen):
                row = torch.tensor(prompt + rows[index])
                ids[position, : len(row)] = row
                weights[position, len(prompt) - 1 : len(row)] = token_weights[row[len(prompt) - 1 :]]
            # Padding is on the right, where causal attention of the text does not see it.
            states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
            mixed = sum(float(share) * states[layer] for layer, share in enumerate(statistics.layer_shares))
            result[chosen] = ((mixed * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)).numpy()
    return result


def measure_statistics(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Statistics:
    """Compute the embedder's parameters for a model from texts."""
    import numpy as np

    counts = np.full(model.config.vocab_size, 0.5)
    for text in texts:
        np.add.at(counts, tokenizer(text, add_special_tokens=False)["input_ids"], 1.0)
    token_weights = (_SMOOTHING / (_SMOOTHING + counts / counts.sum())).astype(np.float32)
    # Each layer is divided by its standard deviation, so that the shares are comparable.
    alone = np.eye(len(_LAYER_SHARES), dtype=np.float32)
    empty = np.zeros(0, dtype=np.float32)
    pooled = [pooled_states(model, tokenizer, texts, Statistics(one, token_weights, empty, empty)) for one in alone]
    shares = np.array(
        [share / rows.std() for share, rows in zip(_LAYER_SHARES, pooled, strict=True)], dtype=np.float32
    )
    mixed = sum(share * rows for share, rows in zip(shares, pooled, strict=True))
    mean = mixed.mean(axis=0)
    _, _, right = np.linalg.svd(mixed - mean, full_matrices=False)
    return Statistics(shares, token_weights, mean, right[:_NUM_DIRECTIONS])


def write_statistics(statistics: Statistics, directory: Path) -> None:
    """Write statistics as embedder.json, rounded to five digits."""
    import numpy as np

    rounded = {name: np.round(value.astype(float), 5).tolist() for name, value in statistics._asdict().items()}
    (directory / STATISTICS).write_text(json.dumps(rounded) + "\n", encoding="utf-8")
