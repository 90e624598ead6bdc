"""Recipes: a run as YAML. Read, override, validate with file, line and key, and hash.

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
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ._recipe_source import DEFAULT_STAGES, PLAIN_TYPES, Source, plain_copy, read_recipe_file, set_value, typed_value
from .engines import ENDPOINT_ENGINES, ENGINES, engine_class, engine_options
from .errors import ArgumentError, MagpieError, RecipeError, did_you_mean, quoted
from .progress import Budget
from .rundir import stable_hash
from .sampling import GridPoint, SamplingParams
from .stage import Stage
from .stages import STAGES, stage_class


KEYS = {
    "name": "What the run is called; a directory name where no output is given.",
    "description": "A sentence for the card.",
    "model": 'Hub id, local directory, or "demo".',
    "revision": "Branch, tag or commit of the model; resolved to a commit at the first start.",
    "num_rows": "Accepted instructions wanted.",
    "seed": "Base of all seeds.",
    "engine": "Who generates: a name, or a mapping with `kind`, `endpoint` and the engine's settings.",
    "sampling": "How instructions are sampled: one setting, or a list of them with `share`.",
    "system_prompt": "System prompt under which instructions are written; none in the releases.",
    "template": "Chat template: `kwargs`, `chat_template` (Jinja text or file), `date`.",
    "stages": "The stages in their order: names, or mappings with `stage` and its settings.",
    "order": "paper, or lean: what needs the instruction alone is decided before responses are paid for.",
    "output": "Where the run lies (`path`) and the dataset's `format`: parquet, arrow (save_to_disk) or none.",
    "budget": "max_tokens_total, max_hours, max_cost, price_per_gpu_hour, num_gpus.",
}
TEMPLATE_KEYS = ("kwargs", "chat_template", "date")
OUTPUT_KEYS = ("path", "format")
FORMATS = ("parquet", "arrow", "none")
ORDERS = ("paper", "lean")


@dataclass(frozen=True)
class EngineSpec:
    """Which engine, where, and its settings."""

    kind: str = "transformers"
    endpoints: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A validated run. `raw`: the mapping it came from, overrides applied; what run.json and the card show."""

    model: str
    num_rows: int
    grid: tuple[GridPoint, ...]
    stages: tuple[Stage, ...]
    engine: EngineSpec = field(default_factory=EngineSpec)
    name: str = "magpie"
    description: str = ""
    revision: str | None = None
    seed: int = 0
    template: dict[str, Any] = field(default_factory=dict)
    order: str = "paper"
    output: dict[str, Any] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Hash of all that was asked but where it lies and what it may cost."""
        asked = {
            key: value for key, value in self.raw.items() if key not in ("output", "budget", "num_rows", "engine")
        }
        return stable_hash(asked, 12)

    def dump(self) -> str:
        """Return the recipe as YAML, overrides applied; reading it gives the same recipe."""
        text = yaml.safe_dump(self.raw, sort_keys=False, allow_unicode=True)
        if yaml.safe_load(text) == self.raw:
            return text
        return yaml.safe_dump(self.raw, sort_keys=False)  # odd line breaks (U+0085) survive escaped only


def load_recipe(recipe: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe: a YAML file's path, the name of a bundled recipe, or a mapping; then apply overrides.

    `overrides`: dotted keys to values ("num_rows", "sampling.temperature", "stages.responses.sampling.max_tokens"). A
    key that goes through a list without a number applies to each entry of it.

    Raises:
        RecipeError: the file cannot be read, or a key or value in it cannot be used; names file, line and key.
    """
    if isinstance(recipe, Mapping):
        raw, source = plain_copy(recipe), Source("the recipe given")
    else:
        raw, source = read_recipe_file(recipe_path(recipe))
    for key, value in (overrides or {}).items():
        set_value(raw, key, plain_copy(value), source)
    return build(raw, source)


