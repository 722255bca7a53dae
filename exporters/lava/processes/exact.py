"""Neurons that make a network equal to its ANN: `WindowFire` if staged, `Thresholds` and `SpikeCount` if grouped."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess, LogConfig, ProcessParameters
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from numpy.typing import ArrayLike, NDArray

from bridge.graph.loihi_registers import LARGEST_STATE
from exporters.lava.processes.ports import FloatNeuronPorts, WholeNeuronPorts
from exporters.lava.processes.whole import expect_whole


class WindowFire(AbstractProcess):  # type: ignore[misc]
    """Neurons that integrate silently and then fire in a window of `steps` steps, one image every `interval` steps.

    They have two potentials, and so integrate the next image while they fire for the last one::

        u += a_in + bias_in
        when the window opens:  w = u;  u = 0
        in the window:          w −= threshold;  s_out = [w ≥ level]

    The first window opens at step ``offset + 1``. What an image gives a neuron has to arrive in the `interval` steps
    that end with that one: what comes earlier needs a `Delay`. Nothing is shifted: in fixed point (tags ``fixed_pt``,
    ``bit_accurate_loihi``) both potentials are whole numbers of 24 bits, in the network's unit, and saturate.

    Parameters
    ----------
    shape : one neuron layer's shape, ``(W, H, C)`` between Convs; a leading axis for images side by side is welcome.
    level, threshold : the firing level after the first fall, and the fall at each step; broadcastable to `shape`.
    steps, interval, offset : of the window, from one window to the next, and before the first.

    Ports: ``a_in``, from synapses; ``bias_in``, currents that the host computes; ``s_out``, the spikes (0 or 1);
    ``u_out``, w in the window, after its fall, and 0 outside. Vars ``u`` and ``w``. Raises `ValueError` for a window
    that is longer than the interval.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        level: ArrayLike,
        threshold: ArrayLike = 1.0,
        steps: int,
        interval: int,
        offset: int = 0,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        super().__init__(shape=shape, level=level, threshold=threshold, name=name, log_config=log_config)
        if not 1 <= steps <= interval:  # only now, since Lava cannot delete a Process that was not initialised
            raise ValueError(f"WindowFire {self.name!r}: expected a window of 1 to {interval} steps, got {steps}")
        self.a_in = InPort(shape=shape)
        self.bias_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.u_out = OutPort(shape=shape)
        self.u = Var(shape=shape, init=0)
        self.w = Var(shape=shape, init=0)
        self.level = Var(shape=shape, init=np.broadcast_to(level, shape))
        self.threshold = Var(shape=shape, init=np.broadcast_to(threshold, shape))
        self.steps = Var(shape=(1,), init=int(steps))
        self.interval = Var(shape=(1,), init=int(interval))
        self.offset = Var(shape=(1,), init=int(offset))


class Thresholds(AbstractProcess):  # type: ignore[misc]
    """Groups of thresholds without state, with ``d = a_in + bias + bias_in``::

        s_out[…, k·C + c] = [d[…, c] ≥ level[k, …, c]]

    With several levels it is a layer of a grouped network, with one the units of a maximum pool behind a sum of spikes.

    Parameters
    ----------
    shape : the shape of what comes in, ``(W, H, C)`` or ``(C,)``; a leading axis for images side by side is welcome.
    level : ``[L, …]``, the rest broadcastable to `shape`.
    bias : broadcastable to `shape`.

    Ports: ``a_in``, ``bias_in``; ``s_out``, 0 or 1, with L·C channels, those of the first level first; ``u_out``, d.
    In fixed point (tags ``fixed_pt``, ``bit_accurate_loihi``) all of it is whole, nothing is shifted.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        level: NDArray[Any],
        bias: ArrayLike = 0.0,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        super().__init__(shape=shape, level=level, bias=bias, name=name, log_config=log_config)
        levels = len(level)
        self.a_in = InPort(shape=shape)
        self.bias_in = InPort(shape=shape)
        self.s_out = OutPort(shape=(*shape[:-1], levels * shape[-1]))
        self.u_out = OutPort(shape=shape)
        self.level = Var(shape=(levels, *shape), init=_per_level(level, shape))
        self.bias = Var(shape=shape, init=np.broadcast_to(bias, shape))


class SpikeCount(AbstractProcess):  # type: ignore[misc]
    """One neuron in place of a group of `most` thresholds: its spike carries how many of the group would fire.

    With ``d = a_in + bias + bias_in``, the payload of a graded spike is
    ``s_out = clip(floor((d − threshold − level) / threshold) + 1, 0, most)``, 0 being no spike. Parameters as in
    `Thresholds`, with one `level` and one `threshold` for each neuron. Ports: ``a_in``, ``bias_in``, ``s_out``;
    ``u_out``, d.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        level: ArrayLike,
        threshold: ArrayLike,
        most: int,
        bias: ArrayLike = 0.0,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        super().__init__(shape=shape, level=level, threshold=threshold, bias=bias, name=name, log_config=log_config)
        self.a_in = InPort(shape=shape)
        self.bias_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.u_out = OutPort(shape=shape)
        self.level = Var(shape=shape, init=np.broadcast_to(level, shape))
        self.threshold = Var(shape=shape, init=np.broadcast_to(threshold, shape))
        self.bias = Var(shape=shape, init=np.broadcast_to(bias, shape))
        self.most = Var(shape=(1,), init=int(most))


