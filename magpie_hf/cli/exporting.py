"""The command `export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .annotate import DATASET
from .flags import Commands, add_command
from .parse import names_of


if TYPE_CHECKING:
    from ..api.exporting import Exported

_TARGETS = (
    "trl-sft", "trl-prompt-completion", "trl-dpo", "trl-kto", "trl-reward", "trl-grpo", "axolotl", "llamafactory", "sharegpt",
    "openai",
)  # fmt: skip
_COMMANDS = {
    "trl-sft": "trl sft --config {output}/trl-sft.yaml --model_name_or_path MODEL",
    "trl-prompt-completion": "trl sft --config {output}/trl-prompt-completion.yaml --model_name_or_path MODEL",
    "trl-dpo": "trl dpo --config {output}/trl-dpo.yaml --model_name_or_path MODEL",
    "trl-kto": "trl kto --dataset_name {output} --model_name_or_path MODEL",
    "trl-reward": "trl reward --dataset_name {output} --model_name_or_path MODEL",
}


def add_export_command(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "export", _export, "Write rows in the format that a trainer reads.")
    parser.add_argument("dataset", help=DATASET)
    parser.add_argument("target", help=", ".join(_TARGETS))
    parser.add_argument(
        "--output", metavar="DIR", help="directory to write (default: a directory named like the target)"
    )
    parser.add_argument(
        "--model", help="the model that will be trained: its chat template decides how reasoning is written"
    )
    parser.add_argument("--chat-template", metavar="FILE", help="Jinja text or file to use instead of the model's own")
    parser.add_argument(
        "--task", default="auto", help="sft or preference, for targets that have both (default: by the columns)"
    )
    parser.add_argument(
        "--reasoning",
        default="auto",
        metavar="FORM",
        help="reasoning_content, thinking, reasoning (keys of a message), content (between tags) or drop "
        "(default: what the chat template of --model prints)",
    )
    parser.add_argument(
        "--system-prompt",
        default="messages",
        metavar="FROM",
        help="messages (as in the conversations), column (also the column system_prompt) or drop (default messages)",
    )
    parser.add_argument("--columns", default="", metavar="NAMES", help="comma-separated columns to keep, e.g., uuid")
    parser.add_argument(
        "--on-invalid",
        default="error",
        metavar="ACTION",
        help="error, or skip: leave out and count rows that cannot be exported (default error)",
    )


def _export(options: argparse.Namespace) -> int:
    from ..api.exporting import exported
    from ..exports.convert import Settings

    settings = Settings(
        target=options.target,
        task=options.task,
        reasoning=options.reasoning,
        model=options.model,
        chat_template=options.chat_template,
        system_prompt=options.system_prompt,
        columns=tuple(names_of(options.columns)),
        on_invalid=options.on_invalid,
    )
    output = Path(options.output or options.target)
    _show(exported(options.dataset, settings, output), options.target, output)
    return 0


def _show(made: Exported, target: str, output: Path) -> None:
    from ..exports.convert import described

    for split, part in made.parts.items():
        skipped = f", {sum(part.skipped.values()):,} skipped ({described(part.skipped)})" if part.skipped else ""
        print(f"{split}: {len(part.rows):,} rows{skipped}")
    for path in made.files:
        print(path)
    if target in _COMMANDS:
        print(f"\nTrain with:\n  {_COMMANDS[target].format(output=output)}")
