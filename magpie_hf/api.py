"""The one-call functions: a model in, a plain `datasets.Dataset` out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError, RunStopped
from .keys import content_fingerprint
from .loading import load_rows, with_row_columns
from .recipe import Recipe, load_recipe
from .rundir import RunDir
from .runner import run_stage
from .sampling import GridPoint, SamplingParams
from .session import Session
from .stages.candidates import Shard, run_instructions
from .stages.instructions import Instructions


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger("magpie_hf")
Sampling = SamplingParams | GridPoint | Mapping[str, Any]


def synthesize(
    model: str = "demo",
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
    show_progress: bool | None = None,
    **engine_options: Any,
) -> Dataset:
    """Synthesize instructions and responses with the Magpie method and return them as a Dataset.

    The model is sent its chat template up to where the user's message would start, writes that message itself, and
    then answers it. Interrupted in any way, the same call goes on where it was; a call with more rows makes only the
    additional ones.

    Args:
        model: Hub id, local directory, or "demo" (bundled, no network, no GPU).
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
        show_progress: Draw a bar (default: if stderr is a terminal).
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
        "model": model,
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
        show_progress=show_progress,
    )


def _sampling_of(given: SamplingParams | Mapping[str, Any] | None) -> dict[str, Any]:
    return {} if given is None else {"sampling": _plain_sampling(given)}


