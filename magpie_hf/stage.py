"""Base classes of stages: a stage is a declared transform of a Dataset.

A *row stage* turns one row into one row. It is written as a generator `steps(row)` that yields an `Ask`, receives a
`Generation` and returns an `Outcome`; it does not know the engine or the driver. A *model stage* does the same with a
model that it loads itself, e.g., a classifier. A *batch stage* is a pure function of a batch of columns. A *set stage*
is a function of the whole Dataset. All stages declare the columns that they read, the features that they write, and the
parameters that make up their identity.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias

from .columns import missing_columns
from .engines.base import Capabilities, Generation, Prompt
from .errors import DatasetError, MagpieError
from .models import ModelRef
from .sampling import SamplingParams


if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from datasets import Dataset

    from .templates.template import ChatTemplate


Row: TypeAlias = Mapping[str, Any]
"""The columns of a row that a stage reads, by name; their types are those of the dataset's features."""
Batch: TypeAlias = Mapping[str, Sequence[Any]]
"""The columns of a batch of rows, as in `Dataset.map(batched=True)`."""
Columns: TypeAlias = dict[str, list[Any]]
"""The new columns of a batch of rows."""
Record: TypeAlias = dict[str, Any]
"""The values of a finished row in the journal: JSON-like, with short keys."""
Values: TypeAlias = dict[str, object]
"""Values by name: the new columns of a row, parameters, or `datasets` features."""


class Ask(NamedTuple):
    """The next request of a row."""

    prompt: Prompt
    sampling: SamplingParams


class Outcome(NamedTuple):
    """The result of a row: the record to keep, a code of `CODES`, and the number of tokens read, if it is counted."""

    record: dict[str, Any]
    code: str = "ok"
    tokens: int = 0


Steps: TypeAlias = Generator[Ask, Generation, Outcome]
RowFunction: TypeAlias = Callable[[Row], Steps]
BatchFunction: TypeAlias = Callable[[Batch], Columns]

OK = "ok"
ROW_INDEX = "_index"
"""Key of the number in a row from which `steps` derives its seeds: computed from the row key, in [0, 2^31)."""
CODES = tuple(
    "ok unfinished empty fragment think_tag assistant_voice special_token mixed_script banned_start too_long validation "
    "generation incomplete_generation failed fewer_turns unparsable unknown_label header content_filter refusal "
    "repeated".split()
)
"""Names of the journal's codes, by number. Append only: journals on disk hold the numbers."""
CODE_NUMBERS = {name: number for number, name in enumerate(CODES)}
FAILURE_CODES = tuple("too_long validation generation incomplete_generation failed content_filter refusal".split())
WITHHELD_CODES = ("content_filter", "refusal")
"""Failures that depend on the text of the row: the server works, however many rows have them."""


def failed(generation: Generation) -> Outcome:
    """Return the outcome of a row whose request failed permanently: no text, a code, and the engine's message."""
    failure = generation.failure
    assert failure is not None  # noqa: S101 (callers check it)
    code = failure.code if failure.code in FAILURE_CODES else "failed"
    return Outcome({"error": failure.code, "message": failure.message}, code)


class Context:
    """What a stage can use when it is bound.

    `template`: the chat template for prompts, loaded at first use. `seed`: of the run. `model`, `revision`: the model
    that generates. `capabilities`: of the open engine, or None. `refs`: the models that the stage loads itself.
    """

    def __init__(
        self,
        template: ChatTemplate | Callable[[], ChatTemplate],
        seed: int,
        model: str,
        revision: str | None = None,
        capabilities: Capabilities | None = None,
        refs: Mapping[str, ModelRef] | None = None,
    ) -> None:
        self._template = template
        self.seed = seed
        self.model = model
        self.revision = revision
        self.capabilities = capabilities
        self.refs = dict(refs or {})

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's chat template."""
        given = self._template
        return given() if callable(given) else given


class ModelChoice(NamedTuple):
    """A model that a stage loads itself.

    `name`: Hub id, directory or "demo". `revision`: on the Hub. `kind`: the demo model that "demo" refers to:
    "model", "reward" or "embedder".
    """

    name: str
    revision: str | None = None
    kind: str = "model"


IDENTITY = "identity"
"""Key in a field's metadata: False keeps a setting out of the identity of its stage."""

RESOLVED = "resolved"
"""Key in a field's metadata: True if the identity contains the resolved value, e.g., a model with its commit."""


OPTIONAL = "optional"
"""Key in a field's metadata: True keeps a setting out of the identity of its stage while it has its default."""


def silent(default: Any) -> Any:
    """Return a dataclass field for a setting that cannot change the output, e.g., a URL or a batch size."""
    return field(default=default, metadata={IDENTITY: False})


