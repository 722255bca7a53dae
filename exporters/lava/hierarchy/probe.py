"""`Probe`, a `Sink` for a Var."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyRefPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import RefPort
from lava.magma.core.process.process import AbstractProcess, LogConfig, ProcessParameters
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from numpy.typing import NDArray


class Probe(AbstractProcess):  # type: ignore[misc]
    """Writes the Var that ``state`` is connected to, as it is at the end of step ``offset + 1 + i``, to ``buffer[i]``.

    ``buffer`` is ``[steps, *shape]``, shared as a `Sink`'s. Lava's own Monitor keeps values in a Var, from which they
    come back one at a time.
    """

    def __init__(
        self,
        *,
        buffer: NDArray[Any],
        offset: int = 0,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        super().__init__(buffer=buffer, offset=int(offset), name=name, log_config=log_config)
        self.state = RefPort(shape=buffer.shape[1:])


@implements(proc=Probe, protocol=LoihiProtocol)
@requires(CPU)
class PyProbeModel(PyLoihiProcessModel):  # type: ignore[misc]
    """`Probe`, in the type of its buffer."""

    state: PyRefPort = LavaPyType(PyRefPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        self.buffer: NDArray[Any] = proc_params["buffer"]
        self.offset: int = proc_params["offset"]

    def post_guard(self) -> bool:
        """Whether there is something to do when all neurons have been updated."""
        return bool(0 <= self.time_step - 1 - self.offset < len(self.buffer))

    def run_post_mgmt(self) -> None:
        """Keep the Var's value."""
        self.buffer[self.time_step - 1 - self.offset] = self.state.read()
