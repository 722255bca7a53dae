"""The neurons of a grouped network, with SpikingJelly's surrogate gradient. They have no state, in either step mode."""

from __future__ import annotations

from spikingjelly.activation_based import surrogate
from torch import Tensor

from exporters.torch_module import Group


class GroupNode(Group):
    """``s_k = [x ≥ level_k]``; SpikingJelly's surrogates fire on x − level ≥ 0, which never has the wrong sign."""

    def __init__(self, level: Tensor) -> None:
        super().__init__(level)
        self.surrogate_function = surrogate.Sigmoid()

    def fire(self, drive: Tensor) -> Tensor:
        """Spikes 0/1, with the surrogate gradient."""
        fired: Tensor = self.surrogate_function(drive - self.level)
        return fired
