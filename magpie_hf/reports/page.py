"""One HTML file with everything to look at: no network, no script; all generated text escaped."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError
from ..storage.disk import writing
from ..storage.state import RunFacts
from . import svg
from .statistics import dataset_statistics
from .topics import TopicMap, topic_map
from .verbs import root_verbs


if TYPE_CHECKING:
    from datasets import Dataset

SAMPLE_ROWS = 20_000
MAX_COMPARED = 3
SHOWN_CHARACTERS = 600
SAMPLES_PER_CATEGORY = 3
GROUP_MEMBERS = 4


def write_report(
    dataset: Dataset,
    path: str | Path,
    *,
    title: str | None = None,
    run: RunFacts | None = None,
    funnel: Sequence[Mapping[str, Any]] | None = None,
    compare: Mapping[str, Dataset] | None = None,
    sample_rows: int = SAMPLE_ROWS,
    seed: int = 0,
) -> Path:
    """Write the report of a dataset and return the file's path.

    `run`: the run that made it. `funnel`: steps with condition, rows_in, rows_out, nulls.
    `compare`: up to three other datasets, for the map of topics. `sample_rows`: rows that verbs and samples are drawn
    from, by `seed`.

    Raises:
        ArgumentError: more than three datasets to compare with.
        StorageError: the file cannot be written.
    """
    if compare and len(compare) > MAX_COMPARED:
        raise ArgumentError(f"{len(compare)} datasets cannot be told apart on one map.", hint="Give three at most.")
    facts = dataset_statistics(dataset)
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
    )
    target = Path(path).expanduser()
    with writing("the report", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, encoding="utf-8", errors="replace")
    return target


def _template() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"shown": shown, "percent": svg.percent, "compact": svg.compact}
    return environment.get_template("page.html.jinja")


def shown(text: object, limit: int = SHOWN_CHARACTERS) -> str:
    """Return generated text fit for a page: cut, and with nothing in it that is hidden or turns text around."""
    whole = str(text)
    cut = "".join(svg.visible(c) for c in whole[:limit])
    return cut if len(whole) <= limit else f"{cut} … ({len(whole):,} characters)"


def _safe_markup(text: str) -> Any:
    import markupsafe

    return markupsafe.Markup(text)  # noqa: S704 (our own SVG, whose texts svg.safe has escaped)


def _label_chart(column: Mapping[str, str], entry: Mapping[str, Any]) -> dict[str, Any]:
    counts = entry["counts"]
    total = sum(counts.values()) or 1
    top = max(counts, key=lambda label: counts[label])
    title = f"{column['title']}: {svg.percent(counts[top] / total)} {top}"
    nulls = f"{entry['nulls']:,} rows without" if entry["nulls"] else ""
    chart = svg.bars(svg.shares(counts), title=title)
    return {"title": title, "chart": _safe_markup(chart), "note": nulls, "table": list(counts.items())}


def _number_chart(column: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, Any]:
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


def _funnel(steps: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    plain = [dict(step) if isinstance(step, Mapping) else step._asdict() for step in steps or []]
    if not plain:
        return None
    kept, came = plain[-1]["rows_out"], plain[0]["rows_in"]
    title = f"Selection: {kept:,} of {came:,} rows kept"
    return {"title": title, "chart": _safe_markup(svg.funnel(plain, title=title)), "steps": plain}


def _tiles(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (value, what it is) of the figures that one looks for first."""
    tiles = [(f"{facts['rows']:,}", "rows")]
    turns = facts["turns"]
    if turns:
        tiles.append((svg.compact(turns["total"]), "tokens in all"))
        tiles.append((f"{turns['mean']:.0f} ± {turns['sd']:.0f}", "tokens a turn"))
    quality = facts["labels"].get("input_quality", {}).get("counts", {})
    if sum(quality.values()):
        good = quality.get("good", 0) + quality.get("excellent", 0)
        tiles.append((svg.percent(good / sum(quality.values())), "good or excellent"))
    safety = facts["labels"].get("safety", {}).get("counts", {})
    if sum(safety.values()):
        tiles.append((svg.percent(safety.get("safe", 0) / sum(safety.values())), "safe"))
    if facts["groups"] and facts["rows"]:
        groups = facts["groups"]
        spare = groups["rows_in_groups"] - groups["groups"]
        tiles.append((svg.percent(spare / facts["rows"]), "near duplicates to spare"))
    return tiles


def _without_path(model: str) -> str:
    """Return a model's name; of a local one the directory's: reports are shown to others."""
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


def _sample(dataset: Dataset, size: int, seed: int) -> dict[str, list[Any]]:
    names = [n for n in ("instruction", "task_category", "input_quality") if n in dataset.column_names]
    if "instruction" not in names or not len(dataset):
        return {"instruction": [], "task_category": [], "rows": []}
    rows = sorted(random.Random(seed).sample(range(len(dataset)), min(size, len(dataset))))  # noqa: S311 (no secret)
    part = dataset.select_columns(names).with_format(None)[rows]
    columns = ("instruction", "task_category", "input_quality")
    return {name: list(part.get(name) or [None] * len(rows)) for name in columns} | {"rows": rows}


def _samples(dataset: Dataset, sample: Mapping[str, list[Any]], seed: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return a few rows of each category, drawn by the seed; all together where there are no categories."""
    found: dict[str, list[int]] = {}
    for at, label in enumerate(sample["task_category"]):
        if sample["instruction"][at] is not None:
            found.setdefault(label or "without category", []).append(at)
    rng = random.Random(seed)  # noqa: S311 (no secret)
    texts = dataset.select_columns(["response"]) if "response" in dataset.column_names else None
    out = []
    for label in sorted(found):
        chosen = sorted(rng.sample(found[label], min(SAMPLES_PER_CATEGORY, len(found[label]))))
        rows = [{key: sample[key][at] for key in ("instruction", "input_quality")} for at in chosen]
        for row, at in zip(rows, chosen, strict=True):  # only the responses that are shown are read
            row["response"] = texts[sample["rows"][at]]["response"] if texts is not None else None
        out.append((label, rows))
    return out


def _groups(dataset: Dataset, facts: Mapping[str, Any]) -> list[tuple[int, list[str]]]:
    """Return (size, some members) of the largest groups of near duplicates."""
    largest = dict(facts["groups"].get("largest", [])) if facts["groups"] else {}
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


def _topics(found: TopicMap | None) -> dict[str, Any] | None:
    """Return the maps: one a category, and one a dataset where several are compared; each over all points in grey."""
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
    maps = [
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
