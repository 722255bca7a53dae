"""Training steps in which the network runs as spikes: what makes a network bear few time steps.

At T steps the rates of a converted network are not the ANN's: spikes come late, or come where the ANN is silent, and a
potential that they have driven far from the threshold takes long to return. A network that never met such errors
amplifies them from layer to layer. So, in fine-tuning, every second step takes the images through the spiking network
itself, T steps of every neuron as conversion will make it. Forwards, each activation is what the neuron fires;
backwards, it is QCFS of the mean drive, as if the rate were the ANN's (as in Meng et al., "Training high-performance
low-latency spiking neural networks by differentiation on spike representation", CVPR 2022). The steps in between are
the ANN's, and keep it what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bridge.qcfs import QCFS

LARGEST_GRADIENT = 1.0
"""Norm to which gradients are cut: the first spiking steps of a network are far off."""


@torch.no_grad()
def spike_train(layer: QCFS, drive: Tensor) -> Tensor:
    """What the layer's spiking twin gives for `drive` ``[T, B, ...]``: λ or 0 of that shape, from v(0) = λ/2."""
    threshold: Tensor = layer.threshold
    if layer.per_channel:
        threshold = threshold.reshape(1, -1, *[1] * (drive.dim() - 3))
    potential = torch.zeros_like(drive[0]) + threshold / 2
    fired = torch.empty_like(drive)
    for now, spikes in zip(drive, fired, strict=True):
        potential = potential + now
        torch.mul(potential >= threshold, threshold, out=spikes)
        potential = potential - spikes
    return fired


class SpikingSteps:
    """Lets a model's QCFS layers fire over so many time steps while it is asked to."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.model, self.steps = model, steps
        self._active = False

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, calls of `logits` can be made."""
        hooks = [layer.register_forward_hook(self._fire) for layer in self.model.modules() if isinstance(layer, QCFS)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def logits(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What the model, called by `forward`, gives for images `x` ``[B, ...]`` as a spiking network.

        That is its mean over the steps, ``[B, ...]``.
        """
        self._active = True
        try:
            rows = forward(torch.cat([x] * self.steps))
        finally:
            self._active = False
        mean: Tensor = rows.unflatten(0, (self.steps, -1)).mean(dim=0)
        return mean

    def _fire(self, layer: QCFS, arguments: tuple[Tensor], output: Tensor) -> Tensor | None:
        if not self._active:
            return None
        drive = arguments[0].unflatten(0, (self.steps, -1))
        mean = QCFS.forward(layer, drive.mean(dim=0))
        return (mean + (spike_train(layer, drive) - mean).detach()).flatten(0, 1)
