"""What a card says of one config, computed from its rows or given by its run: JSON, kept beside the data.

So a card with several configs is made again without looking at rows that were pushed before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError
from ..reports import svg
from ..reports.statistics import dataset_statistics
from ..storage.state import RunFacts, Totals
from .licences import Licence, licence_of
from .manifest import public_name, public_recipe
from .markdown import line
from .origin import TEXT_WRITERS, is_synthetic, origin_of


if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 4
SAMPLES = 3
KEPT_CHARACTERS = 2000
MOST_WRITERS = 20
"""Beyond so many different names a column called model is something else."""
_JUDGE_MODES = ("separate", "combined")
_ROLES = ("responder", "judge", "guard", "base")


def config_facts(
    splits: Mapping[str, Dataset],
    *,
    run: RunFacts | None = None,
    funnel: Sequence[Any] | None = None,
    license: str | None = None,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the facts of a config, JSON-like.

    `splits`: name to rows; figures are those of the first. `run`: the run that made it. `funnel`: its selection's steps. `license`: a Hub licence id; by default that of data made with the models.
    `sizes`: split to bytes of its files.

    Raises:
        ArgumentError: the licence of the model's data is not known, and none is given.
    """
    dataset = next(iter(splits.values()))
    run = run or RunFacts()
    recipe = public_recipe(run.recipe)
    models = writers(recipe, dataset)
    licence = joined_licence(models, license)
    statistics = dataset_statistics(dataset)
    origin = origin_of(recipe, run, dataset)
    return {
        "format": FORMAT,
        "models": models,
        "licence": list(licence),
        "description": recipe.get("description") or "",
        "recipe": recipe,
        "origin": origin,
        "provenance": _provenance(recipe, models),
        "sampling": _sampling(recipe),
        "stages": _stages(run),
        "funnel": [dict(step) if isinstance(step, Mapping) else step._asdict() for step in funnel or ()],
        "statistics": statistics,
        "splits": {name: len(rows) for name, rows in splits.items()},
        "sizes": dict(sizes or {}),
        "info": _info(splits),
        "limits": list(_limits(statistics, origin)),
        "samples": _samples(dataset),
        "columns": list(dataset.column_names),
        "totals": _totals(run.totals),
    }


def joined_licence(models: Sequence[str], given: str | None) -> Licence:
    """Return the licence of data that several models wrote: theirs if it is one, else "other", with all notices."""
    if not models:
        if not given:
            raise ArgumentError(
                "The rows do not say which model wrote them, so their licence is not known.",
                hint="Give one: license=… (--license), as apache-2.0 or other.",
                key="license",
            )
        return Licence(given)
    found = [licence_of(model, given) for model in models]
    ids = {licence.id for licence in found}
    notices = dict.fromkeys(licence.notice for licence in found if licence.notice)
    return Licence(given or (found[0].id if len(ids) == 1 else "other"), " ".join(notices))


def chart_sheet(statistics: Mapping[str, Any], title: str) -> str:
    """Return the charts of a config as one SVG file; "" where there is nothing to draw."""
    labels, numbers = carded(statistics, "labels"), carded(statistics, "numbers")
    charts = [svg.bars(svg.shares(entry["counts"]), title=name) for name, entry in labels.items()]
    charts += [svg.histogram(entry["histogram"], title=name, unit=name) for name, entry in numbers.items()]
    return svg.sheet(charts, title=title) if charts else ""


