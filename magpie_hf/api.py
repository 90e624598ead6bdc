"""The one-call functions: a model in, a plain `datasets.Dataset` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RunStopped
from .recipe import Recipe, load_recipe
from .rundir import RunDir
from .runner import run_stage
from .sampling import GridPoint, SamplingParams
from .session import Session
from .stages.candidates import Shard, run_instructions
from .stages.instructions import Instructions


if TYPE_CHECKING:
    from datasets import Dataset


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


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    output: str | Path | None = None,
    shard: str | None = None,
    accept_failures: bool = False,
    allow_mixed: bool = False,
    show_progress: bool | None = None,
) -> Dataset:
    """Run a recipe (a YAML file, a bundled recipe's name, or a mapping) and return its Dataset.

    `overrides` sets dotted keys, as in {"num_rows": 1000, "sampling.temperature": 0.9}; the other arguments are
    those of `synthesize`.

    Raises:
        RecipeError: the recipe cannot be read or used; names file, line and key.
        MagpieError: see `magpie_hf.errors`; a RunStopped can be resumed by the same call.
    """
    given = recipe.raw if isinstance(recipe, Recipe) else recipe
    built = recipe if isinstance(recipe, Recipe) and not overrides else load_recipe(given, overrides)
    part = Shard.parse(shard)
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
                return _run_stages(session, part)
            except RunStopped as stop:
                stop.data.setdefault("output", str(run_dir.path))
                raise


def _run_stages(session: Session, shard: Shard) -> Dataset:
    from .output import write_output

    first, *rest = session.recipe.stages
    assert isinstance(first, Instructions)  # noqa: S101 (the recipe was checked)
    dataset = run_instructions(first, session.recipe.num_rows, session.environment, shard)
    for stage in rest:
        dataset = run_stage(stage, dataset, session.environment)
    return write_output(dataset, session.run_dir, session.recipe.output.get("format", "parquet"))


def output_path(recipe: Recipe, output: str | Path | None = None) -> Path:
    """Return the run directory: the one given, the recipe's, or one in the Hugging Face cache named after the recipe."""
    given = output or recipe.output.get("path")
    if given:
        return Path(given).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "magpie" / f"{recipe.name}-{recipe.hash}"
