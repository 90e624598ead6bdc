"""One session of a run: pins models, opens engines when they are needed, and records the session in run.json."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..engines import engine_class, takes_endpoints, takes_messages
from ..engines.base import Engine, Prompt
from ..errors import BudgetExceeded, MagpieError
from ..execution.driver import rejected_by_code
from ..execution.environment import Environment
from ..execution.progress import Listener
from ..messages import user
from ..models import ModelRef, named_model, resolve_model
from ..recipe.schema import Recipe, RoleSpec
from ..stage import ModelChoice, Stage
from ..storage.hashing import stable_hash
from ..storage.rundir import RunDir
from ..storage.state import Counts, SessionState, StoppedBy, Totals
from ..templates.chat_server import ChatServerTemplate
from ..templates.guard import GuardTemplate
from ..templates.plain import PlainTemplate
from ..templates.template import ChatTemplate
from ..version import __version__
from .output import check_target


PACKAGES = ("datasets", "transformers", "tokenizers", "torch", "huggingface_hub", "aiohttp", "numpy", "pyarrow")


class Session:
    """Models, templates and engines of a running recipe. Models are only loaded if a stage is not cached."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: RunDir,
        *,
        accept_failures: bool = False,
        allow_mixed: bool = False,
        show_progress: bool | None = None,
    ) -> None:
        check_target(run_dir.path, recipe.output.get("format", "parquet"))
        self.recipe = recipe
        self.run_dir = run_dir
        self.accept_failures = accept_failures
        self.allow_mixed = allow_mixed
        self.listener = Listener(recipe.budget, show=show_progress, spent=self._spent_elsewhere)
        self._open: tuple[str, Engine] | None = None
        self._templates: dict[str, Any] = {}
        self._environments: dict[str, Environment] = {}
        self._known: dict[str, None] = {}

    def environment_of(self, stage: Stage) -> Environment:
        """Return the environment of a stage; a stage that does not generate uses the environment of the generator."""
        return self.environment(stage.role if stage.uses_engine else "generator")

    def environment(self, role: str = "generator") -> Environment:
        """Return the environment of the stages with a role."""
        if role not in self._environments:
            spec = self.recipe.role(role)
            ref = pinned_model(spec, self.run_dir)
            self._environments[role] = Environment(
                run_dir=self.run_dir,
                identity=engine_identity(spec, self.run_dir, ref, role) if ref.name else {},
                open_engine=lambda: self.engine(role),
                load_template=lambda: self.template_of(role),
                listener=self.listener,
                model=ref.name,
                revision=ref.revision,
                seed=self.recipe.seed,
                accept_failures=self.accept_failures,
                allow_mixed=self.allow_mixed,
                known=self._known,
                close_engine=self.close,
                pin_model=self.pin_model,
                generator=self.recipe.model,
                segment_age_s=self.recipe.push.every_s if self.recipe.push else None,
            )
        return self._environments[role]

    def pin_model(self, choice: ModelChoice) -> ModelRef:
        """Return a model that a stage loads itself; the commit of a Hub model is pinned for the run."""
        return pinned(choice.name, choice.revision, self.run_dir, kind=choice.kind)

    def used_stages(self) -> list[str]:
        """Return the keys of the stages that took part in this session, in order."""
        by_fingerprint = {state.fingerprint: key for key, state in self.run_dir.state.stages.items()}
        return [by_fingerprint[fingerprint] for fingerprint in self._known if fingerprint in by_fingerprint]

    @property
    def template(self) -> ChatTemplate:
        """The generator's chat template."""
        return self.template_of("generator")

    def template_of(self, role: str) -> ChatTemplate:
        """Return the chat template of a role with the settings of the recipe and the date of the run."""
        if role == "responder" and self.recipe.role(role) == self.recipe.generator:
            role = "generator"
        if role not in self._templates:
            spec = self.recipe.role(role)
            ref = pinned_model(spec, self.run_dir)
            if role == "base":
                self._templates[role] = PlainTemplate.load(spec.model, revision=ref.load_revision)
            else:
                self._templates[role] = load_template(spec, ref, template_date(spec, self.run_dir, ref, role), role)
        found: ChatTemplate = self._templates[role]
        return found

    def engine(self, role: str = "generator") -> Engine:
        """Return the engine of a role, opened and checked with a real prompt; only one is open at a time."""
        spec = self.recipe.role(role)
        template = self.template_of(role)
        stops = stop_texts(template)
        key = stable_hash([spec.model, spec.revision, asdict(spec.engine), sorted(stops.items())])
        if self._open is not None and self._open[0] == key:
            return self._open[1]
        for stage in self.recipe.stages:
            # The responder is checked together with the generator, before any instruction is generated.
            if stage.uses_engine and (stage.role == role or (stage.role, role) == ("responder", "generator")):
                stage.check_template(template if stage.role == role else self.template_of(stage.role))
        self.close()
        engine = make_engine(spec, pinned_model(spec, self.run_dir), stops)
        engine.open()
        self._open = (key, engine)
        for prompt in self._prompts_to_check(role, template):
            engine.check_prompt(prompt)
        return engine

    def _prompts_to_check(self, role: str, template: ChatTemplate) -> list[Prompt]:
        """Return one prompt of a role for each system prompt of the grid under which the role generates."""
        of_grid = [*dict.fromkeys(point.system_prompt for point in self.recipe.grid)]
        if role == "generator" and not self.recipe.dataset:
            return [template.pre_query(system_prompt) for system_prompt in of_grid]
        is_per_row = any(getattr(stage, "is_per_row", False) and stage.role == role for stage in self.recipe.stages)
        used = of_grid if is_per_row and not self.recipe.dataset else [None]
        return [template.response([user("Hello")], system_prompt) for system_prompt in used]

    def _spent_elsewhere(self, key: str) -> tuple[int, float]:
        return self.run_dir.state.spent(but=key)

    def summary(self, rows: int) -> str:
        """Return the summary of a finished run: rows, rejected rows with reasons, tokens, time, and the run directory."""
        rejected = []
        for key in self.used_stages():
            state = self.run_dir.state.stages[key]
            counts = state.counts or Counts()
            reasons = rejected_by_code(counts.by_code, counts.special_tokens)
            rejected += [f"{state.name}: rejected {reasons}"] if reasons else []
        tokens, seconds = self.run_dir.state.spent()
        lines = [f"{rows:,} rows, {tokens:,} tokens, {seconds:.1f} s of generation", *rejected]
        return "\n".join([*lines, f"Saved in {self.run_dir.path}"])

    def close(self) -> None:
        """Close the open engine."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the session in run.json: start, end, package versions, and outcome."""
        record = SessionState(_now(), dict(versions()))
        state = self.run_dir.state
        self._mark_stopped()  # a session that was killed did not do this
        state.sessions.append(record)
        state.recipe, state.recipe_hash = dict(self.recipe.raw), self.recipe.hash
        state.budget = {k: v for k, v in asdict(self.recipe.budget).items() if v is not None}
        self.run_dir.save()
        try:
            yield
            record.outcome = "done"
        except BaseException as error:
            record.outcome = type(error).__name__
            if isinstance(error, BudgetExceeded):
                record.stopped_by = StoppedBy(**{item.name: error.data[item.name] for item in fields(StoppedBy)})
            raise
        finally:
            self.close()
            record.ended = _now()
            self._mark_stopped()
            state.totals = totals(self.run_dir, self.recipe)
            with contextlib.suppress(MagpieError):  # e.g., a full disk must not hide the original error
                self.run_dir.save()

    def _mark_stopped(self) -> None:
        """Record that no stage is running, so that `status` only shows stages of the current session as running."""
        for state in self.run_dir.state.stages.values():
            if state.status == "running":
                state.status = "stopped"