def carded(statistics: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the columns of "labels" or "numbers" that a card shows, where they have values."""
    return {
        name: entry
        for name, entry in statistics[kind].items()
        if statistics["columns"].get(name, {}).get("card")
        and (entry.get("count") or any(entry.get("counts", {}).values()))
    }


def writers(recipe: Mapping[str, Any], dataset: Dataset) -> list[str]:
    """Return the models whose text the rows hold: instructions, responses, further turns, preference responses.

    The rows say it where they can; else the recipe does, unless it only annotates.
    """
    found = _distinct(dataset, "model")
    for column, field in TEXT_WRITERS:
        found += _distinct(dataset, column, field)
    if not found and not recipe.get("dataset"):
        responder = recipe.get("responder")
        found = [recipe.get("model"), responder.get("model") if isinstance(responder, Mapping) else responder]
    return list(dict.fromkeys(public_name(str(model)) for model in found if model))


def _distinct(dataset: Dataset, column: str, field: str | None = None) -> list[Any]:
    """Return the different values of a column of texts, or of a field in it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column not in dataset.column_names:
        return []
    found: dict[Any, None] = {}
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


def _info(splits: Mapping[str, Dataset]) -> dict[str, Any]:
    """Return the `dataset_info` of the card's metadata: features and splits."""
    from datasets import DatasetInfo
    from datasets.splits import SplitDict, SplitInfo

    infos = SplitDict()
    for name, rows in splits.items():
        infos[name] = SplitInfo(name=name, num_bytes=int(rows._estimate_nbytes()), num_examples=len(rows))
    info = DatasetInfo(features=next(iter(splits.values())).features, splits=infos)
    found: dict[str, Any] = info._to_yaml_dict()
    return found


def _provenance(recipe: Mapping[str, Any], models: Sequence[str]) -> list[list[str]]:
    own = None if recipe.get("dataset") else recipe.get("model")
    facts: list[tuple[str, Any]] = [("model", own or (models[0] if models else None))]
    facts += [(key, recipe.get(key)) for key in ("revision", "num_rows", "seed", "order")]
    for role in _ROLES:
        given = recipe.get(role)
        given = given.get("model") if isinstance(given, Mapping) else given
        facts.append((role, None if given in _JUDGE_MODES else given))
    source = recipe.get("dataset")
    facts.append(("rows from", source.get("path") if isinstance(source, Mapping) else source))
    return [[key, str(value)] for key, value in facts if value not in (None, "")]


def _sampling(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not recipe or recipe.get("dataset"):
        return []
    given = recipe.get("sampling") or {}
    points = given if isinstance(given, list) else [given]
    prompt = recipe.get("system_prompt")
    return [
        {"temperature": p.get("temperature", 1.0), "top_p": p.get("top_p", 1.0), "share": p.get("share", 1),
         "system_prompt": p.get("system_prompt", prompt)}
        for p in points
    ]  # fmt: skip


def _stages(run: RunFacts) -> list[dict[str, Any]]:
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


def _limits(facts: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the figures themselves say a user should know."""
    for name, what in (
        ("task_category", "of the instructions are of the category"),
        ("language", "are in the language"),
    ):
        counts = facts["labels"].get(name, {}).get("counts", {})
        if sum(counts.values()):
            top = max(counts, key=lambda label: counts[label])
            yield f"{svg.percent(counts[top] / sum(counts.values()))} {what} {line(top)}."
    safety = facts["labels"].get("safety", {}).get("counts", {})
    if sum(safety.values()):
        yield f"{svg.percent(safety.get('unsafe', 0) / sum(safety.values()))} were marked unsafe by a guard; it errs too."
    if facts["groups"] and facts["rows"]:
        spare = facts["groups"]["rows_in_groups"] - facts["groups"]["groups"]
        yield f"{svg.percent(spare / facts['rows'])} of the rows are near duplicates of another row."
    cut = facts["labels"].get("response_finish_reason", {}).get("counts", {})
    if cut.get("length"):
        yield f"{svg.percent(cut['length'] / sum(cut.values()))} of the responses ran into their length limit."
    has_texts = bool(origin["rows"] or origin["is_new"])
    if has_texts and origin["synthesized"] == origin["answered"] == origin["rows"]:
        yield "All texts were written by a language model; facts in them were not checked."
    elif is_synthetic(origin):
        yield "Some texts were written by a language model; facts in the texts were not checked."
    else:
        yield "Facts in the texts were not checked."


def _samples(dataset: Dataset) -> list[list[list[str]]]:
    """Return the first rows' texts as [what it is, text]: instruction and response, or what is preferred to what."""
    names = set(dataset.column_names)
    if {"instruction", "chosen", "rejected"} <= names:
        wanted = ["instruction", "chosen", "rejected"]
    elif {"instruction", "response"} <= names:
        wanted = ["instruction", "response"]
    else:
        return []
    rows = dataset.select_columns(wanted).select(range(min(SAMPLES, len(dataset))))
    return [[[name, _cut(_said(row[name]))] for name in wanted] for row in rows]


def _said(value: Any) -> str:
    """Return a text, or the last turn of a conversation."""
    if isinstance(value, list):
        value = value[-1].get("content") if value and isinstance(value[-1], Mapping) else ""
    return value if isinstance(value, str) else ""


def _cut(text: str) -> str:
    """Return a text short enough for a card, its length told."""
    return text if len(text) <= KEPT_CHARACTERS else f"{text[:KEPT_CHARACTERS]} … ({len(text):,} characters)"


def _totals(totals: Totals) -> list[list[str]]:
    out = [["Tokens", f"{totals.tokens:,}"]] if totals.tokens else []
    if totals.engine_seconds:
        out.append(["engine-hours", f"{totals.engine_seconds / 3600:.2f}"])
    if totals.cost is not None:
        out.append(["cost", f"{totals.cost:.2f}"])
    return out
