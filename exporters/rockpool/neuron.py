"""The integrate-and-fire neuron with soft reset as a subclass of Rockpool's ``LIFNeuronTorch``."""

from __future__ import annotations

import rockpool.parameters as rp
import torch
from rockpool.nn.modules import LIFNeuronTorch
from rockpool.nn.modules.torch.lif_neuron_torch import StepPWL
from torch import Tensor

from bridge.graph import Array
from bridge.simulate.ops import tensor


def fires(potential: Tensor, level: Tensor) -> Tensor:
    """1 where `potential` ≥ `level`, else 0, with the gradient that Rockpool's ``StepPWL`` has at a threshold of 1.

    Its own spikes would be floor(potential / level) of them: it takes no levels but those above 0.
    """
    one = torch.ones((), device=potential.device)
    smooth: Tensor = StepPWL.apply(potential - level + one, one, torch.tensor(0.5), one)
    return (potential >= level).to(potential.dtype) + (smooth - smooth.detach())


class SoftResetIF(LIFNeuronTorch):  # type: ignore[misc]
    """``u += I;  s = [u ≥ level];  u −= threshold · s``, u(0) = 0; `level` > 0 and `threshold` are ``[N]``.

    Rockpool's neuron integrates, fires on ≥ and resets by subtraction, in this order. What is changed: an infinite
    time constant, so that its decay exp(−dt / τ) is exactly 1; one spike a step at most, where it would fire
    floor(u / threshold) times; and its ``spike_generation_fn`` is given the level in place of the threshold.
    """

    def __init__(self, level: Array, threshold: Array) -> None:
        super().__init__(
            shape=len(level),
            tau_mem=rp.Constant(torch.tensor(torch.inf)),
            threshold=rp.Constant(tensor(threshold).clone()),
            bias=rp.Constant(torch.tensor(0.0)),
            max_spikes_per_dt=1,
        )
        self.level = rp.SimulationParameter(tensor(level).clone())
        self.spike_generation_fn = self.fire

    def fire(self, vmem: Tensor, threshold: Tensor, window: Tensor, most: Tensor) -> Tensor:
        """Spikes 0/1 of the potentials `vmem`, with Rockpool's surrogate gradient."""
        fired: Tensor = StepPWL.apply(vmem, self.level, window, most)
        return fired
