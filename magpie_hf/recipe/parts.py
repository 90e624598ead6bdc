"""Sections of a recipe: engines, roles, sampling grids and chat templates."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..engines import engine_options, takes_endpoints, takes_messages
from ..errors import ArgumentError, did_you_mean, quoted
from ..judging.rubric import SETS
from ..plugins import types_of
from ..sampling import GridPoint, SamplingParams
from ..storage.hashing import stable_hash
from ..storage.state import JsonObject
from .source import JUDGE_MODES, Source, section_any, typed_value


DATASET_KEYS = ("path", "config", "split", "revision", "columns", "fingerprint")
TEMPLATE_KEYS = ("kwargs", "chat_template", "date")
ROLE_KEYS = ("model", "revision", "engine", "template")
JUDGE_KEYS = (*ROLE_KEYS, "mode", "rubrics")
ROLES = {
    "responder": "the model that generates responses",
    "judge": "the model that annotates quality, difficulty and category",
    "guard": "the model that annotates safety",
    "base": "the base model that reward_difference compares with",
}
MESSAGE_ROLES = ("responder", "judge", "guard")
"""The roles that need no raw prompt, so that a chat API can serve them."""
GUARD_MODEL = "meta-llama/Meta-Llama-Guard-2-8B"
"""The guard of the Magpie releases: Magpie, arXiv:2406.08464, section 3.2, and the column `llama_guard_2`."""


@dataclass(frozen=True)
class EngineSpec:
    """An engine: its kind, the URLs of its servers, and its settings."""

    kind: str = "transformers"
    endpoints: tuple[str, ...] = ()
    options: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class RoleSpec:
    """The model of a role (generator, responder, judge, …) with its engine and chat template."""

    model: str
    engine: EngineSpec
    revision: str | None = None
    template: JsonObject = field(default_factory=dict)

    def request(self) -> JsonObject:
        """Return the settings of the role that can change a text, including defaults; the engine is left out."""
        template = {key: self.template.get(key) for key in TEMPLATE_KEYS}
        date = None if template["date"] is None else str(template["date"])
        return {
            "model": self.model,
            "revision": self.revision or "main",
            "template": {**template, "kwargs": template["kwargs"] or {}, "date": date},
        }


def roles_of(raw: Mapping[str, object], generator: RoleSpec, source: Source) -> dict[str, RoleSpec]:
    """Return the specification of each role; roles with neither settings nor a default are left out."""
    roles = {"generator": generator}
    served = generator.model or _first_model(raw)
    for name in ROLES:
        given = raw.get(name)
        if isinstance(given, str):
            given = {"mode": given} if name == "judge" and given in JUDGE_MODES else {"model": given}
        section = section_of(given, JUDGE_KEYS if name == "judge" else ROLE_KEYS, name, source)
        spec = _role(section, name, generator, served, source)
        if spec is not None:
            roles[name] = spec
    return roles


def _first_model(raw: Mapping[str, object]) -> str | None:
    """Return the model of the first role without its own engine: the endpoint serves it if `model` is not given."""
    for name in ROLES:
        given = raw.get(name)
        if isinstance(given, str) and given not in JUDGE_MODES:
            return given
        if isinstance(given, dict) and given.get("model") and "engine" not in given:
            return str(given["model"])
    return None


def _role(
    section: Mapping[str, object], name: str, generator: RoleSpec, served: str | None, source: Source
) -> RoleSpec | None:
    own = {"responder": generator.model, "judge": generator.model, "guard": GUARD_MODEL}
    default = own.get(name) if generator.model else None
    model = section.get("model") or ("demo" if generator.model == "demo" else default)
    if name == "guard" and model is None:
        model = GUARD_MODEL
    if model is None:
        return None
    if not isinstance(model, str):
        raise source.error(f"{name}.model", f"{quoted(model)} is not a model name.")
    if "engine" in section:
        engine, model = engine_of({"engine": section["engine"], "model": model}, source, f"{name}.engine")
    elif takes_endpoints(generator.engine.kind) and model != served:
        if name == "guard" and not section.get("model"):
            engine = EngineSpec()  # the default guard is loaded locally, like reward models
        elif section:
            raise source.error(
                f"{name}.engine",
                "this model needs its own engine.",
                "E.g., {kind: tgi, endpoint: http://HOST:PORT}, or {kind: chat, …} for a chat API.",
            )
        else:
            return None
    else:
        engine = generator.engine
    same = model == generator.model
    inherited = generator.template if same and not takes_messages(engine.kind) else {}
    return RoleSpec(
        model,
        engine,
        typed_value(
            section.get("revision", generator.revision if same else None), str | None, f"{name}.revision", source
        ),
        template_of(section.get("template", inherited), source, f"{name}.template"),
    )


def check_messages(role: str, spec: RoleSpec, stage: str, source: Source) -> None:
    """Raise RecipeError if a role is served by a chat API, but needs raw prompts or sets the chat template."""
    kind = spec.engine.kind
    if not takes_messages(kind):
        return
    prefix = "" if role == "generator" else f"{role}."
    if role not in MESSAGE_ROLES:
        raise source.error(
            f"{prefix}engine.kind",
            f'the stage "{stage}" needs raw prompts, which the engine "{kind}" cannot send: a chat API applies the chat '
            "template to every prompt, so its model only responds.",
            f"Use transformers, vllm, tgi or openai for the {role}. {kind} can serve: {', '.join(MESSAGE_ROLES)}.",
        )
    if spec.template:
        raise source.error(
            f"{prefix}template",
            f'the engine "{kind}" uses the chat template of the server, so it cannot be set here.',
            "Remove it. vLLM, SGLang and llama.cpp accept template arguments: "
            f"{prefix}engine.extra_body: {{chat_template_kwargs: {{…}}}}.",
        )


def dataset_of(given: object, source: Source) -> JsonObject:
    """Return the dataset of a recipe: its section, or of several {"parts": [section, …]}; {} if it has none."""
    if not isinstance(given, list):
        return _dataset(given, "dataset", source)
    if not given:
        raise source.error("dataset", "the list is empty.", "Give at least one directory, file or Hub id.")
    parts = [_dataset(entry, f"dataset[{number}]", source) for number, entry in enumerate(given)]
    for number, part in enumerate(parts):
        if not part.get("path"):
            raise source.error(f"dataset[{number}]", "no path is given.", "Give a directory, a file or a Hub id.")
    return {"parts": parts} if len(parts) > 1 else parts[0]


def _dataset(given: object, path: str, source: Source) -> JsonObject:
    section = {"path": given} if isinstance(given, str) else section_of(given, DATASET_KEYS, path, source)
    for key, value in section.items():
        typed_value(value, list[str] | None if key == "columns" else str | None, f"{path}.{key}", source)
    if section and not (section.get("path") or section.get("fingerprint")):
        raise source.error(f"{path}.path", "no path is given.", "Give a directory, a file or a Hub id.")
    return section


def judge_mode(raw: Mapping[str, object], source: Source) -> str:
    """Return the mode of the judge: all three rubrics in one request ("combined") or one request each ("separate")."""
    given = raw.get("judge")
    if isinstance(given, str):
        return given if given in JUDGE_MODES else "separate"
    mode = given.get("mode", "separate") if isinstance(given, dict) else "separate"
    return choice_of(mode, JUDGE_MODES, "judge.mode", source)


def judge_rubrics(raw: Mapping[str, object], source: Source) -> str:
    """Return the set of rubrics for the stages quality, difficulty, category and judge that do not name their rubrics."""
    given = raw.get("judge")
    name = given.get("rubrics", SETS[0]) if isinstance(given, dict) else SETS[0]
    return choice_of(name, SETS, "judge.rubrics", source)


def check_keys(
    given: Mapping[str, object], known: Collection[str], path: str, source: Source, also: tuple[str, ...] = ()
) -> None:
    """Raise RecipeError for an unknown key."""
    for key in given:
        if key not in known:
            inner = f"{path}.{key}" if path else str(key)
            raise source.error(inner, "unknown key.", did_you_mean(str(key), {*known, *also}))


def section_of(given: object, known: Collection[str], path: str, source: Source) -> JsonObject:
    """Return a section of the recipe ({} for None), or raise RecipeError for unknown keys."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise source.error(path, f"{quoted(given)} is not a mapping.", f"Keys: {', '.join(known)}.")
    check_keys(given, known, path, source)
    return given


