"""Where a spiking layer's rate error comes from: four parts that add up to it.

At step t, with φ the layer's firing rate and a/λ the ANN's activation, the error is ``φ(t) − a/λ``. Let z be the ANN's
drive of the neuron and ẑ(t) the mean drive that it really got in steps 1..t, both in thresholds; let ``q_t(x)`` be the
rate after t steps of a neuron whose drive x arrives evenly: as many spikes as fit. Then, neuron by neuron,

* **unevenness** ``φ(t) − q_t(ẑ)``: the drive came in spikes, at other times than an even one;
* **quantisation** ``q_t(z) − a/λ``: t steps can say other rates than the ANN's L levels; nothing at t = L;
* **clipping** ``(clip(ẑ) − ẑ) − (clip(z) − z)``: what the rate's range 0…1 takes off a drive that is not the ANN's;
* **inherited** ``(q_t(ẑ) − q_t(z)) − clipping``: the drive was not the ANN's, since the layers before err.

Quantisation is also the error of the layer *in isolation*, driven by the ANN's own activations (teacher-forced). The
first layer, with its constant input, inherits nothing and is never uneven.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.graph import ClipFloorShift, IntegrateFire
from bridge.simulate.ops import channels, evaluate


def error_parts(
    layer: IntegrateFire,
    activation: ClipFloorShift,
    spikes: NDArray[np.bool_],
    membrane: NDArray[np.floating],
    drive: Tensor,
) -> Iterator[dict[str, Tensor]]:
    """For each time step the parts by name of `bridge.agreement.PARTS`, each ``[B, *shape]``.

    A step at a time, since T steps of all parts together are many times what is kept of them.

    Args:
        layer: the neurons.
        activation: the ANN's, in their place.
        spikes: what they fired, ``[T, B, *shape]``.
        membrane: their potential u after integration, before reset, likewise.
        drive: what the ANN's activation gets, ``[B, *shape]``.
    """
    height = channels(activation.threshold, drive)
    given, target = drive / height, evaluate(activation, drive) / height
    given_clipping = given.clamp(0, 1) - given
    wide = drive.double()  # so that a quotient just below a whole number is not rounded up to it
    threshold, level = channels(layer.threshold, wide), channels(layer.level, wide)
    before = torch.zeros_like(drive)
    for t, (fired, potential) in enumerate(zip(spikes, membrane, strict=True), 1):
        u = torch.from_numpy(potential).double()
        # The potential tells what was heard: its sum is u, and a threshold for each spike so far.
        heard = ((u / threshold).to(drive.dtype) + before) / t
        # As many spikes as fit: those so far, and as many as the potential still holds from its level on.
        even = (((u - level) / threshold).floor_().to(drive.dtype) + 1 + before).clamp_(0, t) / t
        # The same for the ANN's drive is QCFS with t levels, by the ANN's own arithmetic.
        alone = evaluate(replace(activation, levels=t), drive) / height
        clipping = (heard.clamp(0, 1) - heard) - given_clipping
        before += torch.from_numpy(fired)
        yield {
            "inherited": (even - alone) - clipping,
            "clipping": clipping,
            "quantisation": alone - target,
            "unevenness": before / t - even,
        }
