"""The columns that annotations write: their scales, and which annotation writes which."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import DatasetError, did_you_mean


SHAREGPT = "conversations"
"""ShareGPT's form of a conversation (from/value), in the released datasets and in foreign ones; read, never written.

Beside `messages` it misleads trainers: TRL's SFTTrainer takes it instead of `messages` and keeps the roles human and gpt.
"""
SCALES = {
    "input_quality": ("very poor", "poor", "average", "good", "excellent"),
    "difficulty": ("very easy", "easy", "medium", "hard", "very hard"),
}
"""Ordered labels, the lowest first: Magpie, arXiv:2406.08464, section 3.2."""
ANNOTATION_OF = {
    **dict.fromkeys(("input_quality", "quality_explanation", "quality_generator"), "quality"),
    **dict.fromkeys(("difficulty", "intent", "knowledge", "difficulty_generator"), "difficulty"),
    **dict.fromkeys(("task_category", "other_task_category", "task_category_generator"), "category"),
    **dict.fromkeys(("language", "language_confidence"), "language"),
    **dict.fromkeys(("safety", "safety_categories", "llama_guard_2", "llama_guard_3"), "safety"),
    **dict.fromkeys(("instruct_reward", "reward_model", "reward_truncated"), "reward"),
    **dict.fromkeys(("reward_difference", "base_response", "base_reward", "base_model"), "reward_difference"),
    **dict.fromkeys(("min_neighbor_distance", "repeat_count", "min_similar_uuid", "group_id"), "neighbors"),
    **dict.fromkeys(("instruction_length", "response_length", "instruction_tokens", "response_tokens"), "lengths"),
    "flags": "flags",
}
"""Which annotation writes a column: for the hint where one is missing."""


def missing_column(who: str, column: str, there: Sequence[str]) -> DatasetError:
    """Return the error for a column that is not there: which annotation writes it, or which name is near."""
    annotation = ANNOTATION_OF.get(column)
    hint = f'Run magpie_hf.annotate(ds, ["{annotation}"]) first.' if annotation else did_you_mean(column, there)
    return DatasetError(
        f'{who} reads the column "{column}", and the dataset has none.',
        hint=hint,
        column=column,
        annotation=annotation,
    )
