"""Probe a model: sample a few instructions at several settings and grade them, before GPU hours are spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..engines.base import Request
from ..errors import EngineError, TemplateError
from ..recipe.schema import Recipe, load_recipe
from ..sampling import GridPoint, SamplingParams, sample_seed
from ..stage import Ask, Outcome
from ..stages.instructions import Instructions
from ..storage.rundir import RunDir
from .session import Session


SYSTEM_PROMPT = "You are a helpful assistant."
SETTINGS = ((1.0, 1.0), (0.8, 1.0), (1.2, 0.99))
"""(temperature, top_p): the lowest of the releases, a lower one, and a high one from Table 7 of the paper."""
GRADES = ((0.9, "good"), (0.6, "usable"), (0.2, "poor"), (0.0, "unusable"))
"""Minimum share of distinct accepted texts for each grade. The values are our choice; the models of the paper reach well
over 0.9."""


class Setting(NamedTuple):
    """The result of one setting; `accepted` and `distinct` are shares of all samples, `mean_tokens` is for accepted samples."""

    temperature: float
    top_p: float
    system_prompt: str | None
    num_samples: int
    accepted: float
    distinct: float
    reasons: dict[str, int]
    mean_tokens: float
    examples: list[str]

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
) -> list[Setting]:
    """Sample instructions with a few settings, without and with a system prompt; return the settings, best first.

    `overrides`: further keys of a recipe, dotted (`engine.kind`, `template.kwargs`, …). Nothing is saved.

    Raises:
        TemplateError: the model has no usable chat template.
        ModelError, EngineError: the model cannot be loaded, or the endpoint cannot be reached.
    """
    import tempfile

    built = load_recipe({"model": model, "num_rows": num_samples}, overrides)
    with tempfile.TemporaryDirectory(prefix="magpie-probe-") as place, RunDir(place).own() as run_dir:
        session = Session(built, run_dir, show_progress=False)
        try:
            return sorted(_settings(session, built, num_samples, settings), key=lambda s: -s.distinct)
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
            sampling = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=512)
            yield _sample(session, GridPoint(sampling, system_prompt=system_prompt), num_samples)


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
    )
