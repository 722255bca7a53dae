"""Sinabs' ``IAFSqueeze``, set up so that it is exactly the integrate-and-fire neuron with soft reset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sinabs.activation import MembraneSubtract, SingleSpike
from sinabs.layers import IAFSqueeze
from torch import Tensor, nn

from bridge.graph import IntegrateFire
from bridge.simulate.ops import tensor


def neuron_of(layer: IntegrateFire, rank: int) -> nn.Module:
    """``u += I;  s = [u − level ≥ 0];  u −= threshold · s``, u(0) = 0: what Sinabs computes, step by step.

    Subtracting never turns a difference's sign in IEEE arithmetic, so the test is u ≥ level for every level. A
    reset to zero is then the initial state, and there is no preset membrane for it to wipe.
    """
    level, threshold = (_one_or_all(values, rank) for values in (layer.level, layer.threshold))
    reset: Any = MembraneSubtract(float(threshold)) if threshold.dim() == 0 else SubtractPerChannel(threshold)
    module: nn.Module = IAFSqueeze(
        batch_size=1, spike_threshold=level, spike_fn=SingleSpike, reset_fn=reset, min_v_mem=None
    )
    return module


@dataclass(frozen=True)
class SubtractPerChannel:
    """Sinabs' ``MembraneSubtract`` with a value for each channel, ``[C, 1, 1]``, which follows the spikes' device."""

    subtract_value: Tensor

    def __call__(self, spikes: Tensor, state: dict[str, Tensor], threshold: Tensor) -> dict[str, Tensor]:
        """The `state` behind `spikes`, with the potential lowered where there is one."""
        return state | {"v_mem": state["v_mem"] - spikes * self.subtract_value.to(spikes)}


def _one_or_all(values: NDArray[np.floating], rank: int) -> Tensor:
    """``[]`` where all channels share one value, else ``[C, 1, ...]`` to broadcast over signals of that `rank`."""
    every = tensor(values).clone()
    return every[0] if bool((every == every[0]).all()) else every.reshape(-1, *[1] * (rank - 1))