def pinned_model(spec: RoleSpec, run_dir: RunDir) -> ModelRef:
    """Return the model of a role; the commit of a Hub model is looked up at the first start of the run and pinned.

    The model of a chat API is known by its name only.
    """
    if takes_messages(spec.engine.kind):
        return named_model(spec.model, spec.revision)
    return pinned(spec.model, spec.revision, run_dir)


def pinned(name: str, revision: str | None, run_dir: RunDir, kind: str = "model") -> ModelRef:
    """Return a model; the commit of a Hub model is looked up at the first start of the run and pinned."""
    if not name:  # a recipe that only annotates has no generator
        return ModelRef("", "", None, None)
    if name == "demo" or Path(os.path.expanduser(name)).is_dir():
        return resolve_model(name, revision, kind=kind)
    commit = run_dir.pin_model(f"{name}@{revision or 'main'}", lambda: resolve_model(name, revision).revision)
    return ModelRef(name, name, commit, commit)


def template_date(spec: RoleSpec, run_dir: RunDir, ref: ModelRef, role: str = "generator") -> str | None:
    """Return the date that the template prints as today's date, None if it prints no date.

    This is the date in the recipe, else the date of the first start: a run that is resumed tomorrow sends the same prompts.
    """
    given = spec.template.get("date")
    if given is not None:
        return str(given)
    if takes_messages(spec.engine.kind):
        return None
    key = stable_hash([ref.name, ref.revision, spec.template], 8)
    return run_dir.pin_date(key, lambda: load_template(spec, ref, None, role).date)


