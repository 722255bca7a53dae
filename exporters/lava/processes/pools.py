"""Groups and their pools: `GroupSum`, how many of a group fire, and `MaxPool`, the maximum of graded spikes."""

from __future__ import annotations

import numpy as np
import torch
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess, LogConfig, ProcessParameters
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from bridge import graph as layers
from bridge.simulate.ops import evaluate
from exporters.lava.layout import Layout
from exporters.lava.processes.ports import FloatPorts, WholePorts


class GroupSum(AbstractProcess):  # type: ignore[misc]
    """How many neurons of each group fire: ``a_in`` has `levels` times C channels, level by level, ``a_out`` has C.

    It has no delay. On the chip it is no part of its own: every neuron of a group has the same synapses, and what comes
    through them adds up to the same. `shape` is that of ``a_out``, ``(W, H, C)`` or ``(C,)``, with lanes in front.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        levels: int,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        super().__init__(shape=shape, levels=int(levels), name=name, log_config=log_config)
        self.a_in = InPort(shape=(*shape[:-1], levels * shape[-1]))
        self.a_out = OutPort(shape=shape)


class MaxPool(AbstractProcess):  # type: ignore[misc]
    """The maximum of graded spikes over the windows of `pool`, a `bridge.graph.MaxPool`, without delay.

    A synapse adds, so on the chip this is work for its embedded processors. `before` is the shape ``[C, H, W]`` or
    ``[C, N]`` of what the pool reads, `lanes` the number of images side by side.
    """

    def __init__(
        self,
        *,
        pool: layers.MaxPool,
        before: tuple[int, ...],
        lanes: int = 1,
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        super().__init__(pool=pool, before=before, name=name, log_config=log_config)
        self.a_in = InPort(shape=Layout(before).ports(lanes))
        self.a_out = OutPort(shape=Layout(pool.output_shape(before)).ports(lanes))


class AbstractPyGroupSumModel(PyLoihiProcessModel):  # type: ignore[misc]
    """What the two arithmetics of `GroupSum` share."""

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        *lead, channels = proc_params["shape"]
        self.split = (*lead, proc_params["levels"], channels)

    def run_spk(self) -> None:
        """Add up the levels."""
        self.a_out.send(self.a_in.recv().reshape(self.split).sum(axis=-2))


class AbstractPyMaxPoolModel(PyLoihiProcessModel):  # type: ignore[misc]
    """What the two arithmetics of `MaxPool` share."""

    def __init__(self, proc_params: ProcessParameters) -> None:
        super().__init__(proc_params)
        torch.set_num_threads(1)  # this is a forked child: the threads of its parent are not here
        self.pool: layers.MaxPool = proc_params["pool"]
        self.before = Layout(proc_params["before"])
        self.after = Layout(self.pool.output_shape(proc_params["before"]))

    def run_spk(self) -> None:
        """Send the maxima of what comes in."""
        counts = self.before.from_lava(self.a_in.recv()).astype(np.float32)
        single = counts.ndim == len(self.before.shape)
        with torch.inference_mode():
            largest = evaluate(self.pool, torch.from_numpy(counts[None] if single else counts)).numpy()
        self.a_out.send(self.after.to_lava(largest[0] if single else largest))


@implements(proc=GroupSum, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyGroupSumModelFloat(FloatPorts, AbstractPyGroupSumModel):
    """`GroupSum` in float64."""


@implements(proc=GroupSum, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyGroupSumModelFixed(WholePorts, AbstractPyGroupSumModel):
    """`GroupSum` in whole numbers."""


@implements(proc=MaxPool, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyMaxPoolModelFloat(FloatPorts, AbstractPyMaxPoolModel):
    """`MaxPool` in float64."""


@implements(proc=MaxPool, protocol=LoihiProtocol)
@requires(CPU)
@tag("bit_accurate_loihi", "fixed_pt")
class PyMaxPoolModelFixed(WholePorts, AbstractPyMaxPoolModel):
    """`MaxPool` in whole numbers."""
