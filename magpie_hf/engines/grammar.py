"""Holding what the local engine writes to a JSON schema, with llguidance: masks over the vocabulary, row by row.

Only rows that ask for it pay: a mask a token, some tens of microseconds for a vocabulary of 150,000.
Imported late, as it imports torch.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ArgumentError, DependencyError, quoted


# As `json.dumps` writes: one blank behind commas and colons, and no other white space, so no model can write it for ever.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@lru_cache(maxsize=1)
def is_available() -> bool:
    """Whether llguidance can be imported."""
    return importlib.util.find_spec("llguidance") is not None


class Grammars:
    """Compiled schemas for one tokenizer.

    `end_ids`: tokens that end any text; a finished object allows these alone.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, end_ids: Sequence[int]) -> None:
        if not is_available():
            raise DependencyError(
                "Holding a text to a JSON schema needs llguidance.",
                hint='pip install "magpie_hf[grammar]", or switch it off (structured: false).',
                package="llguidance",
            )
        from llguidance import hf

        ends = list(end_ids) or [int(tokenizer.eos_token_id)]
        self.vocab_size = vocab_size
        self._end_ids = np.array(ends, dtype=np.int64)
        self._tokenizer = hf.from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=ends)
        self._compiled: dict[str, Any] = {}

    def matcher(self, grammar: str) -> Any:
        """Return a matcher at the beginning of a text. Raises ArgumentError if the schema cannot be used."""
        if grammar not in self._compiled:
            from llguidance import LLMatcher

            try:
                schema = json.loads(grammar)
                text = LLMatcher.grammar_from_json_schema(json.dumps({**schema, "x-guidance": _SPACING}))
                matcher = LLMatcher(self._tokenizer, text)
            except (ValueError, TypeError) as error:
                raise ArgumentError(f"This is no JSON schema: {quoted(grammar)} ({error}).", key="grammar") from None
            if matcher.is_error():
                raise ArgumentError(
                    f"This JSON schema cannot be followed: {quoted(matcher.get_error())}.",
                    hint="Use objects, arrays, enums, strings, numbers and booleans.",
                    key="grammar",
                )
            self._compiled[grammar] = matcher
        return self._compiled[grammar].deep_copy()

    def restrict(self, logits: torch.Tensor, rows: Sequence[int], matchers: Sequence[Any], stops: Any) -> torch.Tensor:
        """Put -inf where a row's grammar does not go on; `stops`: (num_rows, width) each row's stop ids, -1 for none.

        `logits`: (all rows, vocab), changed in the rows given.
        """
        allowed = self._allowed(matchers, stops, logits.shape[1])
        index = torch.tensor(list(rows), device=logits.device)
        part = logits[index].masked_fill(~torch.from_numpy(allowed).to(logits.device), float("-inf"))
        return logits.index_copy_(0, index, part)

    def _allowed(self, matchers: Sequence[Any], stops: NDArray[np.int64], vocab: int) -> NDArray[np.bool_]:
        width = (self.vocab_size + 31) // 32
        masks = np.zeros((len(matchers), width), dtype=np.int32)
        for row, matcher in enumerate(matchers):
            if not matcher.is_stopped():
                matcher.unsafe_compute_mask_ptr(masks[row].ctypes.data, width * 4)
        bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")[:, :vocab].astype(bool)
        if bits.shape[1] < vocab:
            bits = np.pad(bits, ((0, 0), (0, vocab - bits.shape[1])))
        for row, matcher in enumerate(matchers):
            if matcher.is_stopped() or bits[row, self._end_ids].any() or not bits[row].any():
                own = stops[row]
                bits[row, own[own >= 0]] = True
        return bits
