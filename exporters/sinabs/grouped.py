"""The neurons of a grouped network, with Sinabs' spike function. They have no state, so that nothing is squeezed."""

from __future__ import annotations

from sinabs.activation import Gaussian, SingleSpike
from torch import Tensor

from exporters.torch_module import Group


class SpikeGroup(Group):
    """``s_k = [x − level_k ≥ 0]``; a difference never has the wrong sign in IEEE arithmetic, so that is x ≥ level.

    The surrogate gradient is Sinabs' ``Gaussian``: the default's width grows with the level, which may be 0 or
    negative here.
    """

    def __init__(self, level: Tensor) -> None:
        super().__init__(level)
        self.spike_fn, self.surrogate_grad_fn = SingleSpike, Gaussian()

    def fire(self, drive: Tensor) -> Tensor:
        """Spikes 0/1, with the surrogate gradient."""
        fired: Tensor = self.spike_fn.apply(drive, self.level, self.surrogate_grad_fn)
        return fired
