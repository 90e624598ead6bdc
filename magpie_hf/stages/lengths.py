"""`lengths`: the lengths of instruction, response and conversation, in characters (as released) and in tokens of a model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import ArgumentError
from ..models import resolve_model
from ..stage import Batch, BatchFunction, BatchStage, Columns, Context, ModelChoice, Values, optional, resolved
from ..templates.load import load_tokenizer
from .over import MESSAGES, read_conversation


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Lengths(BatchStage):
    """Adds `instruction_length`, `response_length` (characters) and the same as `…_tokens`.

    - `conversation`: whether to measure `messages`, too: `num_turns` (responses), `conversation_length` and
      `conversation_tokens` (sums over all messages without the system message).
    - `tokens`: whether to count tokens, too (without special tokens of the template). Default: if a model, and so a
      tokenizer, is given.
    - `tokenizer`: the model (Hub id, directory or "demo") whose tokenizer is used. Default: the recipe's `model`.
    """

    name: ClassVar[str] = "lengths"
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("instruction", "response")

    tokens: bool | None = None
    tokenizer: str | None = resolved(None)
    conversation: bool = optional(False)

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that are measured."""
        return (*self.reads, MESSAGES) if self.conversation else self.reads

    @property
    def counts_tokens(self) -> bool:
        """Whether tokens are counted."""
        return self.tokens is not False

    @property
    def uses_tokenizer(self) -> bool:
        """Whether the tokenizer of the recipe's model counts tokens."""
        return self.counts_tokens and self.tokenizer is None

    def models(self, generator: str) -> dict[str, ModelChoice]:
        """Return the model whose tokenizer is used, if it is not the recipe's model."""
        return {"tokenizer": ModelChoice(self.tokenizer)} if self.counts_tokens and self.tokenizer else {}

    def for_model(self, model: str) -> Lengths:
        """Return the stage with `tokens` decided: without a model, characters only."""
        if self.tokens and not (self.tokenizer or model):
            raise ArgumentError(
                "Counting tokens requires the tokenizer of a model, and no model is given.",
                hint='Give one: annotate(ds, ["lengths"], tokenizer=…), --tokenizer MODEL, or `tokenizer` of the stage.',
                key="tokens",
            )
        return self if self.tokens is not None else dataclasses.replace(self, tokens=bool(self.tokenizer or model))

    def derived(self) -> Values:
        """Return whether tokens are counted."""
        return {"tokens": self.counts_tokens}

    def check_ready(self) -> None:
        """Raise ModelError if the tokenizer cannot be loaded."""
        if self.counts_tokens and self.tokenizer:
            ref = resolve_model(self.tokenizer)
            load_tokenizer(ref.source, ref.load_revision, ref.name)

    def _tokenizer(self, context: Context) -> PreTrainedTokenizerBase | None:
        if not self.counts_tokens:
            return None
        ref = context.refs.get("tokenizer")
        return load_tokenizer(ref.source, ref.load_revision, ref.name) if ref else context.template.tokenizer

    def features(self) -> Values:
        """Return the columns: int64, null for missing texts."""
        from datasets import Value

        measured = (*self.reads, "conversation") if self.conversation else self.reads
        names = [f"{column}_length" for column in measured]
        names += [f"{column}_tokens" for column in measured] if self.counts_tokens else []
        names += ["num_turns"] if self.conversation else []
        return {name: Value("int64") for name in names}

    def bind(self, context: Context) -> BatchFunction:
        """Return the function that measures a batch."""
        tokenizer = self._tokenizer(context)

        def count(texts: list[str]) -> list[int]:
            if tokenizer is None or not texts:
                return []
            return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

        def measure_conversations(batch: Batch) -> Columns:
            found = [read_conversation({MESSAGES: given}) for given in batch[MESSAGES]]
            spoken = [None if row is None else [m for m in row if m["role"] != "system"] for row in found]
            texts = [None if row is None else [message["content"] for message in row] for row in spoken]
            columns: Columns = {
                "num_turns": [
                    None if row is None else sum(message["role"] == "assistant" for message in row) for row in spoken
                ],
                "conversation_length": [None if row is None else sum(map(len, row)) for row in texts],
            }
            if tokenizer is not None:
                counts = iter(count([text for row in texts for text in row or ()]))
                columns["conversation_tokens"] = [
                    None if row is None else sum(next(counts) for _ in row) for row in texts
                ]
            return columns

        def measure(batch: Batch) -> Columns:
            columns: Columns = measure_conversations(batch) if self.conversation else {}
            for column in self.reads:
                texts = batch[column]
                columns[f"{column}_length"] = [None if text is None else len(text) for text in texts]
                if tokenizer is not None:
                    counts = iter(count([text for text in texts if text is not None]))
                    columns[f"{column}_tokens"] = [None if text is None else next(counts) for text in texts]
            return columns

        return measure
