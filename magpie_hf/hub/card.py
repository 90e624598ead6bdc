"""Dataset cards: everything in them is computed from the rows, or was given; generated text cannot break out.

What a person writes into the card outside the marks stays when it is made again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..columns import SHAREGPT
from ..errors import StorageError
from ..reports import svg
from ..storage.state import RunFacts
from ..version import __version__
from .citations import citations_of
from .facts import carded, chart_sheet, config_facts
from .markdown import bar, cell, column, fenced, line, spaced
from .origin import is_magpie, is_synthetic, owes_magpie, sentences, summary


if TYPE_CHECKING:
    from datasets import Dataset

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


def build_card(
    dataset: Dataset,
    *,
    repo_id: str = "me/my-dataset",
    config_name: str = "default",
    title: str | None = None,
    run: RunFacts | None = None,
    funnel: Sequence[Any] | None = None,
    license: str | None = None,
    existing: str = "",
) -> str:
    """Return the card of a dataset with one config as Markdown with its YAML metadata; see `render_card`.

    `run`, `funnel`, `license`: as in `facts.config_facts`. `existing`: a card that is there already.

    Raises:
        ArgumentError: the licence of the model's data is not known, and none is given.
    """
    facts = config_facts({"train": dataset}, run=run, funnel=funnel, license=license)
    return render_card({config_name: facts}, repo_id=repo_id, title=title, existing=existing)


def render_card(
    configs: Mapping[str, Mapping[str, Any]],
    *,
    repo_id: str,
    title: str | None = None,
    existing: str = "",
    data_files: Mapping[str, Mapping[str, str]] | None = None,
    plots: Mapping[str, str] | None = None,
) -> str:
    """Return the card of a repository.

    `configs`: name to `facts.config_facts`. `data_files`: config to {split: path pattern}, for the metadata. `plots`:
    config to the path of its picture. `existing`: a card that is there: what stands outside its marks, metadata that is
    not ours, and configs that others pushed are kept.
    """
    kept = existing_metadata(existing)
    first = next(iter(configs.values()))
    licence = _licence_of_all(configs)
    models = list(dict.fromkeys(model for facts in configs.values() for model in facts["models"]))
    page = _template().render(
        metadata=_metadata(configs, models, licence["id"], kept, data_files),
        begin=BEGIN,
        end=END,
        title=title or repo_id.rpartition("/")[2],
        summary=_summary(configs, models),
        licence=licence,
        configs=[_shown(name, facts, (plots or {}).get(name)) for name, facts in configs.items()],
        origins=_origins(configs),
        made=_made(configs),
        others=sorted(_config_names(kept) - set(configs)),
        repo_id=repo_id,
        has_sharegpt=next((name for name, facts in configs.items() if _is_sharegpt(facts)), None),
        has_messages=next((name for name, facts in configs.items() if "messages" in facts["columns"]), None),
        has_preferences=next((n for n, f in configs.items() if {"chosen", "rejected"} <= set(f["columns"])), None),
        split=next(iter(first["splits"])),
        citations=citations_of(models, is_magpie=any(owes_magpie(facts["origin"]) for facts in configs.values())),
        version=__version__,
    )
    metadata, _, body = page.partition(BEGIN)
    return _with_own_sections(f"{metadata.strip()}\n\n{spaced(BEGIN + body)}", existing)


def write_card(dataset: Dataset, path: str | Path, **options: Any) -> Path:
    """Write the card to a file, its picture beside it; sections of one's own in the file that is there are kept."""
    target = Path(path)
    name = options.pop("config_name", "default")
    shown = {key: options.pop(key) for key in ("repo_id", "title", "data_files") if key in options}
    shown.setdefault("repo_id", "me/my-dataset")
    try:
        existing = target.read_text("utf-8") if target.is_file() else ""
        facts = config_facts({"train": dataset}, **options)
        target.parent.mkdir(parents=True, exist_ok=True)
        picture = chart_sheet(facts["statistics"], name)
        plots = {name: f"{target.stem}.svg"} if picture else {}
        if picture:
            target.with_suffix(".svg").write_text(picture, encoding="utf-8")
        target.write_text(render_card({name: facts}, existing=existing, plots=plots, **shown), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"The card cannot be written: {error.strerror or error}.", where=str(target)) from error
    return target


def _is_sharegpt(facts: Mapping[str, Any]) -> bool:
    """Whether the rows' conversations are in `conversations` (from/value) alone, whose roles trainers do not know."""
    kinds = {feature.get("name"): feature for feature in facts["info"].get("features", [])}
    turns = kinds.get(SHAREGPT, {}).get("list")
    return (
        "messages" not in kinds
        and isinstance(turns, list)
        and {turn.get("name") for turn in turns} >= {"from", "value"}
    )


