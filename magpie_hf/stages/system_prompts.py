"""The system prompt of responses and turns: one text for all rows, or each row's own (`system_prompt: row`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import DatasetError
from ..stage import Outcome, Row, RowStage, Values


if TYPE_CHECKING:
    from ..errors import TemplateError
    from ..sampling import GridPoint

ROW = "row"
"""The setting `system_prompt: row`: each row's own system prompt is in force."""
COLUMN, KEY = "system_prompt", "system_prompt_key"
"""The columns with the system prompt of a row, and with its label."""
PROBE = "You are a helpful assistant."
"""A system prompt with which a template is checked before the first row."""


class UnderSystemPrompt(RowStage):
    """A stage that generates under a system prompt."""

    system_prompt: str | None

    @property
    def shown(self) -> Values:
        """The setting that writes the system prompt to `messages`, if the stage has it and it is set."""
        name = "system_prompt_in_messages"
        return {name: True} if getattr(self, name, False) else {}

    @property
    def is_per_row(self) -> bool:
        """Whether each row's own system prompt is in force."""
        return self.system_prompt == ROW

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that the stage reads, with that of the system prompts if they are per row."""
        return (*self.reads, COLUMN) if self.is_per_row else self.reads

    @property
    def drops(self) -> tuple[str, ...]:
        """The outdated columns; the system prompt of a row is kept if it is in force."""
        return tuple(name for name in self.replaces if name != COLUMN or not self.is_per_row)

    @property
    def example_prompt(self) -> str | None:
        """A system prompt for the check of a template: that of the settings, or any if they are per row."""
        return PROBE if self.is_per_row else self.system_prompt

    def prompt_of(self, row: Row) -> str | None:
        """Return the system prompt that is in force for a row."""
        found = row[COLUMN] if self.is_per_row else self.system_prompt
        return found if found is None else str(found)

    def check_features(self, features: Mapping[str, object]) -> None:
        """Raise DatasetError if a column is missing; the hint says what writes the system prompts."""
        if self.is_per_row and COLUMN not in features and {*self.reads} <= {*features}:
            raise DatasetError(
                f'The stage "{self.label}" has `system_prompt: row`, but the rows have no column "{COLUMN}".',
                hint="It contains the system prompt under which a row was generated, or the system message of an existing "
                "conversation. `responses` and `turns` drop it unless they have `system_prompt: row`, too.",
                column=COLUMN,
                columns=[COLUMN],
            )
        super().check_features(features)


def unusable(error: TemplateError) -> Outcome:
    """Return the outcome of a row whose system prompt or messages the chat template rejects."""
    return Outcome({"error": "validation", "message": error.message}, "validation")


def labels_of(grid: tuple[GridPoint, ...]) -> list[str | None]:
    """Return the label of each grid point's system prompt; an empty list if none has one."""
    labels = [point.system_prompt_key for point in grid]
    return labels if any(label is not None for label in labels) else []
