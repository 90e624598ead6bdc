"""Recipes built from arguments: `synthesize` and `annotate` in Python and at the command line share these functions."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..engines import engine_class, engine_options
from ..errors import ArgumentError, quoted
from ..recipe.parts import JUDGE_KEYS, ROLE_KEYS
from ..recipe.schema import Recipe, load_recipe
from ..recipe.source import JUDGE_MODES
from ..sampling import GridPoint, SamplingParams
from ..stages import stage_class
from ..storage.keys import content_fingerprint
from ..storage.loading import as_dataset


if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

RowSource: TypeAlias = (
    "Dataset | DatasetDict | pa.Table | pd.DataFrame | Sequence[Mapping[str, object]] | "
    "Mapping[str, Sequence[object]] | str | Path"
)
"""Rows in any form that `as_dataset` reads: in memory, or as the path or Hub id of a dataset."""
Sampling: TypeAlias = SamplingParams | GridPoint | Mapping[str, object]
Annotations: TypeAlias = str | Mapping[str, object] | Sequence[str | Mapping[str, object]]
ModelSettings: TypeAlias = str | Mapping[str, object]
"""A model's name, or a mapping with `model` and, optionally, `revision`, `template` and `engine`, as in a recipe."""
Section: TypeAlias = dict[str, object]


