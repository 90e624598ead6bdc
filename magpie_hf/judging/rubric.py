"""Rubrics: annotations as data, with the task for the judge, the JSON schema of its answer, and the columns written.

The part of the prompt that all rows share comes first, so that servers with a prefix cache compute it once. Several
rubrics can be joined into one prompt and one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import yaml

from ..columns import REGISTER, Column, Kind
from ..errors import ArgumentError, did_you_mean, quoted
from ..storage.state import JsonObject


if TYPE_CHECKING:
    from datasets import Value

    Feature: TypeAlias = Value | list[Value]


BUILT_IN = ("quality", "difficulty", "category")
_HERE = Path(__file__).parent / "rubrics"
_HEAD = "You annotate queries that users sent to an AI model. Do not answer the query: describe it."
_ANSWER = "Write one JSON object with these keys, in this order, and nothing else:"
_HEADINGS = {"instruction": "Query", "response": "Response"}
_KEYS = {
    "name", "version", "task", "reads", "keys", "schema", "columns", "generator_column", "aliases",
}  # fmt: skip
_TYPES = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool"}
KeySchema: TypeAlias = JsonObject
"""The JSON schema of one key of the answer."""


@dataclass(frozen=True)
class Rubric:
    """An annotation as data.

    - `name`: of the annotation, and the prefix of its own columns (`<name>_error`, `<name>_raw`).
    - `task`: the task of the judge, in words. `reads`: the columns that the prompt includes.
    - `keys`: the keys of the answer with a description for the prompt; `schema`: the JSON schema of the whole object.
    - `columns`: key to column, by default `<name>_<key>`.
    - `generator_column`: the column for the name of the judge. `aliases`: other spellings of labels, in lower case.
    - `source`: the file that the rubric was loaded from.

    In the schema, the order of an `enum` is the order of the labels, the lowest first: conditions such as
    `level >= 'medium'`, reports and weighted kappa use it. `title` is the heading in reports.
    """

    name: str
    task: str
    schema: JsonObject
    keys: dict[str, str] = field(default_factory=dict)
    reads: tuple[str, ...] = ("instruction",)
    columns: dict[str, str] = field(default_factory=dict)
    generator_column: str = ""
    aliases: dict[str, str] = field(default_factory=dict)
    version: int = 1
    source: str = ""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ArgumentError(f"Invalid name of a rubric: {quoted(self.name)}.", hint="Use letters, digits and _.")
        properties = self.schema.get("properties")
        if self.schema.get("type") != "object" or not isinstance(properties, dict) or not properties:
            raise ArgumentError(
                f'Invalid schema of the rubric "{self.name}": it must be the JSON schema of an object with properties.',
                hint="Example: {type: object, properties: {score: {type: integer}}}.",
                key="schema",
            )
        for key, kind in properties.items():
            _dtype(kind, f"{self.name}.{key}")
        if not self.reads:
            raise ArgumentError(
                f'The rubric "{self.name}" reads no column.', hint="Example: reads: [instruction].", key="reads"
            )

    @property
    def properties(self) -> dict[str, KeySchema]:
        """The JSON schema of each key, in the order of the prompt."""
        found: dict[str, KeySchema] = self.schema["properties"]
        return found

    def column(self, key: str) -> str:
        """Return the column that holds the values of a key."""
        return self.columns.get(key, f"{self.name}_{key}")

    @property
    def judge_column(self) -> str:
        """The column for the name of the judge."""
        return self.generator_column or f"{self.name}_generator"

    @property
    def entries(self) -> tuple[Column, ...]:
        """The columns of the rubric as entries of the register: keys of the answer, judge, error, raw answer."""
        return (
            *(self._entry(key, kind) for key, kind in self.properties.items()),
            Column(self.judge_column, "model", writer=self.name),
            Column(f"{self.name}_error", "error", writer=self.name, report=True),
            Column(f"{self.name}_raw", writer=self.name),
        )

    def _entry(self, key: str, kind: KeySchema) -> Column:
        what, title = _kind(kind), str(kind.get("title", ""))
        labels = tuple(map(str, kind["enum"])) if what == "label" else ()
        is_label = what in ("label", "flag")
        is_counted = is_label or what == "number" or (what == "list" and "enum" in kind["items"])
        return Column(
            self.column(key), what, labels, title, writer=self.name,
            report=is_counted, card=is_counted and what != "list", agreement=is_label,
        )  # fmt: skip

    def features(self) -> dict[str, Feature]:
        """Return the `datasets` features of the rubric's columns.

        A column that is not in the register (`magpie_hf.columns`), or has other labels there, stores its own entry.
        """
        types = {self.column(key): _dtype(kind) for key, kind in self.properties.items()}
        return {entry.name: self._feature(entry, types.get(entry.name, "string")) for entry in self.entries}

    def _feature(self, entry: Column, dtype: str) -> Feature:
        from datasets import Value

        known = REGISTER.get(entry.name)
        if known is None:
            return entry.feature(dtype, annotation=self.annotation)
        if known.labels and entry.labels and known.labels != entry.labels:
            return dataclasses.replace(known, labels=entry.labels).feature(dtype)
        return [Value(dtype)] if entry.kind == "list" else Value(dtype)

    @property
    def annotation(self) -> str:
        """The argument of `annotate` for the rubric, as Python code."""
        if self.name in BUILT_IN:
            return json.dumps(self.name)
        given = json.dumps(self.source) if self.source else f'{{"name": "{self.name}", …}}'
        return f'{{"stage": "rubric", "rubric": {given}}}'

    def to_dict(self) -> dict[str, object]:
        """Return everything that can change an answer."""
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


def load_rubric(given: str | Mapping[str, object] | Rubric) -> Rubric:
    """Return a rubric: a built-in one by name, a YAML file, or a mapping with the fields of `Rubric`.

    Raises:
        ArgumentError: the rubric is unknown or invalid.
    """
    if isinstance(given, Rubric):
        return given
    if isinstance(given, Mapping):
        return _from_mapping(dict(given), "the rubric given")
    if given in BUILT_IN:
        return _built_in(given)
    path = Path(given)
    if path.suffix not in (".yaml", ".yml"):
        raise ArgumentError(
            f"Unknown rubric {quoted(given)}.", hint=f"{did_you_mean(given, BUILT_IN)} Or give a YAML file."
        )
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f"Cannot read the rubric: {error}.", where=str(path)) from None
    if not isinstance(raw, dict):
        raise ArgumentError("A rubric must be a mapping.", where=str(path), hint="Give it name, task and schema.")
    return _from_mapping(raw, str(path), str(given))


@cache
def _built_in(name: str) -> Rubric:
    return _from_mapping(read_prompt(name), name)


@cache
def read_prompt(name: str) -> JsonObject:
    """Return a prompt file of the package: "guard", "urial" or a built-in rubric."""
    raw: JsonObject = yaml.safe_load((_HERE / f"{name}.yaml").read_text("utf-8"))
    return raw


def _from_mapping(raw: JsonObject, where: str, source: str = "") -> Rubric:
    for key in raw:
        if key not in _KEYS:
            raise ArgumentError(
                f"Unknown key of a rubric: {quoted(str(key))}.", where=where, hint=did_you_mean(str(key), _KEYS)
            )
    for key, kind in {"name": str, "task": str, "schema": dict}.items():
        if not isinstance(raw.get(key), kind):
            raise ArgumentError(f'A rubric needs "{key}" ({kind.__name__}).', where=where, key=key)
    reads = raw.get("reads", ("instruction",))
    values = {**raw, "reads": (reads,) if isinstance(reads, str) else tuple(reads)}
    values["keys"] = dict(raw.get("keys") or dict.fromkeys(raw["schema"].get("properties", {}), ""))
    return Rubric(**values, source=source)


def shared_prompt(rubrics: Sequence[Rubric]) -> str:
    """Return the part of the prompt before the row: the tasks and the format of the answer."""
    parts = [_HEAD]
    for rubric in rubrics:
        parts.append(f"# Task: {rubric.name}\n\n{rubric.task.strip()}")
    keys = {key: f"<{text}>" if text else "..." for rubric in rubrics for key, text in rubric.keys.items()}
    parts.append(f"# Answer\n\n{_ANSWER}\n{json.dumps(keys, indent=2, ensure_ascii=False)}")
    return "\n\n".join(parts) + "\n\n"


def row_prompt(rubrics: Sequence[Rubric], row: Mapping[str, object]) -> str:
    """Return the part of the prompt for a row: each column read, under its heading."""
    columns = dict.fromkeys(column for rubric in rubrics for column in rubric.reads)
    return "\n\n".join(f"# {_HEADINGS.get(name, name.title())}\n\n{row[name]}" for name in columns)


def joined_schema(rubrics: Sequence[Rubric]) -> dict[str, object]:
    """Return the JSON schema of one object with all keys, all required, in the order of the prompt."""
    properties = {key: kind for rubric in rubrics for key, kind in rubric.properties.items()}
    if len(properties) != sum(len(rubric.properties) for rubric in rubrics):
        raise ArgumentError("Two of the joined rubrics have a key with the same name.", hint="Run them one by one.")
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _dtype(kind: KeySchema, key: str = "") -> str:
    """Return the type of the values of a key; of the entries if they are lists.

    Raises:
        ArgumentError: the type is not supported.
    """
    name = kind.get("type")
    if name == "array" and isinstance(kind.get("items"), Mapping) and kind["items"].get("type") == "string":
        return "string"
    if name not in _TYPES:
        raise ArgumentError(
            f"Unsupported type {quoted(str(name))} of the key {quoted(key)} in the schema.",
            hint=f"Types: {', '.join(_TYPES)}, and array of string.",
            key=key,
        )
    return _TYPES[name]


def _kind(kind: KeySchema) -> Kind:
    """Return the kind of a column in the register for the JSON schema of a key."""
    if kind["type"] == "string":
        return "label" if kind.get("enum") else "text"
    kinds: dict[str, Kind] = {"array": "list", "boolean": "flag"}
    return kinds.get(kind["type"], "number")
