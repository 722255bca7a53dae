"""SLAYER's adaptive-threshold neuron, set up so that it is exactly the integrate-and-fire neuron with soft reset.

SLAYER has no neuron with a soft reset, but its ALIF neuron never resets at all. It sums its input up, and each spike
adds twice the firing level to what the sum is compared with. With a level of θ/2 and nothing that decays, that is
``Σ I − θ · spikes ≥ θ/2``: integrate-and-fire that starts at half its threshold.
"""

from __future__ import annotations

from torch import nn


def neuron_of(threshold: int) -> nn.Module:
    """The neurons of a layer whose `threshold` θ is even. `exporters.lava_dl.compat.apply` must have been called."""
    from lava.lib.dl.slayer.neuron import alif

    neuron: nn.Module = alif.Neuron(
        threshold=threshold // 2,
        threshold_step=0,
        current_decay=1,  # the input itself: nothing is left of the last step's
        voltage_decay=0,
        threshold_decay=0,
        refractory_decay=0,
        scale=1,  # whole numbers, as Loihi has them; SLAYER's own default is units of 1/64
    )
    return neuron
