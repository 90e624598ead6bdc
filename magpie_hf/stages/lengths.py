"""`lengths`: how long instruction and response are, in characters (as released) and in the model's own tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ArgumentError
from ..stage import BatchStage, Context


@dataclass(frozen=True)
class Lengths(BatchStage):
    """Adds `instruction_length`, `response_length` (characters) and the same as `…_tokens`.

    - `tokens`: whether tokens are counted too (special tokens of the template are not); by default where the recipe
      names a model, as its tokenizer counts them.
    """

    name: ClassVar[str] = "lengths"
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("instruction", "response")

    tokens: bool | None = None

    @property
    def uses_tokenizer(self) -> bool:
        """Whether tokens are counted."""
        return self.tokens is not False

    def under(self, model: str) -> Lengths:
        """Return the stage with `tokens` decided: without a model, characters only."""
        if self.tokens and not model:
            raise ArgumentError(
                "tokens are counted by a model's tokenizer, and no model is named.",
                hint='Name it: annotate(ds, ["lengths"], model=…), --tokenizer MODEL, or `model` in a recipe.',
                key="tokens",
            )
        return self if self.tokens is not None else dataclasses.replace(self, tokens=bool(model))

    def derived(self) -> dict[str, Any]:
        """Return whether tokens are counted."""
        return {"tokens": self.uses_tokenizer}

    def features(self) -> dict[str, Any]:
        """Return the columns: int64, null where there is no text."""
        from datasets import Value

        names = [f"{column}_length" for column in self.reads]
        names += [f"{column}_tokens" for column in self.reads] if self.uses_tokenizer else []
        return {name: Value("int64") for name in names}

    def bind(self, context: Context) -> Callable[[Mapping[str, Sequence[Any]]], dict[str, list[Any]]]:
        """Return the function that measures a batch."""
        tokenizer: Any = context.template.tokenizer if self.uses_tokenizer else None

        def count(texts: list[str]) -> list[int]:
            return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

        def measure(batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
            columns: dict[str, list[Any]] = {}
            for column in self.reads:
                texts = batch[column]
                columns[f"{column}_length"] = [None if text is None else len(text) for text in texts]
                if self.uses_tokenizer:
                    counts = iter(count([text for text in texts if text is not None]))
                    columns[f"{column}_tokens"] = [None if text is None else next(counts) for text in texts]
            return columns

        return measure
