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
from ..storage.hashing import stable_hash
from ..storage.state import JsonObject
from .patterns import check_pattern
from .placeholders import check_prompt, fill


if TYPE_CHECKING:
    from datasets import Value

    Feature: TypeAlias = Value | list[Value]


BUILT_IN = ("quality", "difficulty", "category")
SETS = ("default", "reference")
"""The sets of built-in rubrics. Labels of different sets have different meanings.

"default": scales with anchors, the row at the end of the prompt. "reference": the meaning and the form of the labels of the
Magpie releases; its rubrics are named `reference/quality`, `reference/difficulty` and `reference/category`.
"""
PARSERS = ("json", "regex")
_HERE = Path(__file__).parent / "rubrics"
_HEAD = "You annotate queries that users sent to an AI model. Do not answer the query: describe it."
_ANSWER = "Write one JSON object with these keys, in this order, and nothing else:"
_HEADINGS = {"instruction": "Query", "response": "Response"}
_KEYS = {
    "name", "version", "task", "reads", "keys", "schema", "columns", "generator_column", "aliases",
    "prompt", "prefill", "stop", "parser", "pattern", "set",
}  # fmt: skip
_TEXTS = {"reads": ("instruction",), "stop": ()}
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
    - `prompt`: the whole user message, with a place such as `{instruction}` for each column read; then `task` and the
      descriptions of `keys` are not sent. `prefill`: the beginning of the judge's reply, sent with the prompt. `stop`:
      texts that end the reply. Such rubrics always have a request of their own.
    - `parser`: "json", or "regex" with a `pattern` whose named groups are the keys. Replies with a prefill or another
      parser are not constrained to the JSON schema.
    - `set`: the name of the set that the rubric belongs to, for the column `<name>_rubric`.
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
    prompt: str = ""
    prefill: str = ""
    stop: tuple[str, ...] = ()
    parser: str = "json"
    pattern: str = ""
    set: str = ""
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
        self._check_form()

    def _check_form(self) -> None:
        """Raise ArgumentError if the prompt, the stops or the parser cannot be used."""
        if self.prompt:
            check_prompt(self.prompt, self.reads, self.name)
        if any(not isinstance(stop, str) or not stop for stop in self.stop):
            raise ArgumentError(
                f'Invalid stop of the rubric "{self.name}": {quoted(str(list(self.stop)))}.',
                hint='Give texts, e.g., stop: ["}"].',
                key="stop",
            )
        if self.parser not in PARSERS:
            raise ArgumentError(
                f'Unknown parser of the rubric "{self.name}": {quoted(self.parser)}.',
                hint=f"{did_you_mean(self.parser, PARSERS)} Parsers: {', '.join(PARSERS)}.".strip(),
                key="parser",
            )
        if self.parser == "regex":
            check_pattern(self.pattern, [*self.properties], self.required, self.name)
        elif self.pattern:
            raise ArgumentError(
                f'The rubric "{self.name}" has a pattern, but its parser is "{self.parser}".',
                hint="Add parser: regex.",
                key="pattern",
            )

    @property
    def required(self) -> list[str]:
        """The keys that every reply must have: all of them, unless the schema names some."""
        found: list[str] = self.schema.get("required", [*self.properties])
        return found

    @property
    def has_own_request(self) -> bool:
        """Whether the prompt, the prefill, the stops or the parser rule out one request with other rubrics."""
        return bool(self.prompt or self.prefill or self.stop) or self.parser != "json"

    @property
    def allows_schema(self) -> bool:
        """Whether a reply can be constrained to the JSON schema: the whole JSON object is written by the judge."""
        return not self.prefill and self.parser == "json"

    @property
    def tag(self) -> str:
        """What made a label, for the column `<name>_rubric`: set and version; for your own rubrics also a hash."""
        label = f"{self.set or self.name}-v{self.version}"
        return label if self.set in SETS else f"{label}-{stable_hash(self.to_dict(), 6)}"

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
        """The columns of the rubric as entries of the register: keys of the answer, judge, rubric, error, raw answer."""
        return (
            *(self._entry(key, kind) for key, kind in self.properties.items()),
            Column(self.judge_column, "model", writer=self.name),
            Column(f"{self.name}_rubric", "rubric", writer=self.name),
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
        """Return everything that can change an answer; a form of its own only if it is given."""
        form = {"prompt": self.prompt, "prefill": self.prefill, "stop": list(self.stop), "pattern": self.pattern}
        own = {"parser": self.parser if self.parser != "json" else "", "set": self.set if self.set != SETS[0] else ""}
        return {
            "name": self.name,
            "version": self.version,
            "task": self.task,
            "keys": dict(self.keys),
            "schema": self.schema,
            "reads": list(self.reads),
            "aliases": self.aliases,
            "columns": self.columns,
            **{name: value for name, value in (form | own).items() if value},
        }


def load_rubric(given: str | Mapping[str, object] | Rubric) -> Rubric:
    """Return a rubric: a built-in one by name ("quality", "reference/quality"), a YAML file, or a mapping with its fields.

    Raises:
        ArgumentError: the rubric is unknown or invalid.
    """
    if isinstance(given, Rubric):
        return given
    if isinstance(given, Mapping):
        return _from_mapping(dict(given), "the rubric given")
    if is_built_in(given):
        return _built_in(given)
    path = Path(given)
    if path.suffix not in (".yaml", ".yml"):
        names = [*BUILT_IN, *(f"{SETS[1]}/{name}" for name in BUILT_IN)]
        raise ArgumentError(
            f"Unknown rubric {quoted(given)}.", hint=f"{did_you_mean(given, names)} Or give a YAML file."
        )
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f"Cannot read the rubric: {error}.", where=str(path)) from None
    if not isinstance(raw, dict):
        raise ArgumentError("A rubric must be a mapping.", where=str(path), hint="Give it name, task and schema.")
    return _from_mapping(raw, str(path), str(given))