def names_demo(raw: Mapping[str, object]) -> bool:
    """Return whether the recipe has `engine: demo`, which selects the demo model."""
    engine = raw.get("engine")
    return engine == "demo" or (isinstance(engine, dict) and engine.get("kind") == "demo")


def engine_of(raw: Mapping[str, object], source: Source, path: str = "engine") -> tuple[EngineSpec, str]:
    """Return the specification of the engine, and the name of the model."""
    given = raw.get("engine", "transformers")
    given = {"kind": given} if isinstance(given, str) else dict(section_any(given, path, source))
    kind = given.pop("kind", "transformers")
    model = raw.get("model") or ("" if raw.get("dataset") else "demo")
    if kind == "demo":
        kind, model = "transformers", "demo"
    try:
        is_remote = takes_endpoints(str(kind))
    except ArgumentError as error:
        raise source.error(f"{path}.kind", error.message, error.hint) from None
    endpoints = _endpoints(given.pop("endpoint", None), given.pop("endpoints", None), source, path)
    if is_remote and not endpoints:
        raise source.error(
            f"{path}.endpoint", f'the engine "{kind}" needs the URL of a server.', "Give --endpoint http://HOST:PORT."
        )
    if not is_remote and endpoints:
        raise source.error(
            f"{path}.endpoint",
            f'the engine "{kind}" runs locally and does not use an endpoint.',
            "To use an endpoint, choose --engine tgi, openai or chat.",
        )
    known = engine_options(kind)
    sampled = [key for key in given if key in {f.name for f in dataclasses.fields(SamplingParams)} - known.keys()]
    if sampled:
        raise source.error(
            f"{path}.{sampled[0]}",
            "is a sampling setting, not an engine setting.",
            f"For instructions: sampling={{{sampled[0]!r}: …}} (in a recipe: sampling.{sampled[0]}); for responses: "
            f"response_sampling={{{sampled[0]!r}: …}} (in a recipe: stages.responses.sampling.{sampled[0]}).",
        )
    check_keys(given, known, path, source, also=("kind", "endpoint"))
    if not isinstance(model, str):
        raise source.error("model", f"{quoted(model)} is not a model name.")
    return EngineSpec(kind, endpoints, _options(given, kind, source, path)), model


