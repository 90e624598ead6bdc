"""Dataclasses to JSON and back, with a check of every value against the type of its field.

Field types: dataclasses, `str`, `int`, `float`, `bool`, `Literal`, `X | None`, `list`, `dict` with text keys, `tuple` of
fixed length, and `Any` for JSON that is kept as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from .hashing import to_plain


T = TypeVar("T")


def to_json(value: object) -> object:
    """Return a dataclass as JSON; fields with their default value are left out, except `version`."""
    if dataclasses.is_dataclass(value):
        fields = ((item, getattr(value, item.name)) for item in dataclasses.fields(value))
        return {item.name: to_json(inner) for item, inner in fields if _is_written(item, inner)}
    if isinstance(value, Mapping):
        return {name: to_json(inner) for name, inner in value.items()}
    return [to_json(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _is_written(item: dataclasses.Field[Any], value: object) -> bool:
    if value is None:
        return False
    if item.name == "version" or _is_required(item):
        return True
    if item.default_factory is not dataclasses.MISSING:
        return bool(value != item.default_factory())
    return bool(value != item.default)


def from_json(kind: type[T], data: object) -> T:
    """Return parsed JSON as an object of a dataclass.

    Raises:
        ValueError: a value has the wrong type or a required key is missing; names the key.
    """
    found: T = _read(kind, data, "")
    return found


def _read(kind: Any, data: Any, where: str) -> Any:
    """Convert a JSON value to the type that a field declares."""
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, _checked(data, dict, where), where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return None if data is None else _read(inner[0], data, where)
    if origin is Literal:
        if data not in inner:
            raise ValueError(f"{where}: expected one of {', '.join(inner)}, found {shown(data)}")
        return data
    if origin is dict:
        items = _checked(data, dict, where).items()
        return {name: _read(inner[1], value, _joined(where, name)) for name, value in items}
    if origin is list:
        return [_read(inner[0], value, f"{where}[{at}]") for at, value in enumerate(_checked(data, list, where))]
    if origin is tuple:
        values = _checked(data, list, where)
        if len(values) != len(inner):
            raise ValueError(f"{where}: expected {len(inner)} values, found {len(values)}")
        return tuple(_read(one, value, f"{where}[{at}]") for at, (one, value) in enumerate(zip(inner, values)))  # noqa: B905
    return _checked(data, kind, where)


def _read_fields(kind: Any, data: Mapping[str, Any], where: str) -> Any:
    values = {
        name: _read(declared, data[name], _joined(where, name))
        for name, declared in _types(kind).items()
        if name in data
    }
    needed = (item for item in dataclasses.fields(kind) if _is_required(item))
    for item in needed:
        if item.name not in values:
            raise ValueError(f"{_joined(where, item.name)}: the key is missing")
    return kind(**values)


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


@functools.cache
def _types(kind: type[object]) -> dict[str, Any]:
    return get_type_hints(kind)


def _checked(data: Any, kind: type[object], where: str) -> Any:
    accepted = (int, float) if kind is float else kind
    if isinstance(data, accepted) and (kind is bool or not isinstance(data, bool)):
        return data
    raise ValueError(f"{where or 'the file'}: expected {_KINDS[kind]}, found {shown(data)}")


_KINDS: dict[type[object], str] = {
    dict: "a mapping", list: "a list", str: "a text", int: "an integer", float: "a number", bool: "true or false",
}  # fmt: skip


def shown(data: object) -> str:
    """Return a JSON value for an error message, at most 60 characters of it."""
    text = json.dumps(data, ensure_ascii=False, default=to_plain)
    return text if len(text) <= 60 else f"{text[:60]} …"


def _joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
