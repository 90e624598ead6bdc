"""What a recipe's synthesis would cost, before anything is paid for.

One rule: a GPU-second makes so many tokens, fewer the larger the model. Its one constant is fitted to the two figures
that the paper gives (arXiv:2406.08464v2, section 3.4): 206 GPU-hours for Air's 3M rows with an 8B model (1.28B tokens,
Table 4), 614 for Pro's 1M rows with a 70B model (477M tokens), on A100s of 80 GB with vLLM.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from ..errors import MagpieError
from ..stages.select import Select
from .schema import Recipe, load_recipe


SECONDS_PER_TOKEN_AND_BILLION = 6.9e-5
"""GPU-seconds a token and billion parameters: 7.2e-5 by Air's figures, 6.6e-5 by Pro's; between them."""
PRICE_PER_GPU_HOUR = 1.77
"""US dollars: the paper's $0.12 and $1.10 per 1,000 rows over its GPU-hours give 1.75 and 1.79."""
INSTRUCTION_SHARE = 0.03
"""Of the time, what instructions take: 1.55 of 51.55 hours (Air), 3.5 of 153.5 (Pro)."""
_BILLIONS = re.compile(r"(\d+(?:\.\d+)?)b(?:-a(\d+(?:\.\d+)?)b)?(?![a-z])", re.IGNORECASE)
# Sizes that are not in the name: billions of parameters that take part in a token.
_KNOWN = {
    "microsoft/phi-3-medium-128k-instruct": 14.0,
    "microsoft/phi-3-mini-128k-instruct": 3.8,
    "openai/gpt-oss-20b": 3.6,
    "openai/gpt-oss-120b": 5.1,
}
# Mean tokens a row of the releases: the paper's Table 4, by the model's name; else the mean of all of them.
_TOKENS = (
    (r"meta-llama-3-8b", 426), (r"meta-llama-3-70b", 478), (r"llama-3\.[13]-70b", 482), (r"qwen2-7b", 578),
    (r"qwen2-72b", 425), (r"gemma-2", 484), (r"phi-3", 391),
)  # fmt: skip
OTHER_TOKENS = 466


class Cost(NamedTuple):
    """An estimate: GPU-hours (A100 80 GB), US dollars, tokens; of instructions and responses, annotations not counted."""

    gpu_hours: float
    price: float
    tokens: float


def estimate(recipe: Recipe) -> Cost | None:
    """Return what the recipe's instructions and answers would cost, or None for a model whose size is not known.

    Of conditions whose yield nobody knows beforehand all rows are counted; of the rows that are kept by number, so many.
    """
    billions = model_billions(recipe.model)
    if billions is None or recipe.dataset:
        return None
    answering = model_billions(recipe.role("responder").model) or billions
    rows, row_tokens = float(recipe.num_rows), float(_row_tokens(recipe.model))
    tokens, work = 0.0, 0.0
    for stage in recipe.stages:
        if isinstance(stage, Select):
            rows = min(rows, kept_at_most(stage))
            continue
        if stage.name == "responses":
            parts = [(1.0, INSTRUCTION_SHARE * billions + (1 - INSTRUCTION_SHARE) * answering)]
        elif stage.name == "turns":
            parts = [(float(getattr(stage, "turns", 2)) - 1, billions)]
        elif stage.name == "preference_responses":
            parts = [(float(getattr(stage, "num_samples", 1)), answering)]
        else:
            continue
        for times, size in parts:
            tokens += rows * row_tokens * times
            work += rows * row_tokens * times * size
    hours = work * SECONDS_PER_TOKEN_AND_BILLION / 3600
    return Cost(hours, hours * PRICE_PER_GPU_HOUR, tokens)


def lean_saving(recipe: Recipe) -> float | None:
    """Return the largest share of the first answers that `order: lean` can save, or None where it has nothing to save.

    That is what would be saved if the conditions on the instruction left no row more than the selection keeps.
    """
    try:
        lean = load_recipe({**recipe.raw, "order": "lean"})
    except MagpieError:
        return None
    kept = min([kept_at_most(stage) for stage in lean.stages if isinstance(stage, Select)], default=math.inf)
    return max(0.0, (1 - kept / recipe.num_rows) * (1 - INSTRUCTION_SHARE)) if kept < recipe.num_rows else None


def kept_at_most(stage: Select) -> float:
    """Return the most rows that a selection can keep, infinity if it names no number."""
    selection = stage.selection
    counts = [float(sum(quota.values())) for quota in selection.quotas.values()]
    counts += [float(number) for number in (selection.longest, selection.sample) if number and number >= 1]
    return min(counts, default=math.inf)


def model_billions(model: str) -> float | None:
    """Return a model's size in billions of parameters, the active ones of a mixture; None if its name does not say."""
    if model.lower() in _KNOWN:
        return _KNOWN[model.lower()]
    found = _BILLIONS.search(model.rpartition("/")[2])
    return float(found[2] or found[1]) if found else None


def _row_tokens(model: str) -> int:
    return next((tokens for pattern, tokens in _TOKENS if re.search(pattern, model.lower())), OTHER_TOKENS)
