"""SpikingJelly's ``ActivationAwareIFNode``, set up so that it fires exactly where the network's neuron does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from spikingjelly.activation_based.neuron import ActivationAwareIFNode
from torch import Tensor, nn

from bridge.errors import GraphError
from bridge.graph import IntegrateFire
from bridge.simulate.ops import tensor


def neuron_of(layer: IntegrateFire, rank: int, integer: bool) -> nn.Module:
    """SpikingJelly's node for `layer`, in a network that is an `integer` one or not. The `rank` does not matter to it.

    Raises `GraphError` for a level at which no node fires.
    """
    threshold = layer.threshold
    # whole numbers add up exactly, and there is none just below the level
    offset = threshold - layer.level if integer else offset_for(layer.level, threshold, layer.name)
    module: nn.Module = ActivationAwareIFNode(
        v_threshold=_one_or_all(threshold), v_offset=_one_or_all(offset), channel_dim=1, v_reset=None
    )
    return module


def offset_for(level: NDArray[np.float32], threshold: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """``v_offset`` with which the node fires exactly when u ≥ level, in float32.

    The node tests ``u + v_offset ≥ threshold`` with a rounded sum. For threshold 1 and level 1/2, an offset of 1/2
    would also fire at the float32 just below it, since that sum rounds up to 1; the next smaller offset does not. Both
    sides of the level are tried here, and since rounding is monotone, that settles it for every u.

    Raises:
        GraphError: no float32 offset does it; only levels other than half the threshold can meet this.
    """
    below = np.nextafter(level, np.float32(-np.inf))
    result = np.full_like(level, np.nan)
    candidate = np.nextafter(threshold - level, np.float32(np.inf))
    for _ in range(4):
        exact = (level + candidate >= threshold) & (below + candidate < threshold) & np.isnan(result)
        result = np.where(exact, candidate, result)
        candidate = np.nextafter(candidate, np.float32(-np.inf))
    if np.isnan(result).any():
        worst = float(level[np.isnan(result)][0])
        raise GraphError(f"layer {name!r}: SpikingJelly's ActivationAwareIFNode cannot fire exactly at u = {worst!r}")
    return result


def _one_or_all(values: NDArray[np.floating]) -> float | Tensor:
    """One number where all channels share it."""
    return float(values[0]) if (values == values[0]).all() else tensor(values)
