"""The layers of a staged network that count time steps, built of snnTorch's ``Leaky``.

``snntorch.utils.reset`` clears ``Leaky.mem`` and nothing else, so time is counted there: a ``Leaky`` without leak and
without reset that receives 1 at every step holds the number of steps, one for each image.
"""

from __future__ import annotations

import numpy as np
import snntorch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bridge.graph import BiasOnce, Impulse, WindowFire
from bridge.simulate.ops import tensor


def staged_module(layer: WindowFire | Impulse | BiasOnce) -> nn.Module:
    """The module of `layer`."""
    if isinstance(layer, WindowFire):
        return WindowIF(layer.level, layer.opens, layer.steps)
    return BiasOnceModule(tensor(layer.bias).clone()) if isinstance(layer, BiasOnce) else ImpulseModule()


class From(snntorch.Leaky):  # type: ignore[misc]
    """Fires at every time step from number `step` on, counted from 0, for each image of the signal it is given."""

    def __init__(self, step: int) -> None:
        super().__init__(beta=1.0, threshold=step + 0.5, reset_mechanism="none", init_hidden=True)

    def forward(self, signal: Tensor) -> Tensor:
        """0 or 1 for each image of `signal` ``[B, ...]``, to broadcast over it."""
        fired: Tensor = super().forward(signal.new_ones(len(signal), *[1] * (signal.dim() - 1)))
        return fired


class WindowIF(snntorch.Leaky):  # type: ignore[misc]
    """``u += I;  u −= 1 if step ≥ opens;  s = [u ≥ level and opens ≤ step < opens + steps]``, u(0) = 0.

    `level` has the full shape of a signal. The potential is ``mem``.
    """

    below: Tensor

    def __init__(self, level: NDArray[np.float32], opens: int, steps: int) -> None:
        super().__init__(beta=1.0, threshold=1.0, reset_mechanism="subtract", init_hidden=True)
        # snnTorch's surrogates fire on u − θ > 0: with θ the float32 just below the level, that is u ≥ level.
        self.register_buffer("below", torch.from_numpy(np.nextafter(level, np.float32(-np.inf))))
        self.opened, self.shut = From(opens), From(opens + steps)

    def mem_reset(self, mem: Tensor) -> Tensor:
        """The reset is due at every step from the window's first on: a neuron fires until it stops for good."""
        due: Tensor = self.opened(mem)
        return due

    def fire(self, mem: Tensor) -> Tensor:
        """Spikes 0/1 of the potential `mem` inside the window, with snnTorch's surrogate gradient."""
        fired: Tensor = self.spike_grad(mem - self.below) * (self.reset - self.shut(mem))
        return fired


class ImpulseModule(nn.Module):
    """``y = x`` at the first time step, 0 after."""

    def __init__(self) -> None:
        super().__init__()
        self.over = From(1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * (1 - self.over(x))
        return y


class BiasOnceModule(nn.Module):
    """``y = x + bias`` at the first time step, x after."""

    bias: Tensor

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("bias", bias)
        self.over = From(1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.bias * (1 - self.over(x))
        return y
