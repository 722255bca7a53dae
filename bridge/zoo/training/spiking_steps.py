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

from bridge.prepare.qcfs import QCFS

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
    """A model run as a spiking network, with gradients.

    Between QCFS layers all is affine, as conversion demands, so the mean of a layer's drive is what the layers before
    it make of mean spikes. Two passes do: the spikes of all T steps without gradients, then one of their means, through
    which the gradients go. That takes T + 3 times the work of evaluating the model, in the place of 3 T.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.model, self.steps = model, steps

    def logits(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What the model, called by `forward`, gives for images `x` ``[B, ...]`` as a spiking network.

        That is its mean over the steps, ``[B, ...]``.
        """
        heard: list[Tensor] = []  # the mean spikes of each layer, in the order of calls

        def fire(layer: QCFS, arguments: tuple[Tensor], output: Tensor) -> Tensor:
            fired = spike_train(layer, arguments[0].unflatten(0, (self.steps, -1)))
            heard.append(fired.mean(dim=0))
            return fired.flatten(0, 1)

        def replay(layer: QCFS, arguments: tuple[Tensor], output: Tensor) -> Tensor:
            return output + (heard.pop(0) - output).detach()

        with self._hooked(fire), torch.no_grad():
            self.model(torch.cat([x] * self.steps))
        with self._hooked(replay):
            return forward(x)

    @contextmanager
    def _hooked(self, hook: Callable[..., Tensor]) -> Iterator[None]:
        """Within, `hook` says what each QCFS layer gives."""
        hooks = [layer.register_forward_hook(hook) for layer in self.model.modules() if isinstance(layer, QCFS)]
        try:
            yield
        finally:
            for one in hooks:
                one.remove()
