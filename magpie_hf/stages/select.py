"""`select`: keep the rows of a named selection or a condition, the longest or shortest, a sample; see `magpie_hf.selection.filters`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ..selection.expressions import parse
from ..selection.filters import Selection, apply_selection, named_selection, nothing_kept, split_for_lean
from ..selection.selections import with_changes
from ..stage import SetResult, SetStage, Values, Workspace, silent


if TYPE_CHECKING:
    from datasets import Dataset


_SETTINGS = ("longest", "shortest", "length_column", "sample", "shuffle", "quotas", "one_per_group", "seed")


@dataclass(frozen=True)
class Select(SetStage):
    """Keeps rows, in their order.

    - `filter`: a named selection ("air-filter", "pro-filter2", …); settings given here override those of the selection.
    - `where`: a condition, e.g., "quality >= good and language == 'EN'"; combined with that of `filter`.
    - `longest`, `shortest`: keep this many rows with the longest or the shortest responses (one of the two).
    - `length_column`: the lengths that `longest` and `shortest` compare, e.g., "conversation_length"; a column of numbers,
      texts or messages. Default: "response_length". Lengths that no stage has written are measured in characters.
    - `sample`: keep this many rows at random (below 1: this share), by `seed`.
    - `quotas`: column to {label: number of rows, or share below 1}; the longest of each label (the shortest with `shortest`).
    - `one_per_group`: one row of each group of near-duplicates; with a column's name, the row with the highest value.
    - `shuffle`: seed for shuffling the result, or null.
    """

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 1
    repeatable: ClassVar[bool] = True

    filter: str = ""
    where: str = ""
    longest: int | None = None
    shortest: int | None = None
    length_column: str | None = None
    sample: float | None = None
    quotas: dict[str, Any] = field(default_factory=dict)
    one_per_group: bool | str = False
    seed: int = 0
    shuffle: int | None = None
    is_early: bool = silent(False)

    def __post_init__(self) -> None:
        self.selection  # noqa: B018 (an invalid filter or condition is an error now, not after hours of generation)

    @property
    def selection(self) -> Selection:
        """The selection: all settings combined."""
        base = named_selection(self.filter) if self.filter else Selection(name="conditions")
        if self.where:
            parse(self.where)
        parts = [part for part in (base.where, self.where) if part]
        where = parts[0] if len(parts) == 1 else " and ".join(f"({part})" for part in parts)
        given = {name: getattr(self, name) for name in _SETTINGS if getattr(self, name) not in (None, {})}
        given = {name: value for name, value in given.items() if value is not False}
        return with_changes(base, {"where": where, **given})

    def early_part(self, known: set[str]) -> tuple[Select | None, str | None]:
        """Return the part that can be applied as soon as the `known` columns exist, or why there is none."""
        part, reason = split_for_lean(self.selection, known)
        if part is None:
            return None, reason
        return Select(where=part.where, one_per_group=part.one_per_group, is_early=True), None

    def without_groups(self) -> Select | None:
        """Return the selection without `one_per_group`, or None if it would be empty."""
        return dataclasses.replace(self, one_per_group=False) if self.where else None

    @property
    def label(self) -> str:
        """The name of the stage; the part that the order "lean" runs before the responses has a different name."""
        return "select-early" if self.is_early else self.name

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that the condition reads."""
        return self.selection.columns

    def check_features(self, features: Mapping[str, object]) -> None:
        """Raise if the condition cannot be evaluated: unknown columns or labels, incompatible types."""
        self.selection.check(features, f'the stage "{self.label}"')
        if {*self.needs} <= {*features}:
            super().check_features(features)

    def derived(self) -> Values:
        """Return the definition of the selection."""
        return {"selection": dataclasses.asdict(self.selection)}

    def features(self) -> Values:
        """Return no new columns."""
        return {}

    def apply(self, dataset: Dataset, work: Workspace) -> SetResult:
        """Return the rows to keep, and the funnel."""
        selected = apply_selection(dataset, self.selection)
        warning = nothing_kept(selected)
        if warning:
            work.listener.note(f"{self.label}: {warning}")
        funnel = [
            dataclasses.asdict(step) if dataclasses.is_dataclass(step) else step._asdict() for step in selected.funnel
        ]
        return SetResult({}, selected.indices, {"selection": self.selection.name, "funnel": funnel})
