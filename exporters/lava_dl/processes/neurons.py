"""Lava's ``LIFReset`` with a soft reset, for ``exception_proc_model_map={LIFReset: PySoftResetModel}``."""

from __future__ import annotations

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.lif.models import PyLifResetModelBitAcc
from lava.proc.lif.process import LIFReset
from numpy.typing import NDArray


@implements(proc=LIFReset, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PySoftResetModel(PyLifResetModelBitAcc):  # type: ignore[misc]
    """Integrate-and-fire that starts at half its threshold and takes the threshold off at a spike.

    ``v`` is counted from that start: it begins at 0, as `LIFReset` leaves it, and the neuron fires at half the
    threshold: ``v += a_in + bias;  s_out = [v ≥ vth / 2];  v −= vth · s_out``. All else, widths included, is Lava's
    own fixed-point model, except that a potential that does not fit is an error, and that the bias, in which images
    arrive, has the width of the potential.
    """

    bias_mant: NDArray[np.int32] = LavaPyType(np.ndarray, np.int32, precision=24)

    def subthr_dynamics(self, activation_in: NDArray[np.int32]) -> None:
        """Integrate. Raises `OverflowError` if a potential leaves its 24 bits."""
        super().subthr_dynamics(activation_in)
        if (np.abs(self.v) >= self.max_uv_val - 1).any():
            raise OverflowError("a membrane potential left its 24 bits: run fewer time steps")

    def spiking_activation(self) -> NDArray[np.bool_]:
        """Which neurons fire."""
        fired: NDArray[np.bool_] = self.v >= self.effective_vth // 2
        return fired

    def reset_voltage(self, spike_vector: NDArray[np.bool_]) -> None:
        """Take the threshold off."""
        self.v -= self.effective_vth * spike_vector
