"""Stages: one file a stage, and one line here."""

from __future__ import annotations

import importlib

from ..errors import ArgumentError, did_you_mean
from ..stage import Stage


STAGES = {
    "instructions": "magpie_hf.stages.instructions:Instructions",
    "responses": "magpie_hf.stages.responses:Responses",
    "turns": "magpie_hf.stages.turns:Turns",
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
