"""The facts of a config for its card, computed from its rows and its run: JSON, saved next to the data.

A card with several configs is rendered from these facts, without reading the rows of configs that are already published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from ..errors import ArgumentError
from ..mixing import mixed_rubrics, rubric_columns, rubrics_of
from ..reports import svg
from ..reports.statistics import LabelFacts, NumberFacts, Statistics, dataset_statistics
from ..storage.state import JsonObject, RunFacts, Totals
from .licenses import License, license_of
from .manifest import public_name, public_recipe, source_names
from .markdown import line
from .origin import TEXT_WRITERS, Origin, is_synthetic, origin_of


if TYPE_CHECKING:
    from datasets import Dataset

    from ..selection.filters import FunnelStep

FORMAT = 4
SAMPLES = 3
KEPT_CHARACTERS = 2000
MOST_WRITERS = 20
"""Maximum number of different model names; a column `model` with more values has another meaning."""
_JUDGE_MODES = ("separate", "combined")
_ROLES = ("responder", "judge", "guard", "base")


Facts: TypeAlias = Mapping[str, Any]
"""The facts of a config: a `ConfigFacts`, or one that was read from the Hub."""


class ConfigFacts(TypedDict):
    """The facts of a config: see `config_facts`."""

    format: int
    models: list[str]
    license: list[str]
    description: str
    recipe: JsonObject
    origin: Origin
    provenance: list[list[str]]
    sampling: list[JsonObject]
    stages: list[JsonObject]
    funnel: list[JsonObject]
    statistics: Statistics
    splits: dict[str, int]
    sizes: dict[str, int]
    info: JsonObject
    limits: list[str]
    samples: list[list[list[str]]]
    columns: list[str]
    totals: list[list[str]]


def config_facts(
    splits: Mapping[str, Dataset],
    *,
    run: RunFacts | None = None,
    funnel: Sequence[JsonObject | FunnelStep] | None = None,
    license: str | None = None,
    sizes: Mapping[str, int] | None = None,
    described: Dataset | None = None,
) -> ConfigFacts:
    """Return the facts of a config.

    `splits`: name to rows; the statistics are those of the first split. `run`: the run that made it. `funnel`: the steps of
    its selection. `license`: a Hub license id; by default that of the models that wrote the texts. `sizes`: split to the
    size of its files in bytes. `described`: rows with columns that the published ones lack, for everything that is
    computed from rows; by default the first split.

    Raises:
        ArgumentError: the license of the models is unknown, and none is given.
    """
    dataset = described if described is not None else next(iter(splits.values()))
    run = run or RunFacts()
    recipe = public_recipe(run.recipe)
    models = writers(recipe, dataset)
    statistics = dataset_statistics(dataset)
    origin = origin_of(recipe, run, dataset)
    return {
        "format": FORMAT,
        "models": models,
        "license": list(joined_license(models, license)),
        "description": recipe.get("description") or "",
        "recipe": recipe,
        "origin": origin,
        "provenance": [*_provenance(recipe, models), *_rubrics(dataset)],
        "sampling": _sampling(recipe),
        "stages": _stages(run),
        "funnel": [dict(step) if isinstance(step, Mapping) else step._asdict() for step in funnel or ()],
        "statistics": statistics,
        "splits": {name: len(rows) for name, rows in splits.items()},
        "sizes": dict(sizes or {}),
        "info": _info(splits),
        "limits": [*_limits(statistics, origin), *map(line, mixed_rubrics(dataset))],
        "samples": _samples(dataset),
        "columns": list(next(iter(splits.values())).column_names),
        "totals": _totals(run.totals),
    }


def joined_license(models: Sequence[str], given: str | None) -> License:
    """Return the license of data from several models: their common license, else "other"; with all notices."""
    if not models:
        if not given:
            raise ArgumentError(
                "Unknown license: the rows do not name the model that wrote them.",
                hint="Set license=… (--license), e.g., apache-2.0 or other.",
                key="license",
            )
        return License(given)
    found = [license_of(model, given) for model in models]
    ids = {own.id for own in found}
    notices = dict.fromkeys(own.notice for own in found if own.notice)
    return License(given or (found[0].id if len(ids) == 1 else "other"), " ".join(notices))


def chart_sheet(statistics: Statistics, title: str) -> str:
    """Return the charts of a config as one SVG file; "" if it has none."""
    labels, numbers = card_labels(statistics), card_numbers(statistics)
    charts = [svg.bars(svg.shares(entry["counts"]), title=name) for name, entry in labels.items()]
    charts += [svg.histogram(entry["histogram"], title=name, unit=name) for name, entry in numbers.items()]
    return svg.sheet(charts, title=title) if charts else ""


def card_labels(statistics: Statistics) -> dict[str, LabelFacts]:
    """Return the columns of labels that a card shows, if they have values."""
    labels = {name: entry for name, entry in statistics["labels"].items() if any(entry["counts"].values())}
    return {name: entry for name, entry in labels.items() if statistics["columns"][name]["card"]}


def card_numbers(statistics: Statistics) -> dict[str, NumberFacts]:
    """Return the columns of numbers that a card shows, if they have values."""
    numbers = {name: entry for name, entry in statistics["numbers"].items() if entry["count"]}
    return {name: entry for name, entry in numbers.items() if statistics["columns"][name]["card"]}


def writers(recipe: JsonObject, dataset: Dataset) -> list[str]:
    """Return the models that wrote texts of the rows: instructions, responses, further turns, preference responses.

    The names are read from the rows, else from the recipe (unless it only annotates).
    """
    found = _distinct(dataset, "model")
    for column, field in TEXT_WRITERS:
        found += _distinct(dataset, column, field)
    if not found and not recipe.get("dataset"):
        responder = recipe.get("responder")
        responder = responder.get("model") if isinstance(responder, Mapping) else responder
        found = [str(model) for model in (recipe.get("model"), responder) if model]
    return list(dict.fromkeys(public_name(model) for model in found if model))


def _distinct(dataset: Dataset, column: str, field: str | None = None) -> list[str]:
    """Return the distinct values of a text column, or of a field of a struct column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column not in dataset.column_names:
        return []
    found: dict[str | None, None] = {}
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=20_000):
        values = table[column].combine_chunks()
        if field is not None:
            if not pa.types.is_struct(values.type) or values.type.get_field_index(field) < 0:
                return []
            values = pc.struct_field(values, field)
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            return []
        found |= dict.fromkeys(values.unique().to_pylist())
        if len(found) > MOST_WRITERS:
            return []
    return [value for value in found if isinstance(value, str)]


