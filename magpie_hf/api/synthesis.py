"""`synthesize` and `run`: from a model or a recipe to a `datasets.Dataset`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from ..errors import ArgumentError, DatasetError, RunStopped, quoted
from ..execution.candidates import Shard, run_instructions
from ..execution.progress import log_lines_shown, show_summary
from ..execution.rejected import rejected_samples
from ..execution.runner import run_stage
from ..hub.names import REJECTED
from ..hub.schema import column_order
from ..recipe.schema import Recipe, bundled_recipes, load_recipe
from ..sampling import SamplingParams
from ..session.existing import check_continues
from ..session.preflight import check_stages, planned_stages
from ..session.publishing import prepared, publishing
from ..session.session import Session
from ..session.status import run_facts
from ..stage import Stage
from ..stages.instructions import Instructions
from ..stages.subset import Subset
from ..storage.disk import named_disk_errors
from ..storage.keys import content_fingerprint
from ..storage.loading import as_dataset, concatenated, with_row_columns
from ..storage.rundir import RunDir
from .recipes import RowSource, Sampling, check_options, synthesis_recipe


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from ..hub.publisher import Publisher
    from ..session.shape import Written


logger = logging.getLogger("magpie_hf")


class RunOptions(TypedDict, total=False):
    """Arguments of `run` that do not change which rows are generated; see `synthesize`."""

    output: str | Path | None
    shard: str | None
    accept_failures: bool
    allow_mixed: bool
    force: bool
    take_over: bool
    show_progress: bool | None


def synthesize(
    model: str = "",
    *,
    num_rows: int = 1000,
    turns: int = 1,
    system_prompt: str | None = None,
    preset: str | None = None,
    sampling: Sampling | Sequence[Sampling] | None = None,
    response_sampling: SamplingParams | Mapping[str, object] | None = None,
    engine: str | None = None,
    endpoint: str | Sequence[str] | None = None,
    output: str | Path | None = None,
    revision: str | None = None,
    seed: int = 0,
    template: Mapping[str, object] | None = None,
    budget: Mapping[str, object] | None = None,
    shard: str | None = None,
    accept_failures: bool = False,
    allow_mixed: bool = False,
    force: bool = False,
    take_over: bool = False,
    show_progress: bool | None = None,
    **engine_options: object,
) -> Dataset:
    """Synthesize instructions and responses with the Magpie method and return them as a Dataset.

    The model receives its chat template up to the position where the user's message would start. It generates that
    message, and then responds to it. To resume an interrupted run, make the same call again; a call with a larger
    `num_rows` generates only the additional rows.

    Args:
        model: Hub id, local directory, or "demo" (a bundled model for first experiments: no network, no GPU).
        num_rows: Number of accepted instructions.
        turns: Turns of each conversation; 1 is one instruction and its response.
        system_prompt: System prompt for the generation of instructions (the Magpie releases use none).
        preset: Name of a preset, e.g., "math" or "multilingual:de": a system prompt and sampling for a topic or a language.
        sampling: How instructions are sampled: one setting, or a grid of settings with `share`.
        response_sampling: How responses are sampled; greedy by default.
        engine: "transformers" (in this process), "vllm" (in a child process), "tgi" or "openai" (servers). Default:
            transformers, or the kind of server found at `endpoint`.
        endpoint: URL or URLs of the server, for "tgi" and "openai".
        output: Run directory. Default: a directory in the Hugging Face cache; equal requests get the same directory.
        revision: Branch, tag or commit of the model.
        seed: Base of all seeds.
        template: `kwargs` (e.g., {"enable_thinking": False}), `chat_template`, `date`.
        budget: `max_tokens_total`, `max_hours`, `max_cost`, `price_per_gpu_hour`, `num_gpus`.
        shard: "i/n": generate only part i of n (from 0); `magpie-hf merge` joins the parts.
        accept_failures: Finish rows that had only transient failures, as errors.
        allow_mixed: Continue even if the server changes its model during the run.
        force: Run in `output` even if it contains the run of another recipe; the dataset of that run is replaced.
        take_over: Take over the run directory immediately, even if another process owns it (e.g., in a killed pod).
        show_progress: Show a progress bar. Default: yes, unless `datasets.disable_progress_bars()` was called.
        **engine_options: Settings of the engine (`batch_size`, `dtype`, `concurrency`, `api_key_env`, …).

    Returns:
        A dataset with the columns of the released Magpie datasets, and `messages`.

    Raises:
        MagpieError: see `magpie_hf.errors`; a RunStopped can be resumed with the same call.
    """
    check_options(engine_options, synthesize, engine)
    recipe = synthesis_recipe(
        model,
        num_rows=num_rows,
        turns=turns,
        system_prompt=system_prompt,
        preset=preset,
        sampling=sampling,
        response_sampling=response_sampling,
        engine=engine,
        endpoint=endpoint,
        engine_options=engine_options,
        revision=revision,
        seed=seed,
        template=template,
        budget=budget,
    )
    return run(
        recipe,
        output=output,
        shard=shard,
        accept_failures=accept_failures,
        allow_mixed=allow_mixed,
        force=force,
        take_over=take_over,
        show_progress=show_progress,
    )


def run(
    recipe: str | Path | Mapping[str, object] | Recipe,
    overrides: Mapping[str, object] | None = None,
    *,
    output: str | Path | None = None,
    dataset: RowSource | None = None,
    shard: str | None = None,
    accept_failures: bool = False,
    allow_mixed: bool = False,
    force: bool = False,
    take_over: bool = False,
    show_progress: bool | None = None,
) -> Dataset | DatasetDict:
    """Run a recipe (a YAML file, the name of a bundled recipe, or a mapping) and return its Dataset.

    With `output.test_size` in the recipe, a DatasetDict with the splits `train` and `test` is returned.

    `overrides` sets dotted keys, e.g., {"num_rows": 1000, "sampling.temperature": 0.9}. `dataset` gives the rows in
    memory that the recipe annotates, if its `dataset` has a `fingerprint` instead of a path. The other arguments are
    those of `synthesize`.

    Raises:
        RecipeError: the recipe cannot be read or is invalid; the error names file, line and key.
        MagpieError: see `magpie_hf.errors`; a RunStopped can be resumed with the same call.
    """
    given = recipe.raw if isinstance(recipe, Recipe) else recipe
    built = recipe if isinstance(recipe, Recipe) and not overrides else load_recipe(given, overrides)
    part = Shard.parse(shard)
    if part.parts > 1 and built.dataset:
        raise ArgumentError(
            "shard can only be used to synthesize rows, but this recipe annotates an existing dataset.",
            hint="Annotate parts of the dataset instead, e.g., dataset.shard(…).",
            key="shard",
        )
    rows = _source_rows(built, dataset)
    is_shown = show_progress is not False
    with (
        log_lines_shown() if is_shown else contextlib.nullcontext(),
        RunDir(output_path(built, output)).own(take_over=take_over) as run_dir,
    ):
        check_continues(built, run_dir, force=force)
        session = Session(
            built,
            run_dir,
            accept_failures=accept_failures,
            allow_mixed=allow_mixed,
            show_progress=show_progress,
        )
        run_dir.state.shard = (part.part, part.parts)
        with session.recorded(), named_disk_errors(run_dir.path):
            stages = planned_stages(built, part, rows.column_names if rows is not None else ())
            check_stages(session, stages, rows)
            try:
                with publishing(built, run_dir, rows) as publisher:
                    written = _run_stages(session, stages, part, rows, publisher)
            except RunStopped as stop:
                stop.data.setdefault("output", str(run_dir.path))
                raise
        (show_summary if is_shown else logger.info)(session.summary(_count(written)))
        return written


def _source_rows(recipe: Recipe, dataset: RowSource | None) -> Dataset | None:
    """Return the rows that a recipe annotates; None if it generates its own."""
    source = recipe.dataset
    if not source:
        return None
    if dataset is not None:
        rows = as_dataset(dataset)
    elif source.get("path") or source.get("parts"):
        parts = source.get("parts") or [source]
        _check_finished(parts)
        rows = concatenated(parts)
    else:
        raise ArgumentError(
            "The recipe annotates rows that were passed in memory, and they were not passed to this call.",
            hint="Call magpie_hf.annotate with the same dataset again, or set dataset.path in the recipe.",
        )
    if source.get("fingerprint") not in (None, content_fingerprint(rows)):
        raise ArgumentError(
            "The content of the dataset differs from the fingerprint in the recipe.",
            hint="Pass the original dataset, or use another output to annotate this one.",
        )
    if "num_rows" in recipe.raw and recipe.num_rows < len(rows):
        rows = rows.select(range(recipe.num_rows))
    return with_row_columns(rows)


def _check_finished(parts: Sequence[Mapping[str, object]]) -> None:
    """Raise DatasetError if a source dataset is the run of a bundled recipe that has not been run here."""
    for path in (str(part.get("path")) for part in parts):
        if path in bundled_recipes() and not Path(path).exists():
            raise DatasetError(
                f"The rows of the recipe {quoted(path)} are needed first: the directory {quoted(path)} does not exist.",
                hint=f"Run magpie-hf run {path} --output {path}, or set `dataset` to the directory of its run.",
                path=path,
            )


def _run_stages(
    session: Session, stages: list[Stage], shard: Shard, rows: Dataset | None, publisher: Publisher | None = None
) -> Written:
    from ..session.output import write_output, write_subset
    from ..session.shape import Shape, shape_of, splits_of

    run_dir = session.run_dir
    publisher = publisher if shard.parts == 1 else None  # shards are published after they are merged
    if rows is None:
        first, *stages = stages
        assert isinstance(first, Instructions)  # noqa: S101 (the recipe was checked)
        rows = run_instructions(first, session.recipe.num_rows, session.environment(), shard)
    for stage in stages:
        if isinstance(stage, Subset):
            files = write_subset(rows, run_dir, stage.config, session.used_stages())
            if publisher is not None:
                ordered = rows.select_columns(column_order(rows.column_names))
                _announce(publisher, {"train": ordered}, stage.config, files, is_subset=True)
            continue
        rows = run_stage(stage, rows, session.environment_of(stage))
    named = {stage.config for stage in session.recipe.stages if isinstance(stage, Subset)}
    named |= {REJECTED} if session.recipe.output.get("rejected") else set()
    run_dir.state.subsets = {name: saved for name, saved in run_dir.state.subsets.items() if name in named}
    # A shard leaves out stages that need all rows, so its rows get their form after they are merged.
    shape = shape_of(session.recipe, session.template_of) if shard.parts == 1 else Shape()
    file_format = session.recipe.output.get("format", "parquet")
    rows = rows.select_columns(column_order(rows.column_names))
    written = write_output(rows, run_dir, file_format, session.used_stages(), shape=shape)
    if session.recipe.output.get("report"):
        from ..reports import write_report

        known, funnel = run_facts(run_dir.path)
        write_report(rows, run_dir.path / "report.html", run=known, funnel=funnel)
    if publisher is not None:
        output = run_dir.state.output
        files = list(output.files) if output else []
        _announce(publisher, splits_of(written), publisher.settings.config, files, described=rows)
    if session.recipe.output.get("rejected"):
        _write_rejected(session, shard, publisher)
    return written


def _write_rejected(session: Session, shard: Shard, publisher: Publisher | None) -> None:
    """Write the rejected samples as a config, after the accepted rows: the first config on the Hub becomes the default."""
    from ..session.output import write_subset

    stage = session.recipe.stages[0]
    assert isinstance(stage, Instructions)  # noqa: S101 (the recipe was checked)
    rows = rejected_samples(stage, session.recipe.num_rows, session.environment(), shard)
    files = write_subset(rows, session.run_dir, REJECTED, session.used_stages()[:1])
    if publisher is not None and len(rows):
        _announce(publisher, {"train": rows}, REJECTED, files, is_subset=True)


def _announce(
    publisher: Publisher,
    splits: Mapping[str, Dataset],
    config: str,
    files: list[str],
    *,
    is_subset: bool = False,
    described: Dataset | None = None,
) -> None:
    place = publisher.run_dir.path
    known, funnel = run_facts(place, config if is_subset else None)
    ready = prepared(place, publisher.settings, splits, config, files, run=known, funnel=funnel, described=described)
    if ready is not None:
        publisher.ready(ready)


def _count(written: Written) -> int:
    from ..session.shape import splits_of

    return sum(len(rows) for rows in splits_of(written).values())


def output_path(recipe: Recipe, output: str | Path | None = None) -> Path:
    """Return the run directory: `output`, `output.path` of the recipe, or a directory in the Hugging Face cache."""
    given = output or recipe.output.get("path")
    if given:
        return Path(given).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "magpie" / f"{recipe.name}-{recipe.hash}"
