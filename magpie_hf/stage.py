"""What a stage is: a described transform of a Dataset.

A *row stage* makes one row of one row; it is written as `steps(row)`, a generator that yields `Ask`s, is sent
`Generation`s and returns an `Outcome`. It knows no engine and no driver. A *batch stage* is a pure function of a
batch of columns. Both declare what they read, the `Features` they write, and the parameters that make their identity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from .engines.base import Capabilities, Engine, Generation, Prompt
from .errors import DatasetError, did_you_mean
from .keys import content_fingerprint
from .progress import Listener
from .rundir import RunDir
from .sampling import SamplingParams


if TYPE_CHECKING:
    from datasets import Dataset

    from .templates import ChatTemplate


class Ask(NamedTuple):
    """What a stage wants generated next for a row."""

    prompt: Prompt
    sampling: SamplingParams


class Outcome(NamedTuple):
    """What a row came to: the record to keep (JSON-like, short keys) and a code of `CODES`."""

    record: dict[str, Any]
    code: str = "ok"


Steps = Generator[Ask, Generation, Outcome]

OK = "ok"
ROW_INDEX = "_index"
"""Key under which `steps` finds the number that stands for a row in its seeds: made of the row key, in [0, 2^31)."""
CODES = (
    "ok",
    "unfinished",
    "empty",
    "fragment",
    "think_tag",
    "assistant_voice",
    "special_token",
    "mixed_script",
    "banned_start",
    "too_long",
    "validation",
    "generation",
    "incomplete_generation",
    "failed",
    "fewer_turns",
    "unparsable",
)
"""Names of the journal's codes, by number. Append only: journals on disk hold the numbers."""
CODE_NUMBERS = {name: number for number, name in enumerate(CODES)}
FAILURE_CODES = ("too_long", "validation", "generation", "incomplete_generation", "failed")


def failed(generation: Generation) -> Outcome:
    """Return the outcome of a row whose request failed for good: no text, a code, and the engine's message."""
    failure = generation.failure
    assert failure is not None  # noqa: S101 (callers checked)
    code = failure.code if failure.code in FAILURE_CODES else "failed"
    return Outcome({"error": failure.code, "message": failure.message}, code)


@dataclass(frozen=True)
class Context:
    """What a stage may use when it is bound: the prompts' template, the run's seed, who generates, what it can do."""

    template: ChatTemplate
    seed: int
    model: str
    revision: str | None = None
    capabilities: Capabilities | None = None


@dataclass(frozen=True)
class Stage(ABC):
    """A described transform of a Dataset.

    `name`: in recipes and directories. `version`: counted up by every change that alters an output. `kind`: "row",
    "batch" or "set". `reads`: columns it needs. `uses_engine`: whether text is generated. `uses_tokenizer`: whether
    a stage without engine depends on the model's tokenizer.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    kind: ClassVar[str] = "row"
    reads: ClassVar[tuple[str, ...]] = ()
    uses_engine: ClassVar[bool] = True
    uses_tokenizer: ClassVar[bool] = False

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Return all settings that can change an output, JSON-like."""

    @abstractmethod
    def features(self) -> dict[str, Any]:
        """Return the `datasets` feature of each column written."""

    def check_template(self, template: ChatTemplate) -> None:  # noqa: B027 (most stages send no prompt)
        """Raise TemplateError if the template cannot give this stage's prompts; asked before any row is paid for."""

    def check_columns(self, dataset: Dataset) -> None:
        """Raise DatasetError if a column that the stage reads is missing."""
        for column in self.reads:
            if column not in dataset.column_names:
                raise DatasetError(
                    f'The stage "{self.name}" reads the column "{column}", and the dataset has none.',
                    hint=did_you_mean(column, dataset.column_names),
                    column=column,
                )


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


@dataclass
class Environment:
    """Where and how stages run: handed down by `api`, the same for all stages of a run.

    `identity`: what of engine and template enters each generating stage's identity. `open_engine`: gives the open
    engine, opening it at the first miss. `load_template`: gives the ChatTemplate, loading it when first asked for.
    `listener`: told of progress; may raise RunStopped. `accept_failures`: transient failures become errors.
    """

    run_dir: RunDir
    identity: dict[str, Any]
    open_engine: Callable[[], Engine]
    load_template: Callable[[], ChatTemplate]
    listener: Listener
    model: str
    revision: str | None
    seed: int = 0
    accept_failures: bool = False
    allow_mixed: bool = False
    known: set[str] = field(default_factory=set)

    @cached_property
    def context(self) -> Context:
        """The context without an engine's capabilities: enough to build columns."""
        return Context(self.load_template(), self.seed, self.model, self.revision)

    def bound_context(self, engine: Engine) -> Context:
        """Return the context of an open engine."""
        return Context(self.load_template(), self.seed, self.model, self.revision, engine.capabilities())

    def identity_of(self, stage: Stage) -> dict[str, Any]:
        """Return what the stage's identity is the hash of: nested, so that differences can be named."""
        fields: dict[str, Any] = {"stage": stage.name, "version": stage.version, "parameters": stage.parameters()}
        if stage.uses_engine:
            fields |= {"seed": self.seed, **self.identity}
        elif stage.uses_tokenizer:
            fields["tokenizer"] = {"model": self.model, "revision": self.revision}
        return fields

    def fingerprint_of(self, dataset: Dataset) -> str:
        """Return the lineage of a dataset: its fingerprint if we made it, else a hash of its content."""
        own = str(dataset._fingerprint)
        return own if own in self.known else content_fingerprint(dataset)
