"""The one-call functions: a model in, a plain `datasets.Dataset` out."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, RunStopped, quoted
from ..execution.candidates import Shard, run_instructions
from ..execution.progress import log_lines_shown, show_summary
from ..execution.runner import run_stage
from ..hub.schema import column_order
from ..recipe.schema import Recipe, load_recipe
from ..sampling import GridPoint, SamplingParams
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
from ..storage.loading import as_dataset, load_rows, with_row_columns
from ..storage.rundir import RunDir


if TYPE_CHECKING:
    from datasets import Dataset

    from ..hub.publisher import Publisher


logger = logging.getLogger("magpie_hf")
Sampling = SamplingParams | GridPoint | Mapping[str, Any]


def synthesize(
    model: str = "",
    *,
    num_rows: int = 1000,
    turns: int = 1,
    system_prompt: str | None = None,
    sampling: Sampling | Sequence[Sampling] | None = None,
    response_sampling: SamplingParams | Mapping[str, Any] | None = None,
    engine: str = "transformers",
    endpoint: str | Sequence[str] | None = None,
    output: str | Path | None = None,
    revision: str | None = None,
    seed: int = 0,
    template: Mapping[str, Any] | None = None,
    budget: Mapping[str, Any] | None = None,
    shard: str | None = None,
    accept_failures: bool = False,
    allow_mixed: bool = False,
    force: bool = False,
    take_over: bool = False,
    show_progress: bool | None = None,
    **engine_options: Any,
) -> Dataset:
    """Synthesize instructions and responses with the Magpie method and return them as a Dataset.

    The model is sent its chat template up to where the user's message would start, writes that message itself, and
    then answers it. Interrupted in any way, the same call goes on where it was; a call with more rows makes only the
    additional ones.

    Args:
        model: Hub id, local directory, or "demo" (bundled, for trying things out: no network, no GPU).
        num_rows: Accepted instructions wanted.
        turns: Turns of each conversation; 1 is one instruction and its response.
        system_prompt: System prompt under which instructions are written (the releases use none).
        sampling: How instructions are sampled: one setting, or a grid of settings with `share`.
        response_sampling: How responses are sampled; greedy by default.
        engine: "transformers" (here), "vllm" (here, in a child process), "tgi" or "openai" (an endpoint).
        endpoint: Address or addresses of the server, for "tgi" and "openai".
        output: Run directory; by default one in the Hugging Face cache, named after what is asked.
        revision: Branch, tag or commit of the model.
        seed: Base of all seeds.
        template: `kwargs` (such as {"enable_thinking": False}), `chat_template`, `date`.
        budget: `max_tokens_total`, `max_hours`, `max_cost`, `price_per_gpu_hour`, `num_gpus`.
        shard: "i/n": make only this part, to be joined by `magpie-hf merge`.
        accept_failures: Finish rows that met only transient failures as errors.
        allow_mixed: Go on although the server changed its model in mid-run.
        force: Run in `output` even if it holds the run of another recipe, whose dataset is then replaced.
        take_over: Take the run directory from the process that owns it, at once (e.g., a pod that was killed).
        show_progress: Draw a bar (default: as `datasets.map` does, unless `datasets.disable_progress_bars()` was called).
        **engine_options: Settings of the engine (`batch_size`, `dtype`, `concurrency`, `api_key_env`, …).

    Returns:
        A dataset with the columns of the released Magpie datasets, and `messages`.

    Raises:
        MagpieError: see `magpie_hf.errors`; a RunStopped can be resumed by the same call.
    """
    stages: list[Any] = ["instructions", {"stage": "responses", **_sampling_of(response_sampling)}]
    if turns != 1:
        stages.append({"stage": "turns", "turns": turns})
        if response_sampling is not None:
            stages[-1]["response_sampling"] = _plain_sampling(response_sampling)
    raw: dict[str, Any] = {
        "name": "synthesize",
        "model": named_model(model, engine),
        "num_rows": num_rows,
        "seed": seed,
        "engine": {"kind": engine, **engine_options},
        "sampling": _grid_of(sampling),
        "stages": [*stages, "lengths"],
    }
    if endpoint is not None:
        raw["engine"]["endpoints"] = [endpoint] if isinstance(endpoint, str) else list(endpoint)
    given = {"revision": revision, "system_prompt": system_prompt, "template": template, "budget": budget}
    raw |= {key: value for key, value in given.items() if value is not None}
    return run(
        raw,
        output=output,
        shard=shard,
        accept_failures=accept_failures,
        allow_mixed=allow_mixed,
        force=force,
        take_over=take_over,
        show_progress=show_progress,
    )


def named_model(model: str | None, engine: str | None) -> str:
    """Return the model's name; without one, an error instead of a dataset of the bundled toy model.

    Raises:
        ArgumentError: no model is named.
    """
    if not model and engine != "demo":
        raise ArgumentError(
            "No model is named.",
            hint='Give a Hub id or a directory (model=…, --model …), or "demo", the bundled one for trying things out.',
            key="model",
        )
    return model or "demo"


def _sampling_of(given: SamplingParams | Mapping[str, Any] | None) -> dict[str, Any]:
    return {} if given is None else {"sampling": _plain_sampling(given)}


def _plain_sampling(given: SamplingParams | GridPoint | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(given, GridPoint):
        return {**given.sampling.to_dict(), "share": given.share, "system_prompt": given.system_prompt}
    if not isinstance(given, (SamplingParams, Mapping)):
        raise ArgumentError(
            f"{quoted(given, 60)} is not a sampling setting.",
            hint='Give a mapping, as {"temperature": 1.0, "top_p": 0.95}, or SamplingParams.',
            key="sampling",
        )
    return given.to_dict() if isinstance(given, SamplingParams) else dict(given)


def _grid_of(given: Sampling | Sequence[Sampling] | None) -> Any:
    if given is None:
        return {}
    if isinstance(given, (str, SamplingParams, GridPoint, Mapping)) or not isinstance(given, Sequence):
        return _plain_sampling(given)
    return [_plain_sampling(point) for point in given]


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    output: str | Path | None = None,
    dataset: Any = None,
    shard: str | None = None,
    accept_failures: bool = False,
    allow_mixed: bool = False,
    force: bool = False,
    take_over: bool = False,
    show_progress: bool | None = None,
) -> Dataset:
    """Run a recipe (a YAML file, a bundled recipe's name, or a mapping) and return its Dataset.

    `overrides` sets dotted keys, as in {"num_rows": 1000, "sampling.temperature": 0.9}; `dataset`: the rows, where the
    recipe's `dataset` names them by `fingerprint`; the other arguments are those of `synthesize`.

    Raises:
        RecipeError: the recipe cannot be read or used; names file, line and key.
        MagpieError: see `magpie_hf.errors`; a RunStopped can be resumed by the same call.
    """
    given = recipe.raw if isinstance(recipe, Recipe) else recipe
    built = recipe if isinstance(recipe, Recipe) and not overrides else load_recipe(given, overrides)
    part = Shard.parse(shard)
    if part.parts > 1 and built.dataset:
        raise ArgumentError("A shard is a part of a synthesis, and this recipe annotates rows.", key="shard")
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
        (show_summary if is_shown else logger.info)(session.summary(len(written)))
        return written


def _source_rows(recipe: Recipe, dataset: Any) -> Dataset | None:
    """Return the rows that a recipe annotates; None where it makes its own."""
    source = recipe.dataset
    if not source:
        return None
    if dataset is not None:
        dataset = as_dataset(dataset)
    elif source.get("path"):
        options = {key: source.get(key) for key in ("config", "split", "revision")}
        dataset = load_rows(source["path"], **options)
    if dataset is None:
        raise ArgumentError(
            "The recipe's rows were handed in from Python, and are not here.",
            hint="Call magpie_hf.annotate with the same dataset again, or give the recipe a dataset.path.",
        )
    if source.get("fingerprint") not in (None, content_fingerprint(dataset)):
        raise ArgumentError("The dataset is not the one that the recipe names.", hint="Start a run of its own for it.")
    if "num_rows" in recipe.raw and recipe.num_rows < len(dataset):
        dataset = dataset.select(range(recipe.num_rows))
    return with_row_columns(dataset)


def _run_stages(
    session: Session, stages: list[Stage], shard: Shard, rows: Dataset | None, publisher: Publisher | None = None
) -> Dataset:
    from ..session.output import write_output, write_subset

    run_dir = session.run_dir
    publisher = publisher if shard.parts == 1 else None  # configs are for the whole: after the merge
    if rows is None:
        first, *stages = stages
        assert isinstance(first, Instructions)  # noqa: S101 (the recipe was checked)
        rows = run_instructions(first, session.recipe.num_rows, session.environment(), shard)
    for stage in stages:
        if isinstance(stage, Subset):
            files = write_subset(rows, run_dir, stage.config, session.used_stages())
            if publisher is not None:
                _announce(publisher, rows, stage.config, files, is_subset=True)
            continue
        rows = run_stage(stage, rows, session.environment_of(stage))
    named = {stage.config for stage in session.recipe.stages if isinstance(stage, Subset)}
    run_dir.state.subsets = {name: saved for name, saved in run_dir.state.subsets.items() if name in named}
    written = write_output(rows, run_dir, session.recipe.output.get("format", "parquet"), session.used_stages())
    if session.recipe.output.get("report"):
        from ..reports import write_report

        known, funnel = run_facts(run_dir.path)
        write_report(written, run_dir.path / "report.html", run=known, funnel=funnel)
    if publisher is not None:
        output = run_dir.state.output
        _announce(publisher, written, publisher.settings.config, list(output.files) if output else [])
    return written


def _announce(publisher: Publisher, rows: Dataset, config: str, files: list[str], *, is_subset: bool = False) -> None:
    place = publisher.run_dir.path
    known, funnel = run_facts(place, config if is_subset else None)
    ordered = rows.select_columns(column_order(rows.column_names))
    subset = prepared(place, publisher.settings, ordered, config, files, run=known, funnel=funnel)
    if subset is not None:
        publisher.ready(subset)


def output_path(recipe: Recipe, output: str | Path | None = None) -> Path:
    """Return the run directory: the one given, the recipe's, or one in the Hugging Face cache named after the recipe."""
    given = output or recipe.output.get("path")
    if given:
        return Path(given).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "magpie" / f"{recipe.name}-{recipe.hash}"
