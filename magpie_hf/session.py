"""One session of a run: the directory owned, the model pinned, the engine opened late and shared, the costs summed."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from . import __version__
from .engines import ENDPOINT_ENGINES, engine_class
from .engines.base import Engine
from .errors import MagpieError
from .models import ModelRef, resolve_model
from .output import check_target
from .progress import Listener
from .recipe import Recipe
from .rundir import RunDir, stable_hash
from .stage import Environment
from .templates import ChatTemplate


PACKAGES = ("datasets", "transformers", "tokenizers", "torch", "huggingface_hub", "aiohttp", "numpy", "pyarrow")


class Session:
    """What a run needs while it is on; use as a context manager. Nothing is loaded before a stage misses its cache."""

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
        self.ref = pinned_model(recipe, run_dir)
        self._engine: Engine | None = None
        self.listener = Listener(recipe.budget, show=show_progress, spent=self._spent_elsewhere)
        self.environment = Environment(
            run_dir=run_dir,
            identity=engine_identity(recipe, run_dir, self.ref),
            open_engine=self.engine,
            load_template=lambda: self.template,
            listener=self.listener,
            model=self.ref.name,
            revision=self.ref.revision,
            seed=recipe.seed,
            accept_failures=accept_failures,
            allow_mixed=allow_mixed,
        )

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's chat template with the recipe's arguments, under the run's date."""
        return load_template(self.recipe, self.ref, template_date(self.recipe, self.run_dir, self.ref))

    def engine(self) -> Engine:
        """Return the engine, opened and checked with the real pre-query prompt."""
        if self._engine is None:
            for stage in self.recipe.stages:
                stage.check_template(self.template)
            engine = make_engine(self.recipe, self.ref, stop_texts(self.template))
            engine.open()
            self._engine = engine
            engine.check_prompt(self.template.pre_query(self.recipe.grid[0].system_prompt))
        return self._engine

    def _spent_elsewhere(self, stage: str) -> tuple[int, float]:
        return spent(self.run_dir, but=stage)

    def close(self) -> None:
        """Free the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the session in run.json: when, with which versions, how it ended."""
        record: dict[str, Any] = {"started": _now(), "versions": versions(), "outcome": "killed"}
        self.run_dir.state["sessions"].append(record)
        self.run_dir.state["recipe"] = self.recipe.raw
        self.run_dir.state["recipe_hash"] = self.recipe.hash
        self.run_dir.state["budget"] = {k: v for k, v in asdict(self.recipe.budget).items() if v is not None}
        self.run_dir.save()
        try:
            yield
            record["outcome"] = "done"
        except BaseException as error:
            record["outcome"] = type(error).__name__
            raise
        finally:
            self.close()
            record["ended"] = _now()
            self.run_dir.state["totals"] = totals(self.run_dir, self.recipe)
            with contextlib.suppress(MagpieError):  # a full disk must not hide the error that matters
                self.run_dir.save()


def pinned_model(recipe: Recipe, run_dir: RunDir) -> ModelRef:
    """Return the recipe's model; a Hub model's commit is looked up at the run's first start and kept."""
    name, revision = recipe.model, recipe.revision
    if name == "demo" or Path(os.path.expanduser(name)).is_dir():
        return resolve_model(name, revision)
    found = run_dir.pin(f"model {name}@{revision or 'main'}", lambda: list(resolve_model(name, revision)))
    return ModelRef(*found)


def template_date(recipe: Recipe, run_dir: RunDir, ref: ModelRef) -> str | None:
    """Return the date that the template prints as today, or None if it prints none.

    It is the recipe's, or the day of the run's first start: a run resumed tomorrow sends the same bytes.
    """
    given = recipe.template.get("date")
    if given is not None:
        return str(given)
    key = f"template date {stable_hash([ref.name, ref.revision, recipe.template], 8)}"
    found: str | None = run_dir.pin(key, lambda: load_template(recipe, ref, None).date)
    return found


def load_template(recipe: Recipe, ref: ModelRef, date: str | None) -> ChatTemplate:
    """Load the chat template of the recipe's model with the recipe's overrides; `date` None is today."""
    return ChatTemplate.load(
        recipe.model,
        revision=ref.load_revision,
        chat_template=recipe.template.get("chat_template"),
        template_kwargs=recipe.template.get("kwargs"),
        template_date=date,
        trust_remote_code=bool(recipe.engine.options.get("trust_remote_code", False)),
    )


def engine_identity(recipe: Recipe, run_dir: RunDir, ref: ModelRef) -> dict[str, Any]:
    """Return what of model, engine settings and template can change a text; see the design's "Two identities"."""
    override = recipe.template.get("chat_template")
    if override is not None and "{" not in override and Path(override).is_file():
        override = Path(override).read_text("utf-8")
    return {
        "engine": make_engine(recipe, ref).identity(),
        "template": {
            "kwargs": recipe.template.get("kwargs") or {},
            "override": None if override is None else stable_hash(override),
            "date": template_date(recipe, run_dir, ref),
        },
    }


def stop_texts(template: ChatTemplate) -> dict[int, str]:
    """Return the text of each stop token, for servers that can only be told stop texts."""
    ids = {*template.instruction_stops.token_ids, *template.response_stops.token_ids}
    return {token: template.decode([token]) for token in sorted(ids)}


def make_engine(recipe: Recipe, ref: ModelRef, token_texts: dict[int, str] | None = None) -> Engine:
    """Build the recipe's engine from settings alone: no model, no connection."""
    spec = recipe.engine
    kwargs: dict[str, Any] = dict(spec.options)
    if spec.kind in ENDPOINT_ENGINES:
        kwargs |= {"endpoints": list(spec.endpoints), "token_texts": token_texts or {}}
    engine: Engine = engine_class(spec.kind)(recipe.model, ref=ref, revision=ref.revision, **kwargs)  # type: ignore[call-arg]
    return engine


def spent(run_dir: RunDir, but: str | None = None) -> tuple[int, float]:
    """Return the tokens and engine-seconds of all stages in run.json (but one, by name)."""
    tokens, seconds = 0, 0.0
    for state in run_dir.state["stages"].values():
        counters = state.get("counters", {})
        if state["name"] != but:
            tokens += counters.get("prompt_tokens", 0) + counters.get("completion_tokens", 0)
            seconds += counters.get("seconds", 0.0)
    return tokens, seconds


def totals(run_dir: RunDir, recipe: Recipe) -> dict[str, Any]:
    """Return tokens, engine-seconds and, with a price, the cost of the run, whole and per 1,000 kept rows."""
    tokens, seconds = spent(run_dir)
    cost = recipe.budget.cost(seconds)
    kept = run_dir.state["outputs"].get("rows")
    per_thousand = None if cost is None or not kept else cost / kept * 1000
    return {"tokens": tokens, "engine_seconds": seconds, "cost": cost, "cost_per_1000_rows": per_thousand}


def versions() -> dict[str, str]:
    """Return the versions of the packages that take part; imports none of them."""
    found = {"magpie_hf": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
