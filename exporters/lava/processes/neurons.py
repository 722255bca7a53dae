"""The neuron layers: `IntegrateFire`, which spikes, and `Readout`, which does not."""

from __future__ import annotations

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess, LogConfig
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from numpy.typing import ArrayLike


class IntegrateFire(AbstractProcess):  # type: ignore[misc]
    """Integrate-and-fire neurons with soft reset, in the potential ``u = v − v(0)``:

    ``u += a_in + bias;  s_out = [u ≥ level];  u −= threshold · s_out``, where ``level = threshold − v(0)``.

    The neurons take one image after the other, `interval` steps each, and forget it at its end (``u = 0``). Lava's
    Dense and Conv delay by one step, so a layer behind d of them gets its first input at step 1 + d: with
    ``offset=d`` it rests until then, bias and all, and counts its images from there.

    Parameters
    ----------
    shape : one neuron layer's shape, ``(W, H, C)`` between Convs.
    level, threshold : the firing level, and what a spike takes off; scalars or broadcastable to `shape`.
    bias : current added at each step, likewise.
    interval : steps an image; 0 means that the potential is never reset.
    offset : steps to rest at the start: the number of Dense and Conv Processes between the input and this layer,
        on the longest way if there are several (the others then need a `Delay`).

    Ports: ``a_in``; ``s_out``, the spikes (0 or 1); ``u_out``, the potential after integration, before the spike is
    taken off. Unconnected ports are allowed: ``a_in`` then counts as 0. Var ``u`` is the potential after the reset.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        level: ArrayLike = 0.5,
        threshold: ArrayLike = 1.0,
        bias: ArrayLike = 0.0,
        interval: int = 0,
        offset: int = 0,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        super().__init__(shape=shape, name=name, log_config=log_config)
        self.a_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.u_out = OutPort(shape=shape)
        self.u = Var(shape=shape, init=0)
        self.level = Var(shape=shape, init=np.broadcast_to(level, shape))
        self.threshold = Var(shape=shape, init=np.broadcast_to(threshold, shape))
        self.bias = Var(shape=shape, init=np.broadcast_to(bias, shape))
        self.interval = Var(shape=(1,), init=int(interval))
        self.offset = Var(shape=(1,), init=int(offset))


class Readout(AbstractProcess):  # type: ignore[misc]
    """Output neurons that do not spike: ``y_out = a_in + bias`` at each step, and ``v``, its sum over one image.

    ``v / t`` is the network's output after t steps of an image. Parameters as in `IntegrateFire`; after its last image
    it goes on. Ports: ``a_in``; ``y_out``.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        bias: ArrayLike = 0.0,
        interval: int = 0,
        offset: int = 0,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        super().__init__(shape=shape, name=name, log_config=log_config)
        self.a_in = InPort(shape=shape)
        self.y_out = OutPort(shape=shape)
        self.v = Var(shape=shape, init=0)
        self.bias = Var(shape=shape, init=np.broadcast_to(bias, shape))
        self.interval = Var(shape=(1,), init=int(interval))
        self.offset = Var(shape=(1,), init=int(offset))


class AbstractPyStreamModel(PyLoihiProcessModel):  # type: ignore[misc]
    """A model that rests for ``offset`` steps and starts afresh every ``interval`` steps from there."""

    interval: int = LavaPyType(int, int)
    offset: int = LavaPyType(int, int)

    def resting(self) -> bool:
        """Whether the first input is yet to come."""
        return bool(self.time_step <= self.offset)

    def first_of_image(self) -> bool:
        """Whether this step is an image's first."""
        return self.interval > 0 and bool((self.time_step - 1 - self.offset) % self.interval == 0)


@implements(proc=IntegrateFire, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyIntegrateFireModelFloat(AbstractPyStreamModel):
    """`IntegrateFire` in float64."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    u_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    u: np.ndarray = LavaPyType(np.ndarray, float)
    level: np.ndarray = LavaPyType(np.ndarray, float)
    threshold: np.ndarray = LavaPyType(np.ndarray, float)
    bias: np.ndarray = LavaPyType(np.ndarray, float)

    def run_spk(self) -> None:
        """One step: reset if an image begins, integrate, fire, take the spike off."""
        current = self.a_in.recv()
        if self.resting():
            self.u_out.send(np.zeros_like(self.u))
            self.s_out.send(np.zeros_like(self.u))
            return
        if self.first_of_image():
            self.u = np.zeros_like(self.u)
        potential = self.u + (current + self.bias)
        spikes = (potential >= self.level).astype(float)
        self.u = potential - self.threshold * spikes
        self.u_out.send(potential)
        self.s_out.send(spikes)


@implements(proc=Readout, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyReadoutModelFloat(AbstractPyStreamModel):
    """`Readout` in float64."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    y_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    v: np.ndarray = LavaPyType(np.ndarray, float)
    bias: np.ndarray = LavaPyType(np.ndarray, float)

    def run_spk(self) -> None:
        """One step: pass the output on, and add it to the image's sum."""
        current = self.a_in.recv()
        if self.resting():
            self.y_out.send(np.zeros_like(self.v))
            return
        if self.first_of_image():
            self.v = np.zeros_like(self.v)
        output = current + self.bias
        self.v = self.v + output
        self.y_out.send(output)
