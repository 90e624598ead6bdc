"""The columns that annotations write: their scales, and which annotation writes which."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from .errors import DatasetError


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


def missing_columns(
    readers: Mapping[str, Sequence[str]], there: Sequence[str], also: Sequence[str] = ()
) -> DatasetError:
    """Return the error for columns that a dataset lacks, all of them at once.

    `readers`: each missing column with who reads it (as 'the stage "quality"'). `there`: the dataset's columns; `also`:
    other names that a column can be called by. The hint says which annotation writes a column, or which name is near.
    """
    names = list(readers)
    who = list(dict.fromkeys(reader for given in readers.values() for reader in given))
    shown = listed([f'"{name}"' for name in names])
    if len(who) > 1:
        each = [f'"{name}" (read by {listed(readers[name])})' for name in names]
        message = f"The dataset lacks the column{'s' if len(names) > 1 else ''} {listed(each)}."
    elif len(names) > 1:
        message = f"{who[0][:1].upper()}{who[0][1:]} reads the columns {shown}, and the dataset has none of them."
    else:
        message = f"{who[0][:1].upper()}{who[0][1:]} reads the column {shown}, and the dataset has none."
    written = list(dict.fromkeys(ANNOTATION_OF[name] for name in names if name in ANNOTATION_OF))
    unknown = [name for name in names if name not in ANNOTATION_OF]
    hints = [_near(name, [*there, *also], f' for "{name}"' if len(names) > 1 else "") for name in unknown]
    if written:
        names_given = ", ".join(f'"{name}"' for name in written)
        hints.append(f"Run magpie_hf.annotate(ds, [{names_given}]) first.")
    else:
        hints.append(f"Columns: {', '.join(sorted(there)[:40]) or 'none'}.")
    return DatasetError(
        message,
        hint=" ".join(hint for hint in hints if hint),
        column=names[0],
        columns=names,
        annotation=written[0] if written else None,
    )


def _near(name: str, known: Sequence[str], which: str) -> str:
    # No annotation's column stands for the texts themselves: "base_response" is no other name of "response".
    others = () if name in ("instruction", "response") else ANNOTATION_OF
    close = difflib.get_close_matches(name, sorted({*known, *others}), n=1, cutoff=0.6)
    return f'Did you mean "{close[0]}"{which}?' if close else ""


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