def synthesis_recipe(
    model: str | None = "",
    *,
    num_rows: int = 1000,
    turns: int = 1,
    system_prompt: str | None = None,
    preset: str | None = None,
    sampling: Sampling | Sequence[Sampling] | None = None,
    response_sampling: SamplingParams | Mapping[str, object] | None = None,
    engine: str | None = None,
    endpoint: str | Sequence[str] | None = None,
    engine_options: Mapping[str, object] | None = None,
    revision: str | None = None,
    seed: int = 0,
    template: Mapping[str, object] | None = None,
    budget: Mapping[str, object] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Recipe:
    """Return the recipe of a call of `synthesize` with these arguments; `overrides` as in `load_recipe`."""
    raw: Section = {
        "name": "synthesize",
        "model": named_model(model, engine),
        "num_rows": num_rows,
        "seed": seed,
        "engine": engine_section(engine, endpoint, engine_options or {}),
        "sampling": _plain_grid(sampling),
        "stages": _synthesis_stages(turns, response_sampling),
    }
    given = {
        "revision": revision,
        "system_prompt": system_prompt,
        "preset": preset,
        "template": template,
        "budget": budget,
    }
    return load_recipe(raw | _without_none(given), overrides)


def _synthesis_stages(turns: int, sampling: SamplingParams | Mapping[str, object] | None) -> list[str | Section]:
    given = None if sampling is None else _plain_sampling(sampling)
    stages: list[str | Section] = ["instructions", {"stage": "responses", **_without_none({"sampling": given})}]
    if turns != 1:
        stages.append({"stage": "turns", "turns": turns, **_without_none({"response_sampling": given})})
    return [*stages, "lengths"]


def engine_section(kind: str | None, endpoint: str | Sequence[str] | None, options: Mapping[str, object]) -> Section:
    """Return the `engine` section of a recipe. Default kind: that of the server at `endpoint`, else "transformers"."""
    if kind is not None and not isinstance(kind, str):
        raise ArgumentError(
            f"engine = {quoted(kind, 60)} is not the name of an engine.",
            hint='Give its settings as arguments, e.g., engine="transformers", devices=[0, 1].',
            key="engine",
        )
    addresses = [endpoint] if isinstance(endpoint, str) else list(endpoint or ())
    if kind is None and addresses:
        from ..engines.remote.detect import server_kind

        key_env = options.get("api_key_env")
        kind = server_kind(addresses[0], None if key_env is None else str(key_env))
    return {"kind": kind or "transformers", **options, **({"endpoints": addresses} if addresses else {})}


def check_options(options: Mapping[str, object], function: Callable[..., object], engine: object) -> None:
    """Raise ArgumentError for a misspelled argument of a function, which would count as a setting of the engine."""
    names = inspect.signature(function).parameters
    known = {"endpoints"}
    with contextlib.suppress(ArgumentError):
        known |= engine_options(engine if isinstance(engine, str) else "transformers").keys()
    for key in options.keys() - known:
        close = difflib.get_close_matches(key, names, 1, 0.8)
        if close:
            raise ArgumentError(
                f"{function.__name__} has no argument {quoted(key)}.", hint=f'Did you mean "{close[0]}"?', key=key
            )


def named_model(model: str | None, engine: str | None) -> str:
    """Return the name of the model; only the engine "demo" has a default model.

    Raises:
        ArgumentError: no model is given, so that nobody generates a dataset with the bundled demo model by mistake.
    """
    if not model and engine != "demo":
        raise ArgumentError(
            "No model is given.",
            hint='Give a Hub id or a directory (model=…, --model …), or "demo" for the bundled demo model.',
            key="model",
        )
    return model or "demo"


def _plain_sampling(given: Sampling) -> Section:
    if isinstance(given, GridPoint):
        label = {} if given.system_prompt_key is None else {"system_prompt_key": given.system_prompt_key}
        return {**given.sampling.to_dict(), "share": given.share, "system_prompt": given.system_prompt, **label}
    if not isinstance(given, (SamplingParams, Mapping)):
        raise ArgumentError(
            f"{quoted(given, 60)} is not a sampling setting.",
            hint='Give a mapping, e.g., {"temperature": 1.0, "top_p": 0.95}, or SamplingParams.',
            key="sampling",
        )
    return given.to_dict() if isinstance(given, SamplingParams) else dict(given)


def _plain_grid(given: Sampling | Sequence[Sampling] | None) -> Section | list[Section]:
    if given is None:
        return {}
    if isinstance(given, (SamplingParams, GridPoint, Mapping)):
        return _plain_sampling(given)
    points = [given] if isinstance(given, str) or not isinstance(given, Sequence) else given
    return [_plain_sampling(point) for point in points]


def annotation_recipe(
    dataset: RowSource,
    annotations: Annotations,
    *,
    judge: ModelSettings | None = None,
    guard: ModelSettings | None = None,
    base: ModelSettings | None = None,
    model: str | None = None,
    engine: str | None = None,
    endpoint: str | Sequence[str] | None = None,
    engine_options: Mapping[str, object] | None = None,
    judge_mode: str = "separate",
    judge_rubrics: str = "default",
    tokenizer: str | None = None,
    seed: int = 0,
    budget: Mapping[str, object] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> tuple[Recipe, Dataset | None]:
    """Return the recipe that `annotate` runs, and the rows if they were given in memory; arguments as in `annotate`.

    `overrides`: values of its recipe by dotted key.
    """
    _check_spelling(judge, engine)
    stages = _annotation_stages(annotations, tokenizer)
    sections = {name: _role_section(given, name) for name, given in _without_none(
        {"judge": judge, "guard": guard, "base": base}).items()}  # fmt: skip
    _check_models(stages, sections, model, engine)
    for key, value, default in (("mode", judge_mode, "separate"), ("rubrics", judge_rubrics, "default")):
        if value != default:
            sections["judge"] = {**sections.get("judge", {}), key: value}
    if sections.get("judge", {}).get("model") == "demo" and model is None:
        model = "demo"  # with it, the guard, the reward model and the embedder are demo models too
    rows = None if isinstance(dataset, (str, Path)) else as_dataset(dataset)
    raw: Section = {
        "name": "annotate",
        "dataset": {"path": str(dataset)} if rows is None else {"fingerprint": content_fingerprint(rows)},
        "seed": seed,
        "engine": engine_section(engine, endpoint, engine_options or {}),
        "stages": stages,
        **sections,
    }
    return load_recipe(raw | _without_none({"model": model, "budget": budget}), overrides), rows


def _annotation_stages(annotations: Annotations, tokenizer: str | None) -> list[Section]:
    entries = [annotations] if isinstance(annotations, (str, Mapping)) else annotations
    if not isinstance(entries, Sequence) or not all(isinstance(entry, (str, Mapping)) for entry in entries):
        raise ArgumentError(
            f"{quoted(annotations, 60)} is not a list of annotations.",
            hint='Give names or mappings, e.g., ["quality", {"stage": "language", "languages": ["EN", "DE"]}].',
            key="annotations",
        )
    stages: list[Section] = [_annotation_stage(entry) if isinstance(entry, str) else dict(entry) for entry in entries]
    counting = [stage for stage in stages if stage.get("stage") == "lengths"]
    if tokenizer is not None and not counting:
        raise ArgumentError(
            f'tokenizer = {quoted(tokenizer)} is only used by the annotation "lengths", which is not requested.',
            hint='Add "lengths" to the annotations, or remove the tokenizer.',
            key="tokenizer",
        )
    for stage in counting if tokenizer is not None else ():
        stage.setdefault("tokenizer", tokenizer)
    return stages


def _annotation_stage(name: str) -> Section:
    """Return the stage that an annotation names: a stage, or the file of a rubric."""
    return {"stage": "rubric", "rubric": name} if name.endswith((".yaml", ".yml")) else {"stage": name}


def _check_spelling(judge: ModelSettings | None, engine: object) -> None:
    """Raise ArgumentError if `engine` names a model, or if `judge` names a mode ("separate", "combined")."""
    if judge in JUDGE_MODES:
        raise ArgumentError(
            f'judge = "{judge}" is not a model. It is a value of judge_mode.',
            hint=f'Write judge_mode="{judge}" (--judge-mode {judge}), and give the model as judge.',
            key="judge",
        )
    if engine is None or engine == "demo":
        return
    with contextlib.suppress(ArgumentError):
        if isinstance(engine, str) and engine_class(engine):
            return
    raise ArgumentError(
        f"engine = {quoted(engine, 60)} is not an engine.",
        hint="Engines: transformers, vllm, tgi, openai and chat. Give the judge model as "
        'judge="…" (--judge), or with settings: judge={"model": …, "engine": {"kind": "vllm"}}.',
        key="engine",
    )


def _role_section(given: object, role: str) -> Section:
    """Return the recipe section of a role, e.g., of the judge."""
    if isinstance(given, str):
        return {"model": given}
    if not isinstance(given, Mapping):
        raise ArgumentError(
            f"Invalid value {role} = {quoted(given, 60)}.",
            hint=f'Give a model name or a mapping, e.g., {role}={{"model": …, "engine": {{"kind": "vllm"}}}}.',
            key=role,
        )
    unknown = [key for key in given if key not in (JUDGE_KEYS if role == "judge" else ROLE_KEYS)]
    if unknown:
        raise ArgumentError(
            f"{role} has the unknown key {quoted(unknown[0])}.",
            hint=f"Known: {', '.join(ROLE_KEYS)}. Give engine settings in engine, e.g., "
            f'{role}={{"model": …, "engine": {{"kind": "vllm", "dtype": "bfloat16"}}}}.',
            key=role,
        )
    return dict(given)


def _check_models(
    stages: Sequence[Section], sections: Mapping[str, Section], model: str | None, engine: str | None
) -> None:
    """Raise ArgumentError if a model that an annotation needs is missing, or if no annotation uses `model`."""
    needs = dict(_roles_of(stages))
    generating = {"generator", "responder"} & needs.keys()
    if model is not None and not generating:
        raise ArgumentError(
            f"model = {quoted(model)}: none of these annotations generates text with it.",
            hint="Give the judge model as judge=… (--judge), and the model whose tokenizer counts tokens as "
            "tokenizer=… (--tokenizer).",
            key="model",
        )
    if model or engine == "demo":
        return
    names = {"judge": "judge", "base": "base", "generator": "model", "responder": "model"}
    for role, stage in needs.items():
        if role in names and not sections.get(role, {}).get("model"):
            raise ArgumentError(
                f'No model is given for the stage "{stage}".',
                hint=f"Give {names[role]}=… (--{names[role]} …): a Hub id, a directory, or "
                '"demo" for the bundled demo model.',
                key=names[role],
            )


def _roles_of(stages: Sequence[Section]) -> Iterator[tuple[str, str]]:
    """Yield role and name of each stage that needs a model; `load_recipe` raises for unknown stages."""
    for stage in stages:
        with contextlib.suppress(ArgumentError):
            kind = stage_class(str(stage.get("stage")))
            if kind.uses_engine:
                yield kind.role, kind.name


def _without_none(given: Mapping[str, object]) -> Section:
    return {key: value for key, value in given.items() if value is not None}