def _options(given: Mapping[str, object], kind: str, source: Source, path: str) -> JsonObject:
    """Return the settings of an engine, checked against the types of its settings class."""
    types = engine_options(kind)
    return {key: typed_value(value, types[key], f"{path}.{key}", source) for key, value in given.items()}


def _endpoints(one: object, several: object, source: Source, path: str) -> tuple[str, ...]:
    """Return the URLs of the servers. `endpoints`, which --endpoint sets, takes precedence over `endpoint`."""
    given = several or one or []
    addresses = given if isinstance(given, list) else [given]
    for number, address in enumerate(addresses):
        if not isinstance(address, str) or not re.fullmatch(r"https?://[^\s/?#]+(?:/[^\s?#]*)?", address):
            shown = re.split(r"[?#]", str(address).rpartition("@")[2])[0]  # the rest may be a key
            raise source.error(
                f"{path}.endpoints[{number}]",
                f"Invalid endpoint URL {quoted(shown)}.",
                "Write it as http://HOST:PORT or https://HOST/PATH, without a query.",
            )
        if "@" in address:  # passwords must not be saved in run.json
            raise source.error(
                f"{path}.endpoints[{number}]",
                "a URL must not contain a user or a password.",
                "Put the key in an environment variable, and give its name as api_key_env (--api-key-env).",
            )
    return tuple(addresses)