def is_built_in(given: object) -> bool:
    """Return whether a value is the name of a built-in rubric, of any set."""
    return isinstance(given, str) and given.removeprefix(f"{SETS[1]}/") in BUILT_IN


def rubrics_of_set(name: str, rubrics: Sequence[str] = BUILT_IN) -> tuple[str, ...]:
    """Return the names of the built-in rubrics in a set; those of the default set have no prefix."""
    return tuple(rubrics) if name == SETS[0] else tuple(f"{name}/{rubric}" for rubric in rubrics)


@cache
def _built_in(name: str) -> Rubric:
    which = SETS[1] if "/" in name else SETS[0]
    return dataclasses.replace(_from_mapping(read_prompt(name), name), set=which)


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
    has_prompt = bool(raw.get("prompt"))
    for key, kind in {"name": str, "schema": dict, "prompt" if has_prompt else "task": str}.items():
        if not isinstance(raw.get(key), kind):
            wanted = "a mapping" if kind is dict else "text"
            raise ArgumentError(
                f'A rubric needs "{key}" ({wanted}).', where=where, hint="See docs/how-to/write-a-rubric.md.", key=key
            )
    for key in ("task", "prompt", "prefill", "parser", "pattern", "set"):
        if not isinstance(raw.get(key, ""), str):
            raise ArgumentError(f'"{key}" of a rubric must be text.', where=where, hint="Use quotes.", key=key)
    if raw.get("set") in SETS:
        raise ArgumentError(f'The set "{raw["set"]}" is built in.', where=where, hint="Use another name.", key="set")
    texts = {key: _texts(raw.get(key, default), key, where) for key, default in _TEXTS.items()}
    values = {"task": "", **raw, **texts}
    values["keys"] = dict(raw.get("keys") or dict.fromkeys(raw["schema"].get("properties", {}), ""))
    return Rubric(**values, source=source)


def _texts(given: object, key: str, where: str) -> tuple[str, ...]:
    """Return a setting with several entries as a tuple; a single text is one entry."""
    if not isinstance(given, (str, list, tuple)):
        raise ArgumentError(f'"{key}" of a rubric must be a text or a list of texts.', where=where, key=key)
    return (given,) if isinstance(given, str) else tuple(given)


def user_message(rubrics: Sequence[Rubric], row: Mapping[str, object]) -> str:
    """Return the message for the judge about a row: the rubric's own prompt, or tasks, format of the answer and columns."""
    own = next((rubric.prompt for rubric in rubrics if rubric.prompt), None)
    return fill(own, row) if own else shared_prompt(rubrics) + row_prompt(rubrics, row)


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
    alone = next((rubric.name for rubric in rubrics if rubric.has_own_request), None)
    if alone and len(rubrics) > 1:
        raise ArgumentError(
            f'The rubric "{alone}" cannot share a request: it has its own prompt, prefill, stop or parser.',
            hint="Use a stage for each rubric, e.g., quality, difficulty and category instead of judge.",
        )
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
