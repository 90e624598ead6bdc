"""The environment in which the stages of a run are executed, and the identities of the stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..engines.base import Engine
from ..models import ModelRef, resolve_model
from ..stage import Context, ModelChoice, Stage
from ..storage.hashing import stable_hash
from ..storage.keys import content_fingerprint
from ..storage.rundir import RunDir, stage_key
from ..storage.state import StageState
from .progress import Listener


if TYPE_CHECKING:
    from datasets import Dataset

    from ..templates.template import ChatTemplate


@dataclass
class Environment:
    """The engine, template and listener for stages; created by the session, the same for all stages of a role.

    - `identity`: the part of the engine's and template's settings that is in the identity of each generating stage.
    - `open_engine`: returns the engine, opened at first use; `close_engine` frees its memory for a stage's own model.
    - `load_template`: returns the chat template, loaded at first use.
    - `pin_model`: resolves a model and saves its commit for the run. `generator`: the recipe's model.
    - `listener`: receives progress; may raise RunStopped. `accept_failures`: finish transient failures as errors.
    - `segment_age_s`: maximum age of an open journal segment, if closed segments are published.
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
    known: dict[str, None] = field(default_factory=dict)
    close_engine: Callable[[], None] = lambda: None
    pin_model: Callable[[ModelChoice], ModelRef] = lambda choice: resolve_model(
        choice.name, choice.revision, kind=choice.kind
    )
    generator: str = ""
    segment_age_s: float | None = None

    def context(self, stage: Stage, engine: Engine | None = None) -> Context:
        """Return the context of a stage, with the capabilities of an open engine."""
        capabilities = None if engine is None else engine.capabilities()
        return Context(self.load_template, self.seed, self.model, self.revision, capabilities, self.refs_of(stage))

    def refs_of(self, stage: Stage) -> dict[str, ModelRef]:
        """Return the models that a stage loads itself, with their commits."""
        return {name: self.pin_model(choice) for name, choice in stage.models(self.generator or self.model).items()}

    def identity_of(self, stage: Stage) -> dict[str, Any]:
        """Return the fields whose hash is the stage's identity; nested, so that differences can be named."""
        fields: dict[str, Any] = {"stage": stage.name, "version": stage.version, "parameters": stage.parameters()}
        refs = self.refs_of(stage)
        if refs:
            fields["models"] = {name: {"model": ref.name, "revision": ref.revision} for name, ref in refs.items()}
        if stage.uses_engine:
            fields |= {"seed": self.seed, **self.identity}
        elif stage.uses_tokenizer:
            fields["tokenizer"] = {"model": self.model, "revision": self.revision}
        return fields

    def key_of(self, stage: Stage) -> str:
        """Return the key that the stage has in the state of the run with its current settings."""
        return stage_key(stage.label, stable_hash(self.identity_of(stage), 32))

    def state_of(self, stage: Stage) -> StageState | None:
        """Return the state of the stage with its current settings, None if it has never been started."""
        return self.run_dir.state.stages.get(self.key_of(stage))

    def fingerprint_of(self, dataset: Dataset) -> str:
        """Return the fingerprint of a dataset if a stage of this run made it, otherwise a hash of its content."""
        own = str(dataset._fingerprint)
        return own if own in self.known else content_fingerprint(dataset)
