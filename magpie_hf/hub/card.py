"""Dataset cards. All facts are computed from the rows or given by the user; generated text cannot break the Markdown.

Text that a user adds outside the markers is kept when the card is written again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from ..columns import SHAREGPT
from ..errors import StorageError
from ..reports import svg
from ..storage.state import JsonObject, RunFacts
from ..version import __version__
from .citations import citations_of
from .facts import Facts, card_labels, card_numbers, chart_sheet, config_facts
from .markdown import bar, cell, column, fenced, line, spaced
from .origin import cites_magpie, is_magpie, is_synthetic, sentences, summary


if TYPE_CHECKING:
    import jinja2
    from datasets import Dataset

    from ..selection.filters import FunnelStep

BEGIN, END = "<!-- magpie: begin -->", "<!-- magpie: end -->"
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
MOST_LABELS = 16
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_CODE = re.compile(r"[A-Za-z]{2,3}")


Configs: TypeAlias = Mapping[str, Facts]
"""The facts of the configs of a repository, by name."""


class _Plot(TypedDict):
    name: str
    nulls: int
    shares: list[tuple[str, float, str]]


def build_card(
    dataset: Dataset,
    *,
    repo_id: str = "me/my-dataset",
    config_name: str = "default",
    title: str | None = None,
    run: RunFacts | None = None,
    funnel: Sequence[JsonObject | FunnelStep] | None = None,
    license: str | None = None,
    existing: str = "",
) -> str:
    """Return the card of a dataset with one config, as Markdown with YAML metadata.

    `run`, `funnel`, `license`: as in `config_facts`. `existing`: the text of an existing card; see `render_card`.

    Raises:
        ArgumentError: the license of the models is unknown, and none is given.
    """
    facts = config_facts({"train": dataset}, run=run, funnel=funnel, license=license)
    return render_card({config_name: facts}, repo_id=repo_id, title=title, existing=existing)


def render_card(
    configs: Configs,
    *,
    repo_id: str,
    title: str | None = None,
    existing: str = "",
    data_files: Mapping[str, Mapping[str, str]] | None = None,
    plots: Mapping[str, str] | None = None,
) -> str:
    """Return the card of a repository.

    `configs`: name to `config_facts`. `data_files`: config to {split: path pattern}, for the metadata. `plots`: config to
    the path of its charts. `existing`: the text of an existing card; its text outside the markers, other metadata and
    other configs are kept.
    """
    kept = existing_metadata(existing)
    first = next(iter(configs.values()))
    license = _license_of_all(configs)
    models = list(dict.fromkeys(model for facts in configs.values() for model in facts["models"]))
    page = _template().render(
        metadata=_metadata(configs, models, license["id"], kept, data_files),
        begin=BEGIN,
        end=END,
        title=title or repo_id.rpartition("/")[2],
        summary=_summary(configs, models),
        license=license,
        configs=[_shown(name, facts, (plots or {}).get(name)) for name, facts in configs.items()],
        origins=_origins(configs),
        made=_made(configs),
        others=sorted(_config_names(kept) - set(configs)),
        repo_id=repo_id,
        has_sharegpt=next((name for name, facts in configs.items() if _is_sharegpt(facts)), None),
        has_messages=next((name for name, facts in configs.items() if "messages" in facts["columns"]), None),
        has_preferences=next((n for n, f in configs.items() if {"chosen", "rejected"} <= set(f["columns"])), None),
        split=next(iter(first["splits"])),
        citations=citations_of(models, is_magpie=any(cites_magpie(facts["origin"]) for facts in configs.values())),
        version=__version__,
    )
    metadata, _, body = page.partition(BEGIN)
    return _with_own_sections(f"{metadata.strip()}\n\n{spaced(BEGIN + body)}", existing)


def write_card(
    dataset: Dataset,
    path: str | Path,
    *,
    repo_id: str = "me/my-dataset",
    config_name: str = "default",
    title: str | None = None,
    run: RunFacts | None = None,
    funnel: Sequence[JsonObject | FunnelStep] | None = None,
    license: str | None = None,
    splits: Mapping[str, Dataset] | None = None,
) -> Path:
    """Write the card to a file, with its charts next to it; your own sections in an existing file are kept.

    `splits`: the splits of the config; by default `dataset` is the split "train". Other arguments as in `build_card`.

    Raises:
        ArgumentError: the license of the models is unknown, and none is given.
        StorageError: a file cannot be written.
    """
    target = Path(path)
    try:
        existing = target.read_text("utf-8") if target.is_file() else ""
        splits = splits or {"train": dataset}
        facts = config_facts(splits, run=run, funnel=funnel, license=license, described=dataset)
        target.parent.mkdir(parents=True, exist_ok=True)
        charts = chart_sheet(facts["statistics"], config_name)
        plots = {config_name: f"{target.stem}.svg"} if charts else {}
        if charts:
            target.with_suffix(".svg").write_text(charts, encoding="utf-8")
        card = render_card({config_name: facts}, repo_id=repo_id, title=title, existing=existing, plots=plots)
        target.write_text(card, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"The card cannot be written: {error.strerror or error}.", where=str(target)) from error
    return target


def _is_sharegpt(facts: Facts) -> bool:
    """Return whether the only conversation column is `conversations` (from/value), whose roles trainers do not know."""
    kinds = {feature.get("name"): feature for feature in facts["info"].get("features", [])}
    turns = kinds.get(SHAREGPT, {}).get("list")
    return (
        "messages" not in kinds
        and isinstance(turns, list)
        and {turn.get("name") for turn in turns} >= {"from", "value"}
    )


def _template() -> jinja2.Template:
    import jinja2

    here = Path(__file__).parents[1]
    folders = [here / "_data" / "dataset_cards", here.parent / "dataset_cards"]
    environment = jinja2.Environment(  # noqa: S701 (Markdown: `line`, `cell` and `fenced` escape its texts)
        loader=jinja2.FileSystemLoader(folders), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "line": line,
        "cell": cell,
        "column": column,
        "fenced": fenced,
        "bar": bar,
        "percent": svg.percent,
        "compact": svg.compact,
    }
    return environment.get_template("template.md.jinja")


def _summary(configs: Configs, models: Sequence[str]) -> str:
    for facts in configs.values():
        if facts["description"]:
            return str(facts["description"])
    rows = sum(sum(facts["splits"].values()) for facts in configs.values())
    return summary([facts["origin"] for facts in configs.values()], models, rows)


def _license_of_all(configs: Configs) -> dict[str, str]:
    ids = {facts["license"][0] for facts in configs.values()}
    notices = dict.fromkeys(facts["license"][1] for facts in configs.values() if facts["license"][1])
    return {"id": ids.pop() if len(ids) == 1 else "other", "notice": " ".join(notices)}


def _shown(name: str, facts: Facts, plot: str | None) -> JsonObject:
    """Return the values of a config for the template."""
    statistics = facts["statistics"]
    labels: list[_Plot] = [
        {"name": label, "nulls": entry["nulls"], "shares": svg.shares(entry["counts"], MOST_LABELS)}
        for label, entry in card_labels(statistics).items()
    ]
    numbers = list(card_numbers(statistics).items())
    return {"name": name, "plot": plot, "labels": labels, "numbers": numbers, **facts}


def _made(configs: Configs) -> list[JsonObject]:
    """Return how the configs were made. Facts that several configs share are listed once, at the first config."""
    out: list[JsonObject] = []
    seen: list[tuple[str, object]] = []
    for name, facts in configs.items():
        entry: JsonObject = {"name": name}
        for key in ("provenance", "sampling", "funnel"):
            is_new = facts[key] and (key, facts[key]) not in seen
            entry[key] = facts[key] if is_new else []
            seen.append((key, facts[key]))
        # Of configs from successive stages of one run, only the last lists the stages.
        is_part = any(_is_beginning(facts["stages"], other["stages"]) for other in configs.values())
        entry["stages"] = [] if is_part or ("stages", facts["stages"]) in seen else facts["stages"]
        seen.append(("stages", facts["stages"]))
        if any(entry[key] for key in ("provenance", "sampling", "funnel", "stages")):
            out.append(entry)
    return out


def _origins(configs: Configs) -> list[str]:
    """Return how the texts of the configs were made: one paragraph per config, or one for all if they are equal."""
    said = {name: sentences(facts["origin"]) for name, facts in configs.items()}
    if len(set(said.values())) == 1:
        return list(said.values())[:1]
    return [f"{line(name)}: {text}" for name, text in said.items() if text]


def _is_beginning(stages: Sequence[object], of: Sequence[object]) -> bool:
    return len(stages) < len(of) and list(of[: len(stages)]) == list(stages)


def _metadata(
    configs: Configs,
    models: Sequence[str],
    license: str,
    kept: JsonObject,
    data_files: Mapping[str, Mapping[str, str]] | None,
) -> str:
    import yaml

    own: JsonObject = {"license": license}
    languages = _languages(configs)
    own |= {"language": languages} if languages else {}
    rows = sum(sum(facts["splits"].values()) for facts in configs.values())
    own["size_categories"] = [next((name for limit, name in SIZES if rows < limit), "100M<n<1B")]
    own["task_categories"] = ["text-generation"]
    tags = list(dict.fromkeys([*_tags(configs, models), *kept.get("tags", [])]))
    own |= {"tags": tags} if tags else {}
    merged = {**kept, **own} | _loading_metadata(configs, kept, data_files)
    return "---\n" + yaml.safe_dump(merged, sort_keys=False, allow_unicode=True, width=200) + "---"


def _tags(configs: Configs, models: Sequence[str]) -> list[str]:
    """Return the tags: `magpie` if instructions were synthesized, `synthetic` if any text was, and the models."""
    origins = [facts["origin"] for facts in configs.values()]
    tags = ["synthetic"] if any(is_synthetic(origin) for origin in origins) else []
    tags += ["magpie"] if any(is_magpie(origin) for origin in origins) else []
    return tags + [f"generator:{model}" for model in models if _REPO.fullmatch(model)]


def _loading_metadata(
    configs: Configs,
    kept: JsonObject,
    data_files: Mapping[str, Mapping[str, str]] | None,
) -> JsonObject:
    """Return `dataset_info` and `configs` of the metadata; those of other configs are kept."""
    if not data_files:
        return {}
    infos = kept.get("dataset_info") or []
    infos = {info.get("config_name", "default"): info for info in (infos if isinstance(infos, list) else [infos])}
    files = {entry.get("config_name"): entry for entry in kept.get("configs") or []}
    for name, patterns in data_files.items():
        if name in configs:
            infos[name] = {"config_name": name, **configs[name]["info"], **_sizes(configs[name])}
        listed = [{"split": split, "path": path} for split, path in patterns.items()]
        files[name] = {**files.get(name, {}), "config_name": name, "data_files": listed}
    if "default" not in files and not any(entry.get("default") for entry in files.values()):
        files[next(iter(files))]["default"] = True  # so that load_dataset(repo) alone works
    info_list = [{"config_name": name, **info} for name, info in infos.items()]
    return {"dataset_info": info_list, "configs": list(files.values())}


def _sizes(facts: Facts) -> dict[str, int]:
    if set(facts["sizes"]) != set(facts["splits"]):
        return {}
    size = sum(split["num_bytes"] for split in facts["info"]["splits"])
    return {"download_size": sum(facts["sizes"].values()), "dataset_size": size}


def _languages(configs: Configs) -> list[str]:
    """Return the ISO codes of the languages of at least 1 % of the rows of a config."""
    found: dict[str, None] = {}
    for facts in configs.values():
        counts = facts["statistics"]["labels"].get("language", {}).get("counts", {})
        total = sum(counts.values())
        found |= {c.lower(): None for c, n in counts.items() if n >= 0.01 * total and _CODE.fullmatch(c)}
    return list(found)


def _config_names(kept: JsonObject) -> set[str]:
    return {str(entry.get("config_name")) for entry in kept.get("configs") or [] if isinstance(entry, Mapping)}


def existing_metadata(text: str) -> JsonObject:
    """Return the YAML metadata of a card, or an empty dict if it is invalid."""
    import yaml

    found = re.match(r"\A---\n(.*?)\n---\s*$", text, re.DOTALL | re.MULTILINE)
    if found is None:
        return {}
    try:
        raw = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return {}
    return raw if isinstance(raw, dict) else {}


def _with_own_sections(page: str, existing: str) -> str:
    """Return the page with the text before and after the markers of an existing card."""
    if BEGIN not in existing or END not in existing:
        return page
    head, _, rest = existing.partition(BEGIN)
    before = re.sub(r"\A---\n.*?\n---\s*", "", head, flags=re.DOTALL).strip()
    after = rest.rpartition(END)[2].strip()
    metadata, _, body = page.partition(BEGIN)
    parts = [metadata.strip(), before, (BEGIN + body).strip(), after]
    return "\n\n".join(part for part in parts if part) + "\n"
