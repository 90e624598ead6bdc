"""Recipes: the stages and settings of a run as YAML. Read, override, validate and hash them.

model: demo                      # Hub id, directory, or "demo"
num_rows: 1000
engine: {kind: transformers}
sampling:                        # of the instructions: one setting, or a grid with shares
  - {temperature: 1.0, top_p: 1.0, share: 3}
  - {temperature: 1.2, top_p: 0.99}
stages:
  - instructions
  - {stage: responses, sampling: {temperature: 0, max_tokens: 2048}}
  - lengths
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import yaml

from ..engines import takes_messages
from ..errors import ArgumentError, MagpieError, RecipeError, did_you_mean, quoted
from ..execution.budget import Budget
from ..hub.layouts import Layout
from ..hub.names import check_names
from ..hub.settings import PushSettings
from ..judging.rubric import BUILT_IN
from ..plugins import types_of
from ..sampling import GridPoint, SamplingParams
from ..stage import IDENTITY, RESOLVED, Stage, check_columns, is_set, plain
from ..stages import STAGES, stage_class
from ..stages.instructions import Instructions
from ..stages.system_prompts import COLUMN
from ..storage.hashing import stable_hash
from ..storage.state import JsonObject
from .order import joined_judges, lean_order
from .output import FORMATS, OUTPUT_KEYS, check_output_of, columns_of, output_of
from .parts import (
    ROLES,
    EngineSpec,
    RoleSpec,
    check_keys,
    check_messages,
    choice_of,
    dataset_of,
    engine_of,
    grid_of,
    judge_mode,
    judge_rubrics,
    names_demo,
    roles_of,
    sampling_of,
    section_of,
    template_of,
)
from .preset import resolve_presets
from .source import (
    DEFAULT_STAGES,
    Source,
    plain_copy,
    read_recipe_file,
    rehearse,
    replace_engine,
    section_any,
    set_value,
    typed_value,
    use_demo_models,
)
from .value_sources import SourcedValue, check_sources, sourced_values, unchanged_sources


__all__ = [
    "FORMATS",
    "KEYS",
    "OUTPUT_KEYS",
    "EngineSpec",
    "Recipe",
    "RoleSpec",
    "bundled_recipes",
    "load_recipe",
    "recipe_path",
]


KEYS = {
    "name": "Name of the run; the name of the default run directory starts with it.",
    "description": "A sentence for the dataset card.",
    "model": 'Hub id, local directory, or "demo".',
    "revision": "Branch, tag or commit of the model; resolved to a commit when the run first starts.",
    "num_rows": "Number of accepted instructions.",
    "seed": "Base of all seeds.",
    "engine": "The engine that generates: a name, or a mapping with `kind`, `endpoint` and the engine's settings.",
    "sampling": "How instructions are sampled: one setting, or a list of them with `share`, `system_prompt` and `system_prompt_key`.",
    "system_prompt": "System prompt for the generation of instructions; the Magpie releases use none.",
    "preset": "Name of a preset (`magpie-hf presets`), in place of `system_prompt` and `sampling`; points of `sampling` can also name one.",
    "template": "Chat template: `kwargs`, `chat_template` (Jinja text or file), `date`.",
    "dataset": 'Existing rows to annotate: a directory, file or Hub id, "demo" (the bundled rows), or a mapping with `path`, `config`, `split`, `revision`, and `columns` to keep; or a list of these, whose rows are concatenated.',
    "responder": "The model that generates responses (`model`, `engine`, `template`), if it is not the one that writes instructions.",
    "judge": "The model that annotates quality, difficulty and category (`model`, `engine`, `template`); `mode`: separate or combined; `rubrics`: the set of rubrics, default or reference.",
    "guard": "The model that annotates safety; Llama Guard 2 by default.",
    "base": "The base model that reward_difference compares with.",
    "stages": "The stages in order: names, or mappings with `stage` and its settings.",
    "order": "paper (default), or lean: conditions that read only the instruction are applied before responses are generated.",
    "output": "Run directory (`path`); `format` of the dataset: parquet, arrow (save_to_disk) or none; `report`: write report.html; `rejected`: also save the rejected samples of `instructions`, with their reasons, as the config `rejected`; `columns`: `released` (the columns of the recipe's release) or a list of names; `test_size`: share of the split `test`.",
    "push": "Hub repository that the run is published to while it is running: `repo`, `config`, `private`, `gated`, `revision`, `create_pr`, `license`, `state`, `every_s`, `retry_timeout_s`.",
    "budget": "Limits of the run: `max_tokens_total`, `max_hours`, `max_cost`, `price_per_gpu_hour`, `num_gpus`.",
    "sources": "Where values come from: dotted key (it also covers the keys below it) to a text that begins with paper, card, script, inferred or our choice.",
    "rehearsal": "Dotted keys that are set only with `--model demo`, e.g., a condition that no row of the demo model meets.",
}
_IMPLIED = {"instructions": ("grid",), **dict.fromkeys((*BUILT_IN, "judge"), ("rubrics",))}
"""By stage: the settings that other sections of a recipe give to it, unless the stage has its own."""
ORDERS = ("paper", "lean")


@dataclass(frozen=True)
class Recipe:
    """A validated recipe.

    `raw`: the mapping that the recipe was built from, with overrides applied; it is shown in run.json and the card.
    `implied`: stages that were added because another stage needs their columns; they are skipped if the rows already
    have these columns.
    """

    model: str
    num_rows: int
    grid: tuple[GridPoint, ...]
    stages: tuple[Stage, ...]
    engine: EngineSpec = field(default_factory=EngineSpec)
    name: str = "synthesize"
    description: str = ""
    revision: str | None = None
    seed: int = 0
    template: JsonObject = field(default_factory=dict)
    order: str = "paper"
    output: JsonObject = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    push: PushSettings | None = None
    dataset: JsonObject = field(default_factory=dict)
    roles: dict[str, RoleSpec] = field(default_factory=dict)
    implied: frozenset[str] = frozenset()
    raw: JsonObject = field(default_factory=dict)

    @property
    def generator(self) -> RoleSpec:
        """The model that generates instructions and, without a responder, responses."""
        return RoleSpec(self.model, self.engine, self.revision, self.template)

    def role(self, name: str) -> RoleSpec:
        """Return the model of a role: "generator", "responder", "judge", "guard" or "base"."""
        return self.generator if name == "generator" else self.roles[name]

    @property
    def output_columns(self) -> Layout | tuple[str, ...] | None:
        """The columns of the written dataset: those of a release, or names in order; None for all columns."""
        return columns_of(self.output, self.name)

    @cached_property
    def hash(self) -> str:
        """Hash of the request, for the name of the default run directory; equal for equivalent recipes.

        Included: models, templates, seed, sampling, stages with their settings, and the source of the rows. Left out:
        name and description, the number of rows, engines, budget, output and push. Rows that are passed in memory are
        also left out, so that a dataset with additional rows resumes in the same directory.
        """
        return stable_hash(
            {
                "seed": self.seed,
                "dataset": {k: v for k, v in self.dataset.items() if k != "fingerprint" and v is not None},
                "sampling": _shares(self.grid) if isinstance(self.stages[0], Instructions) else [],
                "stages": [_settings(stage, self.model) for stage in self.stages],
                "roles": {name: self.role(name).request() for name in sorted(_roles_used(self.stages))},
            },
            12,
        )

    @property
    def sources(self) -> list[SourcedValue]:
        """The values of the recipe with their sources, as `magpie-hf recipes show NAME --sources` prints them."""
        return sourced_values(self.raw)

    def dump(self) -> str:
        """Return the recipe as YAML, with overrides applied; reading it gives the same recipe."""
        text = yaml.safe_dump(self.raw, sort_keys=False, allow_unicode=True)
        if yaml.safe_load(text) == self.raw:
            return text
        return yaml.safe_dump(self.raw, sort_keys=False)  # unusual line breaks (U+0085) survive only if escaped


def _shares(grid: Sequence[GridPoint]) -> list[tuple[JsonObject, float]]:
    """Return the settings of each point and its fraction of the rows: shares of 1 and 1 are the same as 2 and 2."""
    total = sum(point.share for point in grid)
    return [(point.to_dict(), point.share / total) for point in grid]


def _settings(stage: Stage, generator: str) -> tuple[str, JsonObject, JsonObject]:
    """Return for the hash: the name of a stage, its settings that can change a row, and the models that it loads.

    A rubric is hashed by its name or path, not by its text: after an edit, it runs again in the same directory.
    """
    models = stage.models(generator)
    counted = {
        field.name: getattr(stage, field.name)
        for field in dataclasses.fields(stage)
        if (field.metadata.get(IDENTITY, True) and is_set(stage, field))
        or (field.metadata.get(RESOLVED) and not models)
    }
    return stage.name, {name: plain(value) for name, value in counted.items()}, models


def _roles_used(stages: Sequence[Stage]) -> set[str]:
    used = {stage.role for stage in stages if stage.uses_engine}
    return used | ({"generator"} if any(stage.uses_tokenizer for stage in stages) else set())


def load_recipe(recipe: str | Path | Mapping[str, object], overrides: Mapping[str, object] | None = None) -> Recipe:
    """Read a recipe (the path of a YAML file, the name of a bundled recipe, or a mapping) and apply overrides.

    The override `model: demo` replaces all models of the recipe by the demo models, to try the recipe. An override with
    another engine removes the settings of the recipe's engine.

    `overrides`: dotted keys to values ("num_rows", "sampling.temperature", "stages.responses.sampling.max_tokens"). A
    key that names a list without an index applies to each entry of the list.

    Raises:
        RecipeError: the file cannot be read, or has an invalid key or value; the error names file, line and key.
    """
    if isinstance(recipe, Mapping):
        raw, source = plain_copy(recipe), Source("recipe")
    else:
        raw, source = read_recipe_file(recipe_path(recipe))
    check_sources(raw, source)
    return build(resolve_presets(_overridden(raw, overrides or {}, source), source), source)


def _overridden(raw: JsonObject, overrides: Mapping[str, object], source: Source) -> JsonObject:
    """Return the mapping of a recipe with overrides applied."""
    before = plain_copy(raw) if overrides and raw.get("sources") else {}
    replace_engine(raw, overrides)
    use_demo_models(raw, overrides, ROLES)
    rehearse(raw, overrides, KEYS, source)
    for key, value in overrides.items():
        set_value(raw, key, plain_copy(value), source)
    if before:
        raw["sources"] = unchanged_sources(before, raw)
    return raw


def recipe_path(name: str | Path) -> Path:
    """Find a recipe file by path, or a bundled recipe by name."""
    path = Path(name)
    with contextlib.suppress(OSError):  # e.g., the name is too long for a file
        if path.suffix in (".yaml", ".yml") or path.is_file():
            return path
    found = bundled_recipes().get(str(name))
    if found is None:
        raise RecipeError(
            f"Unknown recipe {quoted(name)}: it is neither a file nor a bundled recipe.",
            hint=f"{did_you_mean(str(name), bundled_recipes())} List all with: magpie-hf recipes",
        )
    return found


def bundled_recipes() -> dict[str, Path]:
    """Return the files of the bundled recipes, by name."""
    here = Path(__file__).parents[1]
    for directory in (here / "_data" / "recipes", here.parent / "recipes"):
        if directory.is_dir():
            return {path.stem: path for path in sorted(directory.glob("*.yaml"))}
    return {}


def build(raw: JsonObject, source: Source) -> Recipe:
    """Validate the mapping of a recipe and build the Recipe."""
    check_keys(raw, KEYS, "", source)
    dataset = dataset_of(raw.get("dataset"), source)
    raw = {"name": "annotate" if dataset else "synthesize", **raw}
    if not raw.get("model") and not names_demo(raw) and not dataset:
        raise source.error("model", "a recipe needs a model.", 'Give a Hub id, a directory, or "demo".')
    engine, model = engine_of(raw, source)
    system_prompt = typed_value(raw.get("system_prompt"), str | None, "system_prompt", source)
    grid = grid_of(raw.get("sampling", {}), system_prompt, source)
    revision = typed_value(raw.get("revision"), str | None, "revision", source)
    template = template_of(raw.get("template", {}), source)
    order = choice_of(raw.get("order", "paper"), ORDERS, "order", source)
    roles = roles_of(raw, RoleSpec(model, engine, revision, template), source)
    implied = {"grid": grid, "rubrics": (judge_rubrics(raw, source),)}
    # A chat API has no tokenizer: stages that count tokens count characters.
    counting = "" if takes_messages(engine.kind) else model
    paths, stages = _stages(raw.get("stages", list(DEFAULT_STAGES)), implied, counting, bool(dataset), source)
    if judge_mode(raw, source) == "combined":
        stages = joined_judges(stages)
    _check_roles(stages, roles, source)
    if not dataset:
        _check_columns(stages, paths, source)
    name = _name(raw["name"], source)
    output = output_of(raw, name, stages, source)
    if not dataset:
        check_output_of(output, name, stages, source)
    return Recipe(
        model=model,
        num_rows=_positive(raw.get("num_rows", 1000), "num_rows", source),
        grid=grid,
        stages=_ordered(stages, order, source),
        engine=engine,
        name=name,
        description=typed_value(raw.get("description", ""), str, "description", source),
        revision=revision,
        seed=_seed(raw.get("seed", 0), source),
        template=template,
        order=order,
        output=output,
        budget=_budget(raw.get("budget", {}), source),
        push=_push(raw.get("push"), stages, source),
        dataset=dataset,
        roles=roles,
        implied=_implied(raw.get("stages") or (), stages),
        raw=raw,
    )


def _implied(given: object, stages: tuple[Stage, ...]) -> frozenset[str]:
    entries = given if isinstance(given, list) else []
    named = {entry if isinstance(entry, str) else entry.get("stage") for entry in entries}
    return frozenset(name for stage in stages for name in stage.after if name not in named)


def _check_roles(stages: tuple[Stage, ...], roles: Mapping[str, RoleSpec], source: Source) -> None:
    for stage in stages:
        if stage.uses_engine and stage.role not in roles:
            raise source.error(
                stage.role,
                f'the stage "{stage.name}" needs a model: {ROLES[stage.role]}.',
                f"Add {stage.role}: {{model: …, engine: {{kind: …}}}}.",
            )
        if stage.uses_engine:
            check_messages(stage.role, roles[stage.role], stage.name, source)


def _check_columns(stages: tuple[Stage, ...], paths: Mapping[int, str], source: Source) -> None:
    """Raise RecipeError for a column that no earlier stage adds, before anything is generated."""
    try:
        check_columns(stages[1:], stages[0].features())
    except MagpieError as error:
        stage = stages[1 + error.data["position"]]
        raise source.error(paths.get(id(stage), "stages"), error.message, error.hint) from None


def _ordered(stages: tuple[Stage, ...], order: str, source: Source) -> tuple[Stage, ...]:
    try:
        return lean_order(stages) if order == "lean" else stages
    except ArgumentError as error:
        raise source.error("order", error.message, error.hint) from None


def _stages(
    given: object, implied: JsonObject, model: str, has_dataset: bool, source: Source
) -> tuple[dict[int, str], tuple[Stage, ...]]:
    """Return the stages, and for each stage (by its `id`) its key in the recipe, for errors."""
    if not isinstance(given, list) or not given:
        raise source.error("stages", f"{quoted(given)} is not a list of stages.", f"Stages: {', '.join(STAGES)}.")
    built: list[Stage] = []
    paths: dict[int, str] = {}
    for number, entry in enumerate(given):
        path = f"stages[{number}]"
        stage = _stage(entry, implied, model, path, source)
        if stage in built or (not stage.repeatable and any(stage.name == other.name for other in built)):
            raise source.error(path, f'the stage "{stage.name}" appears twice.')
        is_first = not built and not has_dataset
        if is_first and stage.name != "instructions":
            raise source.error(path, f'the first stage must be "instructions", not "{stage.name}".')
        if stage.name == "instructions" and not is_first:
            raise source.error(path, 'the stage "instructions" must be the first, and cannot be used with a dataset.')
        for name in stage.after:  # stages that this one needs and the recipe does not list
            if all(name != other.name for other in built):
                built.append(stage_class(name)())
                paths[id(built[-1])] = path
        built.append(stage.with_settings_of(built))
        paths[id(built[-1])] = path
    first = built[0]
    if isinstance(first, Instructions) and any(COLUMN in stage.needs for stage in built[1:]):
        built[0] = dataclasses.replace(first, keep_system_prompt=True)
        paths[id(built[0])] = paths.pop(id(first))
    return paths, tuple(built)


def _stage(entry: object, implied: JsonObject, model: str, path: str, source: Source) -> Stage:
    """Return a stage; `implied`: settings that other sections of the recipe give to it."""
    given = {"stage": entry} if isinstance(entry, str) else dict(section_any(entry, path, source))
    if "stage" not in given:
        raise source.error(path, "the key `stage` is missing.", f"Add `stage:` with one of {', '.join(STAGES)}.")
    name = given.pop("stage")
    if not isinstance(name, str):
        hint = f"Add `stage:` with one of {', '.join(STAGES)}."
        raise source.error(f"{path}.stage", f"unknown stage {quoted(name)}.", hint)
    try:
        kind = stage_class(name)
        types = types_of(kind)
    except ArgumentError as error:
        raise source.error(f"{path}.stage", error.message, error.hint) from None
    fields = {f.name: f.default for f in dataclasses.fields(kind) if f.init and f.name != "grid"}
    check_keys(given, fields, path, source, also=("stage",))
    values = {key: implied[key] for key in _IMPLIED.get(name, ())}
    for key, value in given.items():
        inner = f"{path}.{key}"
        if types[key] is SamplingParams:
            default = fields[key]
            values[key] = sampling_of(
                value, default if isinstance(default, SamplingParams) else SamplingParams(), inner, source
            )
        else:
            values[key] = typed_value(value, types[key], inner, source)
    try:
        return kind(**values).for_model(model)
    except MagpieError as error:
        raise source.error(path, error.message, error.hint) from None


def _budget(given: object, source: Source) -> Budget:
    types = types_of(Budget)
    section = section_of(given, types, "budget", source)
    values = {key: typed_value(value, types[key], f"budget.{key}", source) for key, value in section.items()}
    try:
        return Budget(**values)
    except ArgumentError as error:
        raise source.error("budget", error.message, error.hint) from None


def _push(given: object, stages: tuple[Stage, ...], source: Source) -> PushSettings | None:
    types = types_of(PushSettings)
    section = {"repo": given} if isinstance(given, str) else section_of(given, types, "push", source)
    values = {key: typed_value(value, types[key], f"push.{key}", source) for key, value in section.items()}
    if not values.get("repo"):
        if values:
            raise source.error("push.repo", "no repository is given.", "E.g., push: {repo: me/my-dataset}.")
        return None
    try:
        check_names(values.get("config", "default"))
        settings = PushSettings(**values)
    except ArgumentError as error:
        raise source.error("push", error.message, error.hint) from None
    if any(getattr(stage, "config", None) == settings.config for stage in stages):
        raise source.error("push.config", f"{quoted(settings.config)} is also the name of a subset.")
    return settings


def _name(given: object, source: Source) -> str:
    if not isinstance(given, str) or not re.fullmatch(r"[\w.-]{1,80}", given):
        raise source.error("name", f"{quoted(given)} is not a valid name.", "Use letters, digits, '.', '_' and '-'.")
    return given


def _seed(given: object, source: Source) -> int:
    seed: int = typed_value(given, int, "seed", source)
    if seed < 0:
        raise source.error("seed", f"Invalid value {seed}.", "Give a whole number, 0 or more.")
    return seed


def _positive(given: object, path: str, source: Source) -> int:
    number: int = typed_value(given, int, path, source)
    if number < 1:
        raise source.error(path, f"Invalid value {number}.", "Give a whole number, 1 or more.")
    return number
