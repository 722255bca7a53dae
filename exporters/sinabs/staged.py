"""The layers of a staged network that count time steps, as squeezed stateful layers of Sinabs.

Their states are all their buffers, which ``sinabs.reset_states`` clears; what must stay is a parameter, as in Sinabs'
own layers. Another number of images makes the states anew.
"""

from __future__ import annotations

from typing import Any

import torch
from sinabs.activation import Gaussian, SingleSpike
from sinabs.layers import SqueezeMixin, StatefulLayer
from torch import Tensor, nn

from bridge.graph import BiasOnce, Impulse, WindowFire
from bridge.simulate.ops import tensor
from exporters.torch_module import clock, per_channel


def staged_module(layer: WindowFire | Impulse | BiasOnce) -> nn.Module:
    """The layer of Sinabs that is `layer`."""
    if isinstance(layer, WindowFire):
        threshold = per_channel(layer.threshold, layer.level.ndim)
        return WindowIAFSqueeze(tensor(layer.level).clone(), threshold, layer.opens, layer.steps)
    return BiasOnceSqueeze(tensor(layer.bias).clone()) if isinstance(layer, BiasOnce) else ImpulseSqueeze()


class CountingSqueeze(StatefulLayer, SqueezeMixin):  # type: ignore[misc]
    """A layer that takes ``[B·T, ...]`` step by step; ``step`` is the number of the next step, counted from 0."""

    step: Tensor

    def __init__(self, states: tuple[str, ...] = (), batch_size: int = 1, num_timesteps: int = -1) -> None:
        super().__init__(state_names=["step", *states])
        self.squeeze_init(batch_size, num_timesteps)

    def forward(self, input_data: Tensor) -> Tensor:
        """The outputs ``[B·T, ...]``."""
        outputs: Tensor = self.squeeze_forward(input_data, self._over_time)
        return outputs

    def one_step(self, x: Tensor) -> Tensor:
        """The output of one time step ``[B, ...]``; `forward` counts the steps."""
        raise NotImplementedError

    def fresh_states(self, x: Tensor) -> None:
        """Make the states for images `x` ``[B, ...]`` at their first step."""
        self.step = clock(x)

    def _over_time(self, x: Tensor) -> Tensor:
        outputs = []
        for now in x.unbind(1):
            if len(self.step) != len(now):
                self.fresh_states(now)
            outputs.append(self.one_step(now))
            self.step = self.step + 1
        return torch.stack(outputs, dim=1)

    @property
    def _param_dict(self) -> dict[str, Any]:
        result: dict[str, Any] = self.squeeze_param_dict(super()._param_dict)
        return result


class WindowIAFSqueeze(CountingSqueeze):
    """``u += I;  u −= threshold if step ≥ opens;  s = [u − level ≥ 0 and opens ≤ step < opens + steps]``, u(0) = 0.

    `level` has the full shape of a signal, `threshold` one value for each channel, ``[C, 1, 1]``. A difference never
    has the wrong sign in IEEE arithmetic, so that the test is u ≥ level. The surrogate gradient is Sinabs'
    ``Gaussian``: the default's width grows with the level, which may be 0 or negative here.
    """

    v_mem: Tensor

    def __init__(self, level: Tensor, threshold: Tensor, opens: int, steps: int, **sizes: int) -> None:
        super().__init__(("v_mem",), **sizes)
        self.level, self.threshold = (nn.Parameter(values, requires_grad=False) for values in (level, threshold))
        self.opens, self.steps = opens, steps
        self.spike_fn, self.surrogate_grad_fn = SingleSpike, Gaussian()

    def one_step(self, x: Tensor) -> Tensor:
        """Spikes 0/1 of one time step."""
        opened = self.step >= self.opens
        self.v_mem = self.v_mem + x - opened * self.threshold
        fired: Tensor = self.spike_fn.apply(self.v_mem, self.level, self.surrogate_grad_fn)
        return fired * (opened & (self.step < self.opens + self.steps))

    def fresh_states(self, x: Tensor) -> None:
        """Potentials of 0."""
        super().fresh_states(x)
        self.v_mem = torch.zeros_like(x)

    @property
    def _param_dict(self) -> dict[str, Any]:
        values = {"level": self.level.detach().clone(), "threshold": self.threshold.detach().clone()}
        return {**super()._param_dict, **values, "opens": self.opens, "steps": self.steps}


class ImpulseSqueeze(CountingSqueeze):
    """``y = x`` at the first time step, 0 after."""

    def one_step(self, x: Tensor) -> Tensor:
        """The output of one time step."""
        return x * (self.step == 0)


class BiasOnceSqueeze(CountingSqueeze):
    """``y = x + bias`` at the first time step, x after."""

    def __init__(self, bias: Tensor, **sizes: int) -> None:
        super().__init__((), **sizes)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def one_step(self, x: Tensor) -> Tensor:
        """The output of one time step."""
        return x + self.bias * (self.step == 0)

    @property
    def _param_dict(self) -> dict[str, Any]:
        return {**super()._param_dict, "bias": self.bias.detach().clone()}
