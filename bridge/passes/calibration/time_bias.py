"""Biases that change with the time step: what they gain, for those whose hardware has them.

FTBC (Wu et al., ECCV 2024, arXiv 2403.18388) gives each channel a bias for each step, fitted so that at every step the
mean rate of the channel is the ANN's. **It asks of hardware** T biases a channel in place of one, and that all cores
count the steps of an image. Neither NIR's neurons nor Loihi's have that, so it is simulated here and not exported;
`SpikingNetwork.calibrate` changes only what every backend has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge._util.neutral import neutral
from bridge._util.shown import Shown
from bridge.graph import IntegrateFire, LayerGraph
from bridge.simulate.ann import activations
from bridge.simulate.images import checked
from bridge.simulate.layerwise import layer_by_layer
from bridge.simulate.ops import channels

PACE, ROUNDS = 0.4, 3
"""As in the authors' code: how much of a mean error is taken back, and how often."""
AT_ONCE = 2**8
"""Images that are simulated together, divided by T."""


@dataclass(frozen=True, eq=False, repr=False)
class TimeBiased(Shown):
    """A spiking network with a bias for each channel and step: `simulate` is all it can do.

    Attributes:
        graph: the network without them.
        biases: by layer of neurons, what is added to the drive, float32 ``[T, C]``.
    """

    graph: LayerGraph
    biases: Mapping[str, Tensor]

    @property
    def steps(self) -> int:
        """T: there are no biases for any step after."""
        return len(next(iter(self.biases.values())))

    @neutral()
    def simulate(self, x: Tensor | NDArray[Any]) -> NDArray[np.float32]:
        """The output after each of the T steps, the mean of the readout so far, for images `x` ``[B, *input]``.

        Returns float32 ``[T, B, ...]``. Raises `InputError` if the images do not fit.
        """
        x = checked(self.graph, x)

        def fire(layer: IntegrateFire, drive: Tensor) -> Tensor:
            return _fire(layer, drive, self.biases[layer.name])

        outputs = []
        for part in x.split(max(1, AT_ONCE // self.steps)):
            readout = layer_by_layer(self.graph, part, self.steps, fire)
            counts = torch.arange(1, self.steps + 1).reshape(-1, *[1] * (readout.dim() - 1))
            outputs.append(readout.cumsum(dim=0) / counts)
        return np.asarray(torch.cat(outputs, dim=1).numpy())


@torch.inference_mode()
def time_biased(graph: LayerGraph, ann: LayerGraph, x: Tensor, steps: int) -> TimeBiased:
    """The spiking `graph` with biases fitted to `ann`, at each of `steps` steps, on images `x` ``[B, *input]``.

    From the first layer to the last; a layer hears what those before it fire with their biases.
    """
    targets, _, _ = activations(ann, x)
    biases: dict[str, Tensor] = {}

    def fit(layer: IntegrateFire, drive: Tensor) -> Tensor:
        bias = torch.zeros(steps, drive.shape[2])
        target = _by_channel(targets[layer.name].unsqueeze(0))
        for _ in range(ROUNDS):
            bias -= PACE * (_by_channel(_fire(layer, drive, bias)) - target)
        biases[layer.name] = bias
        return _fire(layer, drive, bias)

    layer_by_layer(graph, x, steps, fit, f"fitting biases, T = {steps}")
    return TimeBiased(graph, biases)


def _by_channel(values: Tensor) -> Tensor:
    """Means ``[T, C]`` of values ``[T, B, C, ...]``."""
    return values.transpose(1, 2).flatten(2).mean(dim=2)


def _fire(layer: IntegrateFire, drive: Tensor, bias: Tensor) -> Tensor:
    """Spikes ``[T, B, C, ...]`` for `drive` of that shape and biases ``[T, C]``."""
    level, threshold = channels(layer.level, drive[0]), channels(layer.threshold, drive[0])
    potential = torch.zeros_like(drive[0])
    spikes = torch.empty_like(drive)
    for t, now in enumerate(drive):
        potential = potential + now + bias[t].reshape(level.shape)
        torch.ge(potential, level, out=spikes[t])
        potential -= threshold * spikes[t]
    return spikes
