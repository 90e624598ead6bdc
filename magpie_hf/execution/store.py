"""The journal, the Arrow file and the entry in run.json of one stage."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..engines.base import Engine, Served
from ..errors import ModelMismatchError, StorageError
from ..stage import CODE_NUMBERS, CODES, Batch, Columns, Stage
from ..storage.checksums import damage, file_record
from ..storage.disk import writing
from ..storage.hashing import stable_hash
from ..storage.journal import Index, Int64Array, Journal
from ..storage.loading import quiet_datasets
from ..storage.state import ServedState
from .driver import StageCounters
from .environment import Environment


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

logger = logging.getLogger(__name__)

_MOST_FINGERPRINTS = 16  # per stage
_SERVED = ("model", "revision", "dtype", "version")


class StageStore:
    """The journal, the Arrow file and the entry in run.json of one stage."""

    def __init__(self, stage: Stage, env: Environment, input_fingerprint: str, extra: object = None) -> None:
        self.stage = stage
        self.env = env
        self.identity_fields = env.identity_of(stage)
        self.identity = stable_hash(self.identity_fields, 32)
        self.directory = env.run_dir.stage_dir(stage.label, self.identity)
        self.state = env.run_dir.stage_state(stage.label, self.identity)
        reopened = self.state.reopened  # number of times that `retry` has reopened finished rows
        self.fingerprint = stable_hash([self.identity, input_fingerprint, extra, reopened], 32)
        self.state.identity_fields, self.state.kind = self.identity_fields, stage.kind

    @property
    def cache_file(self) -> Path:
        """The finished stage's Arrow file."""
        return self.directory / f"{self.fingerprint}.arrow"

    def cached(self) -> Dataset | None:
        """Load the rows of the finished stage, or None if there are none that can be read."""
        if not self.cache_file.is_file():
            return None
        from datasets import Dataset

        if not self.is_whole():
            self.cache_file.unlink(missing_ok=True)
            return None
        dataset = Dataset.from_file(str(self.cache_file))
        dataset._fingerprint = self.fingerprint
        self.env.known[self.fingerprint] = None
        # run.json may have the state of another number of rows, or the state before the process was killed.
        self.state.status, self.state.rows_out, self.state.fingerprint = "done", len(dataset), self.fingerprint
        self.env.listener.stage_cached(self.stage.label, len(dataset))
        return dataset

    def is_whole(self) -> bool:
        """Return whether the file of the finished stage is intact; log a warning if not."""
        record = self.state.files.get(self.cache_file.name)
        if record is None:  # killed before the file was recorded, or the run.json was lost
            return False
        problem = damage(self.cache_file, record)
        if problem:
            logger.warning(
                'The cached rows of the stage "%s" are damaged (%s: %s) and are rebuilt from its finished rows.',
                self.stage.label,
                self.cache_file.name,
                problem,
            )
        return problem is None

    def require_cached(self) -> Dataset:
        """Load the rows that were just written."""
        from datasets import Dataset

        dataset = Dataset.from_file(str(self.cache_file))
        dataset._fingerprint = self.fingerprint
        self.env.known[self.fingerprint] = None
        return dataset

    def write(
        self,
        dataset: Dataset,
        function: Callable[[Batch, Sequence[int]], Columns],
        remove: Sequence[str] = (),
    ) -> None:
        """Write the mapped dataset to the cache file, with the declared features and the fingerprint; atomic."""
        from datasets import Features

        kept = {name: feature for name, feature in dataset.features.items() if name not in remove}
        features = Features({**kept, **self.stage.features()})
        with self._writing(), quiet_datasets():
            dataset.with_format(None).map(
                function,
                with_indices=True,
                batched=True,
                batch_size=1000,
                features=features,
                remove_columns=list(remove),
                new_fingerprint=self.fingerprint,
                cache_file_name=str(self.cache_file),
                load_from_cache_file=False,
            )
            if not self.cache_file.exists():  # datasets writes no file for zero rows
                _write_empty(self.cache_file, features)

    def write_columns(self, dataset: Dataset, columns: Mapping[str, object]) -> None:
        """Write the dataset with new columns, as Arrow: rows are not converted to Python objects."""
        import pyarrow as pa
        from datasets import Features

        own = Features(self.stage.features())
        kept = [name for name in dataset.column_names if name not in own]
        features = Features({**{name: dataset.features[name] for name in kept}, **own})
        schema = features.arrow_schema
        arrays = {name: pa.array(columns[name], type=schema.field(name).type, from_pandas=True) for name in own}

        def tables() -> Iterator[pa.Table]:
            at = 0
            for table in dataset.select_columns(kept).with_format("arrow").iter(batch_size=1000):
                for name, values in arrays.items():
                    table = table.append_column(schema.field(name), values.slice(at, len(table)))
                at += len(table)
                yield table

        self._write_tables(tables(), features)

    def write_rows(self, dataset: Dataset, indices: Sequence[int] | Int64Array) -> None:
        """Write some rows of the dataset, in the order of `indices`, as Arrow."""
        self._write_tables(dataset.select(indices).with_format("arrow").iter(batch_size=1000), dataset.features)

    def _write_tables(self, tables: Iterator[pa.Table], features: Features) -> None:
        from datasets.arrow_writer import ArrowWriter

        # A unique name, because the previous owner of the run may still be writing the same stage.
        part = self.directory / f"tmp-{uuid.uuid4().hex}.arrow"
        with self._writing():
            with ArrowWriter(features=features, path=str(part)) as writer:
                for table in tables:
                    writer.write_table(table)
                writer.finalize()
            self.env.run_dir.check_owner()
            os.replace(part, self.cache_file)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Write the stage's file as the owner of the run; remove leftovers of killed processes."""
        self.env.run_dir.check_owner()
        try:
            with writing("the finished stage", self.cache_file):
                self.directory.mkdir(parents=True, exist_ok=True)
                _drop_orphans(self.directory)
                yield
                record = file_record(self.cache_file)
        except StorageError:
            self.env.run_dir.check_owner()  # a new owner may have removed the incomplete file
            with contextlib.suppress(OSError):
                _drop_orphans(self.directory)
            raise
        older = {name: kept for name, kept in self.state.files.items() if (self.directory / name).is_file()}
        self.state.files = {**older, self.cache_file.name: record}

    def counters(self, journal: Journal, index: Index, rows: Int64Array) -> StageCounters:
        """Return the counts of the journal's rows that this run uses, with the engine-seconds of earlier sessions."""
        counters = StageCounters(seconds=self.state.counts.seconds if self.state.counts else 0.0)
        counters.add_index(index, rows, CODES)
        special = index.locations[rows[index.codes[rows] == CODE_NUMBERS["special_token"]]]
        found = (journal.read(location).get("why") for location in special.tolist())
        counters.special_tokens = dict(Counter(token for token in found if token))
        return counters

    def begin(self, counters: StageCounters) -> None:
        """Record that the stage is running."""
        self.state.status = "running"
        self.save(counters)

    def save(self, counters: StageCounters) -> None:
        """Save the stage's counts in run.json."""
        self.state.counts = counters.counts()
        self.env.run_dir.save()

    def done(self, rows_in: int, rows_out: int, counters: StageCounters | None = None) -> None:
        """Record that the stage is finished."""
        self.state.status, self.state.fingerprint = "done", self.fingerprint
        self.state.rows_in, self.state.rows_out = rows_in, rows_out
        if counters is not None:
            self.state.counts = counters.counts()
        self.env.run_dir.save()

    def check_served(self, engine: Engine) -> None:
        """Compare the server that the engine has opened with the one that generated the stage's earlier rows."""
        if engine.served is not None:
            self.check_reply(engine.served)

    def check_reply(self, served: Served) -> None:
        """Raise ModelMismatchError if the server or model is not the one that generated the stage's earlier rows."""
        before = self.state.served
        self._note_fingerprint(before, served.fingerprint)
        seen = {name: str(value) for name, value in served._asdict().items() if name in _SERVED and value is not None}
        changed = {name: (old, new) for name, new in seen.items() if (old := getattr(before, name)) not in (None, new)}
        if changed and not self.env.allow_mixed:
            shown = "; ".join(f"{name}: {old} before, {new} now" for name, (old, new) in changed.items())
            raise ModelMismatchError(
                f'Stage "{self.stage.name}": the server changed during the run ({shown}).',
                hint="Start the same server again, or add --allow-mixed to continue (each row records its own provenance).",
                changed=changed,
            )
        for name, value in seen.items():
            setattr(before, name, value)

    def _note_fingerprint(self, before: ServedState, fingerprint: str | None) -> None:
        """Save the fingerprints of the stage's replies, and log a warning if they differ: settings or replicas may differ."""
        known = before.fingerprints
        if not fingerprint or fingerprint in known or len(known) >= _MOST_FINGERPRINTS:
            return
        known.append(fingerprint)
        if len(known) == 2:
            logger.warning(
                'Stage "%s": replies have different system fingerprints (%s, %s): a replica or a restarted server runs '
                "another version or other settings. The run continues; each row records its own fingerprint.",
                self.stage.name,
                *known,
            )


def _drop_orphans(directory: Path) -> None:
    """Remove temporary files of killed processes."""
    for orphan in directory.glob("tmp*"):
        if orphan.is_file():
            orphan.unlink(missing_ok=True)


def _write_empty(path: Path, features: Features) -> None:
    from datasets.arrow_writer import ArrowWriter

    writer = ArrowWriter(features=features, path=str(path))
    writer.finalize()
