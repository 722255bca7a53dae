"""The neurons of a grouped network, with snnTorch's surrogate gradient. They have no state: nothing is to be reset."""

from __future__ import annotations

from snntorch import surrogate
from torch import Tensor

from exporters.torch_module import Group, just_below


class SpikingGroup(Group):
    """``s_k = [x ≥ level_k]``. snnTorch's surrogates fire on x − θ > 0: θ, here `level`, is just below the level."""

    def __init__(self, level: Tensor, integer: bool) -> None:
        super().__init__(just_below(level, integer))
        self.spike_grad = surrogate.atan()  # as snnTorch's own neurons have, if none is chosen

    def fire(self, drive: Tensor) -> Tensor:
        """Spikes 0/1, with the surrogate gradient."""
        fired: Tensor = self.spike_grad(drive - self.level)
        return fired
