"""The report of a dataset as one HTML file: no network, no scripts; all generated text is escaped."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from ..columns import columns_of
from ..errors import ArgumentError
from ..mixing import mixed_rubrics
from ..storage.disk import writing
from ..storage.state import JsonObject, RunFacts
from . import svg
from .statistics import ColumnFacts, LabelFacts, NumberFacts, Statistics, dataset_statistics
from .topics import TopicMap, topic_map
from .verbs import root_verbs


if TYPE_CHECKING:
    import jinja2
    import markupsafe
    from datasets import Dataset

logger = logging.getLogger("magpie_hf")

SAMPLE_ROWS = 20_000
MAX_COMPARED = 3
SHOWN_CHARACTERS = 600
SAMPLES_PER_CATEGORY = 3
GROUP_MEMBERS = 4


class _Chart(TypedDict):
    title: str
    chart: markupsafe.Markup | str
    note: str
    table: list[tuple[str, int]] | list[tuple[str, str]]


class _Funnel(TypedDict):
    title: str
    chart: markupsafe.Markup
    steps: list[JsonObject]


class _Map(TypedDict):
    label: str
    count: int
    map: markupsafe.Markup


class _Topics(TypedDict):
    maps: list[_Map]
    background: markupsafe.Markup
    basis: str
    points: int


class _Sample(TypedDict):
    rows: list[int]
    instruction: list[str | None]
    task_category: list[str | None]
    input_quality: list[str | None]


class _Row(TypedDict):
    instruction: str | None
    input_quality: str | None
    response: str | None


def write_report(
    dataset: Dataset,
    path: str | Path,
    *,
    title: str | None = None,
    run: RunFacts | None = None,
    funnel: Sequence[JsonObject] | None = None,
    compare: Mapping[str, Dataset] | None = None,
    sample_rows: int = SAMPLE_ROWS,
    seed: int = 0,
) -> Path:
    """Write the report of a dataset and return the file's path.

    `run`: the run that made it. `funnel`: steps with condition, rows_in, rows_out, nulls.
    `compare`: up to three other datasets for the map of topics. `sample_rows`: number of rows, drawn by `seed`, that verbs
    and samples are taken from.

    Raises:
        ArgumentError: more than three datasets to compare with.
        StorageError: the file cannot be written.
    """
    if compare and len(compare) > MAX_COMPARED:
        raise ArgumentError(f"Too many datasets to compare: {len(compare)}.", hint=f"Give at most {MAX_COMPARED}.")
    facts = dataset_statistics(dataset)
    mixed = mixed_rubrics(dataset)
    for warning in mixed:
        logger.warning(warning)
    sample = _sample(dataset, sample_rows, seed)
    name = str((run or RunFacts()).recipe.get("name") or "this dataset")
    page = _template().render(
        title=title or (f"Report: {name}" if run else "Dataset report"),
        facts=facts,
        provenance=_provenance(run),
        tiles=_tiles(facts),
        labels=[
            _label_chart(facts["columns"][key], entry)
            for key, entry in facts["labels"].items()
            if any(entry["counts"].values())
        ],
        numbers=[_number_chart(facts["columns"][key], entry) for key, entry in facts["numbers"].items()],
        funnel=_funnel(funnel),
        verbs=root_verbs(text for text in sample["instruction"] if text),
        topics=_topics(topic_map(dataset, compare, name=name, seed=seed)),
        samples=_samples(dataset, sample, seed),
        groups=_groups(dataset, facts),
        flags=facts["flags"],
        errors={key: counts for key, counts in facts["errors"].items() if counts},
        sampled=len(sample["instruction"]),
        warnings=mixed,
    )
    target = Path(path).expanduser()
    with writing("the report", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, encoding="utf-8", errors="replace")
    return target


def _template() -> jinja2.Template:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"shown": shown, "percent": svg.percent, "compact": svg.compact}
    return environment.get_template("page.html.jinja")


def shown(text: object, limit: int = SHOWN_CHARACTERS) -> str:
    """Return generated text for a page: cut, without hidden characters and those that change the text direction."""
    whole = str(text)
    cut = "".join(svg.visible(c) for c in whole[:limit])
    return cut if len(whole) <= limit else f"{cut} … ({len(whole):,} characters)"


def _safe_markup(text: str) -> markupsafe.Markup:
    import markupsafe

    return markupsafe.Markup(text)  # noqa: S704 (our own SVG, whose texts svg.safe has escaped)


def _label_chart(column: ColumnFacts, entry: LabelFacts) -> _Chart:
    counts = entry["counts"]
    total = sum(counts.values()) or 1
    top = max(counts, key=lambda label: counts[label])
    title = f"{column['title']}: {svg.percent(counts[top] / total)} {top}"
    nulls = f"{entry['nulls']:,} rows without" if entry["nulls"] else ""
    chart = svg.bars(svg.shares(counts), title=title)
    return {"title": title, "chart": _safe_markup(chart), "note": nulls, "table": list(counts.items())}


def _number_chart(column: ColumnFacts, facts: NumberFacts) -> _Chart:
    if not facts["count"]:
        return {
            "title": f"{column['title']}: no values",
            "chart": "",
            "note": f"{facts['nulls']:,} rows without",
            "table": [],
        }
    title = f"{column['title']}: median {svg.compact(facts['quantiles']['50%'])}, mean {svg.compact(facts['mean'])}"
    table = [
        ("mean", facts["mean"]),
        ("sd", facts["sd"]),
        ("min", facts["min"]),
        *facts["quantiles"].items(),
        ("max", facts["max"]),
    ]
    nulls = f"{facts['nulls']:,} rows without" if facts["nulls"] else ""
    chart = svg.histogram(facts["histogram"], title=title, unit=column["unit"])
    return {
        "title": title,
        "chart": _safe_markup(chart),
        "note": nulls,
        "table": [(k, svg.compact(v)) for k, v in table],
    }


def _funnel(steps: Sequence[JsonObject] | None) -> _Funnel | None:
    plain = [dict(step) if isinstance(step, Mapping) else step._asdict() for step in steps or []]
    if not plain:
        return None
    kept, came = plain[-1]["rows_out"], plain[0]["rows_in"]
    title = f"Selection: {kept:,} of {came:,} rows kept"
    return {"title": title, "chart": _safe_markup(svg.funnel(plain, title=title)), "steps": plain}


def _tiles(facts: Statistics) -> list[tuple[str, str]]:
    """Return the key figures as (value, description)."""
    tiles = [(f"{facts['rows']:,}", "rows")]
    turns = facts["turns"]
    if turns:
        tiles.append((svg.compact(turns["total"]), "tokens in total"))
        tiles.append((f"{turns['mean']:.0f} ± {turns['sd']:.0f}", "tokens per turn"))
    quality = _counts(facts, "input_quality")
    if sum(quality.values()):
        good = quality.get("good", 0) + quality.get("excellent", 0)
        tiles.append((svg.percent(good / sum(quality.values())), "good or excellent"))
    safety = _counts(facts, "safety")
    if sum(safety.values()):
        tiles.append((svg.percent(safety.get("safe", 0) / sum(safety.values())), "safe"))
    if facts["groups"] and facts["rows"]:
        groups = facts["groups"]
        spare = groups["rows_in_groups"] - groups["groups"]
        tiles.append((svg.percent(spare / facts["rows"]), "redundant near-duplicates"))
    return tiles


def _counts(facts: Statistics, column: str) -> dict[str, int]:
    return facts["labels"][column]["counts"] if column in facts["labels"] else {}


def _without_path(model: str) -> str:
    """Return a model's name; of a local model the directory name only, because reports are shared."""
    return Path(model).name if model.startswith(("/", "~", ".")) else model


