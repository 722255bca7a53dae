"""The neurons of a grouped network, with Norse's threshold function. They have no state, and so are no cells."""

from __future__ import annotations

from norse.torch.functional.threshold import threshold as fire
from torch import Tensor

from exporters.torch_module import Group, just_below


class ThresholdGroup(Group):
    """``s_k = [x ≥ level_k]``. Norse fires on x − v_th > 0: v_th, here `level`, is just below the level.

    `method` and `alpha` choose the surrogate gradient, with Norse's defaults.
    """

    def __init__(self, level: Tensor, integer: bool) -> None:
        super().__init__(just_below(level, integer))
        self.method = "super"
        self.alpha = 100.0

    def fire(self, drive: Tensor) -> Tensor:
        """Spikes 0/1, with the surrogate gradient."""
        fired: Tensor = fire(drive - self.level, self.method, self.alpha)
        return fired
