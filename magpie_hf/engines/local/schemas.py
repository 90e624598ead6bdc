"""Constraining texts of the local engine to a JSON schema, with llguidance: a mask over the vocabulary for each row.

Cost, for rows with a schema only: 57 µs per token and row for the mask over a vocabulary of 150,000 (llguidance 1.9 on one
core; several cores share the rows), and masking the row's logits.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import ArgumentError, CapabilityError, DependencyError, quoted
from ...sampling import schema_of


if TYPE_CHECKING:
    from llguidance import LLMatcher


# As `json.dumps` writes: one space after commas and colons and no other white space, so that no model can write it without
# end. Plain separators have the same meaning in llguidance 1.0 and 1.9: in 1.0 the "?" of ", ?" is a character, and a
# space that `whitespace_pattern` allows may be repeated without end.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_COMPILED = 64  # maximum number of cached compiled schemas


@lru_cache(maxsize=1)
def is_available() -> bool:
    """Return whether llguidance can be imported."""
    try:
        import llguidance  # noqa: F401
    except ImportError:
        return False
    return True


def can_hold(tokenizer: Any) -> bool:
    """Return whether schemas are supported for a tokenizer.

    llguidance must be installed and must know the bytes of each token, as it does for byte-level and byte-fallback
    tokenizers of the tokenizers library. The test uses a tokenizer with one token and the same decoder, which is fast.
    """
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None or not is_available():
        return False
    import tokenizers
    from llguidance import LLTokenizer

    probe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    probe.decoder = decoder
    try:
        LLTokenizer(probe.to_str(), eos_token=0)
    except ValueError:
        return False
    return True


def spaced(schema: str) -> dict[str, object]:
    """Return the schema with the allowed white space for llguidance. Raises ArgumentError if it is not a JSON schema."""
    return schema_of(schema) | {"x-guidance": SPACING}


class Schemas:
    """Compiled schemas for one tokenizer.

    `vocab_size`: the model's; its logits may be wider than the tokenizer. `end_ids`: tokens that end any text.

    Raises:
        DependencyError: llguidance is not installed.
        CapabilityError: the tokenizer is not supported.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, end_ids: Sequence[int]) -> None:
        if not is_available():
            raise DependencyError(
                "A JSON schema requires llguidance.",
                hint='pip install "magpie_hf[grammar]", or set structured: false.',
                package="llguidance",
            )
        end_id = next(iter(end_ids), tokenizer.eos_token_id)
        if end_id is None or not can_hold(tokenizer):
            raise CapabilityError(
                "JSON schemas are not supported for this model: "
                + (
                    "it has no end-of-sequence token."
                    if end_id is None
                    else "its tokenizer does not map tokens to bytes."
                ),
                hint="Set structured: false.",
            )
        from llguidance import LLExecutor, hf

        size = max(vocab_size, 1 + max(tokenizer.get_vocab().values()))
        self._end_id = int(end_id)
        self._tokenizer = hf.from_tokenizer(tokenizer, n_vocab=size, eos_token=self._end_id)
        self._executor = LLExecutor()
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def matcher(self, schema: str) -> LLMatcher:
        """Return a matcher at the start of a text. Raises ArgumentError if the schema is not supported."""
        compiled = self._compiled.get(schema)
        if compiled is None:
            compiled = self._compiled[schema] = self._compile(schema)
            while len(self._compiled) > _COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(schema)
        return compiled.deep_copy()

    def _compile(self, schema: str) -> LLMatcher:
        from llguidance import LLMatcher

        text = LLMatcher.grammar_from_json_schema(json.dumps(spaced(schema)))
        compiled = LLMatcher(self._tokenizer, text, log_level=0)  # 0: prints nothing
        if compiled.is_error():
            raise ArgumentError(
                f"json_schema: this JSON schema is not supported: {quoted(compiled.get_error())}.",
                hint="Use objects, arrays, enums, strings, numbers and booleans.",
                key="json_schema",
            )
        return compiled

    def restrict(
        self, logits: torch.Tensor, rows: NDArray[np.int64], matchers: Sequence[LLMatcher], stops: NDArray[np.int64]
    ) -> None:
        """Put -inf in `rows` of the logits, in place, where the row's schema does not allow the token.

        A row's stop tokens are allowed exactly when its schema allows the text to end. `logits`: (num_rows, vocab), any float
        dtype. `matchers`: one for each of `rows`. `stops`: (len(rows), width), each row's stop tokens, -1 for none.
        """
        allowed = unpacked(self._packed(matchers, stops), logits.device)[:, : logits.shape[1]]
        missing = logits.shape[1] - allowed.shape[1]
        forbidden = torch.nn.functional.pad(~allowed, (0, missing), value=True) if missing else ~allowed
        if len(rows) == len(logits):
            logits.masked_fill_(forbidden, float("-inf"))
        else:
            index = torch.from_numpy(rows).to(logits.device)
            logits[index] = logits[index].masked_fill(forbidden, float("-inf"))

    def _packed(self, matchers: Sequence[LLMatcher], stops: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the allowed tokens as bits, (len(matchers), bytes), token 0 lowest in byte 0."""
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

        words = allocate_token_bitmask(len(matchers), self._tokenizer.vocab_size)
        fill_next_token_bitmask_par(self._executor, [(m, row) for row, m in enumerate(matchers)], words)
        bits: NDArray[np.uint8] = words.view(np.uint8)
        # llguidance allows the end token where the text may end, and only it after an error.
        may_end = (bits[:, self._end_id >> 3] >> (self._end_id & 7)) & 1 == 1
        _set_bits(bits, np.full((len(bits), 1), self._end_id), np.zeros(len(bits), bool))
        _set_bits(bits, stops, np.zeros(len(bits), bool))
        _set_bits(bits, stops, may_end | ~bits.any(axis=1))
        return bits


def _set_bits(bits: NDArray[np.uint8], tokens: NDArray[np.int64], values: NDArray[np.bool_]) -> None:
    """Set or clear the bits of each row's tokens (num_rows, width) to the row's value; tokens outside are ignored."""
    for column in tokens.T:
        rows = np.flatnonzero((column >= 0) & (column < 8 * bits.shape[1]))
        places, bit = column[rows] >> 3, (1 << (column[rows] & 7)).astype(np.uint8)
        old = bits[rows, places]
        bits[rows, places] = np.where(values[rows], old | bit, old & ~bit)


def unpacked(bits: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Return bits (num_rows, bytes), lowest first, as bools (num_rows, 8 * bytes) on the device."""
    if device.type == "cpu":
        return torch.from_numpy(np.unpackbits(bits, axis=1, bitorder="little").view(np.bool_))
    # Copies an eighth of the bytes to the device.
    places = torch.arange(8, dtype=torch.uint8, device=device)
    return ((torch.from_numpy(bits).to(device)[:, :, None] >> places) & 1).bool().flatten(1)
