"""Where and how the stages of a run are executed, and what of that enters their identities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..engines.base import Engine
from ..models import ModelRef, resolve_model
from ..stage import Context, ModelChoice, Stage
from ..storage.keys import content_fingerprint
from ..storage.rundir import RunDir, stable_hash, stage_key
from ..storage.state import StageState
from .progress import Listener


if TYPE_CHECKING:
    from datasets import Dataset

    from ..templates.template import ChatTemplate


@dataclass
class Environment:
    """Where and how stages run: handed down by `api`, the same for all stages of a run.

    `identity`: what of engine and template enters each generating stage's identity. `open_engine`: gives the open
    engine, opening it at the first miss; `close_engine` frees it for a stage's own model. `pin_model`: finds a model
    and keeps its commit for the run. `generator`: the recipe's model, whoever generates here. `segment_age_s`: how old
    a journal's segment may get, where others copy closed ones. `load_template`: gives the ChatTemplate, loading it when first asked for.
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
    known: dict[str, None] = field(default_factory=dict)
    close_engine: Callable[[], None] = lambda: None
    pin_model: Callable[[ModelChoice], ModelRef] = lambda choice: resolve_model(
        choice.name, choice.revision, kind=choice.kind
    )
    generator: str = ""
    segment_age_s: float | None = None

    def context(self, stage: Stage, engine: Engine | None = None) -> Context:
        """Return what the stage may use; with an open engine, what that can do."""
        capabilities = None if engine is None else engine.capabilities()
        return Context(self.load_template, self.seed, self.model, self.revision, capabilities, self.refs_of(stage))

    def refs_of(self, stage: Stage) -> dict[str, ModelRef]:
        """Return the models that a stage loads by itself, pinned."""
        return {name: self.pin_model(choice) for name, choice in stage.models(self.generator or self.model).items()}

    def identity_of(self, stage: Stage) -> dict[str, Any]:
        """Return what the stage's identity is the hash of: nested, so that differences can be named."""
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
        """Return the state of the stage with its current settings, None if it has never begun."""
        identity = stable_hash(self.identity_of(stage), 32)
        return next((state for state in self.run_dir.state.stages.values() if state.identity == identity), None)

    def fingerprint_of(self, dataset: Dataset) -> str:
        """Return the lineage of a dataset: its fingerprint if we made it, else a hash of its content."""
        own = str(dataset._fingerprint)
        return own if own in self.known else content_fingerprint(dataset)