def load_template(
    spec: RoleSpec, ref: ModelRef, date: str | None, role: str = "generator"
) -> ChatTemplate | GuardTemplate | ChatServerTemplate:
    """Load the chat template of a role's model with the overrides of the recipe; `date` None means today.

    For a chat API, nothing is loaded: the server applies its template.
    """
    if takes_messages(spec.engine.kind):
        return ChatServerTemplate(spec.model)
    settings: dict[str, Any] = {
        "revision": ref.load_revision,
        "template_kwargs": spec.template.get("kwargs"),
        "template_date": date,
        "trust_remote_code": bool(spec.engine.options.get("trust_remote_code", False)),
    }
    override = spec.template.get("chat_template")

    def chat() -> ChatTemplate:
        return ChatTemplate.load(spec.model, chat_template=override, **settings)

    if role != "guard":
        return chat()
    return GuardTemplate.load(spec.model, chat=chat, override=override, **settings)


def engine_identity(spec: RoleSpec, run_dir: RunDir, ref: ModelRef, role: str = "generator") -> dict[str, Any]:
    """Return the settings of model, engine and template that can change a text.

    Base models receive plain text; their chat template is not used.
    """
    identity: dict[str, Any] = {"engine": make_engine(spec, ref).identity()}
    if role == "base":
        return identity
    if takes_messages(spec.engine.kind):
        return identity | {"template": {"server": True}}
    override = spec.template.get("chat_template")
    if override is not None and "{" not in override and Path(override).is_file():
        override = Path(override).read_text("utf-8")
    return identity | {
        "template": {
            "kwargs": spec.template.get("kwargs") or {},
            "override": None if override is None else stable_hash(override),
            "date": template_date(spec, run_dir, ref, role),
        },
    }


def stop_texts(template: ChatTemplate) -> dict[int, str]:
    """Return the text of each stop token, for servers that only accept stop texts."""
    ids = {*template.instruction_stops.token_ids, *template.response_stops.token_ids}
    return {token: template.decode([token]) for token in sorted(ids)}


def make_engine(role: RoleSpec, ref: ModelRef, token_texts: dict[int, str] | None = None) -> Engine:
    """Create the engine of a role without loading a model or connecting."""
    spec = role.engine
    kwargs: dict[str, Any] = dict(spec.options)
    if takes_endpoints(spec.kind):
        kwargs |= {"endpoints": list(spec.endpoints), "token_texts": token_texts or {}}
    return engine_class(spec.kind)(role.model, ref=ref, revision=ref.revision, **kwargs)


def totals(run_dir: RunDir, recipe: Recipe) -> Totals:
    """Return tokens, engine-seconds and, with a price, the cost of the run, in total and per 1,000 kept rows."""
    tokens, seconds = run_dir.state.spent()
    cost = recipe.budget.cost(seconds)
    output = run_dir.state.output
    per_thousand = None if cost is None or output is None or not output.rows else cost / output.rows * 1000
    return Totals(tokens, seconds, cost, per_thousand)


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the packages used; imports none of them.

    The result is cached, because each lookup indexes all directories of `sys.path` that have changed.
    """
    found = {"magpie_hf": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
