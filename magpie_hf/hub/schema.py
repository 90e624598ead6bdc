"""The columns of the released Magpie datasets, in their order, and where our own stand among them.

Source: the viewers of the Qwen2, Phi-3 and Llama-3.1 releases (raw and filtered). Their `conversations` (from/value) is
read in existing datasets and not written: rows made here hold `messages` (role/content), as TRL and chat templates read
it. TRL's SFTTrainer prefers `conversations` where both are present, and trains on the roles human and gpt.
"""

from __future__ import annotations

from collections.abc import Iterable


RELEASED = (
    "uuid",
    "model",
    "gen_input_configs",
    "instruction",
    "response",
    "conversations",
    "task_category",
    "other_task_category",
    "task_category_generator",
    "difficulty",
    "intent",
    "knowledge",
    "difficulty_generator",
    "input_quality",
    "quality_explanation",
    "quality_generator",
    "llama_guard_2",
    "reward_model",
    "instruct_reward",
    "min_neighbor_distance",
    "repeat_count",
    "min_similar_uuid",
    "instruction_length",
    "response_length",
    "language",
)


def column_order(names: Iterable[str]) -> list[str]:
    """Return column names in the order of the releases: later turns behind the first, then all others as they came."""
    given = list(names)
    turns = sorted(
        (name for name in given if _turn(name)), key=lambda name: (_turn(name), not name.startswith("instruction"))
    )
    order: list[str] = []
    for name in RELEASED:
        if name in given:
            order.append(name)
        if name == "response":
            order.extend(turns)
    return order + [name for name in given if name not in order]


def _turn(name: str) -> int:
    """Return t of `instruction_t` and `response_t`, the columns of the multi-turn releases, else 0."""
    head, _, tail = name.rpartition("_")
    return int(tail) if head in ("instruction", "response") and tail.isdecimal() else 0
