"""How well the demo model annotates: its labels against what the grammar knows."""

from __future__ import annotations

import json
import random
from typing import Any

from .generate import generate
from .grammar.judge import TASKS, Task, sample_task
from .packing import prompt_parts


KEYS = {
    "quality": ("input_quality",),
    "difficulty": ("difficulty",),
    "category": ("primary_tag",),
    "joined": ("input_quality", "difficulty", "primary_tag"),
}
SEED = 77  # never a seed of the training


def measure_judge(model: Any, tokenizer: Any, count: int = 300) -> dict[str, float]:
    """Return for each task the share of answers that can be read, and of labels that are the grammar's, greedily."""
    rng = random.Random(SEED)
    figures: dict[str, float] = {}
    for name in TASKS:
        if name == "urial":
            continue
        tasks = [sample_task(rng, name) for _ in range(count)]
        prompts = ["".join(prompt_parts(task)[:2]) for task in tasks]
        answers = [text for text, _ in generate(model, tokenizer, prompts, max_tokens=160, batch_size=50)]
        figures |= _score(name, tasks, answers)
    return figures


def _score(name: str, tasks: list[Task], answers: list[str]) -> dict[str, float]:
    if name == "guard":
        right = sum(task.answer == answer for task, answer in zip(tasks, answers, strict=True))
        return {"judge: guard as the grammar's": right / len(tasks)}
    read = [_parsed(answer) for answer in answers]
    figures = {f"judge: {name}, readable": sum(found is not None for found in read) / len(read)}
    for key in KEYS[name]:
        right = sum(
            found is not None and found.get(key) == json.loads(task.answer)[key]
            for task, found in zip(tasks, read, strict=True)
        )
        figures[f"judge: {name}, {key} as the grammar's"] = right / len(tasks)
    return figures


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