def _provenance(run: RunFacts | None) -> list[tuple[str, str]]:
    run = run or RunFacts()
    recipe, totals = run.recipe, run.totals
    lines = [
        (key, _without_path(str(recipe[key])) if key == "model" else str(recipe[key]))
        for key in ("name", "model", "revision", "num_rows", "seed", "order")
        if recipe.get(key)
    ]
    if totals.tokens:
        lines.append(("tokens spent", f"{totals.tokens:,}"))
    if totals.engine_seconds:
        lines.append(("engine-hours", f"{totals.engine_seconds / 3600:.2f}"))
    return lines


def _sample(dataset: Dataset, size: int, seed: int) -> _Sample:
    names = [n for n in columns_of(dataset.features) if n in ("instruction", "task_category", "input_quality")]
    if "instruction" not in names or not len(dataset):
        return {"rows": [], "instruction": [], "task_category": [], "input_quality": []}
    rows = sorted(random.Random(seed).sample(range(len(dataset)), min(size, len(dataset))))  # noqa: S311 (no secret)
    part = dataset.select_columns(names).with_format(None)[rows]
    nothing = [None] * len(rows)
    return {
        "rows": rows,
        "instruction": list(part["instruction"]),
        "task_category": list(part.get("task_category") or nothing),
        "input_quality": list(part.get("input_quality") or nothing),
    }


