"""Finding a QCFS that is written out as operations, by what these compute together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bridge.prepare.qcfs import QCFS

SAMPLES = 4096
"""Numbers on which a function is held against a QCFS, at least."""

MOST_LEVELS = 1024


def recognise(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> QCFS | None:
    """The QCFS that `function`, of tensors ``[B, ...]`` of this `shape`, computes for each element; None if it is none.

    λ is what a large input gives, L follows from the smallest step. Then both are compared on random numbers, the
    edges between levels among them.
    """
    if len(shape) < 2:
        return None
    lowest, threshold = (function(torch.full(shape, sign * 1e9, dtype=torch.float64)) for sign in (-1, 1))
    if lowest.shape != shape or bool(lowest.any()) or not bool((threshold.isfinite() & (threshold > 0)).all()):
        return None
    spread = threshold.transpose(0, 1).reshape(shape[1], -1)
    if bool((spread != spread[:, :1]).any()):
        return None
    generator = torch.Generator().manual_seed(0)
    rounds = -(-SAMPLES // threshold.numel())

    def shares(low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low

    positive = torch.cat([(function(threshold * shares(0, 1)) / threshold).flatten() for _ in range(rounds)])
    steps = positive[positive > 1e-9]
    if steps.numel() == 0 or float(steps.min()) * MOST_LEVELS < 1:
        return None
    levels = round(1 / float(steps.min()))
    for _ in range(rounds):
        level = (shares(-1, levels + 2) - 0.5).round() + 0.5  # an edge
        near = torch.where(shares(0, 1) < 0.5, 1e-5, -1e-5)
        for place in (shares(-1, levels + 2), level + near):
            sure = ((place - 0.5).round() + 0.5 - place).abs() > 1e-6
            expected = threshold * ((place + 0.5).floor() / levels).clamp(0, 1)
            if bool((((function(threshold * place / levels) - expected).abs() > 1e-6 * threshold) & sure).any()):
                return None
    values = spread[:, 0]
    return QCFS(levels, values[0].item() if bool((values == values[0]).all()) else values.float())