def grid_of(given: object, system_prompt: str | None, source: Source) -> tuple[GridPoint, ...]:
    """Return the sampling grid."""
    if isinstance(given, list) and given:
        points = [point_of(entry, system_prompt, f"sampling[{n}]", source) for n, entry in enumerate(given)]
        return _distinct(points, source)
    if isinstance(given, dict):
        return (point_of(given, system_prompt, "sampling", source),)
    raise source.error("sampling", f"{quoted(given)} is neither a setting nor a list of settings.")


def _distinct(points: list[GridPoint], source: Source) -> tuple[GridPoint, ...]:
    """Merge points with equal settings and add up their shares: otherwise they would generate the same samples twice."""
    joined: dict[str, GridPoint] = {}
    for number, point in enumerate(points):
        key = stable_hash(point.to_dict())
        same = joined.get(key, point)
        if same.system_prompt_key != point.system_prompt_key:
            raise source.error(
                f"sampling[{number}].system_prompt_key",
                f"{quoted(point.system_prompt_key)} has the same system prompt and sampling as "
                f"{quoted(same.system_prompt_key)}.",
                "Points with equal settings generate the same instructions: give them one key.",
            )
        joined[key] = dataclasses.replace(point, share=point.share + (joined[key].share if key in joined else 0.0))
    return tuple(joined.values())


def point_of(given: object, system_prompt: str | None, path: str, source: Source) -> GridPoint:
    """Return a point of the grid."""
    rest = dict(section_any(given, path, source))
    share = typed_value(rest.pop("share", 1.0), float, f"{path}.share", source)
    own = typed_value(rest.pop("system_prompt", system_prompt), str | None, f"{path}.system_prompt", source)
    key = typed_value(rest.pop("system_prompt_key", None), str | None, f"{path}.system_prompt_key", source)
    default = SamplingParams(max_tokens=1024)
    sampling = sampling_of(rest, default, path, source, also=("share", "system_prompt", "system_prompt_key"))
    try:
        return GridPoint(sampling, share, own, key)
    except ArgumentError as error:
        raise source.error(f"{path}.{error.data.get('key', '')}", error.message, error.hint) from None


def sampling_of(
    given: object, default: SamplingParams, path: str, source: Source, also: tuple[str, ...] = ()
) -> SamplingParams:
    """Return sampling parameters: the given values, and the defaults for all others."""
    section = section_any(given, path, source)
    fields = types_of(SamplingParams)
    check_keys(section, fields.keys() - {"seed", "json_schema"}, path, source, also)
    values = {key: typed_value(value, fields[key], f"{path}.{key}", source) for key, value in section.items()}
    try:
        return dataclasses.replace(default, **values)
    except ArgumentError as error:
        raise source.error(f"{path}.{error.data.get('key', '')}", error.message, error.hint) from None


def template_of(given: object, source: Source, path: str = "template") -> JsonObject:
    """Return the settings of the chat template."""
    section = section_of(given, TEMPLATE_KEYS, path, source)
    typed_value(section.get("chat_template"), str | None, f"{path}.chat_template", source)
    kwargs, date = section.get("kwargs"), section.get("date")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise source.error(f"{path}.kwargs", f"{quoted(kwargs)} is not a mapping.", "E.g., {enable_thinking: false}.")
    if date is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", str(date)):
        raise source.error(f"{path}.date", f"{quoted(date)} is not a date.", "Write it as 2026-01-31.")
    return section


def choice_of(given: object, allowed: tuple[str, ...], path: str, source: Source) -> str:
    """Return the value if it is allowed, or raise RecipeError."""
    if given not in allowed:
        raise source.error(
            path, f"{quoted(given)} is not one of {', '.join(allowed)}.", did_you_mean(str(given), allowed)
        )
    return str(given)
