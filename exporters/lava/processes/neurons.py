"""The neuron layers: `IntegrateFire`, which spikes, and `Readout`, which does not."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

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

from bridge.graph.loihi_registers import LARGEST_BIAS_EXPONENT, LARGEST_STATE, SHIFT, UNIT
from exporters.lava.processes.ports import DenseInPort, FloatNeuronPorts, WholeNeuronPorts
from exporters.lava.processes.whole import expect_whole

HALF = LARGEST_STATE + 1  # of the 2^24 values a current can have


class IntegrateFire(AbstractProcess):  # type: ignore[misc]
    """Integrate-and-fire neurons with soft reset, in the potential ``u = v − v(0)``:

    ``u += a_in + bias + bias_in;  s_out = [u ≥ level];  u −= threshold · s_out``, where ``level = threshold − v(0)``.

    The neurons take one image after the other, `interval` steps each, and forget it at its end (``u = 0``). Lava's
    Dense and Conv delay by one step, so a layer behind d of them gets its first input at step 1 + d: with
    ``offset=d`` it rests until then, bias and all, and counts its images from there.

    **Floating point** (tag ``floating_pt``) computes this in float64.

    **Fixed point** (tags ``fixed_pt``, ``bit_accurate_loihi``) computes it in Loihi's registers, as Lava's own LIF
    does. Everything is a whole number, and a register holds ``2**shift`` times what the network calls 1:

    * ``shift=6`` for layers with synapses: Loihi shifts what comes from them by 6. The sum at ``a_in`` is then a
      current of 24 bits, which wraps (−131 071 … 131 072 come through), and the potential saturates at ±(2^23 − 1).
    * ``shift=0`` for layers that hear bias currents alone, which are not shifted: the potential's range is 64 times as
      large. Levels and thresholds must be multiples of 64, since Loihi shifts them all the same. Leave ``a_in``
      unconnected: it would count 64-fold.

    Parameters
    ----------
    shape : one neuron layer's shape, ``(W, H, C)`` between Convs; a leading axis for images side by side is welcome.
    level, threshold : the firing level, and what a spike takes off; scalars or broadcastable to `shape`.
    bias_mant, bias_exp : the current added at each step, ``bias_mant · 2**(bias_exp − shift)`` in the network's unit;
        with the default exponent and shift that is `bias_mant`. Broadcastable likewise.
    shift : 6 or 0, see above. In floating point it only tells the bias's unit.
    interval : steps an image; 0 means that the potential is never reset.
    offset : steps to rest at the start: the number of Dense and Conv Processes between the input and this layer,
        on the longest way if there are several (the others then need a `Delay`).

    Ports: ``a_in``, from synapses; ``bias_in``, currents that the host computes, which Loihi takes as biases that
    change; ``s_out``, the spikes (0 or 1); ``u_out``, the potential after integration, before the spike is taken off.
    All are in the network's unit. Unconnected ports are allowed: an input then counts as 0. Var ``u`` is the potential
    after the reset, as it is held: in fixed point ``2**shift`` times the network's.

    Raises `ValueError` for another `shift`, for an exponent that Loihi does not have, and with ``shift=0`` for levels
    and thresholds that are no multiples of 64. In fixed point, whatever is no whole number ends the run.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        level: ArrayLike = 0.5,
        threshold: ArrayLike = 1.0,
        bias_mant: ArrayLike = 0.0,
        bias_exp: ArrayLike = SHIFT,
        shift: int = SHIFT,
        interval: int = 0,
        offset: int = 0,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        super().__init__(
            shape=shape, level=level, threshold=threshold, bias_mant=bias_mant, name=name, log_config=log_config
        )
        self._expect_registers(shift, np.asarray(bias_exp), level=np.asarray(level), threshold=np.asarray(threshold))
        self.a_in = InPort(shape=shape)
        self.bias_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.u_out = OutPort(shape=shape)
        self.u = Var(shape=shape, init=0)
        self.level = Var(shape=shape, init=np.broadcast_to(level, shape))
        self.threshold = Var(shape=shape, init=np.broadcast_to(threshold, shape))
        self.bias_mant = Var(shape=shape, init=np.broadcast_to(bias_mant, shape))
        self.bias_exp = Var(shape=shape, init=np.broadcast_to(bias_exp, shape))
        self.shift = Var(shape=(1,), init=int(shift))
        self.interval = Var(shape=(1,), init=int(interval))
        self.offset = Var(shape=(1,), init=int(offset))

    def _expect_registers(self, shift: int, bias_exp: NDArray[Any], **thresholds: NDArray[Any]) -> None:
        # Called after Lava's own constructor, since Lava cannot delete a Process that was not initialised.
        if shift not in (0, SHIFT):
            raise ValueError(f"IntegrateFire {self.name!r}: expected a shift of {SHIFT} or 0, got {shift}")
        if not np.isin(bias_exp, range(LARGEST_BIAS_EXPONENT + 1)).all():
            raise ValueError(
                f"IntegrateFire {self.name!r}: expected bias exponents from 0 to {LARGEST_BIAS_EXPONENT}, which are "
                f"those Loihi has, got {bias_exp.min()} to {bias_exp.max()}"
            )
        for what, values in thresholds.items():
            if shift == 0 and (values % UNIT).any():
                raise ValueError(
                    f"IntegrateFire {self.name!r}: expected multiples of {UNIT} as {what} with shift=0, since Loihi "
                    f"shifts its thresholds by {SHIFT}, got {values[values % UNIT != 0].flat[0]}: round them, or use "
                    f"shift={SHIFT}"
                )