def recipe_path(name: str | Path) -> Path:
    """Find a recipe file by path, or a bundled recipe by name."""
    path = Path(name)
    with contextlib.suppress(OSError):  # a name too long for a file
        if path.suffix in (".yaml", ".yml") or path.is_file():
            return path
    found = bundled_recipes().get(str(name))
    if found is None:
        raise RecipeError(
            f"There is no recipe {quoted(name)}: neither a file nor a bundled one.",
            hint=did_you_mean(str(name), bundled_recipes()),
        )
    return found


def bundled_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    here = Path(__file__).parent
    for directory in (here / "_data" / "recipes", here.parent / "recipes"):
        if directory.is_dir():
            return {path.stem: path for path in sorted(directory.glob("*.yaml"))}
    return {}


def build(raw: dict[str, Any], source: Source) -> Recipe:
    """Validate a recipe's mapping and build the Recipe."""
    _check_keys(raw, KEYS, "", source)
    if not raw.get("model") and not _names_demo(raw):
        raise source.error("model", "a recipe needs a model.", 'Give a Hub id, a directory, or "demo".')
    engine, model = _engine(raw, source)
    system_prompt = typed_value(raw.get("system_prompt"), "str | None", "system_prompt", source)
    grid = _grid(raw.get("sampling", {}), system_prompt, source)
    order = _choice(raw.get("order", "paper"), ORDERS, "order", source)
    return Recipe(
        model=model,
        num_rows=_positive(raw.get("num_rows", 1000), "num_rows", source),
        grid=grid,
        stages=_stages(raw.get("stages", list(DEFAULT_STAGES)), grid, source),
        engine=engine,
        name=_name(raw.get("name", "magpie"), source),
        description=typed_value(raw.get("description", ""), "str", "description", source),
        revision=typed_value(raw.get("revision"), "str | None", "revision", source),
        seed=_seed(raw.get("seed", 0), source),
        template=_template(raw.get("template", {}), source),
        order=order,
        output=_output(raw.get("output", {}), source),
        budget=_budget(raw.get("budget", {}), source),
        raw=raw,
    )


def _names_demo(raw: Mapping[str, Any]) -> bool:
    engine = raw.get("engine")
    return engine == "demo" or (isinstance(engine, dict) and engine.get("kind") == "demo")


def _check_keys(given: Mapping[str, Any], known: Any, path: str, source: Source, also: tuple[str, ...] = ()) -> None:
    for key in given:
        if key not in known:
            inner = f"{path}.{key}" if path else str(key)
            raise source.error(inner, "unknown key.", did_you_mean(str(key), {*known, *also}))


def _section(given: Any, known: Any, path: str, source: Source) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise source.error(path, f"{quoted(given)} is not a mapping.", f"Keys: {', '.join(known)}.")
    _check_keys(given, known, path, source)
    return given


def _engine(raw: Mapping[str, Any], source: Source) -> tuple[EngineSpec, str]:
    given = raw.get("engine", "transformers")
    given = {"kind": given} if isinstance(given, str) else dict(_section_any(given, "engine", source))
    kind = given.pop("kind", "transformers")
    model = raw.get("model") or "demo"
    if kind == "demo":
        kind, model = "transformers", "demo"
    if not isinstance(kind, str) or kind not in ENGINES:
        raise source.error(
            "engine.kind", f"there is no engine {quoted(kind)}.", did_you_mean(str(kind), [*ENGINES, "demo"])
        )
    endpoints = _endpoints(given.pop("endpoint", None), given.pop("endpoints", None), source)
    if kind in ENDPOINT_ENGINES and not endpoints:
        raise source.error(
            "engine.endpoint", f'the engine "{kind}" needs an address.', "Give --endpoint http://HOST:PORT."
        )
    if kind not in ENDPOINT_ENGINES and endpoints:
        raise source.error(
            "engine.endpoint",
            f'the engine "{kind}" runs here and takes no address.',
            "For an endpoint choose --engine tgi or --engine openai.",
        )
    _check_keys(given, engine_options(kind), "engine", source, also=("kind", "endpoint"))
    if not isinstance(model, str):
        raise source.error("model", f"{quoted(model)} is no model name.")
    return EngineSpec(kind, endpoints, _options(given, kind, source)), model


