"""Estimate the cost of a recipe's synthesis before it runs.

The estimate assumes that the time per token is proportional to the size of the model. The constant is fitted to the two
figures in the paper (arXiv:2406.08464v2, section 3.4): 206 GPU-hours for Air's 3M rows with an 8B model (1.28B tokens,
Table 4), 614 for Pro's 1M rows with a 70B model (477M tokens), on A100s of 80 GB with vLLM.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from ..errors import MagpieError
from ..stage import Stage
from ..stages.select import Select
from .schema import Recipe, load_recipe


SECONDS_PER_TOKEN_AND_BILLION = 6.9e-5
"""GPU-seconds per token and billion parameters, between the values from the figures of Air (7.2e-5) and Pro (6.6e-5)."""
PRICE_PER_GPU_HOUR = 1.77
"""US dollars: the paper's $0.12 and $1.10 per 1,000 rows, divided by its GPU-hours, give 1.75 and 1.79."""
INSTRUCTION_SHARE = 0.03
"""Share of the time that the instructions take: 1.55 of 51.55 hours (Air), 3.5 of 153.5 (Pro)."""
_BILLIONS = re.compile(r"(\d+(?:\.\d+)?)b(?:-a(\d+(?:\.\d+)?)b)?(?![a-z])", re.IGNORECASE)
# Billions of active parameters of models whose name does not contain their size.
_KNOWN = {
    "microsoft/phi-3-medium-128k-instruct": 14.0,
    "microsoft/phi-3-mini-128k-instruct": 3.8,
    "openai/gpt-oss-20b": 3.6,
    "openai/gpt-oss-120b": 5.1,
}
# Mean tokens per row of the releases (Table 4 of the paper), by the name of the model; for other models, the mean of all.
_TOKENS = (
    (r"meta-llama-3-8b", 426), (r"meta-llama-3-70b", 478), (r"llama-3\.[13]-70b", 482), (r"qwen2-7b", 578),
    (r"qwen2-72b", 425), (r"gemma-2", 484), (r"phi-3", 391),
)  # fmt: skip
OTHER_TOKENS = 466


class Cost(NamedTuple):
    """An estimate for all generated texts, without annotations: GPU-hours (A100 80 GB), US dollars, tokens."""

    gpu_hours: float
    price: float
    tokens: float


def rounded(value: float, unit: str = "") -> str:
    """Return a cost as a whole number, e.g., "$1,135"; "<1" below 0.5."""
    return f"<{unit}1" if 0 < value < 0.5 else f"{unit}{value:,.0f}"


def estimate(recipe: Recipe) -> Cost | None:
    """Return the estimated cost of the recipe's instructions, responses and base responses; None if it is not known.

    It is not known if the name of the model does not contain its size. A selection that keeps a given number of rows
    counts with this number. Other conditions count as if they kept all rows, because their yield is not known beforehand.
    """
    billions = model_billions(recipe.model)
    if billions is None or recipe.dataset:
        return None
    rows, row_tokens = float(recipe.num_rows), float(_row_tokens(recipe.model))
    tokens, work = 0.0, 0.0
    for stage in recipe.stages:
        if isinstance(stage, Select):
            rows = min(rows, kept_at_most(stage))
        times, size = _texts_of(stage, recipe, billions)
        tokens += rows * row_tokens * times
        work += rows * row_tokens * times * size
    hours = work * SECONDS_PER_TOKEN_AND_BILLION / 3600
    return Cost(hours, hours * PRICE_PER_GPU_HOUR, tokens)


def _texts_of(stage: Stage, recipe: Recipe, billions: float) -> tuple[float, float]:
    """Return how many texts a stage generates per row, in instructions with a response, and by how large a model."""
    answering = _size_of(recipe, "responder", billions)
    if stage.name == "responses":
        return 1.0, INSTRUCTION_SHARE * billions + (1 - INSTRUCTION_SHARE) * answering
    if stage.name == "base_responses":  # counted as long as the responses
        return 1 - INSTRUCTION_SHARE, _size_of(recipe, "base", billions)
    if stage.name == "turns":
        return float(getattr(stage, "turns", 2)) - 1, billions
    if stage.name == "preference_responses":
        return float(getattr(stage, "num_samples", 1)), answering
    return 0.0, 0.0


def _size_of(recipe: Recipe, role: str, otherwise: float) -> float:
    return (model_billions(recipe.role(role).model) if role in recipe.roles else None) or otherwise


def lean_saving(recipe: Recipe) -> float | None:
    """Return the largest share of the first responses (and the base responses) that `order: lean` can save, None if it cannot save any.

    This much is saved if the conditions on the instruction keep no more rows than the whole selection.
    """
    if recipe.dataset:
        return None
    try:
        lean = load_recipe({**recipe.raw, "order": "lean"})
    except MagpieError:
        return None
    kept = min([kept_at_most(stage) for stage in lean.stages if isinstance(stage, Select)], default=math.inf)
    return max(0.0, (1 - kept / recipe.num_rows) * (1 - INSTRUCTION_SHARE)) if kept < recipe.num_rows else None


def kept_at_most(stage: Select) -> float:
    """Return the maximum number of rows that a selection can keep, infinity if it has no such limit."""
    selection = stage.selection
    counts = [float(sum(quota.values())) for quota in selection.quotas.values()]
    counts += [float(number) for number in (selection.by_length, selection.sample) if number and number >= 1]
    return min(counts, default=math.inf)


def model_billions(model: str) -> float | None:
    """Return the size of a model in billions of (active) parameters, as its name says it; None if it does not."""
    if model.lower() in _KNOWN:
        return _KNOWN[model.lower()]
    found = _BILLIONS.search(model.rpartition("/")[2])
    return float(found[2] or found[1]) if found else None


def _row_tokens(model: str) -> int:
    return next((tokens for pattern, tokens in _TOKENS if re.search(pattern, model.lower())), OTHER_TOKENS)
