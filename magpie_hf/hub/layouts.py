"""The columns of the Magpie releases: names, order and types, one layout for each generation of releases.

Source of names and types: the `dataset_info` of the dataset cards. "inferred" in the note of a layout: the card of that
release shows no types, or not all columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..columns import REGISTER, SHAREGPT, listed
from ..errors import ArgumentError, did_you_mean, quoted
from .schema import turn_of


Kind: TypeAlias = Any
"""A type: the name of a `datasets.Value`, a mapping of names to types (a struct), or a list of one type."""

CONFIGS = "gen_response_configs"
SCORES = "rewards_armorm"
TURNS: Kind = [{"from": "string", "value": "string"}]
MESSAGES: Kind = [{"content": "string", "role": "string"}]
SOURCES: Mapping[str, str] = {
    SHAREGPT: "messages",
    "conversation_id": "uuid",
    "gen_input_config": "gen_input_configs",
    "input": "instruction",
    "output": "response",
    "base_output": "base_response",
    "input_length": "instruction_length",
    "output_length": "response_length",
    SCORES: "preference_rewards",
}
"""Released columns, and our columns that they are made from, where the names differ."""


@dataclass(frozen=True)
class Layout:
    """The columns of a release: `columns` maps names to types, in order. `note`: the releases that have them.

    `sources`: our columns that columns are made from, where neither the name nor `SOURCES` says it.
    """

    name: str
    note: str
    columns: Mapping[str, Kind]
    sources: Mapping[str, str] = field(default_factory=dict)

    def source(self, column: str) -> str:
        """Return our column that a released column is made from."""
        return self.sources.get(column) or SOURCES.get(column, column)

    def missing(self, available: Mapping[str, object]) -> dict[str, str]:
        """Return the released columns that cannot be made from these columns, and our columns that they need.

        A column that the rows already have under its released name is used as it is, if they do not have ours.
        """
        needed = {name: self.source(name) for name in self.columns}
        return {name: ours for name, ours in needed.items() if not {name, ours} & {*available}}

    def check(self, available: Mapping[str, object]) -> None:
        """Raise ArgumentError if columns are missing; the message names the stages that write them."""
        missing = self.missing(available)
        if not missing:
            return
        stages = [name for name in dict.fromkeys(_writer(ours) for ours in missing.values()) if name]
        shown = listed([f'"{name}"' for name in missing])
        raise ArgumentError(
            f'the columns "{self.name}" include {shown}, which no stage writes.',
            hint=(f"Add the stage{'s' if len(stages) > 1 else ''} {listed(stages)}, or choose" if stages else "Choose")
            + " other columns: a list of names, or no output.columns for all columns.",
            columns=list(missing),
        )

    def check_temperature(self, temperature: float) -> None:
        """Raise ArgumentError if the temperature of responses does not have the released type."""
        configs = self.columns.get(CONFIGS, {})
        if configs.get("temperature") == "int64" and temperature != int(temperature):
            raise ArgumentError(
                f'the columns "{self.name}" have a whole number as the temperature of responses, not {temperature:g}.',
                hint="That release has greedy responses: set stages.responses.sampling.temperature=0, or choose other columns.",
            )


def _writer(column: str) -> str:
    return "turns" if turn_of(column) else REGISTER[column].writer if column in REGISTER else ""


def _input_configs(template_key: str) -> Kind:
    return {
        "temperature": "float64",
        "top_p": "float64",
        "input_generator": "string",
        "seed": "null",
        template_key: "string",
    }


def _response_configs(temperature: str, *more: str) -> Kind:
    return {
        "prompt": "string",
        "temperature": temperature,
        "top_p": "float64",
        "repetition_penalty": "float64",
        "max_tokens": "int64",
        "stop_tokens": ["string"],
        "output_generator": "string",
        **dict.fromkeys(more, "string"),
    }


def _texts(names: str) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), "string")


_DIFFICULTY = _texts("difficulty intent knowledge difficulty_generator")
_INTENT = _texts("intent knowledge difficulty difficulty_generator")
_QUALITY = _texts("input_quality quality_explanation quality_generator")
_CATEGORY: dict[str, Kind] = {
    "task_category": "string",
    "other_task_category": ["string"],
    "task_category_generator": "string",
}
_NEIGHBORS: dict[str, Kind] = {
    "min_neighbor_distance": "float64",
    "repeat_count": "int64",
    "min_similar_uuid": "string",
}


def _second(template_key: str) -> dict[str, Kind]:
    """Return the columns of Qwen2, Phi-3, Llama 3.1 and later sets with one turn."""
    return {
        "uuid": "string",
        "model": "string",
        "gen_input_configs": _input_configs(template_key),
        "instruction": "string",
        "response": "string",
        SHAREGPT: TURNS,
        **_CATEGORY,
        **_DIFFICULTY,
        **_QUALITY,
        "llama_guard_2": "string",
        "reward_model": "string",
        "instruct_reward": "float64",
        **_NEIGHBORS,
        "instruction_length": "int64",
        "response_length": "int64",
        "language": "string",
    }


_TWO_TURNS: dict[str, Kind] = {
    "uuid": "string",
    "model": "string",
    "gen_input_configs": _input_configs("pre_query_template"),
    SHAREGPT: TURNS,
    **_texts("instruction response instruction_2 response_2"),
    **_INTENT,
    **_QUALITY,
    **_CATEGORY,
    "llama_guard_2": "string",
    "instruct_reward": "float64",
    "reward_model": "string",
    "language": "string",
}


def _reasoning_v1(*more: str) -> dict[str, Kind]:
    return {
        **_texts("uuid instruction response"),
        SHAREGPT: TURNS,
        "gen_input_configs": _input_configs("extract_input"),
        CONFIGS: _response_configs("int64", *more),
        **_INTENT,
        **_QUALITY,
        **_CATEGORY,
        "language": "string",
    }


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "llama-3",
            "Llama-3-Magpie-Air-3M and Llama-3-Magpie-Pro-1M",
            {
                "uuid": "string",
                "model": "string",
                "gen_input_config": {"temperature": "float64", "top_p": "float64"},
                "input": "string",
                "output": "string",
                SHAREGPT: TURNS,
                **_texts("task_category difficulty intent knowledge input_quality quality_explanation"),
                **_texts("llama_guard_2 reward_model"),
                "instruct_reward": "float64",
                "base_output": "string",
                "base_reward": "float64",
                "reward_difference": "float64",
                **_NEIGHBORS,
                "input_length": "int64",
                "output_length": "int64",
            },
        ),
        Layout(
            "llama-3-filtered",
            "Magpie-Air-300K-Filtered and Magpie-Pro-300K-Filtered",
            {SHAREGPT: TURNS, "uuid": "string"},
        ),
        Layout(
            "llama-3-dpo",
            "Magpie-Air-DPO-100K and Magpie-Pro-DPO-100K (Air: inferred)",
            {
                **_texts("uuid instruction"),
                "gen_input_configs": {"input_generator": "string", "temperature": "float64", "top_p": "float64"},
                **_texts("intent knowledge difficulty input_quality quality_explanation task_category"),
                "input_length": "int64",
                "responses": ["string"],
                CONFIGS: dict(sorted(_response_configs("float64", "engine").items())),
                SCORES: [{"score": "float64"}],
                "chosen": MESSAGES,
                "rejected": MESSAGES,
            },
            {CONFIGS: "gen_responses_configs"},
        ),
        Layout("qwen2", "the Qwen2 and Phi-3 sets", _second("extract_input")),
        Layout(
            "llama-3.1",
            "the Llama 3.1, Llama 3.3, Gemma 2 and Qwen2.5 sets with one turn (Llama 3.3, and the key "
            "`pre_query_template` of Qwen2.5: inferred)",
            _second("pre_query_template"),
        ),
        Layout("llama-3.1-mt", "Magpie-Llama-3.1-Pro-MT-500K", _TWO_TURNS),
        Layout(
            "llama-3.1-mt-filtered",
            "Magpie-Llama-3.1-Pro-MT-300K-Filtered",
            {**_TWO_TURNS, "response_length": "int64"},
        ),
        Layout("reasoning-v1", "Magpie-Reasoning-V1-150K", _reasoning_v1()),
        Layout("reasoning-v1-cot", "the three CoT versions of Magpie-Reasoning-V1-150K", _reasoning_v1("engine")),
        Layout(
            "reasoning-v2",
            "Magpie-Reasoning-V2-250K (the columns after `gen_response_configs`: inferred from the authors' notebook)",
            {
                **_texts("conversation_id instruction response"),
                SHAREGPT: TURNS,
                "gen_input_configs": _input_configs("pre_query_template"),
                CONFIGS: _response_configs("float64", "engine"),
                **_INTENT,
                **_QUALITY,
                **_CATEGORY,
                "llama_guard_2": "string",
                "instruct_reward": "float64",
                "reward_model": "string",
                "language": "string",
            },
        ),
        Layout(
            "magpielm-dpo",
            "MagpieLM-DPO-Data",
            {**_texts("uuid instruction"), "chosen": MESSAGES, "rejected": MESSAGES},
        ),
    )
}
"""The layouts by name, as `output.columns` names them."""

_LAYOUT_OF: dict[str, str] = {
    recipe: layout
    for layout, recipes in {
        "llama-3": "magpie-air magpie-pro",
        "llama-3-filtered": "magpie-air-300k-filtered magpie-pro-300k-filtered",
        "llama-3-dpo": "magpie-air-dpo-100k magpie-pro-dpo-100k",
        "qwen2": "magpie-qwen2-pro-1m magpie-qwen2-pro-300k-filtered magpie-qwen2-pro-200k-chinese "
        "magpie-qwen2-pro-200k-english magpie-qwen2-air-3m magpie-qwen2-air-300k-filtered "
        "magpie-phi3-pro-1m magpie-phi3-pro-300k-filtered",
        "llama-3.1": "magpie-llama-3.1-pro-1m magpie-llama-3.1-pro-300k-filtered magpie-llama-3.1-pro-500k-filtered "
        "magpie-llama-3.3-pro-1m magpie-llama-3.3-pro-500k-filtered magpie-gemma2-pro-534k "
        "magpie-gemma2-pro-200k-filtered magpie-qwen2.5-pro-1m magpie-qwen2.5-pro-300k-filtered",
        "llama-3.1-mt": "magpie-llama-3.1-pro-mt-500k",
        "llama-3.1-mt-filtered": "magpie-llama-3.1-pro-mt-300k-filtered",
        "reasoning-v1": "magpie-reasoning-v1-150k",
        "reasoning-v1-cot": "magpie-reasoning-v1-150k-cot-qwq magpie-reasoning-v1-150k-cot-skywork-o1 "
        "magpie-reasoning-v1-150k-cot-deepseek-r1",
        "reasoning-v2": "magpie-reasoning-v2-250k-llama-3.1 magpie-reasoning-v2-250k-llama-3.3 "
        "magpie-reasoning-v2-250k",
        "magpielm-dpo": "magpielm-dpo-200k-gemma-2 magpielm-dpo-200k",
    }.items()
    for recipe in recipes.split()
}
RELEASED = "released"
"""The value of `output.columns` for the layout of the recipe's own release."""


def recipes_of(layout: str) -> list[str]:
    """Return the names of the recipes whose release has a layout."""
    return [recipe for recipe, name in _LAYOUT_OF.items() if name == layout]


def layout_of(columns: str, recipe: str) -> Layout:
    """Return the layout that `output.columns` names; "released" is that of the release of the recipe with this name.

    Raises:
        ArgumentError: the layout is not known, or the columns of the recipe's release are not known.
    """
    name = _LAYOUT_OF.get(recipe) if columns == RELEASED else columns
    if name is None:
        raise ArgumentError(
            f"the recipe {quoted(recipe)} has no layout of released columns.",
            hint=f"Give a list of columns, or the layout of another release: {', '.join(LAYOUTS)}.",
        )
    if name not in LAYOUTS:
        raise ArgumentError(
            f"{quoted(columns)} names no columns.",
            hint=did_you_mean(columns, [RELEASED, *LAYOUTS]),
        )
    return LAYOUTS[name]
