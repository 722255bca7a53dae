"""The model's own forward, step by step with a neuron in the place of each QCFS. It shares nothing with the package.

λ and the initial potential λ/2 are as in the paper (Bu et al., ICLR 2022), and nothing is folded.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bridge import QCFS


class Neuron(nn.Module):
    """v(0) = λ/2; v += z; s = [v ≥ λ]; v −= λ·s; λ·s comes out. One state for each call in a step."""

    def __init__(self, threshold: Tensor) -> None:
        super().__init__()
        self.threshold = threshold.detach().clone()
        self.states: list[Tensor] = []
        self.spikes: list[list[Tensor]] = []
        self.calls = 0
        self.nearest = 1.0

    def forward(self, z: Tensor) -> Tensor:
        threshold = self.threshold
        if threshold.dim():
            threshold = threshold.reshape(1, -1, *[1] * (z.dim() - 2))
        if self.calls == len(self.states):
            self.states.append((threshold / 2).expand_as(z).clone())
            self.spikes.append([])
        potential = self.states[self.calls] + z
        self.nearest = min(self.nearest, float(((potential - threshold).abs() / threshold).min()))
        spikes = (potential >= threshold).to(z.dtype)
        self.states[self.calls] = potential - threshold * spikes
        self.spikes[self.calls].append(spikes)
        self.calls += 1
        return threshold * spikes


def outputs(model: nn.Module, x: Tensor, steps: int) -> tuple[Tensor, float]:
    """The mean outputs ``[T, B, ...]`` over steps 1..t, and how near a potential came to its threshold, relatively.

    What comes nearer than rounding in float32 may spike or not. The model runs in the precision of `x`.
    """
    twin = copy.deepcopy(model).eval().to(x.dtype)
    neurons: dict[nn.Module, Neuron] = {}
    for name, module in list(twin.named_modules(remove_duplicate=False)):
        if isinstance(module, QCFS):
            neuron = neurons.setdefault(module, Neuron(module.threshold))
            parent, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(parent), leaf, neuron)
    results = []
    with torch.no_grad():
        for _ in range(steps):
            for neuron in neurons.values():
                neuron.calls = 0
            results.append(twin(x))
    counts = torch.arange(1, steps + 1).reshape(-1, *[1] * results[0].dim())
    nearest = min((neuron.nearest for neuron in neurons.values()), default=1.0)
    return torch.stack(results).cumsum(0) / counts, nearest
