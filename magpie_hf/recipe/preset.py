"""Presets: a system prompt, sampling and a check for a topic or a language, by name.

A recipe with `preset: math` is the recipe with the preset's `system_prompt` and `sampling`; so are its identity and what
run.json and the card show.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..errors import ArgumentError, did_you_mean, quoted
from ..storage.state import JsonObject
from .parts import point_of
from .source import Source


_HERE = Path(__file__).parent / "presets"
_LANGUAGES = "multilingual"


class Preset(NamedTuple):
    """A preset.

    Attributes:
        name: As it is asked for, e.g., "multilingual:de".
        description: What its instructions are.
        system_prompt: For the generation of instructions.
        sampling: The points of its grid, as in a recipe.
        stage: The stage that annotates what `magpie-hf probe` checks: "category" or "language".
        label: The label of samples that meet the check.
    """

    name: str
    description: str
    system_prompt: str
    sampling: tuple[JsonObject, ...]
    stage: str
    label: str


def all_presets() -> list[Preset]:
    """Return the presets, each with all of its names ("code, coding"); for languages, the form `multilingual:CODE`."""
    return [_preset(_shown(stem, given), given) for stem, given in _files().items()]


def _shown(stem: str, given: Mapping[str, Any]) -> str:
    return f"{stem}:CODE" if stem == _LANGUAGES else ", ".join((stem, *given.get("aliases", ())))


def find_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        ArgumentError: the preset, or its language, is unknown.
    """
    files = _files()
    base, colon, code = name.partition(":")
    aliases = {alias: stem for stem, given in files.items() for alias in given.get("aliases", ())}
    found = files.get(aliases.get(base, base))
    if found is None or (colon and base != _LANGUAGES):
        known = {*files, *aliases} - {_LANGUAGES} | {f"{_LANGUAGES}:de"}
        hint = did_you_mean(base if colon and base != _LANGUAGES else name, known)
        raise ArgumentError(f"Unknown preset {quoted(name)}.", hint=hint or f"Presets: {', '.join(sorted(known))}.")
    return _in_language(name, code, found) if base == _LANGUAGES else _preset(name, found)


@cache
def _files() -> dict[str, JsonObject]:
    return {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in sorted(_HERE.glob("*.yaml"))}


def _preset(name: str, given: Mapping[str, Any]) -> Preset:
    ((stage, label),) = given["check"].items()
    return Preset(name, given["description"], given["system_prompt"], tuple(given["sampling"]), stage, label)


def _in_language(name: str, code: str, given: Mapping[str, Any]) -> Preset:
    languages: dict[str, str] = given["languages"]
    known = code.lower()
    if known not in languages:
        named = {language.lower(): short for short, language in languages.items()}
        near = f'Did you mean "{_LANGUAGES}:{named[known]}"? ' if known in named else ""
        unknown = f"The preset {quoted(name)} has an unknown language {quoted(code)}."
        raise ArgumentError(
            unknown if code else f"The preset {_LANGUAGES} needs a language.",
            hint=f"{near}Give an ISO 639-1 code, e.g., {_LANGUAGES}:de. Known: {', '.join(languages)}.",
        )
    prompt = given["system_prompts"].get(known) or given["system_prompt"].format(language=languages[known])
    return _preset(name, given)._replace(system_prompt=prompt, label=known.upper())


def resolve_presets(raw: JsonObject, source: Source) -> JsonObject:
    """Return the mapping of a recipe with the settings of its presets in place of their names.

    Given values of `sampling` take precedence. Points of a grid that name a preset have its name as `system_prompt_key`,
    and together the share of the entry (1 by default, as any entry).

    Raises:
        RecipeError: a preset is unknown, or is given together with a system prompt.
    """
    sampling = raw.get("sampling")
    if raw.get("preset") is None:
        if not _names_preset(sampling):
            return {key: value for key, value in raw.items() if key != "preset"}
        return {**raw, "sampling": _resolved_points(sampling, source)}
    preset = _found(raw["preset"], "preset", source)
    for path, section in (("", raw), *_sections(sampling)):
        for key in ("system_prompt", "preset") if path else ("system_prompt",):
            if section.get(key) is not None:
                raise _conflict(f"{path}.{key}" if path else key, source)
    resolved = {key: value for key, value in raw.items() if key not in ("preset", "sampling")}
    if sampling is None or isinstance(sampling, dict):
        sampling = _merged(preset, sampling or {})
    return {**resolved, "system_prompt": preset.system_prompt, "sampling": sampling}


def _names_preset(sampling: object) -> bool:
    return any("preset" in section for _, section in _sections(sampling))


def _sections(sampling: object) -> list[tuple[str, JsonObject]]:
    """Return the points of a grid with their keys; entries that are no mappings are left to `grid_of`."""
    if isinstance(sampling, dict):
        return [("sampling", sampling)]
    entries = sampling if isinstance(sampling, list) else []
    return [(f"sampling[{number}]", entry) for number, entry in enumerate(entries) if isinstance(entry, dict)]


def _resolved_points(sampling: object, source: Source) -> list[object]:
    points: list[object] = []
    for number, entry in enumerate(sampling if isinstance(sampling, list) else [sampling]):
        path = f"sampling[{number}]" if isinstance(sampling, list) else "sampling"
        if not isinstance(entry, dict) or entry.get("preset") is None:
            point_of(entry, None, path, source)  # errors have the number of the entry, not that of the point
            points.append(entry)
            continue
        preset = _found(entry["preset"], f"{path}.preset", source)
        if entry.get("system_prompt") is not None:
            raise _conflict(f"{path}.system_prompt", source)
        point_of({key: entry[key] for key in entry if key != "preset"}, None, path, source)
        own = {"share": 1.0} | {key: entry[key] for key in entry if key not in ("preset", "system_prompt")}
        named = {"system_prompt": preset.system_prompt, "system_prompt_key": preset.name}
        points += [{**named, **point} for point in _merged(preset, own)]
    return points


def _merged(preset: Preset, own: JsonObject) -> list[JsonObject]:
    """Return the points of a preset with given values; a share is divided among them."""
    share = own.get("share", 1.0)
    if isinstance(share, Real):
        share = float(share) / len(preset.sampling)
    return [{**point, **own, **({"share": share} if "share" in own else {})} for point in preset.sampling]


def _found(name: object, path: str, source: Source) -> Preset:
    try:
        return find_preset(name if isinstance(name, str) else str(name))
    except ArgumentError as error:
        raise source.error(path, error.message, error.hint) from None


def _conflict(path: str, source: Source) -> Exception:
    return source.error(
        path, "a preset has a system prompt of its own.", "Remove one of the two: the preset, or this key."
    )
