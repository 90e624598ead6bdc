"""The one-call functions for rows that are there: annotate, select, look, describe."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, quoted
from ..session.status import run_facts
from ..storage.keys import content_fingerprint
from ..storage.loading import as_dataset, with_row_columns
from .synthesis import run


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("magpie_hf")


def annotate(
    dataset: Any,
    annotations: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    *,
    engine: str | Mapping[str, Any] | None = None,
    judge: str = "separate",
    guard: str | Mapping[str, Any] | None = None,
    base: str | Mapping[str, Any] | None = None,
    model: str | None = None,
    output: str | Path | None = None,
    seed: int = 0,
    budget: Mapping[str, Any] | None = None,
    accept_failures: bool = False,
    allow_mixed: bool = False,
    force: bool = False,
    take_over: bool = False,
    show_progress: bool | None = None,
) -> Dataset:
    """Annotate rows and return them with the new columns; interrupted in any way, the same call goes on.

    Args:
        dataset: A Dataset with `instruction` (and `response` where an annotation reads it) or conversations; a DataFrame
            or a list of rows; or a path or Hub id.
        annotations: One or several names ("quality", "difficulty", "category", "language", "flags", "safety", "reward",
            "reward_difference", "neighbors", "lengths"), or mappings with `stage` and its settings.
        engine: Who judges: a model's name, or a mapping with `model`, `kind`, `endpoint` and the engine's settings.
        judge: "separate", or "combined": quality, difficulty and category in one request.
        guard: Who judges safety, given as `engine` is; Llama Guard 2 by default.
        base: The base model for "reward_difference", given as `engine` is.
        model: Whose tokens "lengths" counts; without it, characters only.
        output: Run directory; by default one in the Hugging Face cache, named after what is asked.
        seed: Base of all seeds.
        budget: As in `synthesize`.
        accept_failures: Finish rows that met only transient failures as errors.
        allow_mixed: Go on although the server changed its model in mid-run.
        force: Run in `output` even if it holds the run of another recipe, whose dataset is then replaced.
        take_over: Take the run directory from the process that owns it, at once (e.g., a pod that was killed).
        show_progress: Draw a bar (default: as `datasets.map` does, unless `datasets.disable_progress_bars()` was called).

    Returns:
        The dataset with the columns of the annotations; what could not be annotated is null, and counted.

    Raises:
        MagpieError: see `magpie_hf.errors`; a RunStopped can be resumed by the same call.
    """
    raw, rows = annotation_recipe(
        dataset,
        annotations,
        engine=engine,
        judge=judge,
        guard=guard,
        base=base,
        model=model,
        seed=seed,
        budget=budget,
    )
    return run(
        raw,
        output=output,
        dataset=rows,
        accept_failures=accept_failures,
        allow_mixed=allow_mixed,
        force=force,
        take_over=take_over,
        show_progress=show_progress,
    )


def annotation_recipe(
    dataset: Any,
    annotations: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    *,
    engine: str | Mapping[str, Any] | None = None,
    judge: str = "separate",
    guard: str | Mapping[str, Any] | None = None,
    base: str | Mapping[str, Any] | None = None,
    model: str | None = None,
    seed: int = 0,
    budget: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Dataset | None]:
    """Return the recipe that `annotate` runs, and the rows where they are handed in; arguments as there."""
    rows = None if isinstance(dataset, (str, Path)) else as_dataset(dataset)
    entries = [annotations] if isinstance(annotations, (str, Mapping)) else annotations
    if not isinstance(entries, Sequence) or not all(isinstance(entry, (str, Mapping)) for entry in entries):
        raise ArgumentError(
            f"{quoted(annotations, 60)} is not a list of annotations.",
            hint='Give names or mappings, as ["quality", {"stage": "language", "languages": ["EN", "DE"]}].',
            key="annotations",
        )
    roles = {name: _role_of(given, name) for name, given in (("judge", engine), ("guard", guard), ("base", base))}
    stages = [{"stage": entry} if isinstance(entry, str) else dict(entry) for entry in entries]
    source = {"path": str(dataset)} if rows is None else {"fingerprint": content_fingerprint(rows)}
    raw: dict[str, Any] = {"name": "annotate", "dataset": source, "seed": seed, "stages": stages}
    raw |= {name: role for name, role in roles.items() if role}
    if judge != "separate":
        raw["judge"] = {**raw.get("judge", {}), "mode": judge}
    if raw.get("judge", {}).get("model") == "demo" and model is None:
        raw["model"] = "demo"  # its guard, reward model and embedder go with it
    raw |= {name: value for name, value in {"model": model, "budget": budget}.items() if value is not None}
    return raw, rows


def _role_of(given: str | Mapping[str, Any] | None, role: str) -> dict[str, Any]:
    """Return a role's recipe section: "engine" settings may stand beside the model's name."""
    if given is None:
        return {}
    if isinstance(given, str):
        return {"model": given}
    if not isinstance(given, Mapping):
        argument = "engine" if role == "judge" else role
        raise ArgumentError(
            f"{argument} = {quoted(given, 60)} cannot be used.",
            hint=f'Give a model\'s name, or a mapping, as {argument}={{"model": …, "kind": "vllm"}}.',
            key=argument,
        )
    section = {key: given[key] for key in ("model", "revision", "template", "engine") if key in given}
    rest = {key: value for key, value in given.items() if key not in section}
    return section | ({"engine": {**rest, "kind": rest.get("kind", "transformers")}} if rest else {})


def select(
    dataset: Any,
    selection: str | Mapping[str, Any] = "",
    *,
    return_funnel: bool = False,
    **changes: Any,
) -> Any:
    """Return the rows that a selection keeps, in their order.

    Args:
        dataset: A Dataset, DataFrame or list of rows, or a path or Hub id.
        selection: A named selection ("air-filter", "pro-filter2", …: `magpie_hf.selection.filters.SELECTIONS`), an expression
            ("quality >= good and language == 'EN'"), or a mapping with the fields of `filters.Selection`.
        return_funnel: Return (dataset, funnel): how many rows each condition left.
        **changes: Fields of `filters.Selection` to change: `longest`, `sample`, `quotas`, `one_per_group`, …

    Raises:
        DatasetError: a column that a condition reads is missing; says which annotation writes it.
        ArgumentError: a selection or expression cannot be used.
    """
    from ..selection.filters import nothing_kept, select_rows

    rows = as_dataset(dataset)
    rows = with_row_columns(rows) if isinstance(dataset, (str, Path)) else rows
    selected = select_rows(rows, selection, **changes)
    for step in selected.funnel:
        logger.info("%s: %d of %d rows", step.condition, step.rows_out, step.rows_in)
    warning = nothing_kept(selected)
    if warning:
        logger.warning(warning)
    kept = rows.select(selected.indices)
    return (kept, selected.funnel) if return_funnel else kept


def report(
    dataset: Any,
    path: str | Path = "report.html",
    *,
    compare: Mapping[str, Any] | None = None,
    title: str | None = None,
    **options: Any,
) -> Path:
    """Write a report of a dataset: one HTML file that needs no network.

    Args:
        dataset: A Dataset, DataFrame or list of rows, or a path or Hub id; of a run directory, the run's recipe and funnel are shown too.
        path: The file to write.
        compare: Up to three other datasets for the map of topics, by name.
        title: Heading of the page.
        **options: `sample_rows`, `seed`: how many rows texts and maps are drawn from, and how.

    Returns:
        The file's path.
    """
    from ..reports import write_report

    rows, known, funnel = as_dataset(dataset), None, None
    if isinstance(dataset, (str, Path)):
        rows = with_row_columns(rows)
        known, funnel = run_facts(Path(dataset))
    if not isinstance(compare or {}, Mapping):
        raise ArgumentError(
            f"compare = {quoted(compare, 60)} cannot be used.",
            hint='Give datasets by name, as compare={"v1": "me/my-dataset-v1"}.',
            key="compare",
        )
    others = {name: as_dataset(other) for name, other in (compare or {}).items()}
    return Path(write_report(rows, path, title=title, run=known, funnel=funnel, compare=others or None, **options))


def write_card(dataset: Any, path: str | Path | None = None, **options: Any) -> Path:
    """Write a dataset's card; made again, it keeps what a person wrote outside its marks.

    Args:
        dataset: A Dataset, DataFrame or list of rows, or a path or Hub id; of a run directory, its recipe, funnel and cost are included.
        path: The file; by default README.md in the run's directory, or here.
        **options: `repo_id`, `config_name`, `title`, `license`; see `magpie_hf.hub.card.build_card`.

    Raises:
        ArgumentError: the licence of the model's data is not known, and none is given.
    """
    from ..hub import card

    rows, known, funnel, place = as_dataset(dataset), None, None, Path("README.md")
    if isinstance(dataset, (str, Path)):
        rows = with_row_columns(rows)
        known, funnel = run_facts(Path(dataset))
        place = Path(dataset).expanduser() / "README.md" if known else place
    return card.write_card(rows, path or place, run=known, funnel=funnel, **options)