class Readout(AbstractProcess):  # type: ignore[misc]
    """Output neurons that do not spike: ``y_out = a_in + bias + bias_in`` at each step, and ``v``, its sum over one
    image.

    ``v / t`` is the network's output after t steps of an image. With ``once=True`` the bias counts in an image's first
    step alone, and v at its end is the output, as of a staged network. Parameters as in `IntegrateFire`; after its last
    image it goes on. Ports: ``a_in``; ``bias_in``, currents that the host computes; ``y_out``. In fixed point (tags
    ``fixed_pt``, ``bit_accurate_loihi``) all of it is whole, in the network's unit, and nothing saturates or wraps:
    the sum is taken where the spikes are read.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        bias: ArrayLike = 0.0,
        once: bool = False,
        interval: int = 0,
        offset: int = 0,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        super().__init__(shape=shape, bias=bias, once=bool(once), name=name, log_config=log_config)
        self.a_in = InPort(shape=shape)
        self.bias_in = InPort(shape=shape)
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


class Registers(NamedTuple):
    """What a neuron layer computes with. ``unit`` is what it holds for the network's 1."""

    unit: int
    level: NDArray[Any]
    threshold: NDArray[Any]
    bias: NDArray[Any]


class AbstractPyIntegrateFireModel(AbstractPyStreamModel):
    """What the two arithmetics of `IntegrateFire` share."""

    u: NDArray[Any]
    shift: int = LavaPyType(int, int)

    @cached_property
    def registers(self) -> Registers:
        """The Vars as they are computed with, read at the first step."""
        raise NotImplementedError

    def integrate(self, synaptic: NDArray[Any], injected: NDArray[Any]) -> NDArray[Any]:
        """The potential after this step's currents, which are in the network's unit."""
        raise NotImplementedError

    def run_spk(self) -> None:
        """One step: reset if an image begins, integrate, fire, take the spike off."""
        synaptic, injected = self.a_in.recv(), self.bias_in.recv()
        if self.resting():
            self.u_out.send(np.zeros_like(self.u))
            self.s_out.send(np.zeros_like(self.u))
            return
        if self.first_of_image():
            self.u = np.zeros_like(self.u)
        potential = self.integrate(synaptic, injected)
        spikes = potential >= self.registers.level
        if self.u_out.csp_ports:
            self.u_out.send(potential / self.registers.unit)
        self.s_out.send(spikes)
        self.u = potential - self.registers.threshold * spikes


