"""Rubrics: an annotation as data. A task in words, the JSON keys of the answer, their schema, the columns they fill.

A prompt puts what all rows share first and the row last, so that servers compute the shared part once. Rubrics can be
joined: one prompt with all their tasks, one JSON object with all their keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..errors import ArgumentError, did_you_mean, quoted


BUILT_IN = ("quality", "difficulty", "category")
_HERE = Path(__file__).parent / "rubrics"
_HEAD = "You annotate queries that users sent to an AI model. Do not answer the query: describe it."
_ANSWER = "Write one JSON object with these keys, in this order, and nothing else:"
_HEADINGS = {"instruction": "Query", "response": "Response"}
_KEYS = {
    "name", "version", "task", "reads", "keys", "schema", "columns", "generator_column", "aliases",
}  # fmt: skip
_TYPES = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool"}


@dataclass(frozen=True)
class Rubric:
    """An annotation as data.

    - `name`: of the annotation, and the beginning of its own columns (`<name>_error`, `<name>_raw`).
    - `task`: what the judge is to do, in words. `reads`: the columns it sees, the row's last part.
    - `keys`: the answer's keys and what stands there, for the prompt; `schema`: a JSON schema of the whole object.
    - `columns`: key to column; a key that is not named here goes to `<name>_<key>`.
    - `generator_column`: the column that says which model judged. `aliases`: labels to put right, in lower case.
    """

    name: str
    task: str
    schema: dict[str, Any]
    keys: dict[str, str] = field(default_factory=dict)
    reads: tuple[str, ...] = ("instruction",)
    columns: dict[str, str] = field(default_factory=dict)
    generator_column: str = ""
    aliases: dict[str, str] = field(default_factory=dict)
    version: int = 1

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ArgumentError(f"A rubric's name cannot be {quoted(self.name)}.", hint="Use letters, digits and _.")
        properties = self.schema.get("properties")
        if self.schema.get("type") != "object" or not isinstance(properties, dict) or not properties:
            raise ArgumentError(
                f'The schema of the rubric "{self.name}" is no JSON schema of an object with properties.',
                hint="As {type: object, properties: {score: {type: integer}}}.",
                key="schema",
            )
        for key, kind in properties.items():
            _feature(kind, f"{self.name}.{key}")
        if not self.reads:
            raise ArgumentError(
                f'The rubric "{self.name}" reads no column.', hint="As reads: [instruction].", key="reads"
            )

    @property
    def properties(self) -> dict[str, dict[str, Any]]:
        """The JSON schema of each key, in the order of the prompt."""
        found: dict[str, dict[str, Any]] = self.schema["properties"]
        return found

    def column(self, key: str) -> str:
        """Return the column that a key fills."""
        return self.columns.get(key, f"{self.name}_{key}")

    @property
    def judge_column(self) -> str:
        """The column that says which model judged."""
        return self.generator_column or f"{self.name}_generator"

    def features(self) -> dict[str, Any]:
        """Return the `datasets` features of the rubric's own columns."""
        return {self.column(key): _feature(kind, key) for key, kind in self.properties.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return what of the rubric can change an answer."""
        return {
            "name": self.name,
            "version": self.version,
            "task": self.task,
            "keys": dict(self.keys),
            "schema": self.schema,
            "reads": list(self.reads),
            "aliases": self.aliases,
            "columns": self.columns,
        }


def load_rubric(given: str | Mapping[str, Any] | Rubric) -> Rubric:
    """Return a rubric: a built-in one by name, a YAML file, or a mapping with the fields of `Rubric`.

    Raises:
        ArgumentError: there is no such rubric, or a field of it cannot be used.
    """
    if isinstance(given, Rubric):
        return given
    if isinstance(given, Mapping):
        return _from_mapping(given, "the rubric given")
    if given in BUILT_IN:
        return _built_in(given)
    path = Path(given)
    if path.suffix not in (".yaml", ".yml"):
        raise ArgumentError(
            f"There is no rubric {quoted(given)}.", hint=did_you_mean(given, BUILT_IN) or "Or give a YAML file."
        )
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f"The rubric cannot be read: {error}.", where=str(path)) from None
    if not isinstance(raw, dict):
        raise ArgumentError("A rubric is a mapping.", where=str(path), hint="With name, task and schema.")
    return _from_mapping(raw, str(path))


@cache
def _built_in(name: str) -> Rubric:
    return _from_mapping(read_prompt(name), name)


@cache
def read_prompt(name: str) -> dict[str, Any]:
    """Return a prompt file of the package: "guard", "urial" or a built-in rubric."""
    raw: dict[str, Any] = yaml.safe_load((_HERE / f"{name}.yaml").read_text("utf-8"))
    return raw


def _from_mapping(raw: Mapping[str, Any], where: str) -> Rubric:
    for key in raw:
        if key not in _KEYS:
            raise ArgumentError(
                f"{quoted(str(key))}: unknown key of a rubric.", where=where, hint=did_you_mean(str(key), _KEYS)
            )
    for key, kind in {"name": str, "task": str, "schema": dict}.items():
        if not isinstance(raw.get(key), kind):
            raise ArgumentError(f'A rubric needs "{key}" ({kind.__name__}).', where=where, key=key)
    reads = raw.get("reads", ("instruction",))
    values = {**raw, "reads": (reads,) if isinstance(reads, str) else tuple(reads)}
    values["keys"] = dict(raw.get("keys") or dict.fromkeys(raw["schema"].get("properties", {}), ""))
    return Rubric(**values)


def shared_prompt(rubrics: Sequence[Rubric]) -> str:
    """Return what stands before every row: the tasks and the form of the answer."""
    parts = [_HEAD]
    for rubric in rubrics:
        parts.append(f"# Task: {rubric.name}\n\n{rubric.task.strip()}")
    keys = {key: f"<{text}>" if text else "..." for rubric in rubrics for key, text in rubric.keys.items()}
    parts.append(f"# Answer\n\n{_ANSWER}\n{json.dumps(keys, indent=2, ensure_ascii=False)}")
    return "\n\n".join(parts) + "\n\n"


def row_prompt(rubrics: Sequence[Rubric], row: Mapping[str, Any]) -> str:
    """Return a row's part of the prompt: each column read, under its heading."""
    columns = dict.fromkeys(column for rubric in rubrics for column in rubric.reads)
    return "\n\n".join(f"# {_HEADINGS.get(name, name.title())}\n\n{row[name]}" for name in columns)


def joined_schema(rubrics: Sequence[Rubric]) -> dict[str, Any]:
    """Return the JSON schema of one object with all keys, each of them required, in the prompt's order."""
    properties = {key: kind for rubric in rubrics for key, kind in rubric.properties.items()}
    if len(properties) != sum(len(rubric.properties) for rubric in rubrics):
        raise ArgumentError("Two of the joined rubrics have a key of the same name.", hint="Run them one by one.")
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _feature(kind: Mapping[str, Any], key: str) -> Any:
    from datasets import Value

    name = kind.get("type")
    if name == "array" and isinstance(kind.get("items"), Mapping) and kind["items"].get("type") == "string":
        return [Value("string")]
    if name not in _TYPES:
        raise ArgumentError(
            f"The schema's key {quoted(key)} has the type {quoted(str(name))}.",
            hint=f"Types: {', '.join(_TYPES)}, and array of string.",
            key=key,
        )
    return Value(_TYPES[name])