def resolved(default: Any) -> Any:
    """Return a dataclass field for a setting whose resolved value is in the identity, by `models` or `derived`."""
    return field(default=default, metadata={IDENTITY: False, RESOLVED: True})


def optional(default: Any) -> Any:
    """Return a dataclass field that is in the identity only if it is set: rows without it keep their identity."""
    return field(default=default, metadata={OPTIONAL: True})


def entries_of(given: Any) -> tuple[Any, ...]:
    """Return a setting with several entries as a tuple; a single string, path or mapping is one entry."""
    return (given,) if isinstance(given, (str, Path, Mapping)) else tuple(given)


def plain(value: Any) -> Any:
    """Return a setting as JSON-ready values."""
    if isinstance(value, SamplingParams):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def is_set(stage: Stage, field: dataclasses.Field[Any]) -> bool:
    """Return whether a setting counts in the identity: False for an `optional` one with its default."""
    return not field.metadata.get(OPTIONAL, False) or getattr(stage, field.name) != field.default


@dataclass(frozen=True)
class Stage(ABC):
    """A declared transform of a Dataset.

    - `name`: in recipes and directories. `version`: increased with every change that alters an output.
    - `kind`: "row", "batch" or "set".
    - `reads`: columns that it needs. `optional`: columns that it reads if the rows have them. `replaces`: columns of
      the input that are dropped because the output of the stage makes them outdated.
    - `uses_engine`: whether it generates text, and `role`: with which model of the recipe: "generator", "responder",
      "judge", "guard" or "base".
    - `is_costly`: whether it generates long texts for each row; with `order: lean`, it runs after all conditions that can
      be applied before it, also if it reads only the instruction.
    - `repeatable`: whether a recipe may contain it more than once.
    - `after`: stages that must run before, and are added if a recipe leaves them out.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    kind: ClassVar[str] = "row"
    reads: ClassVar[tuple[str, ...]] = ()
    uses_engine: ClassVar[bool] = True
    role: ClassVar[str] = "generator"
    is_costly: ClassVar[bool] = False
    repeatable: ClassVar[bool] = False
    after: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    replaces: ClassVar[tuple[str, ...]] = ()

    @property
    def label(self) -> str:
        """The name of the stage in run directories and messages; includes settings if a recipe can contain several."""
        return self.name

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that the stage reads with these settings."""
        return self.reads

    @property
    def drops(self) -> tuple[str, ...]:
        """The columns of the input that these settings make outdated; they are dropped."""
        return self.replaces

    @property
    def uses_tokenizer(self) -> bool:
        """Whether a stage without an engine depends on the tokenizer of the recipe's model."""
        return False

    def for_model(self, model: str) -> Stage:
        """Return the stage adapted to the recipe's model, "" if the recipe has none.

        Raises:
            ArgumentError: the stage needs a model.
        """
        return self

    def with_settings_of(self, others: Sequence[Stage]) -> Stage:
        """Return the stage with settings copied from the recipe's other stages."""
        return self

    def models(self, generator: str) -> dict[str, ModelChoice]:
        """Return the models that the stage loads itself, by name; `generator` is the recipe's model."""
        return {}

    def parameters(self) -> Values:
        """Return everything that can change the output, JSON-like: all settings that are not `silent`, and `derived`.

        Settings that are `optional` and not set are left out.
        """
        identifying = (
            field.name
            for field in dataclasses.fields(self)
            if field.metadata.get(IDENTITY, True) and is_set(self, field)
        )
        return {name: plain(getattr(self, name)) for name in identifying} | self.derived()

    @property
    def shown(self) -> Values:
        """The `silent` settings that change the columns of finished rows, but no text: rows are collected again, not generated."""
        return {}

    def derived(self) -> Values:
        """Return values that settings refer to, e.g., the content of a file whose path is a setting."""
        return {}

    @abstractmethod
    def features(self) -> Values:
        """Return the `datasets` feature of each new column."""

    def check_template(self, template: ChatTemplate) -> None:  # noqa: B027 (most stages send no prompt)
        """Raise TemplateError if the template cannot render the prompts of this stage; checked before the first row."""

    def check_ready(self) -> None:  # noqa: B027 (most stages need nothing from outside)
        """Raise if something the stage depends on is missing, e.g., a package; checked before the first row.

        Raises:
            ArgumentError: a required setting is missing.
            DatasetError: a dataset that it compares with cannot be read.
            DependencyError: a package is missing.
        """

    def check_columns(self, dataset: Dataset) -> None:
        """Raise DatasetError if a column that the stage reads is missing."""
        self.check_features(dataset.features)

    def check_features(self, features: Mapping[str, object]) -> None:
        """Raise DatasetError if the stage cannot read a dataset with these features."""
        missing = [column for column in self.needs if column not in features]
        if missing:
            raise missing_columns({column: [f'the stage "{self.label}"'] for column in missing}, list(features))
        for column in {"instruction", "response"} & {*self.needs}:
            dtype = str(getattr(features[column], "dtype", "") or "a list")
            if dtype not in ("string", "large_string", "string_view", "null"):
                raise DatasetError(
                    f'The stage "{self.label}" reads text from the column "{column}", but its type is {dtype}.',
                    hint=f'Convert it first, e.g., dataset.cast_column("{column}", datasets.Value("string")).',
                    column=column,
                )


