"""`novelty`: the distance of each row to existing datasets, e.g., so that release v2 repeats nothing of v1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..errors import ArgumentError
from ..nearest.cross import find_nearest
from ..nearest.search import THRESHOLD
from ..stage import SetResult, Values, Workspace, entries_of
from ..storage.loading import load_rows, with_row_columns
from .neighbors import Embedding, column_of, vectors_of


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Novelty(Embedding):
    """Adds the distance to the nearest row of other datasets, and that row's uuid.

    - `against`: datasets: run directories, files or Hub ids.
    - `threshold`: below it, the report counts a row as known. To drop these rows:
      `select` with `existing_distance is None or existing_distance >= 0.05`.
    - The embedder's settings are those of `neighbors`.
    """

    name: ClassVar[str] = "novelty"
    version: ClassVar[int] = 1

    against: tuple[str, ...] = ()
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        object.__setattr__(self, "against", entries_of(self.against))

    def features(self) -> Values:
        """Return the distance (squared L2 of unit vectors) and the uuid of the nearest existing row."""
        from datasets import Value

        return {"existing_distance": Value("float32"), "existing_uuid": Value("string")}

    def check_ready(self) -> None:
        """Raise if no dataset to compare with is given, or if one cannot be loaded."""
        if not self.against:
            raise ArgumentError(
                "`novelty` needs a dataset to compare with.", hint="E.g., against: [me/my-dataset-v1]."
            )
        for path in self.against:
            load_rows(path)

    def apply(self, dataset: Dataset, work: Workspace) -> SetResult:
        """Embed the rows and the existing datasets, and compare them."""
        import pyarrow as pa

        best = np.full(len(dataset), np.nan, dtype=np.float32)
        names: list[str | None] = [None] * len(dataset)
        known = {}
        with self.store(work) as store:
            self.embed(store, dataset, self.column, work)
            for path in self.against:
                other = with_row_columns(load_rows(path))
                self.embed(store, other, self.column, work)
                rows, others = vectors_of(dataset, self.column, store), vectors_of(other, self.column, store)
                mine, theirs = np.flatnonzero(rows >= 0), np.flatnonzero(others >= 0)
                found = find_nearest(store.matrix[rows[mine]], store.matrix[others[theirs]])
                uuids = column_of(other, "uuid")
                closer = ~(best[mine] <= found.distance) & ~np.isnan(found.distance)
                best[mine[closer]] = found.distance[closer]
                for row, at in zip(mine[closer], found.nearest[closer], strict=True):
                    names[row] = uuids[int(theirs[at])].as_py()
                known[path] = {"rows": len(other), "known_rows": int((found.distance < self.threshold).sum())}
        columns = {"existing_distance": pa.array(best, mask=np.isnan(best)), "existing_uuid": names}
        return SetResult(columns, None, {"against": known, "known_rows": int((best < self.threshold).sum())})