def _info(splits: Mapping[str, Dataset]) -> JsonObject:
    """Return the `dataset_info` of the card's metadata: features and splits."""
    from datasets import DatasetInfo
    from datasets.splits import SplitDict, SplitInfo

    infos = SplitDict()
    for name, rows in splits.items():
        infos[name] = SplitInfo(name=name, num_bytes=int(rows._estimate_nbytes()), num_examples=len(rows))
    info = DatasetInfo(features=next(iter(splits.values())).features, splits=infos)
    found: JsonObject = info._to_yaml_dict()
    return found


def _provenance(recipe: JsonObject, models: Sequence[str]) -> list[list[str]]:
    own = None if recipe.get("dataset") else recipe.get("model")
    facts: list[tuple[str, object]] = [("model", own or (models[0] if models else None))]
    facts += [(key, recipe.get(key)) for key in ("revision", "num_rows", "seed", "order")]
    for role in _ROLES:
        given = recipe.get(role)
        given = given.get("model") if isinstance(given, Mapping) else given
        facts.append((role, None if given in _JUDGE_MODES else given))
    facts.append(("rows from", source_names(recipe)))
    return [[key, str(value)] for key, value in facts if value not in (None, "")]


def _rubrics(dataset: Dataset) -> list[list[str]]:
    """Return the rubrics that made the labels, as a line of the provenance: labels of different rubrics are not comparable."""
    names = dict.fromkeys(name for column in rubric_columns(dataset.features) for name in rubrics_of(dataset, column))
    return [["rubrics of the labels", ", ".join(names)]] if names else []