def _samples(dataset: Dataset, sample: _Sample, seed: int) -> list[tuple[str, list[_Row]]]:
    """Return a few rows of each category, drawn by the seed."""
    found: dict[str, list[int]] = {}
    for at, label in enumerate(sample["task_category"]):
        if sample["instruction"][at] is not None:
            found.setdefault(label or "without category", []).append(at)
    rng = random.Random(seed)  # noqa: S311 (no secret)
    texts = dataset.select_columns(["response"]) if "response" in dataset.column_names else None
    out = []
    for label in sorted(found):
        chosen = sorted(rng.sample(found[label], min(SAMPLES_PER_CATEGORY, len(found[label]))))
        rows: list[_Row] = [
            {
                "instruction": sample["instruction"][at],
                "input_quality": sample["input_quality"][at],
                # Only the responses that are shown are read.
                "response": texts[sample["rows"][at]]["response"] if texts is not None else None,
            }
            for at in chosen
        ]
        out.append((label, rows))
    return out


def _groups(dataset: Dataset, facts: Statistics) -> list[tuple[int, list[str]]]:
    """Return (size, some members) of the largest groups of near-duplicates."""
    largest = dict(facts["groups"]["largest"]) if facts["groups"] else {}
    if not largest or "instruction" not in dataset.column_names:
        return []
    members: dict[str, list[str]] = {name: [] for name in largest}
    at = 0
    for table in dataset.select_columns(["group_id"]).with_format("arrow").iter(batch_size=20_000):
        for offset, name in enumerate(table["group_id"].to_pylist()):
            if name in members and len(members[name]) < GROUP_MEMBERS:
                members[name].append(dataset[at + offset]["instruction"] or "")
        at += len(table)
        if all(len(texts) >= min(GROUP_MEMBERS, largest[name]) for name, texts in members.items()):
            break
    return [(largest[name], texts) for name, texts in members.items()]


def _topics(found: TopicMap | None) -> _Topics | None:
    """Return the maps: one per category, and one per dataset if several are compared; each over all points in gray."""
    if found is None:
        return None
    sources = list(dict.fromkeys(found.source))
    panels = []
    if len(sources) > 1:
        panels += [(name, [n for n, source in enumerate(found.source) if source == name]) for name in sources]
    labels = sorted({c for c, s in zip(found.category, found.source, strict=True) if c and s == sources[0]})
    for label in labels:
        rows = [n for n, c in enumerate(found.category) if c == label and found.source[n] == sources[0]]
        panels.append((label, rows))
    if not panels:
        panels = [("all rows", list(range(len(found.source))))]
    maps: list[_Map] = [
        {
            "label": label,
            "count": len(rows),
            "map": _safe_markup(
                svg.small_map("all-points", svg.points(found.xy[rows]), title=f"{label}: {len(rows)} rows")
            ),
        }
        for label, rows in panels
    ]
    return {
        "maps": maps,
        "background": _safe_markup(svg.points(found.xy)),
        "basis": found.basis,
        "points": len(found.source),
    }
