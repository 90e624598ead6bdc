"""The form of the dataset that a run writes: its columns (`output.columns`) and its test split (`output.test_size`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..columns import listed
from ..hub.layouts import Layout
from ..hub.released import RequestOf, released
from ..hub.schema import column_order
from ..judging.rubric import SETS
from ..messages import user
from ..mixing import rubric_columns, rubrics_of
from ..recipe.schema import Recipe
from ..stages.preference import PreferenceResponses
from ..stages.responses import Responses
from ..storage.hashing import stable_hash
from .splits import held_out


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from ..templates.template import ChatTemplate

    Written: TypeAlias = Dataset | DatasetDict

logger = logging.getLogger("magpie_hf")


@dataclass(frozen=True)
class Shape:
    """The form of the written dataset.

    `columns`: the columns of a release, or names of our columns in order; None for all columns. `test_size`: the share of
    the test split. `seed`: of the test split. `request_of`: see `released`.
    """

    columns: Layout | tuple[str, ...] | None = None
    test_size: float | None = None
    seed: int = 0
    request_of: RequestOf | None = None

    def fingerprint(self, dataset: Dataset) -> str:
        """Return the fingerprint of the written dataset: that of the rows if their form is the default one."""
        columns = dict(self.columns.columns) if isinstance(self.columns, Layout) else self.columns
        split = None if self.test_size is None else [self.test_size, self.seed]
        own = str(dataset._fingerprint)
        return own if columns is None and split is None else stable_hash([own, columns, split], 32)

    def apply(self, dataset: Dataset, cache_file: Path | None = None) -> dict[str, Dataset]:
        """Return the splits of the written dataset, each in the order of the rows."""
        shaped = self._with_columns(dataset, cache_file)
        if self.test_size is None:
            return {"train": shaped}
        test = held_out(dataset, self.test_size, self.seed)
        if not len(test):
            logger.warning("No test split is written, because %d rows cannot be divided.", len(dataset))
            return {"train": shaped}
        train = np.setdiff1d(np.arange(len(dataset)), test)
        return {"train": shaped.select(train), "test": shaped.select(test)}

    def _with_columns(self, dataset: Dataset, cache_file: Path | None) -> Dataset:
        if self.columns is None:
            return dataset.select_columns(column_order(dataset.column_names))
        if isinstance(self.columns, tuple):
            return dataset.select_columns([*self.columns])
        _warn_of_labels(dataset, self.columns)
        return released(dataset, self.columns, request_of=self.request_of, cache_file=cache_file)


def shape_of(recipe: Recipe, template_of: Callable[[str], ChatTemplate]) -> Shape:
    """Return the form of the dataset of a recipe; `template_of` loads the chat template of a role."""
    return Shape(recipe.output_columns, recipe.output.get("test_size"), recipe.seed, _request_of(recipe, template_of))


def _warn_of_labels(dataset: Dataset, layout: Layout) -> None:
    """Log a warning if labels in the columns of a release were made with other rubrics than those of its scales."""
    named = [name for name in rubric_columns(dataset.features) if name in layout.columns]
    rubrics = dict.fromkeys(rubric for name in named for rubric in rubrics_of(dataset, name))
    others = [rubric for rubric in rubrics if not rubric.startswith(f"{SETS[1]}-")]
    if others:
        logger.warning(
            "The labels were made with %s, and the columns of the release do not say so. They have another meaning than "
            "the release's labels: do not mix them, or annotate with `judge.rubrics: %s`.",
            listed(others), SETS[1],
        )  # fmt: skip


def joined(splits: Mapping[str, Dataset]) -> Written:
    """Return the splits of a dataset as a DatasetDict; a single one as a Dataset."""
    from datasets import DatasetDict

    return DatasetDict(dict(splits)) if len(splits) > 1 else next(iter(splits.values()))


def splits_of(written: Written) -> dict[str, Dataset]:
    """Return the splits of a written dataset by name."""
    from datasets import Dataset

    return {"train": written} if isinstance(written, Dataset) else {str(name): rows for name, rows in written.items()}


def _request_of(recipe: Recipe, template_of: Callable[[str], ChatTemplate]) -> RequestOf | None:
    """Return the function for the requests of the recipe's responses; None if it generates none."""
    stage = _responding(recipe)
    if stage is None:
        return None

    def request(instruction: str, system_prompt: str | None) -> dict[str, object]:
        template = template_of(stage.role)
        return {
            "prompt": template.response([user(instruction)], system_prompt).text,
            "stop_tokens": [*stage.sampling.stop, *template.response_stops.texts],
            "engine": recipe.role(stage.role).engine.kind,
            "repetition_penalty": stage.sampling.repetition_penalty,
        }

    return request


def _responding(recipe: Recipe) -> Responses | PreferenceResponses | None:
    """Return the stage whose responses a released dataset describes: those that a preference is chosen from, if any."""
    for kind in (PreferenceResponses, Responses):
        for stage in recipe.stages:
            if isinstance(stage, kind):
                return stage
    return None
