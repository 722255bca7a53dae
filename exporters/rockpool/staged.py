"""The layers of a staged network that count time steps, as modules of Rockpool: the number of the step is a state.

``reset_state()`` starts the count anew, as it does the potentials of Rockpool's own neurons.
"""

from __future__ import annotations

import rockpool.parameters as rp
import torch
from rockpool.nn.modules import LIFNeuronTorch, TorchModule
from torch import Tensor

from bridge.graph import Array
from bridge.simulate.ops import tensor
from exporters.rockpool.neuron import fires


class WindowIF(LIFNeuronTorch):  # type: ignore[misc]
    """``u += I;  u −= threshold if step ≥ opens;  s = [u ≥ level and opens ≤ step < opens + steps]``, u(0) = 0.

    `level` and `threshold` are ``[N]``. It is Rockpool's neuron with an infinite time constant, but that the threshold
    comes off at every step of the window. ``vmem`` is what that leaves, and what is held against the level.
    """

    level: Tensor
    vmem: Tensor
    step: Tensor

    def __init__(self, level: Array, threshold: Array, opens: int, steps: int) -> None:
        super().__init__(
            shape=len(level),
            tau_mem=rp.Constant(torch.tensor(torch.inf)),
            threshold=rp.Constant(tensor(threshold).clone()),
            bias=rp.Constant(torch.tensor(0.0)),
            max_spikes_per_dt=1,
        )
        self.level = rp.SimulationParameter(tensor(level).clone())
        self.step = rp.State(shape=(1,), init_func=torch.zeros)
        self.opens, self.steps = opens, steps

    def forward(self, input_data: Tensor) -> Tensor:
        """The spikes ``[B, T, N]`` of drives ``[B, T, N]``."""
        input_data, (vmem,) = self._auto_batch(input_data, (self.vmem,), ((self.size_out,),))
        potentials, spikes = [], []
        for step, drive in enumerate(input_data.unbind(1), int(self.step)):
            vmem = vmem + drive
            if step >= self.opens:
                vmem = vmem - self.threshold
            inside = self.opens <= step < self.opens + self.steps
            spikes.append(fires(vmem, self.level) if inside else torch.zeros_like(vmem))
            if self._record:
                potentials.append(vmem)
        self.vmem, self.step = vmem[0].detach(), self.step + len(spikes)
        fired = torch.stack(spikes, dim=1)
        self._record_dict = {"spikes": fired, "vmem": torch.stack(potentials, dim=1)} if self._record else {}
        return fired


class CountingModule(TorchModule):  # type: ignore[misc]
    """A module of signals ``[B, T, N]`` whose state ``step`` is the number of the next time step, counted from 0."""

    step: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(shape=(size, size))
        self.step = rp.State(shape=(1,), init_func=torch.zeros)

    def first(self, x: Tensor) -> Tensor:
        """1 at the first time step and 0 at all others, ``[T, 1]``, for the steps of `x`, which are counted by this."""
        steps = self.step + torch.arange(x.shape[1], device=x.device)
        self.step = self.step + x.shape[1]
        return (steps == 0).to(x).unsqueeze(1)


class Impulse(CountingModule):
    """``y = x`` at the first time step, 0 after."""

    def forward(self, x: Tensor) -> Tensor:
        """The output ``[B, T, N]`` for inputs ``[B, T, N]``."""
        return x * self.first(x)


class BiasOnce(CountingModule):
    """``y = x + bias`` at the first time step, x after; bias ``[N]``."""

    bias: Tensor

    def __init__(self, bias: Array) -> None:
        super().__init__(len(bias))
        self.bias = rp.SimulationParameter(tensor(bias).clone())

    def forward(self, x: Tensor) -> Tensor:
        """The output ``[B, T, N]`` for inputs ``[B, T, N]``."""
        return x + self.bias * self.first(x)
