"""Dataset cards: everything in them is computed from the rows, or was given; generated text cannot break out.

What a person writes into the card outside the marks stays when it is made again.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import StorageError
from ..reports import svg
from ..reports.statistics import dataset_statistics
from .licences import Licence, licence_of


if TYPE_CHECKING:
    from datasets import Dataset

BEGIN, END = "<!-- magpie: begin -->", "<!-- magpie: end -->"
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
SAMPLES = 3
SAMPLE_CHARACTERS = 800
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_CODE = re.compile(r"[A-Za-z]{2,3}")
_LABELS = ("input_quality", "difficulty", "task_category", "language", "safety")
_NUMBERS = ("instruction_tokens", "response_tokens", "instruct_reward", "reward_difference", "min_neighbor_distance")


def build_card(
    dataset: Dataset,
    *,
    repo_id: str = "me/my-dataset",
    config_name: str = "default",
    title: str | None = None,
    run: Mapping[str, Any] | None = None,
    funnel: Sequence[Mapping[str, Any]] | None = None,
    license: str | None = None,
    existing: str = "",
) -> str:
    """Return the card of a dataset as Markdown with its YAML metadata.

    `run`: {"recipe", "totals", "stages"} of the run that made it. `funnel`: the selection's steps. `license`: a Hub
    licence id; by default that of data made with the recipe's model. `existing`: a card that is there already: what
    stands outside its marks, and metadata that is not ours, is kept.

    Raises:
        ArgumentError: the licence of the model's data is not known, and none is given.
    """
    recipe = dict((run or {}).get("recipe") or {})
    model = str(recipe.get("model") or _generator(dataset) or "")
    licence = licence_of(model, license) if model or not license else Licence(license)
    facts = dataset_statistics(dataset)
    page = _template().render(
        metadata=_metadata(dataset, facts, model, licence, existing),
        begin=BEGIN,
        end=END,
        title=title or repo_id.rpartition("/")[2],
        summary=recipe.get("description") or f"{facts['rows']:,} conversations synthesized by {model or 'a language model'} alone.",
        licence=licence,
        provenance=_provenance(recipe, model),
        sampling=_sampling(recipe),
        stages=_stages(run),
        funnel=[dict(step) if isinstance(step, Mapping) else step._asdict() for step in funnel or ()],
        facts=facts,
        labels=[(name, facts["labels"][name] | {"total": sum(facts["labels"][name]["counts"].values()) or 1})
                for name in _LABELS if name in facts["labels"]],
        numbers=[(name, facts["numbers"][name]) for name in _NUMBERS if facts["numbers"].get(name, {}).get("count")],
        limits=list(_limits(facts)),
        samples=_samples(dataset),
        repo_id=repo_id,
        config_name=config_name,
        totals=_totals(run),
        version=__version__,
    )  # fmt: skip
    return _with_own_sections(_spaced(page), existing)


def write_card(dataset: Dataset, path: str | Path, **options: Any) -> Path:
    """Write the card to a file; sections of one's own in the file that is there are kept."""
    target = Path(path)
    try:
        existing = target.read_text("utf-8") if target.is_file() else ""
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(build_card(dataset, existing=existing, **options), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"The card cannot be written: {error.strerror or error}.", where=str(target)) from error
    return target


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
        "fenced": fenced,
        "percent": svg.percent,
        "compact": svg.compact,
    }
    return environment.get_template("template.md.jinja")


def line(text: object) -> str:
    """Return a text as one line of Markdown with nothing in it that Markdown or HTML would obey."""
    plain = " ".join("".join(svg.visible(c) for c in str(text)).split())
    return html.escape(re.sub(r"([\\`*_{}\[\]#|!~])", r"\\\1", plain[:2000]), quote=False)


def cell(text: object) -> str:
    """Return a text for a table's cell: one line, escaped, cut."""
    whole = str(text)
    return line(whole if len(whole) <= 300 else whole[:300] + " …")


