"""The layers of a staged network that count time steps, built of snnTorch's ``Leaky``.

``snntorch.utils.reset`` clears ``Leaky.mem`` and nothing else, so time is counted there: a ``Leaky`` without leak and
without reset that receives 1 at every step holds the number of steps, one for each image.
"""

from __future__ import annotations

from torch import Tensor, nn

from bridge.graph import BiasOnce, Impulse, WindowFire
from bridge.simulate.ops import tensor
from exporters.snntorch.neuron import Leaky
from exporters.torch_module import just_below, per_channel


def staged_module(layer: WindowFire | Impulse | BiasOnce, integer: bool) -> nn.Module:
    """The module of `layer`, in a network that is an `integer` one or not."""
    if isinstance(layer, WindowFire):
        below, threshold = just_below(tensor(layer.level), integer), per_channel(layer.threshold, layer.level.ndim)
        return WindowIF(below, threshold, layer.opens, layer.steps)
    return BiasOnceModule(tensor(layer.bias).clone()) if isinstance(layer, BiasOnce) else ImpulseModule()


class From(Leaky):
    """Fires at every time step from number `step` on, counted from 0, for each image of the signal it is given."""

    def __init__(self, step: int) -> None:
        super().__init__(beta=1.0, threshold=step + 0.5, reset_mechanism="none", init_hidden=True)

    def forward(self, signal: Tensor) -> Tensor:
        """0 or 1 for each image of `signal` ``[B, ...]``, to broadcast over it."""
        fired: Tensor = super().forward(signal.new_ones(len(signal), *[1] * (signal.dim() - 1)))
        return fired


class WindowIF(Leaky):
    """``u += I;  u −= threshold if step ≥ opens;  s = [u > below and opens ≤ step < opens + steps]``, u(0) = 0.

    `below` has the full shape of a signal, `threshold` one value for each channel, ``[C, 1, 1]``. snnTorch's surrogates
    fire on u − θ > 0: with `below` just below a level, that is u ≥ level. The potential is ``mem``.
    """

    below: Tensor

    def __init__(self, below: Tensor, threshold: Tensor, opens: int, steps: int) -> None:
        super().__init__(beta=1.0, threshold=threshold, reset_mechanism="subtract", init_hidden=True)
        self.register_buffer("below", below)
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
