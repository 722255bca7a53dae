"""Data in and out of a running Lava network: `CurrentSource`, `Sink`, and the memory a Sink shares with its reader."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess, LogConfig, ProcessParameters
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from numpy.typing import DTypeLike, NDArray


def shared_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros that forked processes write and their parent reads: anonymous shared memory, without a file to remove."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, max(1, size))
    return np.frombuffer(memory, dtype=dtype, count=int(np.prod(shape))).reshape(shape)


class CurrentSource(AbstractProcess):  # type: ignore[misc]
    """One constant current an image: ``a_out`` is ``currents[i]`` for `interval` steps, then ``currents[i + 1]``.

    ``currents`` is ``[images, *shape]``; after the last image the source falls silent. It adds no delay.
    """

    def __init__(
        self,
        *,
        currents: NDArray[np.floating],
        interval: int,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        # Not a Var: the model reads the array where it is, and a Var would copy all images.
        super().__init__(currents=currents, interval=int(interval), name=name, log_config=log_config)
        self.a_out = OutPort(shape=currents.shape[1:])


class Sink(AbstractProcess):  # type: ignore[misc]
    """Writes what comes in at step ``offset + 1 + i`` to ``buffer[i]`` and drops what comes before and after.

    ``buffer`` is ``[steps, *shape]``. To be seen by the parent of Lava's processes it must be shared: `shared_array`.
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
        self.a_in = InPort(shape=buffer.shape[1:])


@implements(proc=CurrentSource, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyCurrentSourceModel(PyLoihiProcessModel):  # type: ignore[misc]
    """`CurrentSource` in float64."""

    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        self.currents: NDArray[np.floating] = proc_params["currents"]
        self.interval: int = proc_params["interval"]

    def run_spk(self) -> None:
        """Send the current of the image whose turn it is."""
        image = (self.time_step - 1) // self.interval
        silent = image >= len(self.currents)
        self.a_out.send(np.zeros(self.currents.shape[1:]) if silent else self.currents[image])


@implements(proc=Sink, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PySinkModel(PyLoihiProcessModel):  # type: ignore[misc]
    """`Sink`, in the type of its buffer."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        self.buffer: NDArray[Any] = proc_params["buffer"]
        self.offset: int = proc_params["offset"]

    def run_spk(self) -> None:
        """Keep this step's data."""
        data = self.a_in.recv()
        row = self.time_step - 1 - self.offset
        if 0 <= row < len(self.buffer):
            self.buffer[row] = data
