"""A recipe's text: reading it with the line of every key, and setting dotted keys in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import RecipeError, quoted


DEFAULT_STAGES = ("instructions", "responses", "lengths")
_PATH_PART = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


class Source:
    """Where a recipe's values came from, for error messages: a file with a line a key, or overrides."""

    def __init__(self, name: str, lines: dict[str, int] | None = None) -> None:
        self.name = name
        self.lines = lines or {}
        self.overridden: dict[str, str] = {}

    def error(self, path: str, message: str, hint: str | None = None) -> RecipeError:
        """Return the RecipeError for a key."""
        where = self.overridden.get(path)
        if where is None:
            line = self._line(path)
            where = f"{self.name}, line {line}" if line else self.name
        return RecipeError(f"{path}: {message}" if path else message, where=where, hint=hint, key=path)

    def _line(self, path: str) -> int | None:
        while path and path not in self.lines:
            path = re.sub(r"(\.[^.\[\]]+|\[\d+\]|^[^.\[\]]+)$", "", path)
        return self.lines.get(path)


def read_recipe_file(path: Path) -> tuple[dict[str, Any], Source]:
    """Read a YAML file and remember each key's line."""
    try:
        text = path.read_text("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except OSError as error:
        raise RecipeError(f"The recipe cannot be read: {error.strerror}.", where=str(path)) from None
    except UnicodeDecodeError:
        raise RecipeError("The recipe is not UTF-8 text.", where=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "it is no YAML"
        raise RecipeError(f"The YAML cannot be read: {problem}.", where=where) from None
    if not isinstance(raw, dict):
        raise RecipeError(
            "A recipe is a mapping of keys to values.",
            where=str(path),
            hint="See docs/reference/recipe.md for the keys.",
        )
    lines: dict[str, int] = {}
    _note_lines(node, "", lines, str(path))
    return raw, Source(str(path), lines)


def _note_lines(node: yaml.Node | None, path: str, lines: dict[str, int], file: str) -> None:
    if len(lines) > 20_000:
        raise RecipeError("The recipe is too large.", where=file, hint="It has more than 20,000 keys.")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = f"{path}.{key.value}" if path else str(key.value)
            if inner in lines and key.value != "<<":
                raise RecipeError(
                    f"{inner}: given twice, first in line {lines[inner]}.",
                    where=f"{file}, line {key.start_mark.line + 1}",
                    key=inner,
                )
            lines[inner] = key.start_mark.line + 1
            _note_lines(value, inner, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[f"{path}[{number}]"] = value.start_mark.line + 1
            _note_lines(value, f"{path}[{number}]", lines, file)


def plain_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): plain_copy(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_copy(inner) for inner in value]
    return value


def set_value(raw: dict[str, Any], key: str, value: Any, source: Source) -> None:
    """Set a dotted key in a recipe's mapping."""
    parts = [name or int(number) for name, number in _PATH_PART.findall(key)]
    if not parts:
        raise RecipeError(f"--set {quoted(key)}: this is no key.", hint="See docs/reference/recipe.md for the keys.")
    _set(raw, parts, value, "", key, source)


def _set(at: Any, parts: list[str | int], value: Any, path: str, key: str, source: Source) -> None:
    head, rest = parts[0], parts[1:]
    if isinstance(at, list) and isinstance(head, str):
        chosen = _entries(at, head)
        if chosen is None:
            chosen, rest = list(range(len(at))), parts
        for number in chosen:
            if isinstance(at[number], str):
                at[number] = {"stage": at[number]}
            _set(at[number], rest, value, f"{path}[{number}]", key, source)
        return
    if (isinstance(head, int) and not isinstance(at, list)) or (isinstance(at, list) and int(head) >= len(at)):
        raise RecipeError(f"There is no {path}[{head}] in the recipe.", where=f"--set {key}", key=key)
    if not isinstance(at, (dict, list)):
        raise RecipeError(f"{path} holds a plain value, so it has no {head}.", where=f"--set {key}", key=key)
    inner = f"{path}[{head}]" if isinstance(head, int) else (f"{path}.{head}" if path else head)
    if not rest:
        at[head] = value  # type: ignore[index]  # dict by name or list by number, checked above
        source.overridden[inner] = f"--set {key}"
        return
    if isinstance(at, dict) and (head not in at or isinstance(at[head], str)):
        at[head] = _default_parent(str(head), at.get(head))
    _set(at[head], rest, value, inner, key, source)  # type: ignore[index]


def _default_parent(name: str, given: str | None) -> Any:
    """Return what a key holds before something inside it is set."""
    if name == "stages":
        return [{"stage": stage} for stage in DEFAULT_STAGES]
    return {"kind": given} if given is not None and name == "engine" else {}


def _entries(entries: list[Any], stage: str) -> list[int] | None:
    """Return the numbers of a list's entries that are the stage of that name; None if the name is no stage's."""
    found = [n for n, entry in enumerate(entries) if entry == stage or _is_stage(entry, stage)]
    return found or None


def _is_stage(entry: Any, name: str) -> bool:
    return isinstance(entry, dict) and entry.get("stage") == name
