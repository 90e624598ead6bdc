"""Read the YAML of a recipe with the line of every key, set dotted keys, and check values against types."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from ..errors import RecipeError, did_you_mean, quoted
from ..storage.state import JsonObject


T = TypeVar("T")
DEFAULT_STAGES = ("instructions", "responses", "lengths")
JUDGE_MODES = ("separate", "combined")
_SHORT_FORMS = {
    **{"engine": "kind", "output": "path", "push": "repo", "dataset": "path"},
    **dict.fromkeys(("responder", "judge", "guard", "base"), "model"),
}
"""Keys whose value may be a string: the short form of a mapping with the one key named here."""
_NOT_OF_MODELS = ("mode", "rubrics")
"""Settings of a role that are valid for any model."""
PLAIN_TYPES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "text",
    NoneType: "null",
}
_PATH_PART = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


class Source:
    """Where the values of a recipe come from, for error messages: a file with the line of each key, or overrides."""

    def __init__(self, name: str, lines: dict[str, int] | None = None) -> None:
        self.name = name
        self.lines = lines or {}
        self.overridden: dict[str, str] = {}

    def error(self, path: str, message: str, hint: str | None = None) -> RecipeError:
        """Return the RecipeError for a key."""
        where = self._origin(path, self.overridden)
        if where is None:
            line = self._origin(path, self.lines)
            where = f"{self.name}, line {line}" if line else self.name
        is_named = not path or where == f"--set {path}"
        return RecipeError(message if is_named else f"{path}: {message}", where=where, hint=hint, key=path)

    @staticmethod
    def _origin(path: str, known: Mapping[str, T]) -> T | None:
        """Return the entry of a key in `known` or, if it has none, of the nearest enclosing key."""
        while path and path not in known:
            path = re.sub(r"(\.[^.\[\]]*|\[\d+\]|^[^.\[\]]*)$", "", path)
        return known.get(path)


def read_recipe_file(path: Path) -> tuple[JsonObject, Source]:
    """Read a YAML file, with the line of each key."""
    try:
        text = path.read_text("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
        lines: dict[str, int] = {}
        if isinstance(raw, dict):
            _note_lines(node, "", lines, str(path))
    except OSError as error:
        raise RecipeError(f"The recipe cannot be read: {error.strerror}.", where=str(path)) from None
    except UnicodeDecodeError:
        raise RecipeError("The recipe is not UTF-8 text.", where=str(path)) from None
    except RecursionError:
        raise RecipeError("The recipe is nested too deeply, or contains itself.", where=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise RecipeError(f"The YAML cannot be read: {problem}.", where=where) from None
    if not isinstance(raw, dict):
        raise RecipeError(
            "A recipe must be a mapping of keys to values.",
            where=str(path),
            hint="See docs/reference/recipe.md for the keys.",
        )
    return raw, Source(str(path), lines)


def _note_lines(node: yaml.Node | None, path: str, lines: dict[str, int], file: str) -> None:
    if len(lines) > 20_000:
        raise RecipeError("The recipe has more than 20,000 keys.", where=file, hint="Write a smaller recipe.")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = f"{path}.{key.value}" if path else str(key.value)
            if inner in lines and key.value != "<<":
                raise RecipeError(
                    f"{inner}: this key is already set in line {lines[inner]}.",
                    where=f"{file}, line {key.start_mark.line + 1}",
                    key=inner,
                )
            lines[inner] = key.start_mark.line + 1
            _note_lines(value, inner, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[f"{path}[{number}]"] = value.start_mark.line + 1
            _note_lines(value, f"{path}[{number}]", lines, file)


def plain_copy(value: object) -> Any:
    """Return a copy of plain dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain_copy(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_copy(inner) for inner in value]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()  # a NumPy scalar
    return value


def key_parts(key: str) -> list[str | int]:
    """Return the parts of a dotted key: "stages[1].sampling" has the parts "stages", 1 and "sampling"."""
    return [name or int(number) for name, number in _PATH_PART.findall(key)]


def set_value(raw: JsonObject, key: str, value: object, source: Source, where: str | None = None) -> None:
    """Set a dotted key in a recipe's mapping; `where`: what sets it, for errors (default: --set)."""
    parts = key_parts(key)
    if not parts:
        raise RecipeError(
            f"{where or '--set'} {quoted(key)}: invalid key.", hint="See docs/reference/recipe.md for the keys."
        )
    _set(raw, parts, value, "", key, source, where or f"--set {key}")


