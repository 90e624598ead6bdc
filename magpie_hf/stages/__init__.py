"""Stages: one file a stage, and one line here."""

from __future__ import annotations

import importlib

from ..errors import ArgumentError, did_you_mean
from ..stage import Stage


STAGES = {
    "instructions": "magpie_hf.stages.instructions:Instructions",
    "responses": "magpie_hf.stages.responses:Responses",
    "turns": "magpie_hf.stages.turns:Turns",
    "quality": "magpie_hf.stages.judge:Quality",
    "difficulty": "magpie_hf.stages.judge:Difficulty",
    "category": "magpie_hf.stages.judge:Category",
    "judge": "magpie_hf.stages.judge:Judge",
    "rubric": "magpie_hf.stages.judge:OwnRubric",
    "language": "magpie_hf.stages.language:Language",
    "flags": "magpie_hf.stages.flags:Flags",
    "safety": "magpie_hf.stages.safety:Safety",
    "reward": "magpie_hf.stages.reward:Reward",
    "base_responses": "magpie_hf.stages.base_responses:BaseResponses",
    "reward_difference": "magpie_hf.stages.reward:RewardDifference",
    "neighbors": "magpie_hf.stages.neighbors:Neighbors",
    "novelty": "magpie_hf.stages.novelty:Novelty",
    "decontamination": "magpie_hf.stages.decontamination:Decontamination",
    "select": "magpie_hf.stages.select:Select",
    "preference_responses": "magpie_hf.stages.preference:PreferenceResponses",
    "preference": "magpie_hf.stages.preference:Preference",
    "subset": "magpie_hf.stages.subset:Subset",
    "lengths": "magpie_hf.stages.lengths:Lengths",
}


def stage_class(name: str) -> type[Stage]:
    """Return the class of a stage by its name in recipes.

    Raises:
        ArgumentError: there is no such stage; names the nearest.
    """
    if name not in STAGES:
        raise ArgumentError(f'There is no stage "{name}".', hint=did_you_mean(name, STAGES), key="stage")
    module, _, attribute = STAGES[name].partition(":")
    found: type[Stage] = getattr(importlib.import_module(module), attribute)
    return found