def _options(given: Mapping[str, Any], kind: str, source: Source) -> dict[str, Any]:
    """Check the engine's settings that are plain values against its signature."""
    parameters = inspect.signature(engine_class(kind)).parameters
    checked = dict(given)
    for key, value in given.items():
        annotation = str(parameters[key].annotation)
        if {part.strip() for part in annotation.split("|")} <= PLAIN_TYPES.keys():
            checked[key] = typed_value(value, annotation, f"engine.{key}", source)
    return checked


def _endpoints(one: Any, several: Any, source: Source) -> tuple[str, ...]:
    """Return the addresses; `endpoints` counts before `endpoint`, as --endpoint sets it."""
    given = several or one or []
    addresses = given if isinstance(given, list) else [given]
    for number, address in enumerate(addresses):
        if not isinstance(address, str) or not re.fullmatch(r"https?://[^\s/?#]+(?:/\S*)?", address):
            raise source.error(
                f"engine.endpoints[{number}]",
                f"{quoted(str(address).rpartition('@')[2])} is no address.",
                "It begins with http:// or https://.",
            )
        if "@" in address:  # a password must not get into run.json
            raise source.error(
                f"engine.endpoints[{number}]",
                "an address cannot hold a user or a password.",
                "Keys go into an environment variable, named by engine.api_key_env (--api-key-env).",
            )
    return tuple(addresses)


def _section_any(given: Any, path: str, source: Source) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise source.error(path, f"{quoted(given)} is neither a name nor a mapping.")
    return given


def _grid(given: Any, system_prompt: str | None, source: Source) -> tuple[GridPoint, ...]:
    if isinstance(given, list) and given:
        return _distinct([_point(entry, system_prompt, f"sampling[{n}]", source) for n, entry in enumerate(given)])
    if isinstance(given, dict):
        return (_point(given, system_prompt, "sampling", source),)
    raise source.error("sampling", f"{quoted(given)} is neither a setting nor a list of settings.")


def _distinct(points: list[GridPoint]) -> tuple[GridPoint, ...]:
    """Join points of equal settings, shares added: each alone would make the very same samples."""
    joined: dict[str, GridPoint] = {}
    for point in points:
        key = stable_hash(point.to_dict())
        share = joined[key].share if key in joined else 0.0
        joined[key] = dataclasses.replace(point, share=share + point.share)
    return tuple(joined.values())


def _point(given: Any, system_prompt: str | None, path: str, source: Source) -> GridPoint:
    rest = dict(_section_any(given, path, source))
    share = typed_value(rest.pop("share", 1.0), "float", f"{path}.share", source)
    own = typed_value(rest.pop("system_prompt", system_prompt), "str | None", f"{path}.system_prompt", source)
    default = SamplingParams(max_tokens=1024)
    sampling = _sampling(rest, default, path, source, also=("share", "system_prompt"))
    try:
        return GridPoint(sampling, share, own)
    except ArgumentError as error:
        raise source.error(f"{path}.{error.data.get('key', '')}", error.message, error.hint) from None


def _sampling(
    given: Any, default: SamplingParams, path: str, source: Source, also: tuple[str, ...] = ()
) -> SamplingParams:
    section = _section_any(given, path, source)
    fields = {f.name: str(f.type) for f in dataclasses.fields(SamplingParams)}
    _check_keys(section, fields.keys() - {"seed", "grammar"}, path, source, also)
    values = {key: typed_value(value, fields[key], f"{path}.{key}", source) for key, value in section.items()}
    try:
        return dataclasses.replace(default, **values)
    except ArgumentError as error:
        raise source.error(f"{path}.{error.data.get('key', '')}", error.message, error.hint) from None


