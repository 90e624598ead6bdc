"""Where the values of a recipe come from: the key `sources`, checked and joined with the values that it covers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from ..errors import did_you_mean, quoted
from ..storage.state import JsonObject
from .parts import ROLES
from .source import Source, key_parts, section_any


SOURCE_KINDS = ("paper", "card", "script", "inferred", "our choice")
"""Every source begins with one of these. `script`: anything that the authors published as code, e.g., also a notebook."""
NEED_NO_SOURCE = ("name", "description", "seed", "engine", "budget", "push", "sources", "rehearsal")
"""Keys that no release defines: names, seeds, and where and with what a recipe runs."""
_OUTPUT_OF_RELEASES = ("columns", "test_size")
"""The keys of `output` that a release defines."""

Path: TypeAlias = tuple[str | int, ...]


class SourcedValue(NamedTuple):
    """A value of a recipe (or all values below `key`), and its source; None if the recipe gives none."""

    key: str
    value: Any
    source: str | None


def check_sources(raw: Mapping[str, object], source: Source) -> None:
    """Raise RecipeError for a source of an unknown kind, and for a source of a value that the recipe does not have."""
    given = raw.get("sources")
    if given is None:
        return
    leaves = list(_leaves(raw))
    for key, text in section_any(given, "sources", source).items():
        if not isinstance(text, str) or not _has_kind(text):
            raise source.error(
                f"sources.{key}",
                f"{quoted(text, 60)} does not begin with a kind of source.",
                f'Kinds: {", ".join(SOURCE_KINDS)}; details may follow, e.g., "paper: Table 7".',
            )
        if not any(_covered(key_parts(key), path, raw) for path, _ in leaves):
            raise source.error(
                f"sources.{key}",
                "the recipe sets no value with this key.",
                did_you_mean(key, {_shown(path, raw) for path, _ in leaves}),
            )


def _has_kind(text: str) -> bool:
    kind, colon, details = text.partition(":")
    return kind in SOURCE_KINDS and bool(details.strip() if colon else True)


def sourced_values(raw: Mapping[str, object]) -> list[SourcedValue]:
    """Return the values of a recipe with their sources, in the order of the recipe.

    The values that one entry of `sources` covers are returned together. If several entries cover a value, the longest key
    counts. Values that need no source are left out if they have none.
    """
    given = raw.get("sources")
    sources = given if isinstance(given, Mapping) else {}
    groups: dict[str, dict[Path, list[tuple[Path, Any]]]] = {}
    for path, value in _leaves(raw):
        key, length = _entry_of(path, raw, sources)
        if key is None and _needs_none(path):
            continue
        name = _shown(path, raw) if key is None else key
        groups.setdefault(name, {}).setdefault(path[:length], []).append((path[length:], value))
    return [
        SourcedValue(name, _one_or_all([_joined(leaves) for leaves in found.values()]), sources.get(name))
        for name, found in groups.items()
    ]


def unchanged_sources(before: Mapping[str, object], now: Mapping[str, object]) -> JsonObject:
    """Return the sources whose values are the same in both recipes: a value that an override set has another source."""
    had = {entry.key: entry for entry in sourced_values(before)}
    has = {entry.key: entry for entry in sourced_values({**now, "sources": before.get("sources")})}
    return {key: entry.source for key, entry in had.items() if entry.source and has.get(key) == entry}


def _leaves(raw: Mapping[str, object]) -> Iterator[tuple[Path, Any]]:
    """Yield each single value of a recipe with its path; the name of a stage is the value of its key `stage`."""
    for key, value in raw.items():
        if key not in ("sources", "rehearsal"):
            yield from _below((key,), _stage_mappings(value) if key == "stages" else value)


def _stage_mappings(stages: object) -> object:
    entries = stages if isinstance(stages, list) else []
    return [entry if isinstance(entry, Mapping) else {"stage": entry} for entry in entries]


def _below(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _below((*path, key), inner)
    elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        for number, inner in enumerate(value):
            yield from _below((*path, number), inner)
    else:
        yield path, value


def _entry_of(path: Path, raw: Mapping[str, object], sources: Mapping[str, str]) -> tuple[str | None, int]:
    """Return the entry of `sources` that counts for a value, and how many steps of its path it names."""
    best: tuple[str | None, int] = (None, len(path))
    most = 0
    for key in sources:
        parts = key_parts(key)
        length = _covered(parts, path, raw)
        if length and len(parts) > most:
            best, most = (key, length), len(parts)
    return best


def _covered(parts: Sequence[str | int], path: Path, raw: Mapping[str, object]) -> int:
    """Return how many steps of a path a dotted key names, 0 if it names another value.

    As in overrides, a key without an index names each entry of a list, and a stage is named by its name.
    """
    left = list(parts)
    for at, step in enumerate(path):
        if not left:
            return at
        if isinstance(step, int) and isinstance(left[0], str):
            if at != 1 or path[0] != "stages":
                continue
            step = _stage_name(raw, step)
        if left.pop(0) != step:
            return 0
    return 0 if left else len(path)


def _stage_name(raw: Mapping[str, object], number: int) -> str:
    stages = _stage_mappings(raw.get("stages"))
    return str(stages[number].get("stage")) if isinstance(stages, list) else ""


def _shown(path: Path, raw: Mapping[str, object]) -> str:
    """Return a path as a dotted key."""
    shown = ""
    for at, step in enumerate(path):
        if isinstance(step, int):
            shown += f".{_stage_name(raw, step)}" if at == 1 and path[0] == "stages" else f"[{step}]"
        elif not (path[0] == "stages" and at == 2 and step == "stage"):
            shown += f".{step}" if shown else str(step)
    return shown


def _needs_none(path: Path) -> bool:
    if path[0] == "output":
        return path[1:2] not in [(key,) for key in _OUTPUT_OF_RELEASES]
    return path[0] in NEED_NO_SOURCE or (path[0] in ROLES and path[1:2] == ("engine",))


def _joined(leaves: Sequence[tuple[Path, Any]]) -> Any:
    """Return the values below a key as one value: mappings and lists as in the recipe, a stage without settings as text."""
    if len(leaves) == 1 and leaves[0][0] in ((), ("stage",)):
        return leaves[0][1]
    inner: dict[str | int, list[tuple[Path, Any]]] = {}
    for path, value in leaves:
        inner.setdefault(path[0], []).append((path[1:], value))
    values = {head: _joined(below) for head, below in inner.items()}
    return list(values.values()) if all(isinstance(head, int) for head in values) else values


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else values
