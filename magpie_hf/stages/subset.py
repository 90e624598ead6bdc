"""`subset`: save the rows at this point as a separate config, and publish it while the run continues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..hub.names import check_subset
from ..stage import SetResult, SetStage, Values, Workspace


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Subset(SetStage):
    """Saves the rows at this point as a config; later stages continue with the same rows.

    - `config`: name of the config, as a directory of the run and on the Hub, e.g., raw, filtered, mt, preference.
    """

    name: ClassVar[str] = "subset"
    version: ClassVar[int] = 1
    repeatable: ClassVar[bool] = True

    config: str = "raw"

    def __post_init__(self) -> None:
        check_subset(self.config)

    @property
    def label(self) -> str:
        """The name of the stage, followed by the name of the config."""
        return f"{self.name}-{self.config}"

    def features(self) -> Values:
        """Return no new columns."""
        return {}

    def apply(self, dataset: Dataset, work: Workspace) -> SetResult:
        """Return all rows: the run writes them without an intermediate copy."""
        return SetResult({}, range(len(dataset)))