def _plain_sampling(given: SamplingParams | GridPoint | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(given, GridPoint):
        return {**given.sampling.to_dict(), "share": given.share, "system_prompt": given.system_prompt}
    return given.to_dict() if isinstance(given, SamplingParams) else dict(given)


def _grid_of(given: Sampling | Sequence[Sampling] | None) -> Any:
    if given is None:
        return {}
    if isinstance(given, (SamplingParams, GridPoint, Mapping)):
        return _plain_sampling(given)
    return [_plain_sampling(point) for point in given]


def annotate(
    dataset: Dataset | str | Path,
    annotations: Sequence[str | Mapping[str, Any]],
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
    show_progress: bool | None = None,
) -> Dataset:
    """Annotate rows and return them with the new columns; interrupted in any way, the same call goes on.

    Args:
        dataset: A Dataset with `instruction` (and `response` where an annotation reads it), or where one lies.
        annotations: Names ("quality", "difficulty", "category", "language", "flags", "safety", "reward",
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
        show_progress: Draw a bar (default: if stderr is a terminal).

    Returns:
        The dataset with the columns of the annotations; what could not be annotated is null, and counted.

    Raises:
        MagpieError: see `magpie_hf.errors`; a RunStopped can be resumed by the same call.
    """
    from datasets import Dataset

    given = dataset if isinstance(dataset, Dataset) else None
    roles = {"judge": _role_of(engine), "guard": _role_of(guard), "base": _role_of(base)}
    stages = [_annotation(entry, model) for entry in annotations]
    raw: dict[str, Any] = {"name": "annotate", "dataset": _named(dataset), "seed": seed, "stages": stages}
    raw |= {name: role for name, role in roles.items() if role}
    if judge != "separate":
        raw["judge"] = {**raw.get("judge", {}), "mode": judge}
    if raw.get("judge", {}).get("model") == "demo" and model is None:
        raw["model"] = "demo"  # its guard, reward model and embedder go with it
    raw |= {name: value for name, value in {"model": model, "budget": budget}.items() if value is not None}
    return run(
        raw,
        output=output,
        dataset=given,
        accept_failures=accept_failures,
        allow_mixed=allow_mixed,
        show_progress=show_progress,
    )


def _named(dataset: Dataset | str | Path) -> dict[str, str]:
    """Return what the recipe says of its rows: where they lie, or what they are."""
    if isinstance(dataset, (str, Path)):
        return {"path": str(dataset)}
    return {"fingerprint": content_fingerprint(dataset)}


def _role_of(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a role's recipe section: "engine" settings may stand beside the model's name."""
    if given is None:
        return {}
    if isinstance(given, str):
        return {"model": given}
    section = {key: given[key] for key in ("model", "revision", "template", "engine") if key in given}
    rest = {key: value for key, value in given.items() if key not in section}
    return section | ({"engine": {**rest, "kind": rest.get("kind", "transformers")}} if rest else {})


def _annotation(entry: str | Mapping[str, Any], model: str | None) -> dict[str, Any]:
    if not isinstance(entry, str):
        return dict(entry)
    return {"stage": entry, "tokens": model is not None} if entry == "lengths" else {"stage": entry}


def select(
    dataset: Dataset | str | Path,
    selection: str | Mapping[str, Any] = "",
    *,
    return_funnel: bool = False,
    **changes: Any,
) -> Any:
    """Return the rows that a selection keeps, in their order.

    Args:
        dataset: A Dataset, or where one lies.
        selection: A named selection ("air-filter", "pro-filter2", …: `magpie_hf.filters.SELECTIONS`), an expression
            ("quality >= good and language == 'EN'"), or a mapping with the fields of `filters.Selection`.
        return_funnel: Return (dataset, funnel): how many rows each condition left.
        **changes: Fields of `filters.Selection` to change: `longest`, `sample`, `quotas`, `one_per_group`, …

    Raises:
        DatasetError: a column that a condition reads is missing; says which annotation writes it.
        ArgumentError: a selection or expression cannot be used.
    """
    from .filters import select_rows

    rows = dataset if not isinstance(dataset, (str, Path)) else with_row_columns(load_rows(str(dataset)))
    selected = select_rows(rows, selection, **changes)
    for step in selected.funnel:
        logger.info("%s: %d of %d rows", step.condition, step.rows_out, step.rows_in)
    kept = rows.select(selected.indices)
    return (kept, selected.funnel) if return_funnel else kept


def report(
    dataset: Dataset | str | Path,
    path: str | Path = "report.html",
    *,
    compare: Mapping[str, Any] | None = None,
    title: str | None = None,
    **options: Any,
) -> Path:
    """Write a report of a dataset: one HTML file that needs no network.

    Args:
        dataset: A Dataset, or where one lies; of a run directory, the run's recipe and funnel are shown too.
        path: The file to write.
        compare: Up to three other datasets for the map of topics, by name.
        title: Heading of the page.
        **options: `sample_rows`, `seed`: how many rows texts and maps are drawn from, and how.

    Returns:
        The file's path.
    """
    from .reports import write_report

    rows, run_facts, funnel = dataset, None, None
    if isinstance(dataset, (str, Path)):
        rows = with_row_columns(load_rows(str(dataset)))
        run_facts, funnel = _facts(Path(dataset))
    others = {
        name: load_rows(str(other)) if isinstance(other, (str, Path)) else other
        for name, other in (compare or {}).items()
    }
    return Path(write_report(rows, path, title=title, run=run_facts, funnel=funnel, compare=others or None, **options))


def write_card(dataset: Dataset | str | Path, path: str | Path | None = None, **options: Any) -> Path:
    """Write a dataset's card; made again, it keeps what a person wrote outside its marks.

    Args:
        dataset: A Dataset, or where one lies; of a run directory, recipe, funnel and cost are told too.
        path: The file; by default README.md in the run's directory, or here.
        **options: `repo_id`, `config_name`, `title`, `license`; see `magpie_hf.hub.card.build_card`.

    Raises:
        ArgumentError: the licence of the model's data is not known, and none is given.
    """
    from .hub import card

    rows, run_facts, funnel, place = dataset, None, None, Path("README.md")
    if isinstance(dataset, (str, Path)):
        rows = with_row_columns(load_rows(str(dataset)))
        run_facts, funnel = _facts(Path(dataset))
        place = Path(dataset).expanduser() / "README.md" if run_facts else place
    return card.write_card(rows, path or place, run=run_facts, funnel=funnel, **options)


def _facts(place: Path) -> tuple[dict[str, Any] | None, list[Any] | None]:
    """Return what a run directory says of its dataset: recipe and totals, and the funnels of its selections."""
    if not (place.expanduser() / "run.json").is_file():
        return None, None
    state = RunDir.read(place.expanduser()).state
    funnel = [step for stage in state["stages"].values() for step in stage.get("report", {}).get("funnel", [])]
    return {key: state.get(key, {}) for key in ("recipe", "totals", "stages")}, funnel or None


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    output: str | Path | None = None,
    dataset: Dataset | None = None,
    shard: str | None = None,
    accept_failures: bool = False,
    allow_mixed: bool = False,
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
    with RunDir(output_path(built, output)).own() as run_dir:
        session = Session(
            built,
            run_dir,
            accept_failures=accept_failures,
            allow_mixed=allow_mixed,
            show_progress=show_progress,
        )
        run_dir.state["shard"] = list(part)
        with session.recorded():
            try:
                return _run_stages(session, part, rows)
            except RunStopped as stop:
                stop.data.setdefault("output", str(run_dir.path))
                raise


def _source_rows(recipe: Recipe, dataset: Dataset | None) -> Dataset | None:
    """Return the rows that a recipe annotates; None where it makes its own."""
    source = recipe.dataset
    if not source:
        return None
    if dataset is None and source.get("path"):
        options = {key: source.get(key) for key in ("config", "split", "revision")}
        dataset = load_rows(source["path"], **options)
    if dataset is None:
        raise ArgumentError(
            "The recipe's rows were handed in from Python, and are not here.",
            hint="Call magpie_hf.annotate with the same dataset again, or give the recipe a dataset.path.",
        )
    if source.get("fingerprint") not in (None, content_fingerprint(dataset)):
        raise ArgumentError("The dataset is not the one that the recipe names.", hint="Start a run of its own for it.")
    return with_row_columns(dataset)


def _run_stages(session: Session, shard: Shard, rows: Dataset | None) -> Dataset:
    from .output import write_output

    stages = list(session.recipe.stages)
    if rows is None:
        first = stages.pop(0)
        assert isinstance(first, Instructions)  # noqa: S101 (the recipe was checked)
        rows = run_instructions(first, session.recipe.num_rows, session.environment(), shard)
    for stage in stages:
        if stage.name in session.recipe.implied and set(stage.features()) <= set(rows.column_names):
            continue  # the rows came with these columns
        if shard.parts > 1 and not (stage.kind != "set" and {*stage.needs} <= {*rows.column_names}):
            if stage.name == "select":
                break  # what follows is for the rows that the whole keeps: after the merge
            continue
        rows = run_stage(stage, rows, session.environment(stage.role if stage.uses_engine else "generator"))
    written = write_output(rows, session.run_dir, session.recipe.output.get("format", "parquet"))
    if session.recipe.output.get("report"):
        run_facts, funnel = _facts(session.run_dir.path)
        from .reports import write_report

        write_report(written, session.run_dir.path / "report.html", run=run_facts, funnel=funnel)
    return written


def output_path(recipe: Recipe, output: str | Path | None = None) -> Path:
    """Return the run directory: the one given, the recipe's, or one in the Hugging Face cache named after the recipe."""
    given = output or recipe.output.get("path")
    if given:
        return Path(given).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "magpie" / f"{recipe.name}-{recipe.hash}"
