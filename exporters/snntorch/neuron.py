"""The integrate-and-fire neuron with soft reset as a subclass of snnTorch's ``Leaky``."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import snntorch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bridge.graph import IntegrateFire


def neuron_of(layer: IntegrateFire, rank: int) -> nn.Module:
    """The neurons of `layer`, whose signals have `rank` dimensions."""
    return SoftResetIF(layer.level, layer.threshold, rank)


class Leaky(snntorch.Leaky):  # type: ignore[misc]
    """A ``Leaky`` that goes when nothing refers to it any more.

    snnTorch keeps every neuron in a list, for ``utils.reset``, and with it its last potentials. Here the list has a
    weak reference.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        instances = snntorch.SpikingNeuron.instances
        reference = weakref.proxy(self, _forget)
        instances[-1] = reference


def _forget(reference: object) -> None:
    """Take a neuron that is gone off snnTorch's list."""
    instances = snntorch.SpikingNeuron.instances
    instances[:] = [one for one in instances if one is not reference]


class SoftResetIF(Leaky):
    """``u += I;  s = [u ≥ level];  u −= threshold · s``, u(0) = 0, one of each for a channel of ``[B, C, ...]``.

    `rank` is the number of a signal's dimensions: 1 for vectors, 3 for feature maps.

    A plain ``Leaky(beta=1, reset_mechanism="subtract")`` is not this neuron: it fires on ``>``, at the same level
    that it subtracts, and with ``reset_delay=False`` drops a spike whenever the potential left over from the last
    step is still above the threshold, because it takes the reset for already done.
    """

    below: Tensor

    def __init__(self, level: NDArray[np.float32], threshold: NDArray[np.float32], rank: int) -> None:
        uniform = bool((threshold == threshold[0]).all())
        taken_off = float(threshold[0]) if uniform else torch.from_numpy(threshold.reshape(-1, *[1] * (rank - 1)))
        super().__init__(beta=1.0, threshold=taken_off, reset_mechanism="subtract", reset_delay=False, init_hidden=True)
        # snnTorch's surrogates fire on u − θ > 0: with θ the float32 just below the level, that is u ≥ level.
        self.register_buffer("below", torch.from_numpy(np.nextafter(level, np.float32(-np.inf))))

    def mem_reset(self, mem: Tensor) -> Tensor:
        """No reset is left over from the last step: each spike subtracts in its own step (``reset_delay=False``)."""
        return torch.zeros_like(mem)

    def fire(self, mem: Tensor) -> Tensor:
        """Spikes 0/1 of the potential `mem`, with snnTorch's surrogate gradient."""
        fired: Tensor = self.spike_grad(mem - self.below.reshape(1, -1, *[1] * (mem.dim() - 2)))
        return fired