def _set(at: Any, parts: list[str | int], value: object, path: str, key: str, source: Source, where: str) -> None:
    head, rest = parts[0], parts[1:]
    if isinstance(at, list) and isinstance(head, str):
        chosen = _entries(at, head)
        if chosen is None and path == "stages":
            names = [str(entry.get("stage")) if isinstance(entry, dict) else str(entry) for entry in at]
            raise RecipeError(
                f"The recipe has no stage {quoted(head)}.",
                where=where,
                hint=did_you_mean(head, names),
                key=key,
            )
        if chosen is None:
            chosen, rest = list(range(len(at))), parts
        elif not rest:
            raise RecipeError(
                f"{quoted(head)} is a stage, so one of its settings must be given.",
                where=where,
                hint=f"E.g., stages.{head}.sampling.max_tokens=512.",
                key=key,
            )
        for number in chosen:
            if isinstance(at[number], str):
                at[number] = {"stage": at[number]}
            _set(at[number], rest, value, f"{path}[{number}]", key, source, where)
        return
    if (isinstance(head, int) and not isinstance(at, list)) or (isinstance(at, list) and int(head) >= len(at)):
        raise RecipeError(f"The recipe has no {path}[{head}].", where=where, key=key)
    if not isinstance(at, (dict, list)):
        raise RecipeError(f"{path} is a single value, so it has no key {head}.", where=where, key=key)
    inner = f"{path}[{head}]" if isinstance(head, int) else (f"{path}.{head}" if path else head)
    if not rest:
        at[head] = value  # type: ignore[index]  # dict by name or list by number, checked above
        source.overridden[inner] = where
        return
    if isinstance(at, dict) and (at.get(head) is None or isinstance(at[head], str)):
        at[head] = _default_parent(str(head), at.get(head), key, where)
    _set(at[head], rest, value, inner, key, source, where)


def _default_parent(name: str, given: str | None, key: str, where: str) -> JsonObject | list[JsonObject]:
    """Return a new mapping or list in which a key can be set; `given`: the current value in its short form, if any."""
    if given is None:
        return [{"stage": stage} for stage in DEFAULT_STAGES] if name == "stages" else {}
    if name not in _SHORT_FORMS:
        raise RecipeError(f"{name} is a single value, so no key can be set in it.", where=where, key=key)
    return {"mode" if name == "judge" and given in JUDGE_MODES else _SHORT_FORMS[name]: given}


def _entries(entries: Sequence[object], stage: str) -> list[int] | None:
    """Return the positions of a stage in the list of stages; None if the list does not contain it."""
    found = [n for n, entry in enumerate(entries) if entry == stage or _is_stage(entry, stage)]
    return found or None


def _is_stage(entry: object, name: str) -> bool:
    return isinstance(entry, dict) and entry.get("stage") == name


def typed_value(value: object, kind: Any, path: str, source: Source) -> Any:
    """Check a value against a type (`int`, `str | None`, `tuple[str, ...]`, …); convert it if this loses no information."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if Any in kinds or (value is None and NoneType in kinds):
        return value
    if bool in kinds and isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        if int in kinds and int(value) == value:
            return int(value)
        if float in kinds:
            return float(value)
    if str in kinds and isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise source.error(path, f"{quoted(value, 60)} is not valid Unicode.", "Write it in UTF-8.")
        return value
    for one in kinds:
        found = _structured(value, one, path, source)
        if found is not None:
            return found
    raise source.error(path, f"{quoted(value)} is not {_shown(kinds)}.")


def _structured(value: object, kind: Any, path: str, source: Source) -> object:
    """Return a value of a composite or Literal type; None if the value has another type."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Literal and value in parts:
        return value
    if origin in (dict, Mapping):
        return value if isinstance(value, dict) else None
    if kind is Path and isinstance(value, str):
        return Path(value)
    if origin is tuple and parts[1:] == (...,):  # a single entry stands for a list of one
        entries = value if isinstance(value, (list, tuple)) else [value]
        return tuple(typed_value(entry, parts[0], f"{path}[{n}]", source) for n, entry in enumerate(entries))
    if origin not in (tuple, list, Sequence) or not isinstance(value, (list, tuple)):
        return None
    if origin is tuple:
        if len(value) != len(parts):
            raise source.error(path, f"{quoted(value)} does not have {len(parts)} entries.")
        inner = parts
    else:
        inner = (parts[0] if parts else Any,) * len(value)
    entries = [typed_value(entry, inner[n], f"{path}[{n}]", source) for n, entry in enumerate(value)]
    return tuple(entries) if origin is tuple else entries


