"""`annotate`, `select`, `report` and `write_card`: functions on existing rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict, Unpack, overload

from ..errors import ArgumentError, quoted
from ..hub.schema import column_order
from ..session.status import run_facts
from ..storage.loading import as_dataset, rows_with_all_columns, run_splits, with_row_columns
from ..storage.rundir import is_run
from .recipes import Annotations, ModelSettings, RowSource, annotation_recipe, check_options
from .synthesis import run


if TYPE_CHECKING:
    from datasets import Dataset

    from ..selection.filters import FunnelStep
    from ..storage.state import JsonObject, RunFacts

logger = logging.getLogger("magpie_hf")


def annotate(
    dataset: RowSource,
    annotations: Annotations,
    *,
    judge: ModelSettings | None = None,
    guard: ModelSettings | None = None,
    base: ModelSettings | None = None,
    model: str | None = None,
    engine: str | None = None,
    endpoint: str | Sequence[str] | None = None,
    judge_mode: str = "separate",
    judge_rubrics: str = "default",
    tokenizer: str | None = None,
    output: str | Path | None = None,
    seed: int = 0,
    budget: Mapping[str, object] | None = None,
    accept_failures: bool = False,
    allow_mixed: bool = False,
    force: bool = False,
    take_over: bool = False,
    show_progress: bool | None = None,
    **engine_options: object,
) -> Dataset:
    """Annotate rows and return them with the new columns. To resume an interrupted run, make the same call again.

    Args:
        dataset: A Dataset with `instruction` (and `response` where an annotation reads it) or conversations; a
            DataFrame or a list of rows; or a path or Hub id.
        annotations: One or several names ("quality", "difficulty", "category", "language", "flags", "safety", "reward",
            "reward_difference", "neighbors", "lengths"), or mappings with `stage` and its settings.
        judge: The model that annotates quality, difficulty, category and your own rubrics: a name, or a mapping with
            `model` and, optionally, `revision`, `template` and `engine` (`kind`, `endpoint` and its settings).
        guard: The model that annotates safety, given like `judge`; Llama Guard 2 by default.
        base: The base model for "reward_difference", given like `judge`.
        model: The model of stages that generate text ("turns", "preference_responses", your own row stages).
        engine: The engine of all these models: "transformers", "vllm", "tgi" or "openai", as in `synthesize`; or "chat",
            a chat API, for judge, guard and "preference_responses". The mapping of a model can set another `engine`.
        endpoint: URL or URLs of the server, for "tgi", "openai" and "chat", as in `synthesize`. All URLs serve the same model.
        judge_mode: "separate", or "combined": quality, difficulty and category in one request.
        judge_rubrics: The set of rubrics for quality, difficulty and category: "default", or "reference", whose labels mean
            what those of the Magpie releases mean. Do not mix rows labeled with different sets.
        tokenizer: The model whose tokenizer counts tokens for "lengths"; without one, only characters are counted.
        output: Run directory. Default: a directory in the Hugging Face cache; equal requests get the same directory.
        seed: Base of all seeds.
        budget: As in `synthesize`.
        accept_failures: Finish rows that had only transient failures, as errors.
        allow_mixed: Continue even if the server changes its model during the run.
        force: Run in `output` even if it contains the run of another recipe; the dataset of that run is replaced.
        take_over: Take over the run directory immediately, even if another process owns it (e.g., in a killed pod).
        show_progress: Show a progress bar. Default: yes, unless `datasets.disable_progress_bars()` was called.
        **engine_options: Settings of the engine (`batch_size`, `dtype`, `concurrency`, `api_key_env`, …).

    Returns:
        The dataset with the columns of the annotations. Values that could not be determined are null; the run counts
        them, with the reason.

    Raises:
        MagpieError: see `magpie_hf.errors`; a RunStopped can be resumed with the same call.
    """
    check_options(engine_options, annotate, engine)
    recipe, rows = annotation_recipe(
        dataset,
        annotations,
        judge=judge,
        guard=guard,
        base=base,
        model=model,
        engine=engine,
        endpoint=endpoint,
        engine_options=engine_options,
        judge_mode=judge_mode,
        judge_rubrics=judge_rubrics,
        tokenizer=tokenizer,
        seed=seed,
        budget=budget,
    )
    return run(
        recipe,
        output=output,
        dataset=rows,
        accept_failures=accept_failures,
        allow_mixed=allow_mixed,
        force=force,
        take_over=take_over,
        show_progress=show_progress,
    )


class SelectionChanges(TypedDict, total=False):
    """Fields of `magpie_hf.selection.selections.Selection` that `select` takes as keywords."""

    name: str
    where: str
    one_per_group: bool | str
    quotas: Mapping[str, Mapping[str, float]]
    longest: int | None
    shortest: int | None
    length_column: str
    sample: float | None
    seed: int
    shuffle: int | None
    source: str


@overload
def select(
    dataset: RowSource,
    selection: str | Mapping[str, object] = "",
    *,
    return_funnel: Literal[False] = False,
    **changes: Unpack[SelectionChanges],
) -> Dataset: ...


@overload
def select(
    dataset: RowSource,
    selection: str | Mapping[str, object] = "",
    *,
    return_funnel: Literal[True],
    **changes: Unpack[SelectionChanges],
) -> tuple[Dataset, list[FunnelStep]]: ...


def select(
    dataset: RowSource,
    selection: str | Mapping[str, object] = "",
    *,
    return_funnel: bool = False,
    **changes: Unpack[SelectionChanges],
) -> Dataset | tuple[Dataset, list[FunnelStep]]:
    """Return the rows that a selection keeps, in their order.

    Args:
        dataset: A Dataset, DataFrame or list of rows, or a path or Hub id.
        selection: The name of a selection ("air-filter", "pro-filter2", …: `magpie_hf.selection.filters.SELECTIONS`),
            an expression ("flags.refusal", "quality >= good and language == 'EN'"), or a mapping with the fields of
            `filters.Selection`. A text that is not the name of a selection is an expression.
        return_funnel: Return (dataset, funnel): how many rows remain after each condition.
        **changes: Fields of `filters.Selection` to change: `longest`, `shortest`, `sample`, `quotas`, `one_per_group`, …

    Raises:
        DatasetError: a column that a condition reads is missing; the hint names the annotation that adds it.
        ArgumentError: the selection or expression is invalid.
    """
    kept = selected_rows(dataset, selection, changes)
    for step in kept.funnel:
        logger.info("%s: %d of %d rows", step.condition, step.rows_out, step.rows_in)
    if kept.warning:
        logger.warning(kept.warning)
    return (kept.rows, kept.funnel) if return_funnel else kept.rows


class Kept(NamedTuple):
    """The rows that a selection keeps, its funnel, and a warning if there are none."""

    rows: Dataset
    funnel: list[FunnelStep]
    warning: str | None


def selected_rows(dataset: RowSource, selection: str | Mapping[str, object], changes: SelectionChanges) -> Kept:
    """Return rows and funnel of a selection, and a warning if no row remains; arguments and errors as in `select`."""
    from ..selection.filters import nothing_kept, select_rows

    rows = source_of(dataset).rows
    selected = select_rows(rows, selection, **changes)
    return Kept(rows.select(selected.indices), selected.funnel, nothing_kept(selected))


class Source(NamedTuple):
    """Rows and, for a run directory, its path, its recorded facts (recipe, stages, cost) and its funnel."""

    rows: Dataset
    run: RunFacts | None = None
    funnel: list[JsonObject] | None = None
    run_dir: Path | None = None


def source_of(dataset: RowSource) -> Source:
    """Load the rows of an argument. Rows from a path or the Hub also get the columns that stages read."""
    rows = as_dataset(dataset)
    if not isinstance(dataset, (str, Path)):
        return Source(rows)
    place = Path(dataset).expanduser()
    run, funnel = run_facts(place)
    return Source(with_row_columns(rows), run, funnel, place if run else None)


def described(dataset: RowSource) -> Source:
    """Load the rows that a report or card describes: of a run, with all columns and from all splits."""
    if not isinstance(dataset, (str, Path)):
        return source_of(dataset)
    place = Path(dataset).expanduser()
    whole = rows_with_all_columns(place) if is_run(place) else None
    if whole is None:
        return source_of(dataset)
    run, funnel = run_facts(place)
    return Source(with_row_columns(whole.select_columns(column_order(whole.column_names))), run, funnel, place)


def report(
    dataset: RowSource,
    path: str | Path = "report.html",
    *,
    compare: Mapping[str, RowSource] | None = None,
    title: str | None = None,
    sample_rows: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a report of a dataset: one HTML file that needs no network.

    Args:
        dataset: A Dataset, DataFrame or list of rows, or a path or Hub id. For a run directory, the run's recipe and
            funnel are shown too.
        path: The file to write.
        compare: Up to three other datasets for the map of topics, by name.
        title: Heading of the page.
        sample_rows: Number of rows that sample texts, verbs and the map are drawn from.
        seed: Seed of this sample.

    Returns:
        The path of the file.
    """
    from ..reports.page import SAMPLE_ROWS, write_report

    if not isinstance(compare or {}, Mapping):
        raise ArgumentError(
            f"Invalid value compare = {quoted(compare, 60)}.",
            hint='Give datasets by name, e.g., compare={"v1": "me/my-dataset-v1"}.',
            key="compare",
        )
    source = described(dataset)
    others = {name: as_dataset(other) for name, other in (compare or {}).items()}
    return write_report(
        source.rows,
        path,
        title=title,
        run=source.run,
        funnel=source.funnel,
        compare=others or None,
        sample_rows=SAMPLE_ROWS if sample_rows is None else sample_rows,
        seed=seed,
    )


def write_card(
    dataset: RowSource,
    path: str | Path | None = None,
    *,
    repo_id: str = "me/my-dataset",
    config_name: str = "default",
    title: str | None = None,
    license: str | None = None,
) -> Path:
    """Write the card of a dataset. If the card exists, your own sections (outside the markers) are kept.

    Args:
        dataset: A Dataset, DataFrame or list of rows, or a path or Hub id. For a run directory, its recipe, funnel and
            cost are included.
        path: The file. Default: README.md in the run directory or, for other rows, in the current directory.
        repo_id: The Hub repository that the code examples of the card load.
        config_name: The config of the rows.
        title: Heading of the card.
        license: A Hub license id. Required if the license of the model is not known.

    Returns:
        The path of the file.

    Raises:
        ArgumentError: the license of the model is not known, and `license` is not given.
    """
    from ..hub import card

    source = described(dataset)
    splits = run_splits(source.run_dir) if source.run_dir is not None else {}
    return card.write_card(
        source.rows,
        path or (source.run_dir or Path()) / "README.md",
        run=source.run,
        funnel=source.funnel,
        repo_id=repo_id,
        config_name=config_name,
        title=title,
        license=license,
        splits=splits or None,
    )
