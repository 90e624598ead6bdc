"""`subset`: keep the rows that there are at this point as a config of their own, and publish it while the run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..hub.names import check_subset
from ..stage import SetResult, SetStage, Workspace


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Subset(SetStage):
    """Names the rows at this point; later stages go on with the same rows.

    - `config`: what the config is called, here (a directory of the run) and on the Hub: raw, filtered, mt, preference.
    """

    name: ClassVar[str] = "subset"
    version: ClassVar[int] = 1
    repeatable: ClassVar[bool] = True

    config: str = "raw"

    def __post_init__(self) -> None:
        check_subset(self.config)

    @property
    def label(self) -> str:
        """The stage's name with the config's."""
        return f"{self.name}-{self.config}"

    def features(self) -> dict[str, Any]:
        """Return no column."""
        return {}

    def apply(self, dataset: Dataset, work: Workspace) -> SetResult:
        """Return all rows: a run writes them without a copy in between."""
        return SetResult({}, range(len(dataset)))