def _template() -> Any:
    import jinja2

    here = Path(__file__).parents[1]
    places = [here / "_data" / "dataset_cards", here.parent / "dataset_cards"]
    environment = jinja2.Environment(  # noqa: S701 (Markdown: `line`, `cell` and `fenced` make its texts harmless)
        loader=jinja2.FileSystemLoader(places), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
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


def _summary(configs: Mapping[str, Mapping[str, Any]], models: Sequence[str]) -> str:
    for facts in configs.values():
        if facts["description"]:
            return str(facts["description"])
    rows = sum(sum(facts["splits"].values()) for facts in configs.values())
    return summary([facts["origin"] for facts in configs.values()], models, rows)


def _licence_of_all(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    ids = {facts["licence"][0] for facts in configs.values()}
    notices = dict.fromkeys(facts["licence"][1] for facts in configs.values() if facts["licence"][1])
    return {"id": ids.pop() if len(ids) == 1 else "other", "notice": " ".join(notices)}


def _shown(name: str, facts: Mapping[str, Any], plot: str | None) -> dict[str, Any]:
    """Return what the template shows of a config."""
    statistics = facts["statistics"]
    labels = [
        {"name": label, "nulls": entry["nulls"], "shares": svg.shares(entry["counts"], MOST_LABELS)}
        for label, entry in carded(statistics, "labels").items()
    ]
    numbers = list(carded(statistics, "numbers").items())
    return {"name": name, "plot": plot, "labels": labels, "numbers": numbers, **facts}


def _made(configs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return how the configs were made: what several share is told once, under the first of them."""
    out: list[dict[str, Any]] = []
    seen: list[tuple[str, Any]] = []
    for name, facts in configs.items():
        entry: dict[str, Any] = {"name": name}
        for key in ("provenance", "sampling", "funnel"):
            is_new = facts[key] and (key, facts[key]) not in seen
            entry[key] = facts[key] if is_new else []
            seen.append((key, facts[key]))
        # Of configs along one run's way only the last tells all stages.
        is_part = any(_is_beginning(facts["stages"], other["stages"]) for other in configs.values())
        entry["stages"] = [] if is_part or ("stages", facts["stages"]) in seen else facts["stages"]
        seen.append(("stages", facts["stages"]))
        if any(entry[key] for key in ("provenance", "sampling", "funnel", "stages")):
            out.append(entry)
    return out


def _origins(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return how the texts of the configs came about, a paragraph each; one for all where it is the same."""
    said = {name: sentences(facts["origin"]) for name, facts in configs.items()}
    if len(set(said.values())) == 1:
        return list(said.values())[:1]
    return [f"{line(name)}: {text}" for name, text in said.items() if text]


def _is_beginning(stages: Sequence[Any], of: Sequence[Any]) -> bool:
    return len(stages) < len(of) and list(of[: len(stages)]) == list(stages)


def _metadata(
    configs: Mapping[str, Mapping[str, Any]],
    models: Sequence[str],
    licence: str,
    kept: Mapping[str, Any],
    data_files: Mapping[str, Mapping[str, str]] | None,
) -> str:
    import yaml

    own: dict[str, Any] = {"license": licence}
    languages = _languages(configs)
    own |= {"language": languages} if languages else {}
    rows = sum(sum(facts["splits"].values()) for facts in configs.values())
    own["size_categories"] = [next((name for limit, name in SIZES if rows < limit), "100M<n<1B")]
    own["task_categories"] = ["text-generation"]
    tags = list(dict.fromkeys([*_tags(configs, models), *kept.get("tags", [])]))
    own |= {"tags": tags} if tags else {}
    merged = {**kept, **own} | _loading_metadata(configs, kept, data_files)
    return "---\n" + yaml.safe_dump(merged, sort_keys=False, allow_unicode=True, width=200) + "---"


def _tags(configs: Mapping[str, Mapping[str, Any]], models: Sequence[str]) -> list[str]:
    """Return the tags that the rows earn: `magpie` where instructions were synthesized, `synthetic` where any text was."""
    origins = [facts["origin"] for facts in configs.values()]
    tags = ["synthetic"] if any(is_synthetic(origin) for origin in origins) else []
    tags += ["magpie"] if any(is_magpie(origin) for origin in origins) else []
    return tags + [f"generator:{model}" for model in models if _REPO.fullmatch(model)]


def _loading_metadata(
    configs: Mapping[str, Mapping[str, Any]],
    kept: Mapping[str, Any],
    data_files: Mapping[str, Mapping[str, str]] | None,
) -> dict[str, Any]:
    """Return `dataset_info` and `configs`: those of others stay as they are."""
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


def _sizes(facts: Mapping[str, Any]) -> dict[str, int]:
    if set(facts["sizes"]) != set(facts["splits"]):
        return {}
    size = sum(split["num_bytes"] for split in facts["info"]["splits"])
    return {"download_size": sum(facts["sizes"].values()), "dataset_size": size}


def _languages(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the ISO codes of the languages that make up at least one in a hundred rows of a config."""
    found: dict[str, None] = {}
    for facts in configs.values():
        counts = facts["statistics"]["labels"].get("language", {}).get("counts", {})
        total = sum(counts.values())
        found |= {c.lower(): None for c, n in counts.items() if n >= 0.01 * total and _CODE.fullmatch(c)}
    return list(found)


def _config_names(kept: Mapping[str, Any]) -> set[str]:
    return {str(entry.get("config_name")) for entry in kept.get("configs") or [] if isinstance(entry, Mapping)}


def existing_metadata(text: str) -> dict[str, Any]:
    """Return the YAML block of a card that is there, or nothing where it cannot be read."""
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
    """Put what a person wrote before and behind the marks back where it stood."""
    if BEGIN not in existing or END not in existing:
        return page
    head, _, rest = existing.partition(BEGIN)
    before = re.sub(r"\A---\n.*?\n---\s*", "", head, flags=re.DOTALL).strip()
    after = rest.rpartition(END)[2].strip()
    metadata, _, body = page.partition(BEGIN)
    parts = [metadata.strip(), before, (BEGIN + body).strip(), after]
    return "\n\n".join(part for part in parts if part) + "\n"