class AbstractPyWindowFireModel(PyLoihiProcessModel):  # type: ignore[misc]
    """What the two arithmetics of `WindowFire` share."""

    u: NDArray[Any]
    w: NDArray[Any]
    level: NDArray[Any]
    threshold: NDArray[Any]
    steps: int = LavaPyType(int, int)
    interval: int = LavaPyType(int, int)
    offset: int = LavaPyType(int, int)

    def hold(self, potential: NDArray[Any]) -> NDArray[Any]:
        """`potential` in its register."""
        return potential

    def run_spk(self) -> None:
        """One step: integrate; take over what is complete when the window opens; fall and fire inside it."""
        self.u = self.hold(self.u + self.a_in.recv() + self.bias_in.recv())
        since = self.time_step - 1 - self.offset
        phase = since % self.interval
        if since < 0 or phase >= self.steps:
            self.u_out.send(np.zeros_like(self.w))
            self.s_out.send(np.zeros_like(self.w))
            return
        if phase == 0:
            self.w, self.u = self.u, np.zeros_like(self.u)
        self.w = self.hold(self.w - self.threshold)
        self.u_out.send(self.w)
        self.s_out.send(self.w >= self.level)


@implements(proc=WindowFire, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyWindowFireModelFloat(FloatNeuronPorts, AbstractPyWindowFireModel):
    """`WindowFire` in float64."""

    u: NDArray[Any] = LavaPyType(np.ndarray, float)
    w: NDArray[Any] = LavaPyType(np.ndarray, float)
    level: NDArray[Any] = LavaPyType(np.ndarray, float)
    threshold: NDArray[Any] = LavaPyType(np.ndarray, float)


@implements(proc=WindowFire, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyWindowFireModelFixed(WholeNeuronPorts, AbstractPyWindowFireModel):
    """`WindowFire` in whole numbers of 24 bits."""

    u: NDArray[Any] = LavaPyType(np.ndarray, np.int32, precision=24)
    w: NDArray[Any] = LavaPyType(np.ndarray, np.int32, precision=24)
    level: NDArray[Any] = LavaPyType(np.ndarray, np.int32, precision=24)
    threshold: NDArray[Any] = LavaPyType(np.ndarray, np.int32, precision=24)

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        _expect_whole("WindowFire", proc_params, "level", "threshold")

    def hold(self, potential: NDArray[Any]) -> NDArray[Any]:
        """Saturated at 24 bits."""
        held: NDArray[Any] = np.clip(potential, -LARGEST_STATE, LARGEST_STATE)
        return held


class AbstractPyDriveModel(PyLoihiProcessModel):  # type: ignore[misc]
    """What neurons without state share: each step is judged by itself."""

    level: NDArray[Any]
    bias: NDArray[Any]

    def fired(self, drive: NDArray[Any]) -> NDArray[Any]:
        """What is sent for this drive."""
        raise NotImplementedError

    def run_spk(self) -> None:
        """One step."""
        drive = self.a_in.recv() + self.bias_in.recv() + self.bias
        self.u_out.send(drive)
        self.s_out.send(self.fired(drive))


class AbstractPyThresholdsModel(AbstractPyDriveModel):
    """What the two arithmetics of `Thresholds` share."""

    def fired(self, drive: NDArray[Any]) -> NDArray[Any]:
        """Level after level, along the channels."""
        return np.concatenate([drive >= level for level in self.level], axis=-1)


class AbstractPySpikeCountModel(AbstractPyDriveModel):
    """What the two arithmetics of `SpikeCount` share."""

    threshold: NDArray[Any]
    most: int = LavaPyType(int, int)

    def fired(self, drive: NDArray[Any]) -> NDArray[Any]:
        """How many thresholds the drive reaches."""
        counts: NDArray[Any] = (drive - self.threshold - self.level) // self.threshold + 1
        return np.clip(counts, 0, self.most)


class PyDriveModelFloat(FloatNeuronPorts, AbstractPyDriveModel):
    """Ports and Vars in float64."""

    level: NDArray[Any] = LavaPyType(np.ndarray, float)
    bias: NDArray[Any] = LavaPyType(np.ndarray, float)


class PyDriveModelFixed(WholeNeuronPorts, AbstractPyDriveModel):
    """Ports and Vars in whole numbers."""

    level: NDArray[Any] = LavaPyType(np.ndarray, np.int32, precision=24)
    bias: NDArray[Any] = LavaPyType(np.ndarray, np.int32, precision=24)


@implements(proc=Thresholds, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyThresholdsModelFloat(AbstractPyThresholdsModel, PyDriveModelFloat):
    """`Thresholds` in float64."""


@implements(proc=Thresholds, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyThresholdsModelFixed(AbstractPyThresholdsModel, PyDriveModelFixed):
    """`Thresholds` in whole numbers."""

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        _expect_whole("Thresholds", proc_params, "level", "bias")


@implements(proc=SpikeCount, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PySpikeCountModelFloat(AbstractPySpikeCountModel, PyDriveModelFloat):
    """`SpikeCount` in float64."""

    threshold: NDArray[Any] = LavaPyType(np.ndarray, float)


@implements(proc=SpikeCount, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PySpikeCountModelFixed(AbstractPySpikeCountModel, PyDriveModelFixed):
    """`SpikeCount` in whole numbers."""

    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    threshold: NDArray[Any] = LavaPyType(np.ndarray, np.int32, precision=24)

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        _expect_whole("SpikeCount", proc_params, "level", "threshold", "bias")


def _per_level(level: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return np.stack([np.broadcast_to(one, shape) for one in level])


def _expect_whole(kind: str, proc_params: ProcessParameters, *names: str) -> None:
    for name in names:
        expect_whole(f"{kind} {proc_params['name']!r}: {name}", proc_params[name])
