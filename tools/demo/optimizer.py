"""The optimizer of the demo models: Muon for matrices inside the model, AdamW for the rest.

Muon (K. Jordan, 2024) takes the nearest orthogonal matrix to the momentum as the step's direction. On models this
small it needs about half of AdamW's tokens for the same loss. Matrices of one shape are treated as one batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch

# Odd polynomial that drives singular values toward 1, as published with the method.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Return matrices (n, rows, columns) with their singular values moved to about 1, by Newton-Schulz iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    x: torch.Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Optimizer:
    """Muon and AdamW side by side, under one rate between 0 and 1.

    `muon_rate`, `adam_rate`: peak rates; the values were chosen on short runs of the chat model.
    """

    def __init__(self, model: torch.nn.Module, *, muon_rate: float = 0.02, adam_rate: float = 4e-3) -> None:
        import torch

        inner: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            is_inner = (
                parameter.dim() == 2 and "embed_tokens" not in name and "head" not in name and "score" not in name
            )
            (inner if is_inner else others).append(parameter)
        shapes: dict[tuple[int, ...], list[torch.nn.Parameter]] = defaultdict(list)
        for parameter in inner:
            shapes[tuple(parameter.shape)].append(parameter)
        self._groups = list(shapes.values())
        self._momenta = [torch.zeros(len(group), *group[0].shape) for group in self._groups]
        self._adam = torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.01)
        self._muon_rate, self._adam_rate = muon_rate, adam_rate
        self._parameters = [*inner, *others]

    def step(self, rate: float) -> None:
        """Clip the gradients, apply them at `rate` times the peak rates, and clear them."""
        import torch

        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        with torch.no_grad():
            for group, momentum in zip(self._groups, self._momenta, strict=True):
                gradients = torch.stack([_gradient(parameter) for parameter in group])
                momentum.lerp_(gradients, 0.05)
                steps = orthogonalized(gradients.lerp(momentum, 0.95))
                rows, columns = group[0].shape
                size = -rate * self._muon_rate * max(1.0, rows / columns) ** 0.5
                for parameter, step in zip(group, steps, strict=True):
                    parameter.mul_(1 - rate * self._muon_rate * 0.01).add_(step, alpha=size)
        for settings in self._adam.param_groups:
            settings["lr"] = rate * self._adam_rate
        self._adam.step()
        for parameter in self._parameters:
            parameter.grad = None


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        raise RuntimeError("a parameter got no gradient")
    return parameter.grad


def rate_at(step: int, steps: int) -> float:
    """Return the rate of a step, between 0 and 1: a short linear rise, then a cosine down to 0.02."""
    rise = max(1, min(100, steps // 10))
    if step < rise:
        return (step + 1) / rise
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
