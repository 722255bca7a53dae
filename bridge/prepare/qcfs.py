"""QCFS, the activation whose spiking twin is an integrate-and-fire neuron."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter, is_lazy

from bridge.errors import ConversionError

SMALLEST_THRESHOLD = 1e-6
"""λ is held at or above this in the forward pass, whatever the optimiser does to the parameter."""


class QCFS(LazyModuleMixin, nn.Module):
    """Quantization clip-floor-shift: ``a = λ · clip(floor(z·L/λ + 1/2) / L, 0, 1)``.

    Source: Bu et al., "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks",
    ICLR 2022, eq. 11 with the shift φ = 1/2. The floor passes gradients straight through; everything else is
    differentiated as written, which gives, for 0 ≤ z·L/λ + 1/2 < L + 1, ``∂a/∂z = 1`` and ``∂a/∂λ = (a − z)/λ``,
    above that ``0`` and ``1``, below it ``0`` and ``0`` (the corrected form of the paper's eq. 14).

    Shapes: any ``[B, ...]`` in, the same out; with one λ per channel, ``[B, C, ...]``. Example: docs/tutorial.md.

    Args:
        levels: L, the number of steps between 0 and λ; at least 1.
        threshold: λ at the start, positive. A 1-d tensor gives each channel its own.
        per_channel: learn one λ per channel. If `threshold` is a single number, the number of channels is taken from
            the first input seen, so run the model once before building an optimiser (as with torch's lazy modules).

    Raises:
        ValueError: `levels` or `threshold` is not positive and finite.
    """

    cls_to_become = None  # materialising λ does not change what this module is
    smallest_threshold = SMALLEST_THRESHOLD  # torch.jit.script reads no globals
    __constants__ = ("smallest_threshold",)
    if TYPE_CHECKING:  # torch.jit.script reads annotations, and knows no such one
        threshold: nn.Parameter | UninitializedParameter

    def __init__(self, levels: int, threshold: float | Tensor = 2.0, per_channel: bool = False) -> None:
        super().__init__()
        if isinstance(levels, bool) or not isinstance(levels, int | np.integer) or levels < 1:
            raise ValueError(f"QCFS: levels must be a whole number of at least 1, got {levels!r}")
        try:
            initial = torch.as_tensor(threshold, dtype=torch.get_default_dtype()).detach().clone()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"QCFS: threshold λ must be a number or a 1-d tensor, got {threshold!r}") from error
        if initial.dim() > 1 or initial.numel() == 0 or not bool(((initial > 0) & initial.isfinite()).all()):
            raise ValueError(
                f"QCFS: threshold λ must be positive and finite, one number or one a channel; got {threshold!r}"
            )
        self.levels = int(levels)
        self.per_channel = per_channel or initial.dim() == 1
        if self.per_channel and initial.dim() == 0:
            self._initial = float(initial)
            self.threshold = UninitializedParameter()
        else:
            self.threshold = nn.Parameter(initial)

    def initialize_parameters(self, z: Tensor) -> None:
        """Give λ its channels from the first input; called by torch."""
        if is_lazy(self.threshold):
            with torch.no_grad():
                self.threshold.materialize((z.shape[1],), device=z.device, dtype=z.dtype)
                self.threshold.fill_(self._initial)

    def forward(self, z: Tensor) -> Tensor:
        # Clamped with a straight-through gradient, so that a λ pushed below zero can find its way back.
        threshold = self.threshold + (self.threshold.clamp(min=self.smallest_threshold) - self.threshold).detach()
        if self.per_channel:
            threshold = threshold.reshape([1, -1] + [1] * (z.dim() - 2))
        level = z * self.levels / threshold + 0.5
        level = level + (level.floor() - level).detach()
        return threshold * (level / self.levels).clamp(0, 1)

    def __prepare_scriptable__(self) -> QCFS:
        """Called by torch.jit.script, which can compile no λ without channels, and not the hooks that give it some."""
        if is_lazy(self.threshold):
            raise ConversionError(
                "QCFS: torch.jit.script needs the number of channels of λ, which is taken from the first input; "
                "run the model once, then script it"
            )
        if hasattr(self, "_initialize_hook"):
            self._initialize_hook.remove()
            self._load_hook.remove()
            del self._initialize_hook, self._load_hook
        return self

    def extra_repr(self) -> str:
        if is_lazy(self.threshold):
            shown = f"{self._initial:g} per channel"
        else:
            values = self.threshold.detach()
            low, high = float(values.min()), float(values.max())
            shown = f"{low:.4g}…{high:.4g} per channel" if self.per_channel else f"{low:.4g}"
        return f"levels={self.levels}, threshold={shown}"