def _sampling(recipe: JsonObject) -> list[JsonObject]:
    if not recipe or recipe.get("dataset"):
        return []
    given = recipe.get("sampling") or {}
    points = given if isinstance(given, list) else [given]
    prompt = recipe.get("system_prompt")
    return [
        {"temperature": p.get("temperature", 1.0), "top_p": p.get("top_p", 1.0), "share": p.get("share", 1),
         "system_prompt": p.get("system_prompt", prompt), "system_prompt_key": p.get("system_prompt_key"),
         "first_token_scale": p.get("first_token_scale", 1)}
        for p in points
    ]  # fmt: skip


def _stages(run: RunFacts) -> list[JsonObject]:
    return [
        {
            "name": state.name,
            "rows_in": state.rows_in,
            "rows_out": state.rows_out,
            "tokens": state.counts.tokens if state.counts else 0,
            "model": public_name(state.served.model or ""),
            "version": state.version,
        }
        for state in run.stages.values()
    ]


def _limits(facts: Statistics, origin: Origin) -> Iterator[str]:
    """Yield the known limits of the rows, from their statistics."""
    for name, what in (
        ("task_category", "of the instructions are of the category"),
        ("language", "are in the language"),
    ):
        counts = _counts(facts, name)
        if sum(counts.values()):
            top = max(counts, key=lambda label: counts[label])
            yield f"{svg.percent(counts[top] / sum(counts.values()))} {what} {line(top)}."
    safety = _counts(facts, "safety")
    if sum(safety.values()):
        yield f"{svg.percent(safety.get('unsafe', 0) / sum(safety.values()))} were rated unsafe by a guard model, which makes errors too."
    if facts["groups"] and facts["rows"]:
        spare = facts["groups"]["rows_in_groups"] - facts["groups"]["groups"]
        yield f"{svg.percent(spare / facts['rows'])} of the rows are near-duplicates of another row."
    reasons = _counts(facts, "rejection_reason")
    if sum(reasons.values()):
        share = sum(reasons.values()) / facts["rows"]
        yield f"{svg.percent(share)} of the instructions are unusable samples; the column `rejection_reason` has the reason."
    cut = _counts(facts, "response_finish_reason")
    if cut.get("length"):
        yield f"{svg.percent(cut['length'] / sum(cut.values()))} of the responses were cut at the length limit."
    has_texts = bool(origin["rows"] or origin["is_new"])
    if has_texts and origin["synthesized"] == origin["answered"] == origin["rows"]:
        yield "All texts were written by a language model; facts in them were not verified."
    elif is_synthetic(origin):
        yield "Some texts were written by a language model; facts in the texts were not verified."
    else:
        yield "Facts in the texts were not verified."


def _counts(facts: Statistics, column: str) -> dict[str, int]:
    return facts["labels"][column]["counts"] if column in facts["labels"] else {}


def _samples(dataset: Dataset) -> list[list[list[str]]]:
    """Return texts of the first rows as [column, text]: instruction and response, or instruction, chosen and rejected."""
    names = set(dataset.column_names)
    if {"instruction", "chosen", "rejected"} <= names:
        wanted = ["instruction", "chosen", "rejected"]
    elif {"instruction", "response"} <= names:
        wanted = ["instruction", "response"]
    else:
        return []
    rows = dataset.select_columns(wanted).select(range(min(SAMPLES, len(dataset))))
    return [[[name, _cut(_text(row[name]))] for name in wanted] for row in rows]


def _text(value: object) -> str:
    """Return a text, or the last turn of a conversation."""
    if isinstance(value, list):
        value = value[-1].get("content") if value and isinstance(value[-1], Mapping) else ""
    return value if isinstance(value, str) else ""


def _cut(text: str) -> str:
    """Return a text cut for a card, with its full length."""
    return text if len(text) <= KEPT_CHARACTERS else f"{text[:KEPT_CHARACTERS]} … ({len(text):,} characters)"


def _totals(totals: Totals) -> list[list[str]]:
    out = [["Tokens", f"{totals.tokens:,}"]] if totals.tokens else []
    if totals.engine_seconds:
        out.append(["engine-hours", f"{totals.engine_seconds / 3600:.2f}"])
    if totals.cost is not None:
        out.append(["cost", f"{totals.cost:.2f}"])
    return out
