"""Fast synapses: `TorchConv` and `TorchDense` compute what Lava's own Conv and Dense do, with torch, for several
images side by side.

Lava's Conv loops over pairs of channels, and every Process takes a good part of a millisecond a step, however
little there is to compute. With `lanes`, one step serves that many images: every port then has a leading axis.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess, LogConfig, ProcessParameters
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.conv import utils
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bridge.graph import Affine, Conv2d, Linear
from bridge.graph.loihi_registers import LARGEST_STATE, LARGEST_WEIGHT, SMALLEST_WEIGHT
from bridge.graph.ranges import Range
from bridge.simulate.engine.kernels import Kernel, int8
from exporters.lava.processes.ports import DenseInPort
from exporters.lava.processes.whole import expect_whole

HALF = LARGEST_STATE + 1  # of the 2^24 values that Conv's 24 bits hold
EXACT = 2**24  # the first number up from which float32 leaves some out


class TorchConv(AbstractProcess):  # type: ignore[misc]
    """A convolution, as `lava.proc.conv.process.Conv`, one step late as that is.

    In fixed point (tags ``fixed_pt``, ``bit_accurate_loihi``) weights and messages are whole numbers, weights of up to
    24 bits, and sums wrap at 24 bits. In floating point (``floating_pt``) it computes in float64, which is exact for
    whole numbers too.

    Parameters
    ----------
    weight : ``[C_out, W, H, C_in / groups]``, as Lava has it: a convolution kernel, so that a cross-correlation's
        must be flipped in W and H.
    input_shape : ``(W, H, C_in)``.
    stride, padding, dilation : ``(W, H)``.
    num_message_bits : 0 takes whatever is not 0 for a spike; more, and messages count with their value.
    lanes : how many images side by side. The ports' shapes are then ``(lanes, W, H, C)``, without it ``(W, H, C)``.

    Ports: ``s_in``, ``a_out``. Raises `ValueError` if the channels do not fit.
    """

    def __init__(
        self,
        *,
        weight: NDArray[Any],
        input_shape: tuple[int, int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        num_message_bits: int = 0,
        lanes: int | None = None,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        # Not a Var: the model makes its own tensor of the weights, and a Var would be one copy more.
        geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        super().__init__(weight=weight, geometry=geometry, name=name, log_config=log_config)
        channels, out_channels = input_shape[-1], len(weight)
        if channels != weight.shape[-1] * groups or out_channels % groups:
            raise ValueError(
                f"TorchConv {self.name!r}: expected weights [C_out, W, H, C_in / groups] for {channels} channels in "
                f"{groups} groups, got {weight.shape}"
            )
        shape = utils.output_shape(input_shape, out_channels, weight.shape[1:3], stride, padding, dilation)
        side_by_side = () if lanes is None else (lanes,)
        self.weight = weight
        self.s_in = InPort(shape=(*side_by_side, *input_shape))
        self.a_out = OutPort(shape=(*side_by_side, *map(int, shape)))
        self.a_buf = Var(shape=self.a_out.shape, init=0)
        self.num_message_bits = Var(shape=(1,), init=int(num_message_bits))


class TorchDense(AbstractProcess):  # type: ignore[misc]
    """A matrix of weights, as `lava.proc.dense.process.Dense`, one step late as that is.

    In fixed point (tags ``fixed_pt``, ``bit_accurate_loihi``) weights are whole numbers from −128 to 127: those that
    Loihi's synapses of mixed sign hold, and Lava's Dense as twice as much, ``weights=2 * w, weight_exp=-1``. In
    floating point (``floating_pt``) it computes in float64, which is exact for whole numbers too.

    Parameters
    ----------
    weights : ``[outputs, inputs]``.
    num_message_bits, lanes : as in `TorchConv`; the ports' shapes are ``(lanes, N)``, or ``(N,)``.

    Ports: ``s_in``, ``a_out``.
    """

    def __init__(
        self,
        *,
        weights: NDArray[Any],
        num_message_bits: int = 0,
        lanes: int | None = None,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        super().__init__(weights=weights, name=name, log_config=log_config)
        outputs, inputs = weights.shape
        side_by_side = () if lanes is None else (lanes,)
        self.weights = weights
        self.s_in = InPort(shape=(*side_by_side, inputs))
        self.a_out = OutPort(shape=(*side_by_side, outputs))
        self.a_buf = Var(shape=self.a_out.shape, init=0)
        self.num_message_bits = Var(shape=(1,), init=int(num_message_bits))


class AbstractPyTorchModel(PyLoihiProcessModel):  # type: ignore[misc]
    """A synapse of either kind in either arithmetic. ``weight`` is as torch has it, outputs first."""

    num_message_bits: int = LavaPyType(int, int)
    a_buf: NDArray[Any]
    weight: Tensor

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        # This is a forked child: the threads that torch may have had in its parent are not here.
        torch.set_num_threads(1)
        torch.backends.nnpack.set_flags(False)  # its fast convolutions round, even where all sums are whole

    def sums(self, images: Tensor, weight: Tensor) -> Tensor:
        """`images` through the synapses of this `weight`, of one floating point type, in torch's order."""
        raise NotImplementedError

    def in_order(self, messages: Tensor, sums: Kernel) -> Tensor:
        """What `sums` makes of `messages`; they and it in the shapes of the ports."""
        raise NotImplementedError

    def apply(self, messages: Tensor, weight: Tensor) -> Tensor:
        """`messages` through the synapses of this `weight`, in the shapes of the ports."""
        return self.in_order(messages, lambda images: self.sums(images, weight))

    def layer(self) -> Affine:
        """The synapses as the engine knows them."""
        raise NotImplementedError

    def accumulate(self, messages: NDArray[Any]) -> NDArray[Any]:
        """What `messages` amount to, in this model's arithmetic."""
        raise NotImplementedError

    def run_spk(self) -> None:
        """Send what came a step ago, first of all so that a loop through this Process can go on; then receive."""
        self.a_out.send(self.a_buf)
        messages = self.s_in.recv()
        self.a_buf = self.accumulate(messages if self.num_message_bits else messages != 0)


