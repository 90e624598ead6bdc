"""What a stage is: a described transform of a Dataset.

A *row stage* makes one row of one row; it is written as `steps(row)`, a generator that yields `Ask`s, is sent
`Generation`s and returns an `Outcome`. It knows no engine and no driver. A *model stage* makes rows of rows too, with a
model of its own that is no text generator. A *batch stage* is a pure function of a batch of columns. A *set stage* is
a function of the whole Dataset. All declare what they read, the `Features` they write, and the parameters that make
their identity.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from .columns import missing_columns
from .engines.base import Capabilities, Generation, Prompt
from .errors import DatasetError, MagpieError
from .models import ModelRef
from .sampling import SamplingParams


if TYPE_CHECKING:
    from datasets import Dataset

    from .templates.template import ChatTemplate


class Ask(NamedTuple):
    """What a stage wants generated next for a row."""

    prompt: Prompt
    sampling: SamplingParams


class Outcome(NamedTuple):
    """What a row came to: the record to keep (JSON-like, short keys), a code of `CODES`, and tokens read, if counted."""

    record: dict[str, Any]
    code: str = "ok"
    tokens: int = 0


Steps = Generator[Ask, Generation, Outcome]

OK = "ok"
ROW_INDEX = "_index"
"""Key under which `steps` finds the number that stands for a row in its seeds: made of the row key, in [0, 2^31)."""
CODES = tuple(
    "ok unfinished empty fragment think_tag assistant_voice special_token mixed_script banned_start too_long validation "
    "generation incomplete_generation failed fewer_turns unparsable unknown_label header".split()
)
"""Names of the journal's codes, by number. Append only: journals on disk hold the numbers."""
CODE_NUMBERS = {name: number for number, name in enumerate(CODES)}
FAILURE_CODES = tuple("too_long validation generation incomplete_generation failed".split())


def failed(generation: Generation) -> Outcome:
    """Return the outcome of a row whose request failed for good: no text, a code, and the engine's message."""
    failure = generation.failure
    assert failure is not None  # noqa: S101 (callers checked)
    code = failure.code if failure.code in FAILURE_CODES else "failed"
    return Outcome({"error": failure.code, "message": failure.message}, code)


class Context:
    """What a stage may use when it is bound.

    `template`: the prompts' template, loaded when first asked for. `seed`: the run's. `model`, `revision`: who
    generates. `capabilities`: what the open engine can do, or None. `refs`: the models that the stage loads itself.
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
        given: Any = self._template
        found: ChatTemplate = given() if callable(given) and not hasattr(given, "tokenizer") else given
        return found


class ModelChoice(NamedTuple):
    """A model that a stage loads by itself: Hub id, directory or "demo"; its revision; which demo model is meant."""

    name: str
    revision: str | None = None
    kind: str = "model"


IDENTITY = "identity"
"""Key in a field's metadata: False keeps a setting out of the identity of its stage."""

RESOLVED = "resolved"
"""Key in a field's metadata: True where the identity holds what the setting stands for, e.g., a model at its commit."""


def silent(default: Any) -> Any:
    """Return a dataclass field for a setting that can change no output, e.g., an address or a batch size."""
    return field(default=default, metadata={IDENTITY: False})


def resolved(default: Any) -> Any:
    """Return a dataclass field for a setting that is in the identity as what it stands for: by `models` or `derived`."""
    return field(default=default, metadata={IDENTITY: False, RESOLVED: True})


def entries_of(given: Any) -> tuple[Any, ...]:
    """Return a setting of several entries as a tuple; one text or mapping stands for a list of one."""
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