def check_columns(stages: Iterable[Stage], features: Mapping[str, object]) -> None:
    """Raise if stages read columns that neither the rows nor an earlier stage provide; the error names all of them.

    `features`: of the rows before the first stage. The error's `data` has the `position` of the first stage that cannot
    run.

    Raises:
        DatasetError: columns are missing.
        ArgumentError: a condition cannot be evaluated on such columns.
    """
    known = dict(features)
    missing: dict[str, list[str]] = {}
    first: MagpieError | None = None
    for position, stage in enumerate(stages):
        try:
            stage.check_features(known)
        except MagpieError as error:
            error.data["position"] = position
            first = first or error
            if "columns" not in error.data:
                raise first from None
            for column in error.data["columns"]:
                missing.setdefault(column, []).append(f'the stage "{stage.label}"')
        known = {name: known[name] for name in known if name not in stage.drops} | stage.features()
    if first is None:
        return
    if len(missing) > len(first.data["columns"]):
        whole = missing_columns(missing, list(features))
        first = type(whole)(whole.message, hint=whole.hint, **whole.data, position=first.data["position"])
    raise first


class RowStage(Stage):
    """One row in, one row out, with requests to the engine; journaled per row. See the module's docstring."""

    @abstractmethod
    def bind(self, context: Context) -> RowFunction:
        """Return `steps`, the generator function that processes a row."""

    @abstractmethod
    def columns(self, context: Context, row: Row, record: Record, code: str) -> Values:
        """Return the values of the new columns for a finished row."""


class BatchStage(Stage):
    """A pure function of a batch of columns; cached as a whole, not journaled."""

    kind: ClassVar[str] = "batch"
    uses_engine: ClassVar[bool] = False

    @abstractmethod
    def bind(self, context: Context) -> BatchFunction:
        """Return the function from a batch of columns (lists of equal length) to the new columns."""


class Scorer(AbstractContextManager["Scorer"]):
    """The loaded model of a model stage; closed at the end of the stage."""

    @abstractmethod
    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """Return the outcome of each row, in order; many rows at once allow batching by length."""

    def close(self) -> None:
        """Free the model."""

    def __exit__(self, *_: object) -> None:
        self.close()


class ModelStage(Stage):
    """One row in, one row out, with a model that the stage loads itself (e.g., a reward model); journaled per row."""

    uses_engine: ClassVar[bool] = False
    block_rows: ClassVar[int] = 256

    @abstractmethod
    def open(self, context: Context) -> Scorer:
        """Load the model. Raises ModelError, DependencyError."""

    @abstractmethod
    def columns(self, context: Context, row: Row, record: Record, code: str) -> Values:
        """Return the values of the new columns for a finished row."""


class Reporter(Protocol):
    """Shows the progress of a long stage."""

    def note(self, text: str) -> None:
        """Log a message."""

    def steps(self, name: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show a progress bar; call the yielded function with the number of steps done."""


class Workspace(NamedTuple):
    """What a set stage works with.

    `directory`: for intermediate results, removed when the stage is finished. `shared`: for files that stay valid when
    the input changes. `context`: models and template. `listener`: receives messages and progress.
    """

    directory: Path
    shared: Path
    context: Context
    listener: Reporter


class SetResult(NamedTuple):
    """The result of a set stage.

    `columns`: new columns with one value per row; or `indices`: the rows to keep, in order.
    `report`: JSON-like figures for run.json, reports and cards.
    """

    columns: Mapping[str, object]
    indices: Sequence[int] | npt.NDArray[np.int64] | None = None
    report: Mapping[str, object] = {}


class SetStage(Stage):
    """A function of the whole dataset: new columns that depend on all rows, or a selection of rows."""

    kind: ClassVar[str] = "set"
    uses_engine: ClassVar[bool] = False

    @abstractmethod
    def apply(self, dataset: Dataset, work: Workspace) -> SetResult:
        """Compute the result; a long computation can save its state in the workspace and resume from it."""
