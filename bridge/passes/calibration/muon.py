"""Steps for weight matrices that go equally far in all directions.

A gradient of a layer's weights has a few directions that dominate and many that it hardly speaks of. Adam weighs each
element by itself; Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024) takes of the
mean gradient the nearest orthogonal matrix. torch has it from 2.9 on, in bfloat16; here it is in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
ITERATIONS = 5
QUINTIC = (3.4445, -4.775, 2.0315)
"""Jordan et al.'s polynomial, which brings singular values from 0…1 close to 1 in few iterations."""


class Muon(torch.optim.Optimizer):
    """Moves weights ``[C_out, ...]``, in each step by `lr` in the root mean square."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """As of any optimiser; a `closure` is not called."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                mean = state["mean"].lerp_(gradient, 1 - MOMENTUM)
                direction = orthogonal(gradient.lerp(mean, MOMENTUM).flatten(1))  # Nesterov's momentum
                parameter.sub_(group["lr"] * max(direction.shape) ** 0.5 * direction.view_as(parameter))


def orthogonal(matrix: Tensor) -> Tensor:
    """About U Vᵀ of a `matrix` U S Vᵀ, ``[m, n]``, by Newton and Schulz's iteration: singular values 0.7 to 1.2."""
    tall = matrix.shape[0] > matrix.shape[1]
    wide: Tensor = matrix.mT if tall else matrix
    wide = wide / wide.norm().clamp(min=torch.finfo(wide.dtype).tiny)
    first, third, fifth = QUINTIC
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = first * wide + (third * gram + fifth * gram @ gram) @ wide
    return wide.mT if tall else wide
