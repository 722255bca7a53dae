"""In-ports that take dense data as they come: Lava's own add every message to an array of zeros first."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.model.py.ports import PyInPortVectorDense, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from numpy.typing import NDArray


class DenseInPort(PyInPortVectorDense):  # type: ignore[misc]
    """Lava's dense in-port, equal to it with fewer copies: those of feature maps are what takes time."""

    def recv(self) -> NDArray[Any]:
        """The sum of what arrives, in the port's type; a single 0, which any shape takes, if nothing is connected."""
        first, *more = self.csp_ports or [None]
        if first is None:
            return np.zeros((), self._d_type)
        total: NDArray[Any] = self._transformer.transform(first.recv(), first)
        for port in more:
            total = np.add(total, self._transformer.transform(port.recv(), port), dtype=self._d_type)
        return total


class FloatNeuronPorts:
    """The ports of a model of neurons in float64."""

    a_in: DenseInPort = LavaPyType(DenseInPort, float)
    bias_in: DenseInPort = LavaPyType(DenseInPort, float)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    u_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)


class WholeNeuronPorts:
    """The ports of a model of neurons in whole numbers; spikes are 0 and 1."""

    a_in: DenseInPort = LavaPyType(DenseInPort, np.int32, precision=24)
    bias_in: DenseInPort = LavaPyType(DenseInPort, np.int32, precision=24)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int8)
    u_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)


class FloatPorts:
    """The ports of a model that hands on what comes in, in float64."""

    a_in: DenseInPort = LavaPyType(DenseInPort, float)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)


class WholePorts:
    """The ports of a model that hands on what comes in, in whole numbers."""

    a_in: DenseInPort = LavaPyType(DenseInPort, np.int32, precision=24)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
