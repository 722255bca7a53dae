"""The layers of a staged network that count time steps, as cells of Norse: their states hold the number of the step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from norse.torch.functional.threshold import threshold as fire
from norse.torch.module.snn import SNNCell
from torch import Tensor, nn

from bridge.graph import BiasOnce, Impulse, WindowFire
from bridge.simulate.ops import tensor
from exporters.torch_module import clock, just_below, per_channel


def staged_module(layer: WindowFire | Impulse | BiasOnce, integer: bool) -> nn.Module:
    """The cell of `layer`, in a network that is an `integer` one or not."""
    if isinstance(layer, WindowFire):
        v_th, theta = just_below(tensor(layer.level), integer), per_channel(layer.threshold, layer.level.ndim)
        return WindowIAFCell(WindowIAFParameters(v_th, theta, layer.opens, layer.steps))
    return BiasOnceCell(tensor(layer.bias).clone()) if isinstance(layer, BiasOnce) else ImpulseCell()


class ClockState(NamedTuple):
    """``step``: the number of the next time step, counted from 0, for each image ``[B, 1, ...]``."""

    step: Tensor


class WindowIAFState(NamedTuple):
    """Norse's ``IAFState(z, v)``, spikes and potentials, and ``step`` as in `ClockState`."""

    z: Tensor
    v: Tensor
    step: Tensor


class WindowIAFParameters(nn.Module):
    """`v_th`, which a potential must exceed to fire, of a signal's full shape; `theta`, which each step of the window
    takes off, of a channel each, ``[C, 1, ...]``; the window's first step and its steps.

    `method` and `alpha` choose the surrogate gradient, with Norse's defaults.
    """

    v_th: Tensor
    theta: Tensor

    def __init__(self, v_th: Tensor, theta: Tensor, opens: int, steps: int) -> None:
        super().__init__()
        self.register_buffer("v_th", v_th)
        self.register_buffer("theta", theta)
        self.opens, self.steps = opens, steps
        self.method = "super"
        self.alpha = 100.0

    def extra_repr(self) -> str:
        return f"opens={self.opens}, steps={self.steps}"


class BiasOnceParameters(nn.Module):
    """`bias`, of a signal's full shape."""

    bias: Tensor

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("bias", bias)


def window_iaf_step(
    input_tensor: Tensor, state: WindowIAFState, p: WindowIAFParameters, dt: float
) -> tuple[Tensor, WindowIAFState]:
    """One step of the neuron on ``[B, ...]``. There is no leak, so that `dt` does nothing."""
    opened = state.step >= p.opens
    v = state.v + input_tensor - opened * p.theta
    z = fire(v - p.v_th, p.method, p.alpha) * (opened & (state.step < p.opens + p.steps))
    return z, WindowIAFState(z=z, v=v, step=state.step + 1)


def impulse_step(input_tensor: Tensor, state: ClockState, p: None, dt: float) -> tuple[Tensor, ClockState]:
    """The input at the first step, zeros after."""
    return input_tensor * (state.step == 0), ClockState(state.step + 1)


def bias_once_step(
    input_tensor: Tensor, state: ClockState, p: BiasOnceParameters, dt: float
) -> tuple[Tensor, ClockState]:
    """The input, at the first step with the bias."""
    return input_tensor + p.bias * (state.step == 0), ClockState(state.step + 1)


class WindowIAFCell(SNNCell):  # type: ignore[misc]
    """``u += I;  u −= theta if step ≥ opens;  s = [u > v_th and opens ≤ step < opens + steps]``, u(0) = 0.

    Norse fires on u − v_th > 0: with v_th just below a level, that is u ≥ level.
    """

    p: WindowIAFParameters

    def __init__(self, p: WindowIAFParameters) -> None:
        super().__init__(window_iaf_step, self.initial_state, p, dt=1.0)

    def initial_state(self, input_tensor: Tensor) -> WindowIAFState:
        """No spikes, and potentials of 0."""
        zeros = torch.zeros_like(input_tensor)
        return WindowIAFState(z=zeros, v=zeros, step=clock(input_tensor))


class ImpulseCell(SNNCell):  # type: ignore[misc]
    """``y = x`` at the first time step, 0 after."""

    def __init__(self) -> None:
        super().__init__(impulse_step, initial_clock, None, dt=1.0)


class BiasOnceCell(SNNCell):  # type: ignore[misc]
    """``y = x + bias`` at the first time step, x after."""

    p: BiasOnceParameters

    def __init__(self, bias: Tensor) -> None:
        super().__init__(bias_once_step, initial_clock, BiasOnceParameters(bias), dt=1.0)


def initial_clock(input_tensor: Tensor) -> ClockState:
    """The first step is to come."""
    return ClockState(clock(input_tensor))
