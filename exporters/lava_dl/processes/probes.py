"""A Process that reads a Var at every step."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyRefPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import RefPort
from lava.magma.core.process.process import AbstractProcess, ProcessParameters
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from numpy.typing import NDArray


class Probe(AbstractProcess):  # type: ignore[misc]
    """Writes what a Var holds at the end of step ``offset + 1 + i`` to ``buffer[i]``.

    Connect with ``probe.state.connect_var(var)``. ``buffer`` is ``[steps, *shape]``. To be seen by the parent of Lava's
    processes it must be shared: `exporters.lava.processes.shared_array`.
    """

    def __init__(self, *, buffer: NDArray[Any], offset: int = 0) -> None:
        super().__init__(buffer=buffer, offset=int(offset))
        self.state = RefPort(shape=buffer.shape[1:])


@implements(proc=Probe, protocol=LoihiProtocol)
@requires(CPU)
class PyProbeModel(PyLoihiProcessModel):  # type: ignore[misc]
    """`Probe`, in 32-bit integers."""

    state: PyRefPort = LavaPyType(PyRefPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        self.buffer: NDArray[Any] = proc_params["buffer"]
        self.offset: int = proc_params["offset"]

    def post_guard(self) -> bool:
        """Whether this step is one of those to keep."""
        return bool(0 <= self.time_step - 1 - self.offset < len(self.buffer))

    def run_post_mgmt(self) -> None:
        """Keep it."""
        self.buffer[self.time_step - 1 - self.offset] = self.state.read()
