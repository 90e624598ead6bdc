"""The targets of `export`: the rows that each one reads, and the files that belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..errors import ArgumentError, did_you_mean
from . import forms
from .reasoning import KEYS


if TYPE_CHECKING:
    from collections.abc import Sequence

Task: TypeAlias = Literal["sft", "preference", "prompts"]
TASKS = ("auto", "sft", "preference")
PAIR = ("chosen", "rejected")
_ANY = (*KEYS, "content")
_CONTENT = ("content",)


@dataclass(frozen=True)
class Shape:
    """How a target writes the rows of a task.

    - `writer`: makes its rows. `columns`: its columns; `tools` is written only if rows have tools.
    - `reasoning`: the forms of reasoning that its loader reads.
    - `config`: the configuration file to write next to the rows, a file of the folder `configs`.
    """

    writer: type[forms.Writer]
    columns: tuple[str, ...]
    reasoning: tuple[str, ...] = _ANY
    config: str | None = None


@dataclass(frozen=True)
class Target:
    """A target of `export`: its name, what it is for, its shape per task, and the format of its files."""

    name: str
    title: str
    shapes: Mapping[Task, Shape]
    file_format: Literal["parquet", "jsonl"] = "jsonl"

    def task(self, asked: str, columns: Sequence[str]) -> Task:
        """Return the task: the one asked for, else preferences if the rows have `chosen` and `rejected`, else SFT.

        Raises:
            ArgumentError: the task is unknown, or the target has no such task.
        """
        if asked not in TASKS:
            raise ArgumentError(f"Invalid value task = {asked!r}.", hint=did_you_mean(str(asked), TASKS), key="task")
        tasks = list(self.shapes)
        if asked == "auto":
            has_pairs = all(name in columns for name in PAIR)
            return tasks[0] if len(tasks) == 1 else "preference" if has_pairs else "sft"
        found = next((task for task in tasks if task == asked), None)
        if found is None:
            raise ArgumentError(
                f'The target "{self.name}" has no task "{asked}".', hint=f"Its task: {tasks[0]}.", key="task"
            )
        return found


def _trl(name: str, title: str, task: Task, writer: type[forms.Writer], columns: str, config: str | None) -> Target:
    return Target(name, title, {task: Shape(writer, tuple(columns.split()), config=config)}, "parquet")


_MESSAGES_AND_SIDES = ("messages", *PAIR)
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _trl("trl-sft", "TRL's SFTTrainer and `trl sft`", "sft", forms.TrlSft, "messages", "trl-sft.yaml"),
        _trl("trl-prompt-completion", "TRL's SFTTrainer, loss on the last response", "sft", forms.TrlPromptCompletion,
             "prompt completion", "trl-prompt-completion.yaml"),
        _trl("trl-dpo", "TRL's DPOTrainer and `trl dpo`", "preference", forms.TrlDpo, "prompt chosen rejected",
             "trl-dpo.yaml"),
        _trl("trl-kto", "TRL's KTOTrainer and `trl kto`", "preference", forms.TrlKto, "prompt completion label", None),
        _trl("trl-reward", "TRL's RewardTrainer and `trl reward`", "preference", forms.TrlReward, "chosen rejected", None),
        _trl("trl-grpo", "TRL's GRPOTrainer and RLOOTrainer", "prompts", forms.TrlGrpo, "prompt response", None),
        Target("axolotl", "axolotl, with the YAML that reads the rows", {
            "sft": Shape(forms.Axolotl, ("messages",), _ANY, "axolotl-sft.yaml"),
            "preference": Shape(forms.AxolotlPreference, _MESSAGES_AND_SIDES, _CONTENT, "axolotl-dpo.yaml"),
        }),
        Target("llamafactory", "LLaMA-Factory, with dataset_info.json", {
            "sft": Shape(forms.LlamaFactory, ("messages",), _CONTENT),
            "preference": Shape(forms.LlamaFactoryPreference, _MESSAGES_AND_SIDES, _CONTENT),
        }),
        Target("sharegpt", "ShareGPT: conversations of from and value", {
            "sft": Shape(forms.ShareGpt, ("conversations",), _CONTENT),
            "preference": Shape(forms.ShareGptPreference, ("conversations", *PAIR), _CONTENT),
        }),
        Target("openai", "chat JSONL, as chat APIs take it for fine-tuning", {
            "sft": Shape(forms.OpenAi, ("messages",), ("reasoning_content", "thinking", "reasoning", "content")),
            "preference": Shape(forms.OpenAiPreference, ("input", "preferred_output", "non_preferred_output")),
        }),
    )
}  # fmt: skip
"""The targets by name."""


def target_of(name: str) -> Target:
    """Return a target by its name.

    Raises:
        ArgumentError: the name is unknown.
    """
    if str(name) not in TARGETS:
        raise ArgumentError(f'Unknown target "{name}".', hint=did_you_mean(str(name), TARGETS), key="target")
    return TARGETS[name]
