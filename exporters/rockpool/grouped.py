"""Neurons without state as modules of Rockpool: groups of thresholds, what is done to each of a group, and pools.

The signals of groups are flat, as all are: ``[B, T, L·N]``, one level after the other.
"""

from __future__ import annotations

from typing import Any

import rockpool.parameters as rp
from rockpool.nn.modules import TorchModule
from torch import Tensor

from bridge.graph import Array
from bridge.simulate.ops import tensor
from exporters.rockpool.neuron import fires


class Threshold(TorchModule):  # type: ignore[misc]
    """``y_i = [x_i ≥ level_i]``, level ``[N]``."""

    level: Tensor

    def __init__(self, level: Array) -> None:
        super().__init__(shape=(len(level), len(level)))
        self.level = rp.SimulationParameter(tensor(level).clone())

    def forward(self, x: Tensor) -> Tensor:
        return fires(x, self.level)


class ThresholdGroup(TorchModule):  # type: ignore[misc]
    """``s_ki = [x_i ≥ level_ki]``, level ``[L, N]``: of each neuron as many thresholds as there are levels."""

    level: Tensor

    def __init__(self, level: Array) -> None:
        super().__init__(shape=(level.shape[1], level.size), spiking_output=True)
        self.level = rp.SimulationParameter(tensor(level).clone())

    def forward(self, x: Tensor) -> Tensor:
        """The spikes ``[B, T, L·N]`` of drives ``[B, T, N]``."""
        return fires(x.unsqueeze(2), self.level).flatten(2)

    def evolve(self, input_data: Tensor, record: bool = False) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
        """``(spikes, state, record)``; what is recorded as ``vmem`` is the drive, once for each level."""
        spikes, state, _ = super().evolve(input_data, record)
        vmem = input_data.repeat(1, 1, len(self.level)) if record else None
        return spikes, state, {"spikes": spikes, "vmem": vmem} if record else {}


class EachLevel(TorchModule):  # type: ignore[misc]
    """What `layer` does, done to each of the `levels` of groups."""

    def __init__(self, layer: TorchModule, levels: int) -> None:
        super().__init__(shape=(levels * layer.size_in, levels * layer.size_out))
        self.layer, self.levels = layer, levels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        y, _, _ = self.layer(x.reshape(len(x), -1, self.layer.size_in))
        return y.reshape(*x.shape[:2], -1)


class GroupSum(TorchModule):  # type: ignore[misc]
    """How many of each of `size` groups of `levels` thresholds fire."""

    def __init__(self, size: int, levels: int) -> None:
        super().__init__(shape=(levels * size, size))
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.levels, -1).sum(2)
