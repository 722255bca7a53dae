"""Data on its way through a Lava network: `CurrentSource`, `Delay`, `Sink`, and the memory a Sink shares."""

from __future__ import annotations

import mmap
from collections import deque
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess, LogConfig, ProcessParameters
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from numpy.typing import DTypeLike, NDArray

from exporters.lava.processes.ports import DenseInPort, FloatPorts
from exporters.lava.processes.whole import expect_whole


def shared_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros that forked processes write and their parent reads: anonymous shared memory, without a file to remove."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, max(1, size))
    return np.frombuffer(memory, dtype=dtype, count=int(np.prod(shape))).reshape(shape)


class CurrentSource(AbstractProcess):  # type: ignore[misc]
    """One constant current an image: ``a_out`` is ``currents[i]`` for `interval` steps, then ``currents[i + 1]``.

    ``currents`` is ``[images, *shape]``. With ``once=True`` each is sent in the first of its steps alone. The source is
    silent for its first `offset` steps and after the last image; it adds no delay of its own. In fixed point (tags
    ``fixed_pt``, ``bit_accurate_loihi``) the currents must be whole.
    """

    def __init__(
        self,
        *,
        currents: NDArray[Any],
        interval: int,
        offset: int = 0,
        once: bool = False,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        # Not a Var: the model reads the array where it is, and a Var would copy all images.
        super().__init__(
            currents=currents,
            interval=int(interval),
            offset=int(offset),
            once=bool(once),
            name=name,
            log_config=log_config,
        )
        self.a_out = OutPort(shape=currents.shape[1:])


class Delay(AbstractProcess):  # type: ignore[misc]
    """A delay line: ``a_out`` is ``gain · a_in``, `steps` steps later, and zero until then.

    Spikes or values, of any `shape`. Where branches of different depth meet, the shorter one needs it, since Lava's
    Dense and Conv delay by one step each. With ``steps=0`` the data pass in the same step; a loop without a Dense or
    Conv in it needs at least one. In fixed point (tags ``fixed_pt``, ``bit_accurate_loihi``) `gain` must be whole.
    Raises `ValueError` for a negative `steps`.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        steps: int,
        gain: float = 1.0,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        super().__init__(shape=shape, steps=int(steps), gain=float(gain), name=name, log_config=log_config)
        if steps < 0:  # only now, since Lava cannot delete a Process that was not initialised
            raise ValueError(f"Delay {self.name!r}: expected a number of steps from 0 on, got {steps}")
        self.a_in = InPort(shape=shape)
        self.a_out = OutPort(shape=shape)


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


class AbstractPyCurrentSourceModel(PyLoihiProcessModel):  # type: ignore[misc]
    """What the two arithmetics of `CurrentSource` share."""

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        self.currents: NDArray[Any] = proc_params["currents"]
        self.interval: int = proc_params["interval"]
        self.offset: int = proc_params["offset"]
        self.once: bool = proc_params["once"]

    def run_spk(self) -> None:
        """Send the current of the image whose turn it is."""
        image, step = divmod(self.time_step - 1 - self.offset, self.interval)
        sounding = 0 <= image < len(self.currents) and not (self.once and step)
        self.a_out.send(self.currents[image] if sounding else np.zeros(self.currents.shape[1:]))


@implements(proc=CurrentSource, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyCurrentSourceModel(AbstractPyCurrentSourceModel):
    """`CurrentSource` in float64."""

    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)


@implements(proc=CurrentSource, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyCurrentSourceModelFixed(AbstractPyCurrentSourceModel):
    """`CurrentSource` in whole numbers."""

    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        expect_whole(f"CurrentSource {proc_params['name']!r}", self.currents)


class AbstractPyDelayModel(PyLoihiProcessModel):  # type: ignore[misc]
    """What the two arithmetics of `Delay` share."""

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        self.gain: float = proc_params["gain"]
        self.line = deque([np.zeros(proc_params["shape"], np.int8)] * proc_params["steps"])  # until data have come

    def run_spk(self) -> None:
        """Send what came in `steps` steps ago, first of all so that a loop through this Process can go on."""
        if not self.line:
            self._send(self.a_in.recv())
            return
        self._send(self.line.popleft())
        self.line.append(self.a_in.recv())

    def _send(self, data: NDArray[Any]) -> None:
        self.a_out.send(data if self.gain == 1 else self.gain * data)


@implements(proc=Delay, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyDelayModelFloat(FloatPorts, AbstractPyDelayModel):
    """`Delay` in float64."""


@implements(proc=Delay, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyDelayModelFixed(AbstractPyDelayModel):
    """`Delay` in whole numbers; their product with the gain is exact below 2^53, and sent in 32 bits."""

    a_in: DenseInPort = LavaPyType(DenseInPort, np.int32, precision=32)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        expect_whole(f"Delay {proc_params['name']!r}: gain", self.gain)


@implements(proc=Sink, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt", "bit_accurate_loihi", "fixed_pt")
class PySinkModel(PyLoihiProcessModel):  # type: ignore[misc]
    """`Sink`, in the type of its buffer. What Lava's models send, whole or not, float64 holds."""

    a_in: DenseInPort = LavaPyType(DenseInPort, float)

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
