"""`select`: keep the rows of a named selection, of an expression, or the longest of them; see `magpie_hf.selection.filters`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ..selection.expressions import parse
from ..selection.filters import Selection, apply_selection, named_selection, nothing_kept, split_for_lean
from ..stage import SetResult, SetStage, Workspace, silent


if TYPE_CHECKING:
    from datasets import Dataset


_SETTINGS = ("longest", "sample", "shuffle", "quotas", "one_per_group", "seed")


@dataclass(frozen=True)
class Select(SetStage):
    """Keeps rows, in their order.

    - `filter`: a named selection ("air-filter", "pro-filter2", …); its settings hold where none are given here.
    - `where`: an expression, such as "quality >= good and language == 'EN'"; added to that of `filter`.
    - `longest`: keep so many rows with the longest responses. `sample`: so many (or a share below 1), drawn by `seed`.
    - `quotas`: column to {label: number of rows, or share below 1}.
    - `one_per_group`: one row of each group of near duplicates; a column's name prefers the highest value in it.
    - `shuffle`: seed to shuffle the result by, or null.
    """

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 1
    repeatable: ClassVar[bool] = True

    filter: str = ""
    where: str = ""
    longest: int | None = None
    sample: float | None = None
    quotas: dict[str, Any] = field(default_factory=dict)
    one_per_group: bool | str = False
    seed: int = 0
    shuffle: int | None = None
    is_early: bool = silent(False)

    def __post_init__(self) -> None:
        self.selection  # noqa: B018 (a bad filter or expression is an error now, not after a night's generating)

    @property
    def selection(self) -> Selection:
        """What is kept, all settings joined."""
        base = named_selection(self.filter) if self.filter else Selection(name="conditions")
        if self.where:
            parse(self.where)
        parts = [part for part in (base.where, self.where) if part]
        where = parts[0] if len(parts) == 1 else " and ".join(f"({part})" for part in parts)
        given = {name: getattr(self, name) for name in _SETTINGS if getattr(self, name) not in (None, {})}
        given = {name: value for name, value in given.items() if value is not False}
        return dataclasses.replace(base, where=where, **given)

    def early_part(self, known: set[str]) -> tuple[Select | None, str | None]:
        """Return the part that can be applied as soon as the `known` columns are there, or why there is none."""
        part, reason = split_for_lean(self.selection, known)
        if part is None:
            return None, reason
        return Select(where=part.where, one_per_group=part.one_per_group, is_early=True), None

    def without_groups(self) -> Select | None:
        """Return the selection without choosing in groups, or None if nothing is left."""
        return dataclasses.replace(self, one_per_group=False) if self.where else None

    @property
    def label(self) -> str:
        """The stage's name; the part that lean puts before responses has one of its own."""
        return "select-early" if self.is_early else self.name

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that the conditions read."""
        return self.selection.columns

    def check_features(self, features: Mapping[str, Any]) -> None:
        """Raise for a condition that cannot be evaluated on such rows: unknown columns and labels, types that clash."""
        self.selection.check(features, f'the stage "{self.label}"')
        if {*self.needs} <= {*features}:
            super().check_features(features)

    def derived(self) -> dict[str, Any]:
        """Return the selection in full: what its name stands for."""
        return {"selection": dataclasses.asdict(self.selection)}

    def features(self) -> dict[str, Any]:
        """Return no column: rows are kept or not."""
        return {}

    def apply(self, dataset: Dataset, work: Workspace) -> SetResult:
        """Return the rows kept, and the funnel."""
        selected = apply_selection(dataset, self.selection)
        warning = nothing_kept(selected)
        if warning:
            work.listener.note(f"{self.label}: {warning}")
        funnel = [
            dataclasses.asdict(step) if dataclasses.is_dataclass(step) else step._asdict() for step in selected.funnel
        ]
        return SetResult({}, selected.indices, {"selection": self.selection.name, "funnel": funnel})
