"""Other ways to few steps, to hold calibration against: they change the neuron, or run it twice.

Each takes a converted network, images ``[B, *input]`` and T, the steps that a neuron takes *in all*, and gives the
output ``[B, ...]``. What they ask for beyond a plain integrate-and-fire neuron is in their docstrings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bridge import SpikingNetwork
from bridge.graph import IntegrateFire
from bridge.simulate.layerwise import layer_by_layer

LONGEST_PHASE = 4
"""Steps of a first phase, at most: τ of SRP and ρ of COS in their papers' tables for CIFAR-10."""
BEYOND = 1e-3
"""By how much COS shifts a potential past what turns a spike, as in the authors' code."""


def first_phase(steps: int) -> int:
    """How many of T steps go into the first phase."""
    return min(LONGEST_PHASE, steps // 2)


def delayed_readout(network: SpikingNetwork, x: Tensor, steps: int) -> Tensor:
    """Leave the first quarter of the steps out of the output's mean. Asks for a readout that knows the step."""
    outputs = torch.from_numpy(network.simulate(x, steps).outputs)
    left_out = steps // 4
    if not left_out:
        return outputs[-1]
    return (steps * outputs[-1] - left_out * outputs[left_out - 1]) / (steps - left_out)


def srp(network: SpikingNetwork, x: Tensor, steps: int) -> Tensor:
    """Residual membrane potential (Hao et al., AAAI 2023, arXiv 2302.02091).

    After a first phase, neurons whose potential is not positive are silent in the second, which starts afresh and is
    the only one read. Asks for a bit for each neuron, decided image by image, and two phases that all cores share.
    """
    phase = first_phase(steps)

    def fire(layer: IntegrateFire, drive: Tensor) -> Tensor:
        first, left = _plain(drive[:phase], _half(drive))
        second, _ = _plain(drive[phase:], _half(drive))
        return torch.cat([first, second * (left > BEYOND)])

    return layer_by_layer(network.graph, x, steps, fire)[phase:].mean(dim=0)


def cos(network: SpikingNetwork, x: Tensor, steps: int) -> Tensor:
    """Calibrated offset spikes (Hao et al., ICLR 2023, arXiv 2302.10685).

    Each layer first runs ρ steps, on the first ρ of what it hears; where a potential is then negative or a threshold or
    more, the initial one is shifted by just what makes one spike less or more, and the layer starts afresh. Asks for
    an initial potential for each neuron, set image by image, and for layers that take ρ steps one after the other.
    """
    phase = first_phase(steps)

    def fire(layer: IntegrateFire, drive: Tensor) -> Tensor:
        start = _half(drive)
        potential = start.clone()
        lowest, highest = torch.full_like(start, torch.inf), torch.full_like(start, -torch.inf)
        fired_at_all = torch.zeros_like(start, dtype=torch.bool)
        for now in drive[:phase]:
            potential = potential + now
            fired = potential >= 1
            lowest = torch.where(fired, torch.minimum(lowest, potential), lowest)
            highest = torch.where(fired, highest, torch.maximum(highest, potential))
            fired_at_all |= fired
            potential = potential - fired.to(potential.dtype)
        less = start - (lowest - 1 + BEYOND).clamp(min=1)
        more = start + torch.where(highest.isinf(), 1.0, (1 + BEYOND - highest).clamp(min=1))
        start = torch.where((potential < 0) & fired_at_all, less, torch.where(potential >= 1, more, start))
        return _plain(drive, start)[0]

    return layer_by_layer(network.graph, x, steps - phase, fire).mean(dim=0)


def _half(drive: Tensor) -> Tensor:
    """v(0) = 1/2."""
    return torch.full_like(drive[0], 0.5)


def _plain(drive: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes of neurons of unit threshold that start from v(0) = `start`, and v at the end."""
    potential, spikes = start, torch.empty_like(drive)
    for t, now in enumerate(drive):
        potential = potential + now
        torch.ge(potential, 1, out=spikes[t])
        potential = potential - spikes[t]
    return spikes, potential
