"""The built-in stages, registered here by name."""

from __future__ import annotations

from ..plugins import find_class
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
    """Return the class of a stage by its name in recipes, by an entry point of `magpie_hf.stages`, or by `module:Class`.

    Raises:
        ArgumentError: the stage is unknown (the hint suggests the closest name), or the class cannot be used.
    """
    return find_class(name, STAGES, Stage, "stage")  # type: ignore[type-abstract]
