"""The layers of a staged network that count time steps, as memory modules of SpikingJelly.

A new number of images starts the count anew, as it does the potentials of SpikingJelly's own nodes; the next images of
the same number need ``functional.reset_net``.
"""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import base, surrogate
from torch import Tensor, nn

from bridge.graph import BiasOnce, Impulse, WindowFire
from bridge.simulate.ops import tensor
from exporters.torch_module import clock, per_channel

Tensors = tuple[Tensor, ...]
States = tuple[Any, ...]


def staged_module(layer: WindowFire | Impulse | BiasOnce) -> nn.Module:
    """SpikingJelly's module for `layer`."""
    if isinstance(layer, WindowFire):
        threshold = per_channel(layer.threshold, layer.level.ndim)
        return WindowIFNode(tensor(layer.level).clone(), threshold, layer.opens, layer.steps)
    return BiasOnceModule(tensor(layer.bias).clone()) if isinstance(layer, BiasOnce) else ImpulseModule()


class CountingModule(base.MemoryModule):  # type: ignore[misc]
    """A module whose memory ``step`` is the number of the next time step, counted from 0 for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.register_memory("step", 0.0)

    def materialize_states(self, inputs: Tensors, states: States, step_mode: str) -> States:
        """The states for `inputs`: as they are, or fresh ones after a reset and for another number of images."""
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        if isinstance(states[0], Tensor) and len(states[0]) == len(x):
            return states
        return clock(x), *(torch.zeros_like(x) for _ in states[1:])


class WindowIFNode(CountingModule):
    """``v += I;  v −= threshold if step ≥ opens;  s = [v ≥ level and opens ≤ step < opens + steps]``, v(0) = 0.

    `level` has the full shape of a signal, `threshold` one value for each channel, ``[C, 1, 1]``. SpikingJelly's
    surrogates fire on v − level ≥ 0; a difference never has the wrong sign in IEEE arithmetic, so that is v ≥ level.
    """

    level: Tensor
    threshold: Tensor

    def __init__(self, level: Tensor, threshold: Tensor, opens: int, steps: int) -> None:
        super().__init__()
        self.register_memory("v", 0.0)
        self.register_buffer("level", level)
        self.register_buffer("threshold", threshold)
        self.opens, self.steps = opens, steps
        self.surrogate_function = surrogate.Sigmoid()

    def single_step_functional_forward(
        self, inputs: Tensors, states: States, **kwargs: object
    ) -> tuple[Tensors, States]:
        """The spikes of one time step, and the step and the potential that it leaves."""
        (x,), (step, v) = inputs, states
        opened = step >= self.opens
        v = v + x - opened * self.threshold
        spikes = self.surrogate_function(v - self.level) * (opened & (step < self.opens + self.steps))
        return (spikes,), (step + 1, v)

    def extra_repr(self) -> str:
        return f"opens={self.opens}, steps={self.steps}, {super().extra_repr()}"


class ImpulseModule(CountingModule):
    """``y = x`` at the first time step, 0 after."""

    def single_step_functional_forward(
        self, inputs: Tensors, states: States, **kwargs: object
    ) -> tuple[Tensors, States]:
        """The output of one time step, and the number of the next."""
        (x,), (step,) = inputs, states
        return (x * (step == 0),), (step + 1,)


class BiasOnceModule(CountingModule):
    """``y = x + bias`` at the first time step, x after."""

    bias: Tensor

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("bias", bias)

    def single_step_functional_forward(
        self, inputs: Tensors, states: States, **kwargs: object
    ) -> tuple[Tensors, States]:
        """The output of one time step, and the number of the next."""
        (x,), (step,) = inputs, states
        return (x + self.bias * (step == 0),), (step + 1,)
