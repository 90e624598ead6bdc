"""Rubrics: an annotation as data. A task in words, the JSON keys of the answer, their schema, the columns they fill.

A prompt puts what all rows share first and the row last, so that servers compute the shared part once. Rubrics can be
joined: one prompt with all their tasks, one JSON object with all their keys.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..columns import REGISTER, Column, Kind
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
    - `source`: the file that it was loaded from.

    In the schema, the order of an `enum` is the order of the labels, the lowest first: conditions such as
    `level >= 'medium'`, reports and weighted kappa use it. `title` is the heading in reports.
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
    source: str = ""

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
            _dtype(kind, f"{self.name}.{key}")
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

    @property
    def entries(self) -> tuple[Column, ...]:
        """The rubric's columns as entries of the register: the answer's keys, the judge, and what went wrong."""
        return (
            *(self._entry(key, kind) for key, kind in self.properties.items()),
            Column(self.judge_column, "model", writer=self.name),
            Column(f"{self.name}_error", "error", writer=self.name, report=True),
            Column(f"{self.name}_raw", writer=self.name),
        )

    def _entry(self, key: str, kind: Mapping[str, Any]) -> Column:
        what, title = _kind(kind), str(kind.get("title", ""))
        labels = tuple(map(str, kind["enum"])) if what == "label" else ()
        is_label = what in ("label", "flag")
        is_counted = is_label or what == "number" or (what == "list" and "enum" in kind["items"])
        return Column(
            self.column(key), what, labels, title, writer=self.name,
            report=is_counted, card=is_counted and what != "list", agreement=is_label,
        )  # fmt: skip

    def features(self) -> dict[str, Any]:
        """Return the `datasets` features of the rubric's columns.

        Columns that the register (`magpie_hf.columns`) does not describe as the rubric does bring their entry along.
        """
        types = {self.column(key): _dtype(kind) for key, kind in self.properties.items()}
        return {entry.name: self._feature(entry, types.get(entry.name, "string")) for entry in self.entries}

    def _feature(self, entry: Column, dtype: str) -> Any:
        from datasets import Value

        known = REGISTER.get(entry.name)
        if known is None:
            return entry.feature(dtype, annotation=self.annotation)
        if known.labels and entry.labels and known.labels != entry.labels:
            return dataclasses.replace(known, labels=entry.labels).feature(dtype)
        return [Value(dtype)] if entry.kind == "list" else Value(dtype)

    @property
    def annotation(self) -> str:
        """How `annotate` is asked for the rubric, as Python code."""
        if self.name in BUILT_IN:
            return json.dumps(self.name)
        given = json.dumps(self.source) if self.source else f'{{"name": "{self.name}", …}}'
        return f'{{"stage": "rubric", "rubric": {given}}}'

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
    return _from_mapping(raw, str(path), str(given))


@cache
def _built_in(name: str) -> Rubric:
    return _from_mapping(read_prompt(name), name)


@cache
def read_prompt(name: str) -> dict[str, Any]:
    """Return a prompt file of the package: "guard", "urial" or a built-in rubric."""
    raw: dict[str, Any] = yaml.safe_load((_HERE / f"{name}.yaml").read_text("utf-8"))
    return raw


def _from_mapping(raw: Mapping[str, Any], where: str, source: str = "") -> Rubric:
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
    return Rubric(**values, source=source)


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


def _dtype(kind: Mapping[str, Any], key: str = "") -> str:
    """Return the type of a key's values, of a list's entries.

    Raises:
        ArgumentError: the key has a type that a column cannot have.
    """
    name = kind.get("type")
    if name == "array" and isinstance(kind.get("items"), Mapping) and kind["items"].get("type") == "string":
        return "string"
    if name not in _TYPES:
        raise ArgumentError(
            f"The schema's key {quoted(key)} has the type {quoted(str(name))}.",
            hint=f"Types: {', '.join(_TYPES)}, and array of string.",
            key=key,
        )
    return _TYPES[name]


def _kind(kind: Mapping[str, Any]) -> Kind:
    """Return the register's kind for a key's JSON schema."""
    if kind["type"] == "string":
        return "label" if kind.get("enum") else "text"
    kinds: dict[str, Kind] = {"array": "list", "boolean": "flag"}
    return kinds.get(kind["type"], "number")
