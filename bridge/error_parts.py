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

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bridge.agreement import PARTS
from bridge.graph import ClipFloorShift, IntegrateFire
from bridge.simulate.ops import channels, evaluate

Floats = NDArray[np.float64]


def error_parts(
    layer: IntegrateFire,
    activation: ClipFloorShift,
    spikes: NDArray[np.bool_],
    membrane: NDArray[np.floating],
    drive: Tensor,
) -> dict[str, Floats]:
    """The parts by name of `PARTS`, each ``[T, B, *shape]``.

    Args:
        layer: the neurons.
        activation: the ANN's, in their place.
        spikes: what they fired, ``[T, B, *shape]``.
        membrane: their potential u after integration, before reset, likewise.
        drive: what the ANN's activation gets, ``[B, *shape]``.
    """
    threshold, level = (values.reshape(1, -1, *[1] * (drive.dim() - 2)) for values in (layer.threshold, layer.level))
    steps = np.arange(1, len(spikes) + 1, dtype=np.float64).reshape(-1, *[1] * drive.dim())
    count = np.cumsum(spikes, axis=0, dtype=np.float64)
    before = count - spikes
    # The potential tells what was heard: its sum is u, and a threshold for each spike so far.
    heard = (membrane / threshold.astype(np.float64) + before) / steps
    # As many spikes as fit: those so far, and as many as the potential still holds from its level on.
    even = np.clip(before + np.floor((membrane.astype(np.float64) - level) / threshold) + 1, 0, steps) / steps
    # The same for the ANN's drive is QCFS with t levels, by the ANN's own arithmetic.
    height = channels(activation.threshold, drive)
    alone = np.stack(
        [(evaluate(replace(activation, levels=t + 1), drive) / height).numpy() for t in range(len(spikes))]
    )
    given = (drive / height).double().numpy()
    clipping = (np.clip(heard, 0, 1) - heard) - (np.clip(given, 0, 1) - given)
    quantisation = alone.astype(np.float64) - (evaluate(activation, drive) / height).numpy()
    parts = {
        "inherited": (even - alone) - clipping,
        "clipping": clipping,
        "quantisation": quantisation,
        "unevenness": count / steps - even,
    }
    assert tuple(parts) == PARTS
    return parts