def fenced(text: object) -> str:
    """Return a text in a fence that nothing in it can close, cut, without hidden characters."""
    whole = str(text)
    cut = "".join(svg.visible(c) for c in whole[:SAMPLE_CHARACTERS])
    cut = cut if len(whole) <= SAMPLE_CHARACTERS else f"{cut} … ({len(whole):,} characters)"
    longest = max((len(run) for run in re.findall(r"`+", cut)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{cut}\n{fence}"


def _spaced(page: str) -> str:
    """Put one blank line around headings, tables, quotes and lists, and nothing between other lines than was there.

    What stands in a fence stays as it is.
    """
    out: list[str] = []
    fence = ""
    for text in page.splitlines():
        if fence:
            out.append(text)
            fence = "" if text.strip() == fence else fence
            continue
        opened = re.match(r"`{3,}", text)
        kind, before = _kind(text), _kind(out[-1]) if out else ""
        if out and out[-1].strip() and text.strip() and (opened or kind != before or kind == "heading"):
            out.append("")
        if text.strip() or (out and out[-1].strip()):
            out.append(text)
        fence = opened[0] if opened else ""
    return "\n".join(out).strip() + "\n"


def _kind(text: str) -> str:
    """Return what a line of Markdown is: blocks of different kinds need a blank line between them."""
    for mark, kind in (("#", "heading"), ("|", "table"), (">", "quote"), ("- ", "list"), ("---", "rule")):
        if text.startswith(mark):
            return kind
    return "text"


def _metadata(dataset: Dataset, facts: Mapping[str, Any], model: str, licence: Licence, existing: str) -> str:
    import yaml

    kept = _existing_metadata(existing)
    tags = ["synthetic", "magpie", *([f"generator:{model}"] if _REPO.fullmatch(model) else [])]
    own: dict[str, Any] = {"license": licence.id}
    languages = facts["labels"].get("language", {}).get("counts", {})
    total = sum(languages.values())
    listed = [code.lower() for code, count in languages.items() if count >= 0.01 * total and _CODE.fullmatch(code)]
    own |= {"language": listed} if listed else {}
    own["size_categories"] = [next((name for limit, name in SIZES if facts["rows"] < limit), "10M<n<100M")]
    own["task_categories"] = ["text-generation"]
    own["tags"] = list(dict.fromkeys([*tags, *kept.get("tags", [])]))
    return "---\n" + yaml.safe_dump({**kept, **own}, sort_keys=False, allow_unicode=True) + "---"


def _existing_metadata(text: str) -> dict[str, Any]:
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


def _generator(dataset: Dataset) -> str | None:
    if "model" not in dataset.column_names or not len(dataset):
        return None
    found = dataset.select_columns(["model"])[0]["model"]
    return str(found) if found else None


def _provenance(recipe: Mapping[str, Any], model: str) -> list[tuple[str, str]]:
    facts = [("model", model), *((key, recipe.get(key)) for key in ("revision", "num_rows", "seed", "order"))]
    judge = recipe.get("judge")
    facts.append(("judge", judge.get("model") if isinstance(judge, Mapping) else None))
    return [(key, str(value)) for key, value in facts if value not in (None, "")]


def _sampling(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = recipe.get("sampling") or []
    points = given if isinstance(given, list) else [given]
    prompt = recipe.get("system_prompt")
    return [
        {"temperature": p.get("temperature", 1.0), "top_p": p.get("top_p", 1.0), "share": p.get("share", 1),
         "system_prompt": p.get("system_prompt", prompt)}
        for p in points
    ]  # fmt: skip


def _stages(run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    out = []
    for state in ((run or {}).get("stages") or {}).values():
        counters = state.get("counters", {})
        tokens = counters.get("prompt_tokens", 0) + counters.get("completion_tokens", 0)
        rows = {key: f"{state[key]:,}" if key in state else "" for key in ("rows_in", "rows_out")}
        out.append({"name": state.get("name", ""), "tokens": f"{tokens:,}" if tokens else "", **rows})
    return out


def _limits(facts: Mapping[str, Any]) -> Any:
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
        yield f"{svg.percent(spare / facts['rows'])} of the rows are near duplicates of another row that is there."
    cut = facts["labels"].get("response_finish_reason", {}).get("counts", {})
    if cut.get("length"):
        yield f"{svg.percent(cut['length'] / sum(cut.values()))} of the responses ran into their length limit."
    yield "All texts were written by a language model; facts in them were not checked."


def _samples(dataset: Dataset) -> list[dict[str, str]]:
    if "instruction" not in dataset.column_names or "response" not in dataset.column_names:
        return []
    rows = dataset.select_columns(["instruction", "response"]).select(range(min(SAMPLES, len(dataset))))
    return [{key: row[key] or "" for key in ("instruction", "response")} for row in rows]


def _totals(run: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    totals = (run or {}).get("totals") or {}
    out = [("Tokens", f"{totals['tokens']:,}")] if totals.get("tokens") else []
    if totals.get("engine_seconds"):
        out.append(("engine-hours", f"{totals['engine_seconds'] / 3600:.2f}"))
    if totals.get("cost") is not None:
        out.append(("cost", f"{totals['cost']:.2f}"))
    return out
