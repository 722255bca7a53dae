"""The integrate-and-fire neuron with soft reset as a cell of Norse."""

from __future__ import annotations

import numpy as np
import torch
from norse.torch import IAFState, reset_subtract
from norse.torch.functional.threshold import threshold as fire
from norse.torch.module.snn import SNNCell
from numpy.typing import NDArray
from torch import Tensor, nn

from bridge.graph import IntegrateFire


def neuron_of(layer: IntegrateFire, rank: int) -> nn.Module:
    """The neurons of `layer`, whose signals have `rank` dimensions."""
    return SoftResetIAFCell(layer.level, layer.threshold, rank)


class SoftResetIAFParameters(nn.Module):
    """Parameters of a channel each, ``[C, 1, ...]``: `v_th`, which a potential must exceed to fire, and `theta`, which
    a spike takes off. `method` and `alpha` choose the surrogate gradient, with Norse's defaults.

    A module, as Norse suggests for a cell's parameters, so that they follow the network to another device.
    """

    v_th: Tensor
    theta: Tensor

    def __init__(self, v_th: Tensor, theta: Tensor) -> None:
        super().__init__()
        self.register_buffer("v_th", v_th)
        self.register_buffer("theta", theta)
        self.method = "super"
        self.alpha = 100.0


def soft_reset_iaf_step(
    input_tensor: Tensor, state: IAFState, p: SoftResetIAFParameters, dt: float
) -> tuple[Tensor, IAFState]:
    """One step of the neuron on ``[B, C, ...]``: the spikes, and the state after reset.

    Norse's own ``iaf_feed_forward_step`` with Norse's own ``reset_subtract`` in place of its reset to a value. There
    is no leak, so that `dt` does nothing.
    """
    v = state.v + input_tensor
    z = fire(v - p.v_th, p.method, p.alpha)
    return z, IAFState(z=z, v=reset_subtract(z, v, None, p.theta))


class SoftResetIAFCell(SNNCell):  # type: ignore[misc]
    """``u += I;  s = [u ≥ level];  u −= threshold · s``, u(0) = 0, one of each for a channel of ``[B, C, ...]``.

    `rank` is the number of a signal's dimensions: 1 for vectors, 3 for feature maps.

    None of Norse's own cells is this neuron: ``IAFCell`` resets to a value; ``LIFBoxCell``, which can reset by
    subtraction, subtracts the level that it fires at, and multiplies its input by the same dt / τ as its leak, so that
    it has no leak only where it hears nothing. Norse fires on u − v_th > 0: with v_th the float32 just below the level,
    that is u ≥ level.
    """

    p: SoftResetIAFParameters

    def __init__(self, level: NDArray[np.float32], threshold: NDArray[np.float32], rank: int) -> None:
        shape = (-1, *[1] * (rank - 1))
        below = np.nextafter(level, np.float32(-np.inf)).reshape(shape)
        p = SoftResetIAFParameters(torch.from_numpy(below), torch.from_numpy(threshold.reshape(shape).copy()))
        super().__init__(soft_reset_iaf_step, self.initial_state, p, dt=1.0)

    def initial_state(self, input_tensor: Tensor) -> IAFState:
        """No spikes, and potentials of 0."""
        return IAFState(z=torch.zeros_like(input_tensor), v=torch.zeros_like(input_tensor))
