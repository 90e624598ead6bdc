"""Parse the answer of a judge: one JSON object, even if the model wrapped it in text, cut it or broke its syntax.

A rubric can have another parser: the named groups of a regular expression.

Missing values are null; nothing is guessed. A label is accepted only if it is in the `enum` of the schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from .patterns import find_groups
from .rubric import KeySchema, Rubric


MAX_STARTS = 32  # opening braces tried as the start of the object
_DECODER = json.JSONDecoder(strict=False)  # line breaks inside strings are common
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")
_SLOPPY_LABEL = re.compile(r"[\s_\-]+")


Value: TypeAlias = str | int | float | bool | list[str] | None
"""A value of a rubric's column."""


class Reading(NamedTuple):
    """The parsed answer to one rubric: the values of its keys (null if missing), and a code.

    `code`: "ok"; "unparsable": a required key is missing or has the wrong type; "unknown_label": a label is not in its list.
    """

    values: dict[str, Value]
    code: str


def read_answer(text: str, rubric: Rubric) -> Reading:
    """Return the parsed answer to a rubric, by the rubric's parser."""
    given = find_groups(text, rubric.pattern) if rubric.parser == "regex" else find_object(text, rubric.properties)
    values: dict[str, Value] = dict.fromkeys(rubric.properties)
    required = rubric.required
    codes = []
    for key, kind in rubric.properties.items():
        if key not in given:
            codes.append("unparsable" if key in required else "ok")
            continue
        values[key], code = _value(given[key], kind, rubric.aliases)
        codes.append(code)
    worst = next((code for code in ("unparsable", "unknown_label") if code in codes), "ok")
    return Reading(values, worst)


def find_object(text: str, keys: Mapping[str, KeySchema]) -> dict[str, object]:
    """Return the first JSON object in a text that has one of the keys; invalid JSON is read key by key."""
    at = text.find("{")
    for _ in range(MAX_STARTS):
        if at < 0:
            break
        found = _decode(text, at)
        if isinstance(found, dict) and any(key in found for key in keys):
            return found
        at = text.find("{", at + 1)
    return _key_by_key(text, keys)


def _decode(text: str, at: int) -> object:
    for candidate in (text[at:], _TRAILING_COMMA.sub(r"\1", text[at:])):
        try:
            found: object = _DECODER.raw_decode(candidate)[0]
            return found
        except (ValueError, RecursionError):
            continue
    return None


def _key_by_key(text: str, keys: Mapping[str, KeySchema]) -> dict[str, object]:
    """Return the `"key": value` pairs of an object with invalid syntax; a value that was cut off is left out."""
    found: dict[str, object] = {}
    for key, kind in keys.items():
        match = re.search(rf"""["'“]?\b{re.escape(key)}["'”]?\s*:\s*""", text)
        if match is None:
            continue
        rest = text[match.end() :]
        try:
            value, end = _DECODER.raw_decode(rest)
            if rest[end:].lstrip()[:1] not in ("", ",", "}"):
                raise ValueError("more text after the closing quote")
            found[key] = value
        except (ValueError, RecursionError):
            value = _loose(rest, kind, [other for other in keys if other != key])
            if value is not None:
                found[key] = value
    return found


def _loose(rest: str, kind: KeySchema, others: list[str]) -> str | list[str] | None:
    """Return a value with invalid quoting: other quotes, no quotes, or unescaped quotes inside."""
    if kind.get("type") == "array":
        inside = re.match(r"\[([^\]]*)\]", rest)
        return (
            None
            if inside is None
            else [part.strip(" \t\n\"'“”") for part in inside[1].split(",") if part.strip(" \n\"'")]
        )
    if kind.get("type") != "string":
        bare = re.match(r"[\w.+-]+", rest)
        return bare[0] if bare else None
    names = "|".join(map(re.escape, others)) or "(?!)"
    quote = """["'”]"""
    ends = rf"""\s*,\s*["'“]?(?:{names})["'”]?\s*:|\s*,?\s*\}}"""
    found = re.search(f"{quote}(?:{ends})", rest) or re.search(ends, rest)
    if found is None:
        return None  # cut off in the middle
    return rest[: found.start()].strip().strip("\"'“”")


def _value(given: object, kind: KeySchema, aliases: Mapping[str, str]) -> tuple[Value, str]:
    """Return a value in the type of its schema, and a code as in `Reading`."""
    wanted, labels = kind.get("type"), kind.get("enum")
    if wanted == "array":
        return _list(given, kind.get("items", {}), aliases)
    if given is None:
        return None, "unparsable"
    if wanted == "string":
        if not isinstance(given, str):
            if isinstance(given, (dict, list)):
                return None, "unparsable"
            given = str(given)
        return (_clean(given), "ok") if labels is None else _label(given, labels, aliases)
    number = _number(given, str(wanted))
    if number is None or not kind.get("minimum", number) <= number <= kind.get("maximum", number):
        return None, "unparsable"
    return number, "ok"


def _list(given: object, kind: KeySchema, aliases: Mapping[str, str]) -> tuple[list[str], str]:
    if given is None or given == "":
        return [], "ok"
    entries = given if isinstance(given, list) else [part for part in str(given).split(",")]
    kept: list[str] = []
    code = "ok"
    for entry in entries:
        value, found = _value(entry, {**kind, "type": "string"}, aliases)
        if found == "ok" and isinstance(value, str) and value not in kept and value != "":
            kept.append(value)
        elif found != "ok":
            code = found
    return kept, code


def _number(given: object, wanted: str) -> int | float | bool | None:
    if wanted == "boolean":
        if isinstance(given, bool):
            return given
        return {"true": True, "yes": True, "false": False, "no": False}.get(str(given).strip().lower())
    if isinstance(given, bool):
        return None
    if not isinstance(given, (int, float, str)):
        return None
    try:
        number = float(given)
    except (TypeError, ValueError):
        return None
    if number != number or number in (float("inf"), float("-inf")):
        return None
    if wanted == "integer":
        return int(number) if number == int(number) and abs(number) < 2**63 else None
    return number


def _label(given: str, labels: list[str], aliases: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the label that matches, ignoring case, dashes, and punctuation around it."""
    plain = _plain(given)
    known = {_plain(label): label for label in labels} | {_plain(name): label for name, label in aliases.items()}
    found = known.get(plain)
    return (found, "ok") if found is not None else (None, "unknown_label")


def _plain(text: str) -> str:
    return _SLOPPY_LABEL.sub(" ", text.casefold().replace(" and ", " & ")).strip(" .,:;!?*\"'`<>[]()")


def _clean(text: str) -> str:
    """Return a text without lone surrogates, which Arrow cannot store."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()
