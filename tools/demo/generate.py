"""Texts from a trained model, for its measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .tokenizer import END_OF_TURN


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    temperature: float = 0.0,
    max_tokens: int = 200,
    seed: int = 0,
    batch_size: int = 256,
) -> list[tuple[str, bool]]:
    """Return each prompt's text, and whether it ended by itself. Prompts hold their BOS; temperature 0 is greedy."""
    import torch

    torch.manual_seed(seed)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    results = []
    for start in range(0, len(prompts), batch_size):
        inputs = tokenizer(
            list(prompts[start : start + batch_size]), add_special_tokens=False, return_tensors="pt", padding=True,
            padding_side="left",
        )  # fmt: skip
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=max_tokens, **sampling)
        for row in output[:, inputs["input_ids"].shape[1] :].tolist():
            text = row[: row.index(end)] if end in row else row
            results.append((tokenizer.decode(text), end in row))
    return results