@implements(proc=IntegrateFire, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyIntegrateFireModelFloat(FloatNeuronPorts, AbstractPyIntegrateFireModel):
    """`IntegrateFire` in float64."""

    u: NDArray[Any] = LavaPyType(np.ndarray, float)
    level: np.ndarray = LavaPyType(np.ndarray, float)
    threshold: np.ndarray = LavaPyType(np.ndarray, float)
    bias_mant: np.ndarray = LavaPyType(np.ndarray, float)
    bias_exp: np.ndarray = LavaPyType(np.ndarray, np.int32)

    @cached_property
    def registers(self) -> Registers:
        """The Vars in the network's own unit."""
        return Registers(1, self.level, self.threshold, np.ldexp(self.bias_mant, self.bias_exp - self.shift))

    def integrate(self, synaptic: NDArray[Any], injected: NDArray[Any]) -> NDArray[Any]:
        """The plain sum."""
        potential: NDArray[Any] = self.u + (synaptic + self.registers.bias + injected)
        return potential


@implements(proc=IntegrateFire, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyIntegrateFireModelFixed(WholeNeuronPorts, AbstractPyIntegrateFireModel):
    """`IntegrateFire` in Loihi's registers (lava-nc 0.10.0, lava.proc.lif.models: its LIF without leak or memory of
    the current, ``dv=0, du=4095``).
    """

    u_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)  # whole 64ths, where a bias's exponent is below 6
    u: NDArray[Any] = LavaPyType(np.ndarray, np.int32, precision=24)
    level: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=17)
    threshold: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=17)
    bias_mant: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=13)
    bias_exp: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=3)

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        for parameter in ("level", "threshold", "bias_mant"):
            expect_whole(f"IntegrateFire {proc_params['name']!r}: {parameter}", proc_params[parameter])

    @cached_property
    def registers(self) -> Registers:
        """The Vars, shifted."""
        return Registers(
            2**self.shift,
            np.left_shift(self.level, self.shift),
            np.left_shift(self.threshold, self.shift),
            np.left_shift(self.bias_mant, self.bias_exp),
        )

    def integrate(self, synaptic: NDArray[Any], injected: NDArray[Any]) -> NDArray[Any]:
        """The sum, where the synaptic current wraps and the potential saturates."""
        current = np.left_shift(synaptic, SHIFT)
        if current.max() > HALF or current.min() <= -HALF:
            # As in Lava's LIF, once and no further, and to −HALF + 1 … HALF.
            current = np.where(
                current > HALF, current - 2 * HALF, np.where(current <= -HALF, current + 2 * HALF, current)
            )
        potential: NDArray[Any] = self.u + current
        potential += self.registers.bias
        if injected.ndim:
            potential += np.left_shift(injected, self.shift)
        return np.clip(potential, -LARGEST_STATE, LARGEST_STATE, out=potential)


class AbstractPyReadoutModel(AbstractPyStreamModel):
    """What the two arithmetics of `Readout` share."""

    v: NDArray[Any]
    bias: NDArray[Any]

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        self.once: bool = proc_params["once"]

    def run_spk(self) -> None:
        """One step: pass the output on, and add it to the image's sum."""
        synaptic, injected = self.a_in.recv(), self.bias_in.recv()
        if self.resting():
            self.y_out.send(np.zeros_like(self.v))
            return
        output = np.broadcast_to(synaptic + injected, self.bias.shape)
        if self.first_of_image():
            self.v = np.zeros_like(self.v)
            output = output + self.bias
        elif not self.once:
            output = output + self.bias
        self.v = self.v + output
        self.y_out.send(output)


@implements(proc=Readout, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyReadoutModelFloat(AbstractPyReadoutModel):
    """`Readout` in float64."""

    a_in: DenseInPort = LavaPyType(DenseInPort, float)
    bias_in: DenseInPort = LavaPyType(DenseInPort, float)
    y_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    v: NDArray[Any] = LavaPyType(np.ndarray, float)
    bias: NDArray[Any] = LavaPyType(np.ndarray, float)


@implements(proc=Readout, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyReadoutModelFixed(AbstractPyReadoutModel):
    """`Readout` in whole numbers; the sum has 64 bits."""

    a_in: DenseInPort = LavaPyType(DenseInPort, np.int32, precision=24)
    bias_in: DenseInPort = LavaPyType(DenseInPort, np.int32, precision=24)
    y_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=32)
    v: NDArray[Any] = LavaPyType(np.ndarray, np.int64, precision=64)
    bias: NDArray[Any] = LavaPyType(np.ndarray, np.int32, precision=24)

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        expect_whole(f"Readout {proc_params['name']!r}: bias", proc_params["bias"])