def _stages(given: Any, grid: tuple[GridPoint, ...], source: Source) -> tuple[Stage, ...]:
    if not isinstance(given, list) or not given:
        raise source.error("stages", f"{quoted(given)} is no list of stages.", f"Stages: {', '.join(STAGES)}.")
    built = [_stage(entry, grid, f"stages[{number}]", source) for number, entry in enumerate(given)]
    names = [stage.name for stage in built]
    if names[0] != "instructions":
        raise source.error("stages[0]", f'the first stage is "instructions", not "{names[0]}".')
    for number, name in enumerate(names):
        if name in names[:number]:
            raise source.error(f"stages[{number}]", f'the stage "{name}" stands here a second time.')
    return tuple(built)


def _stage(entry: Any, grid: tuple[GridPoint, ...], path: str, source: Source) -> Stage:
    given = {"stage": entry} if isinstance(entry, str) else dict(_section_any(entry, path, source))
    name = given.pop("stage", None)
    if not isinstance(name, str) or name not in STAGES:
        hint = did_you_mean(str(name), STAGES) if name else f"Add `stage:` with one of {', '.join(STAGES)}."
        raise source.error(f"{path}.stage", f"there is no stage {quoted(name)}.", hint)
    kind = stage_class(name)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name != "grid"}
    _check_keys(given, fields, path, source, also=("stage",))
    values: dict[str, Any] = {"grid": grid} if name == "instructions" else {}
    for key, value in given.items():
        inner, annotation = f"{path}.{key}", str(fields[key].type)
        if annotation == "SamplingParams":
            values[key] = _sampling(value, fields[key].default, inner, source)  # type: ignore[arg-type]
        else:
            values[key] = typed_value(value, annotation, inner, source)
    try:
        return kind(**values)
    except MagpieError as error:
        raise source.error(path, error.message, error.hint) from None


def _template(given: Any, source: Source) -> dict[str, Any]:
    section = _section(given, TEMPLATE_KEYS, "template", source)
    typed_value(section.get("chat_template"), "str | None", "template.chat_template", source)
    kwargs, date = section.get("kwargs"), section.get("date")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise source.error("template.kwargs", f"{quoted(kwargs)} is not a mapping.", "As {enable_thinking: false}.")
    if date is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", str(date)):
        raise source.error("template.date", f"{quoted(date)} is no date.", "Write it as 2026-01-31.")
    return section


def _output(given: Any, source: Source) -> dict[str, Any]:
    section = {"path": given} if isinstance(given, str) else _section(given, OUTPUT_KEYS, "output", source)
    _choice(section.get("format", "parquet"), FORMATS, "output.format", source)
    typed_value(section.get("path"), "str | None", "output.path", source)
    return section


def _budget(given: Any, source: Source) -> Budget:
    types = {f.name: str(f.type) for f in dataclasses.fields(Budget)}
    section = _section(given, types, "budget", source)
    values = {key: typed_value(value, types[key], f"budget.{key}", source) for key, value in section.items()}
    try:
        return Budget(**values)
    except ArgumentError as error:
        raise source.error("budget", error.message, error.hint) from None


def _name(given: Any, source: Source) -> str:
    if not isinstance(given, str) or not re.fullmatch(r"[\w.-]{1,80}", given):
        raise source.error("name", f"{quoted(given)} is no name.", "Use letters, digits, '.', '_' and '-'.")
    return given


def _seed(given: Any, source: Source) -> int:
    seed: int = typed_value(given, "int", "seed", source)
    if seed < 0:
        raise source.error("seed", f"{seed} cannot be used.", "Give a whole number, 0 or more.")
    return seed


def _positive(given: Any, path: str, source: Source) -> int:
    number: int = typed_value(given, "int", path, source)
    if number < 1:
        raise source.error(path, f"{number} cannot be used.", "Give a whole number, 1 or more.")
    return number


def _choice(given: Any, allowed: tuple[str, ...], path: str, source: Source) -> str:
    if given not in allowed:
        raise source.error(
            path, f"{quoted(given)} is none of {', '.join(allowed)}.", did_you_mean(str(given), allowed)
        )
    return str(given)
