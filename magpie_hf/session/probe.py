"""Probe a model: sample a few instructions at several settings and grade them, before GPU hours are spent."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..engines.base import Request
from ..errors import EngineError, TemplateError
from ..execution.runner import run_stage
from ..recipe.preset import find_preset
from ..recipe.schema import Recipe, load_recipe
from ..sampling import GridPoint, SamplingParams, sample_seed
from ..stage import Ask, Outcome, Stage
from ..stages import stage_class
from ..stages.instructions import Instructions
from ..stages.language import Language
from ..storage.rundir import RunDir
from .session import Session


SYSTEM_PROMPT = "You are a helpful assistant."
SETTINGS = ((1.0, 1.0), (0.8, 1.0), (1.2, 0.99))
"""(temperature, top_p): the lowest of the releases, a lower one, and a high one from Table 7 of the paper."""
MAX_TOKENS = 512
Z = 1.96
"""The 97.5 % quantile of the normal distribution."""
GRADES = ((0.9, "good"), (0.6, "usable"), (0.2, "poor"), (0.0, "unusable"))
"""Minimum share of distinct accepted texts for each grade. The values are our choice; the models of the paper reach well
over 0.9."""


class Share(NamedTuple):
    """A share of accepted samples, with its 95 % interval (Wilson score)."""

    share: float
    low: float
    high: float


class Setting(NamedTuple):
    """The result of one setting; `accepted` and `distinct` are shares of all samples, `mean_tokens` is for accepted samples.

    `texts`: the accepted samples. `in_preset`: the share of them that meets the check of the preset, if there is one.
    """

    temperature: float
    top_p: float
    system_prompt: str | None
    num_samples: int
    accepted: float
    distinct: float
    reasons: dict[str, int]
    mean_tokens: float
    examples: list[str]
    texts: tuple[str, ...] = ()
    in_preset: Share | None = None

    @property
    def grade(self) -> str:
        """One of "good", "usable", "poor", "unusable", by the share of distinct accepted texts."""
        return next(name for least, name in GRADES if self.distinct >= least)


def probe_model(
    model: str,
    *,
    num_samples: int = 64,
    settings: Sequence[tuple[float, float]] = SETTINGS,
    overrides: Mapping[str, Any] | None = None,
    preset: str | None = None,
) -> list[Setting]:
    """Sample instructions with a few settings, without and with a system prompt; return the settings, best first.

    `preset`: sample with its settings, and with the first of them without a system prompt, for comparison, instead of
    `settings`; the judge of the recipe, or the detection of languages, then finds the share that meets its check.
    `overrides`: further keys of a recipe, dotted (`engine.kind`, `template.kwargs`, …). Nothing is saved.

    Raises:
        TemplateError: the model has no usable chat template.
        ModelError, EngineError: the model cannot be loaded, or the endpoint cannot be reached.
    """
    import tempfile

    raw = {"model": model, "num_rows": num_samples}
    built = load_recipe(raw if preset is None else {**raw, "preset": preset}, overrides)
    check = None if preset is None else _check_of(preset)
    with tempfile.TemporaryDirectory(prefix="magpie-probe-") as place, RunDir(place).own() as run_dir:
        session = Session(built, run_dir, show_progress=False)
        try:
            if check is None:
                return sorted(_settings(session, built, num_samples, settings), key=lambda s: -s.distinct)
            stage, label = check
            found = [_sample(session, point, num_samples) for point in _preset_points(built)]
            return sorted(_checked(session, found, stage, label), key=_by_check)
        finally:
            session.close()


def _settings(
    session: Session, recipe: Recipe, num_samples: int, settings: Sequence[tuple[float, float]]
) -> Iterator[Setting]:
    own = recipe.grid[0].system_prompt
    for system_prompt in dict.fromkeys([own, own or SYSTEM_PROMPT]):
        try:
            session.template.pre_query(system_prompt)
        except TemplateError:
            if system_prompt == own:
                raise
            continue  # the template has no system role, so this setting is skipped
        for temperature, top_p in settings:
            sampling = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=MAX_TOKENS)
            yield _sample(session, GridPoint(sampling, system_prompt=system_prompt), num_samples)


def _check_of(name: str) -> tuple[Stage, str]:
    """Return the stage that annotates what a preset checks, and the label of samples that meet the check."""
    preset = find_preset(name)
    # The small models of lingua load in a second instead of twenty.
    stage = Language(low_memory=True) if preset.stage == Language.name else stage_class(preset.stage)()
    stage.check_ready()
    return stage, preset.label


def _preset_points(recipe: Recipe) -> list[GridPoint]:
    """Return the points of a recipe with a preset, and the first of them without its system prompt."""
    points = [
        replace(p, sampling=replace(p.sampling, max_tokens=min(MAX_TOKENS, p.sampling.max_tokens)))
        for p in recipe.grid
    ]
    return [*points, replace(points[0], system_prompt=None, system_prompt_key=None)]


def _checked(session: Session, settings: Sequence[Setting], stage: Stage, label: str) -> list[Setting]:
    """Return the settings with the share of their accepted samples that have the label."""
    texts = [text for setting in settings for text in setting.texts]
    met = iter([found == label for found in _labels(session, texts, stage)] if texts else ())
    checked: list[Setting] = []
    for setting in settings:
        count = sum(itertools.islice(met, len(setting.texts)))
        checked.append(setting._replace(in_preset=_share(count, len(setting.texts))))
    return checked


def _labels(session: Session, texts: Sequence[str], stage: Stage) -> list[object]:
    """Return the label of each text: the first column that the stage adds; None where it found none."""
    from datasets import Dataset

    rows = Dataset.from_dict({"instruction": list(texts)})
    with session.recorded():
        annotated = run_stage(stage, rows, session.environment_of(stage))
    return list(annotated[next(iter(stage.features()))])


def _share(count: int, total: int) -> Share | None:
    """Return a share and its Wilson score interval; None without samples."""
    if not total:
        return None
    share = count / total
    spread = Z * math.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2))
    middle, scale = share + Z**2 / (2 * total), 1 + Z**2 / total
    return Share(share, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def _by_check(setting: Setting) -> tuple[bool, float]:
    """Order settings with the system prompt first, then by the number of samples that meet the check."""
    share = setting.in_preset.share if setting.in_preset else 0.0
    return setting.system_prompt is None, -share * setting.accepted


def _sample(session: Session, point: GridPoint, num_samples: int) -> Setting:
    stage = Instructions(grid=(point,))
    engine = session.engine()
    steps = stage.bind(session.environment().context(stage, engine))
    base = stage.seed_base(session.recipe.seed, point)
    running = [steps({"grid_point": 0, "sample_index": index}) for index in range(num_samples)]
    asks: list[Ask] = [next(generator) for generator in running]
    requests = [Request(i, ask.prompt, ask.sampling.with_seed(sample_seed(base, i))) for i, ask in enumerate(asks)]
    outcomes: list[Outcome] = []
    tokens: list[int] = []
    for generation in engine.generate(requests):
        if generation.failure is not None and generation.failure.transient:
            raise EngineError(f"A sample failed: {generation.failure.message}", hint="Check the server and try again.")
        try:
            running[generation.key].send(generation)
        except StopIteration as stop:
            outcomes.append(stop.value)
            if stop.value.code == "ok":
                tokens.append(generation.completion_tokens or 0)
    return _summary(point, outcomes, tokens)


def _summary(point: GridPoint, outcomes: Sequence[Outcome], tokens: Sequence[int]) -> Setting:
    texts = [o.record.get("text", o.record.get("raw", "")) for o in outcomes if o.code == "ok"]
    reasons = Counter(outcome.code for outcome in outcomes if outcome.code != "ok")
    total = max(1, len(outcomes))
    return Setting(
        point.sampling.temperature,
        point.sampling.top_p,
        point.system_prompt,
        len(outcomes),
        len(texts) / total,
        len({text.casefold().strip() for text in texts}) / total,
        dict(reasons.most_common()),
        sum(tokens) / max(1, len(tokens)),
        list(dict.fromkeys(texts))[:5],
        tuple(texts),
    )