@dataclass(frozen=True)
class Stage(ABC):
    """A described transform of a Dataset.

    `name`: in recipes and directories. `version`: counted up by every change that alters an output. `kind`: "row",
    "batch" or "set". `reads`: columns it needs. `uses_engine`: whether text is generated, and `role` by whom: the
    recipe's "generator", "judge", "guard" or "base". `repeatable`: whether a recipe may have several of it. `after`:
    stages that must come before, and are put there if a recipe leaves them out. `optional`: columns it takes where
    they are.
    `replaces`: columns of the input that are dropped, as what the stage writes makes them out of date.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    kind: ClassVar[str] = "row"
    reads: ClassVar[tuple[str, ...]] = ()
    uses_engine: ClassVar[bool] = True
    role: ClassVar[str] = "generator"
    repeatable: ClassVar[bool] = False
    after: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    replaces: ClassVar[tuple[str, ...]] = ()

    @property
    def label(self) -> str:
        """What the stage is called in run directories and on the screen: its name, where no settings tell it apart."""
        return self.name

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that the stage reads under its settings."""
        return self.reads

    @property
    def uses_tokenizer(self) -> bool:
        """Whether a stage without engine depends on the tokenizer of the recipe's model."""
        return False

    def under(self, model: str) -> Stage:
        """Return the stage as it is under the recipe's model; "" where the recipe has none.

        Raises:
            ArgumentError: the stage needs a model.
        """
        return self

    def beside(self, others: Sequence[Stage]) -> Stage:
        """Return the stage with what it takes from the recipe's other stages."""
        return self

    def models(self, generator: str) -> dict[str, ModelChoice]:
        """Return the models that the stage loads by itself, by setting; `generator` is the recipe's model."""
        return {}

    def parameters(self) -> dict[str, Any]:
        """Return all that can change an output, JSON-like: every setting that is not `silent`, and what is derived."""
        loud = (field.name for field in dataclasses.fields(self) if field.metadata.get(IDENTITY, True))
        return {name: plain(getattr(self, name)) for name in loud} | self.derived()

    def derived(self) -> dict[str, Any]:
        """Return what settings stand for where their values do not say it, e.g., the text of a rubric that they name."""
        return {}

    @abstractmethod
    def features(self) -> dict[str, Any]:
        """Return the `datasets` feature of each column written."""

    def check_template(self, template: ChatTemplate) -> None:  # noqa: B027 (most stages send no prompt)
        """Raise TemplateError if the template cannot give this stage's prompts; asked before any row is paid for."""

    def check_ready(self) -> None:  # noqa: B027 (most stages need nothing from outside)
        """Raise if the stage lacks what it needs from outside: packages, other datasets; asked before the first row.

        Raises:
            ArgumentError: a setting that it cannot run without is missing.
            DatasetError: a dataset that it compares with cannot be read.
            DependencyError: a package is missing.
        """

    def check_columns(self, dataset: Dataset) -> None:
        """Raise DatasetError if a column that the stage reads is missing."""
        self.check_features(dataset.features)

    def check_features(self, features: Mapping[str, Any]) -> None:
        """Raise DatasetError if the stage cannot read a dataset of these features."""
        missing = [column for column in self.needs if column not in features]
        if missing:
            raise missing_columns({column: [f'the stage "{self.label}"'] for column in missing}, list(features))
        for column in {"instruction", "response"} & {*self.needs}:
            dtype = str(getattr(features[column], "dtype", "") or "a list")
            if dtype not in ("string", "large_string", "string_view", "null"):
                raise DatasetError(
                    f'The stage "{self.label}" reads texts in the column "{column}", and its values are of type {dtype}.',
                    hint=f'Convert it first, e.g., dataset.cast_column("{column}", datasets.Value("string")).',
                    column=column,
                )


def check_columns(stages: Iterable[Stage], features: Mapping[str, Any]) -> None:
    """Raise for columns that stages read and neither the rows nor an earlier stage have; all of them are named.

    `features`: of the rows before the first of the stages. The error's `data` has the `position` of the first stage
    that cannot run.

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
        known = {name: known[name] for name in known if name not in stage.replaces} | stage.features()
    if first is None:
        return
    if len(missing) > len(first.data["columns"]):
        whole = missing_columns(missing, list(features))
        first = type(whole)(whole.message, hint=whole.hint, **whole.data, position=first.data["position"])
    raise first


class RowStage(Stage):
    """One row in, one row out, journaled by row key; see the module's docstring."""

    @abstractmethod
    def bind(self, context: Context) -> Callable[[Mapping[str, Any]], Steps]:
        """Return `steps`: the generator function of a row."""

    @abstractmethod
    def columns(
        self, context: Context, row: Mapping[str, Any], record: Mapping[str, Any], code: str
    ) -> dict[str, Any]:
        """Return the new columns' values of a finished row."""


class BatchStage(Stage):
    """A pure function of a batch of columns: cheap enough not to be journaled."""

    kind: ClassVar[str] = "batch"
    uses_engine: ClassVar[bool] = False

    @abstractmethod
    def bind(self, context: Context) -> Callable[[Mapping[str, Sequence[Any]]], dict[str, list[Any]]]:
        """Return the function of a batch of columns (lists of equal length) that gives the new columns."""


class Scorer(AbstractContextManager["Scorer"]):
    """What a model stage opens: the loaded model, closed at the end."""

    @abstractmethod
    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """Return the outcome of each row, in order; best given many rows at once, as they are batched by length."""

    def close(self) -> None:
        """Free the model."""

    def __exit__(self, *_: object) -> None:
        self.close()


class ModelStage(Stage):
    """One row in, one row out, journaled by row key, by a model that the stage loads itself (reward models)."""

    uses_engine: ClassVar[bool] = False
    block_rows: ClassVar[int] = 256

    @abstractmethod
    def open(self, context: Context) -> Scorer:
        """Load the model. Raises ModelError, DependencyError."""

    @abstractmethod
    def columns(
        self, context: Context, row: Mapping[str, Any], record: Mapping[str, Any], code: str
    ) -> dict[str, Any]:
        """Return the new columns' values of a finished row."""


class Reporter(Protocol):
    """Shows what a long stage is doing."""

    def note(self, text: str) -> None:
        """Log a message."""

    def steps(self, name: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show a bar; the function given is called with how many of `total` are done."""


class Workspace(NamedTuple):
    """What a set stage works with: its own directory, one for what outlives its input, its models, who is told."""

    directory: Path
    shared: Path
    context: Context
    listener: Reporter


class SetResult(NamedTuple):
    """What a set stage came to.

    `columns`: new columns, each with a value a row; `indices`: or the rows kept, (num_kept,) int64, in order.
    `report`: JSON-like figures for run.json, reports and cards.
    """

    columns: Mapping[str, Sequence[Any]]
    indices: Any = None
    report: Mapping[str, Any] = {}


class SetStage(Stage):
    """A function of the whole Dataset: new columns that depend on all rows, or a selection of rows."""

    kind: ClassVar[str] = "set"
    uses_engine: ClassVar[bool] = False

    @abstractmethod
    def apply(self, dataset: Dataset, work: Workspace) -> SetResult:
        """Compute; what takes long keeps its state in the workspace and goes on from it."""