def _shown(kinds: Sequence[object]) -> str:
    """Describe types in words, for an error."""
    words = [PLAIN_TYPES[kind] for kind in PLAIN_TYPES if kind in kinds]
    for kind in kinds:
        origin = get_origin(kind) or kind
        if origin is Literal:
            words += [quoted(part) for part in get_args(kind)]
        elif origin in (dict, Mapping):
            words.append("a mapping")
        elif origin in (tuple, list, Sequence):
            words.append("a list")
    return " or ".join(words) or f"a value that a recipe can express ({kinds[0]})"


def replace_engine(raw: JsonObject, overrides: Mapping[str, object]) -> None:
    """Remove the settings of the recipe's engine if the overrides set another engine."""
    asked = overrides.get("engine.kind") or overrides.get("engine")
    given = raw.get("engine")
    kind = given.get("kind", "transformers") if isinstance(given, dict) else given
    if isinstance(asked, str) and asked != kind and isinstance(given, dict):
        raw["engine"] = {}


def section_any(given: object, path: str, source: Source) -> JsonObject:
    """Return a mapping, or raise RecipeError."""
    if not isinstance(given, dict):
        raise source.error(path, f"{quoted(given)} is neither a name nor a mapping.")
    return given


def _sets_model(key: str, role: str) -> bool:
    """Return whether an override sets the model of a role, its engine or its template."""
    return key == role or (key.startswith(f"{role}.") and key.removeprefix(f"{role}.") not in _NOT_OF_MODELS)


def use_demo_models(raw: JsonObject, overrides: Mapping[str, object], roles: Collection[str]) -> None:
    """Replace all models of a recipe by the demo models if the overrides contain `model: demo`, to try the recipe.

    Roles and stages that the overrides set are not changed.
    """
    if overrides.get("model") != "demo":
        return
    raw.pop("revision", None)
    if not any(key == "engine" or key.startswith("engine.") for key in overrides):
        raw.pop("engine", None)
    if not any(key == "template" or key.startswith("template.") for key in overrides):
        raw.pop("template", None)  # its settings are for another model
    for role in roles:
        given = raw.get(role)
        if isinstance(given, str) and given in JUDGE_MODES:
            continue
        if given is not None and not any(_sets_model(key, role) for key in overrides):
            kept = {key: given[key] for key in _NOT_OF_MODELS if key in given} if isinstance(given, dict) else {}
            raw[role] = {**kept, "model": "demo"}
    stages = raw.get("stages")
    for entry in stages if isinstance(stages, list) else []:
        if isinstance(entry, dict) and not any(f".{entry.get('stage')}.model" in f".{key}" for key in overrides):
            for key in ("model", "revision", "trust_remote_code"):
                entry.pop(key, None)


def rehearse(raw: JsonObject, overrides: Mapping[str, object], known: Collection[str], source: Source) -> None:
    """Apply the recipe's `rehearsal` if the overrides contain `model: demo`; otherwise check that its keys can be set.

    `known`: the keys of a recipe. Only `model` cannot be set: it is the demo model.
    """
    given = raw.get("rehearsal")
    if given is None:
        return
    is_asked = overrides.get("model") == "demo"
    target = raw if is_asked else plain_copy(raw)
    for key, value in section_any(given, "rehearsal", source).items():
        if (name := next(iter(key_parts(str(key))), "")) not in {*known} - {"model"}:
            why = "a rehearsal has the demo model." if name == "model" else "unknown key."
            raise source.error(f"rehearsal.{key}", why, did_you_mean(str(name), {*known} - {"model"}))
        line = source.lines.get(f"rehearsal.{key}")
        place = f"{source.name}, line {line}: " if line else ""
        set_value(target, key, plain_copy(value), source if is_asked else Source(""), f"{place}rehearsal.{key}")
    if is_asked:
        del raw["rehearsal"]