class AbstractPyTorchConvModel(AbstractPyTorchModel):
    """What the two arithmetics of `TorchConv` share."""

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        kernel = proc_params["weight"][:, ::-1, ::-1].transpose(0, 3, 1, 2)  # torch correlates; [C_out, C_in, W, H]
        self.weight = torch.from_numpy(kernel.astype(np.float64)).to(memory_format=torch.channels_last)

    def sums(self, images: Tensor, weight: Tensor) -> Tensor:
        """The convolution."""
        return F.conv2d(images, weight, **self.proc_params["geometry"])

    def in_order(self, messages: Tensor, sums: Kernel) -> Tensor:
        """Lava's order is torch's channels_last, width and height exchanged."""
        images = messages if messages.ndim == 4 else messages[None]
        found = sums(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return found if messages.ndim == 4 else found[0]

    def layer(self) -> Affine:
        """The convolution as the engine knows it."""
        weight, bias = self.weight.numpy(), np.zeros(len(self.weight), np.float32)
        return Conv2d(name="", inputs=("",), weight=weight, bias=bias, **self.proc_params["geometry"])


class AbstractPyTorchDenseModel(AbstractPyTorchModel):
    """What the two arithmetics of `TorchDense` share."""

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        self.weight = torch.from_numpy(proc_params["weights"].astype(np.float64))

    def sums(self, images: Tensor, weight: Tensor) -> Tensor:
        """The product."""
        return F.linear(images, weight)

    def in_order(self, messages: Tensor, sums: Kernel) -> Tensor:
        """A vector has one order."""
        return sums(messages) if messages.ndim == 2 else sums(messages[None])[0]

    def layer(self) -> Affine:
        """The product as the engine knows it."""
        bias = np.zeros(len(self.weight), np.float32)
        return Linear(name="", inputs=("",), weight=self.weight.numpy(), bias=bias)


class AbstractPyTorchModelFloat(AbstractPyTorchModel):
    """Synapses in float64."""

    s_in: DenseInPort = LavaPyType(DenseInPort, float)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    a_buf: NDArray[Any] = LavaPyType(np.ndarray, float)

    def accumulate(self, messages: NDArray[Any]) -> NDArray[Any]:
        """Plain sums."""
        sums: NDArray[Any] = self.apply(torch.from_numpy(messages).double(), self.weight).numpy()
        return sums


class AbstractPyTorchModelFixed(AbstractPyTorchModel):
    """Synapses in whole numbers, computed in what holds all sums: bytes, for plain spikes, float32 or float64."""

    s_in: DenseInPort = LavaPyType(DenseInPort, np.int32, precision=24)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    a_buf: NDArray[Any] = LavaPyType(np.ndarray, np.int32, precision=24)

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        self.largest = float(self.weight.abs().flatten(1).sum(1).max())  # what messages of 1 can come to
        self.weight = self.weight.float()

    @cached_property
    def in_bytes(self) -> Kernel | None:
        """Sums of plain spikes in int8 arithmetic; None where it would not be exact."""
        one, most = np.ones(1), np.array([self.largest])
        return int8(self.layer(), Range(0 * one, one, one), Range(-most, most, most))

    def accumulate(self, messages: NDArray[Any]) -> NDArray[Any]:
        """Exact sums, and what Lava makes of those that 24 bits do not hold."""
        if not self.num_message_bits and self.in_bytes is not None:
            return self.in_order(torch.from_numpy(messages.view(np.uint8)), self.in_bytes).int().numpy()
        given = torch.from_numpy(messages)
        largest = int(np.abs(messages).max()) if self.num_message_bits else 1
        if self.largest * largest < HALF:
            return self.apply(given.float(), self.weight).int().numpy()
        return self.hold(self.apply(given.double(), self.weight.double()).long().numpy())

    def hold(self, sums: NDArray[np.int64]) -> NDArray[np.int64]:
        """The 64-bit `sums` in the register that takes them."""
        raise NotImplementedError


@implements(proc=TorchConv, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyTorchConvModelFloat(AbstractPyTorchModelFloat, AbstractPyTorchConvModel):
    """`TorchConv` in float64."""


@implements(proc=TorchDense, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyTorchDenseModelFloat(AbstractPyTorchModelFloat, AbstractPyTorchDenseModel):
    """`TorchDense` in float64."""


@implements(proc=TorchConv, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyTorchConvModelFixed(AbstractPyTorchModelFixed, AbstractPyTorchConvModel):
    """`TorchConv` in whole numbers (lava-nc 0.10.0, lava.proc.conv.models)."""

    def __init__(self, proc_params: ProcessParameters) -> None:
        expect_whole(f"TorchConv {proc_params['name']!r}", proc_params["weight"], 1 - EXACT, EXACT - 1)
        super().__init__(proc_params)

    def hold(self, sums: NDArray[np.int64]) -> NDArray[np.int64]:
        """Wrapped at 24 bits."""
        wrapped: NDArray[np.int64] = (sums + HALF) % (2 * HALF) - HALF
        return wrapped


@implements(proc=TorchDense, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyTorchDenseModelFixed(AbstractPyTorchModelFixed, AbstractPyTorchDenseModel):
    """`TorchDense` in whole numbers (lava-nc 0.10.0, lava.proc.dense.models)."""

    def __init__(self, proc_params: ProcessParameters) -> None:
        expect_whole(f"TorchDense {proc_params['name']!r}", proc_params["weights"], SMALLEST_WEIGHT, LARGEST_WEIGHT)
        super().__init__(proc_params)

    def hold(self, sums: NDArray[np.int64]) -> NDArray[np.int64]:
        """As they are: Lava's Dense does not look at 24 bits."""
        return sums
