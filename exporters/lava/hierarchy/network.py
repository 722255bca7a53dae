"""`NetworkProcess`, a Process made of Processes: synapses, neurons, and what keeps their branches in step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import lava.proc.dense.models  # noqa: F401  (a missing dependency of Dense would else show only when Lava compiles)
import numpy as np
from lava.magma.core.decorator import implements, tag
from lava.magma.core.model.sub.model import AbstractSubProcessModel
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess, LogConfig
from lava.magma.core.process.variable import Var
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.atrlif.process import ATRLIF
from lava.proc.conv.process import Conv
from lava.proc.dense.process import Dense
from lava.proc.io.source import RingBuffer
from lava.utils.weightutils import SignMode
from numpy.typing import NDArray

from bridge import graph as layers
from bridge.errors import GraphError
from bridge.graph.loihi_registers import UNIT
from bridge.simulate.connections import fires
from exporters.lava.layout import Layout
from exporters.lava.lowering import Float64, Synapse
from exporters.lava.plan import LavaPlan
from exporters.lava.processes import (
    Delay,
    GroupSum,
    IntegrateFire,
    MaxPool,
    Readout,
    SpikeCount,
    Thresholds,
    TorchConv,
    TorchDense,
    WindowFire,
)

SPIKE_BITS = 0  # Dense and Conv read a plain spike
GRADED_BITS = 24  # …or a value, such as a pixel or a sum of spikes; what Loihi 2's graded spikes carry at most


class NetworkProcess(AbstractProcess):  # type: ignore[misc]
    """A spiking network, which takes one image after the other (or `lanes` at a time), one every `interval` steps.

    `exporters.lava.network.LavaNetwork.process` makes it, and shows how to use it. The parts come into being when Lava
    compiles it; from then on ``procs`` holds them.

    By layer name (as attributes, Lava's way, ``<layer>_in``, ``<layer>_s_out``, ``<layer>_u_out``, ``<layer>_u``):

    * ``inputs``, in-ports for what the images give to that layer: pixels for the network's input, else currents;
    * ``spikes``, out-ports for 0 and 1, or for counts, if spikes are graded; the levels of a group are channels;
    * ``potentials``, out-ports for u after integration, before the spike is taken off, in the network's units; Lava's
      ATRLIF has none;
    * ``states``, Vars of the neurons' own potential, which `lava.proc.monitor.process.Monitor` can probe: u after the
      reset as `IntegrateFire` holds it, the potential from which `WindowFire` fires, or ATRLIF's v, which spikes do not
      reduce; its ``refractory`` does instead, and ``u = v − refractory``. Groups have none.

    And ``y_out``, the readout at each step, and ``v``, its sum over the image so far. Shapes are Lava's, ``(W, H, C)``
    or ``(N,)``, with the lanes first if there are several.
    """

    def __init__(
        self,
        *,
        plan: LavaPlan,
        interval: int,
        lanes: int = 1,
        currents: Mapping[str, Float64],
        name: str | None = None,
        log_config: LogConfig | None = None,
    ) -> None:
        super().__init__(
            plan=plan, interval=int(interval), lanes=int(lanes), currents=currents, name=name, log_config=log_config
        )
        stock = plan.parts.neuron == "atrlif"
        self.inputs = {name: InPort(shape=plan.drive_shape(name, lanes)) for name in plan.fed if name not in currents}
        self.spikes = {name: OutPort(shape=plan.port_shape(name, lanes)) for name in plan.graph.spiking}
        drives = {name: plan.drive_shape(name, lanes) for name in self.spikes}
        self.potentials = {} if stock else {name: OutPort(shape=shape) for name, shape in drives.items()}
        stateless = plan.recorded.grouped
        self.states = {} if stateless else {name: Var(shape=shape) for name, shape in drives.items()}
        self.refractory = {name: Var(shape=shape) for name, shape in drives.items()} if stock else {}
        self.y_out = OutPort(shape=plan.port_shape(plan.graph.output.name, lanes))
        self.v = Var(shape=self.y_out.shape)
        for suffix, members in (
            ("in", self.inputs),
            ("s_out", self.spikes),
            ("u_out", self.potentials),
            ("u", self.states),
            ("r", self.refractory),
        ):
            for layer, member in members.items():
                setattr(self, f"{layer}_{suffix}", member)


@implements(proc=NetworkProcess, protocol=LoihiProtocol)
@tag("floating_pt", "fixed_pt", "bit_accurate_loihi")
class NetworkProcessModel(AbstractSubProcessModel):  # type: ignore[misc]
    """`NetworkProcess` as its parts, in either arithmetic: they have both."""

    def __init__(self, proc: NetworkProcess) -> None:
        for number, part in enumerate(_Wiring(proc).parts):
            setattr(self, f"part_{number}", part)  # where Lava looks for them


class _Wiring:
    """Makes one Process after another and connects each to those it hears.

    Layers that the images reach without passing a neuron are no Processes unless the images come in as they are; an
    Add and a Flatten are connections.
    """

    def __init__(self, proc: NetworkProcess) -> None:
        self.proc = proc
        self.parts: list[AbstractProcess] = []
        self.plan: LavaPlan = proc.proc_params["plan"]
        self.interval: int = proc.proc_params["interval"]
        self.lanes: int = proc.proc_params["lanes"]
        self.currents: Mapping[str, Float64] = proc.proc_params["currents"]
        self.outputs: dict[str, OutPort | InPort] = {}
        self.delays: dict[tuple[str, int, int], OutPort] = {}
        for layer in self.plan.graph:
            if layer.name not in self.plan.depths:
                continue
            if isinstance(layer, layers.Input):
                self.outputs[layer.name] = proc.inputs[layer.name]
            elif layer.name in self.plan.synapses:
                self._add_synapse(self.plan.synapses[layer.name])
            elif isinstance(layer, layers.GroupSum | layers.MaxPool):
                self._add_pool(layer)
            else:
                self._add_neurons(layer)
        self._add_readout()

    def _add_synapse(self, synapse: Synapse) -> None:
        heard = self.plan.heard[synapse.name]
        ((source, count), *more) = heard.items()
        sender = self.plan.graph[source]
        plain = not more and count == 1 and fires(sender) and not isinstance(sender, layers.SpikeCount)
        options: dict[str, Any] = {"name": synapse.name, "num_message_bits": SPIKE_BITS if plain else GRADED_BITS}
        torch = self.plan.parts.synapses == "torch"
        if torch:
            options["lanes"] = self.lanes if self.lanes > 1 else None
        weight = synapse.weight.astype(np.float64)
        if isinstance(synapse, layers.Conv2d):
            options |= {
                "weight": lava_kernel(weight),
                "input_shape": Layout(self.plan.shape(synapse.inputs[0])).map_shape,
                "stride": synapse.stride[::-1],
                "padding": synapse.padding[::-1],
                "dilation": synapse.dilation[::-1],
                "groups": synapse.groups,
            }
            process = TorchConv(**options) if torch else Conv(**options)
        elif torch:
            process = TorchDense(weights=weight, **options)
        elif self.plan.parts.fixed:
            # Weights of mixed sign have nine bits in Lava, the lowest of which is dropped.
            process = Dense(weights=2 * weight, weight_exp=-1, sign_mode=SignMode.MIXED, **options)
        else:
            process = Dense(weights=weight, **options)
        self.parts.append(process)
        self._connect(heard, process.s_in, self.plan.due[synapse.name])
        self.outputs[synapse.name] = process.a_out

    def _add_pool(self, layer: layers.Layer) -> None:
        name, before = layer.name, self.plan.graph.shapes[layer.inputs[0]]
        if isinstance(layer, layers.MaxPool):
            process = MaxPool(pool=layer, before=before, lanes=self.lanes, name=name)
        else:
            process = GroupSum(shape=self.plan.port_shape(name, self.lanes), levels=before[0], name=name)
        self.parts.append(process)
        self._connect(self.plan.heard[name], process.a_in, self.plan.due[name])
        self.outputs[name] = process.a_out

    def _add_neurons(self, layer: layers.Layer) -> None:
        proc, plan, name = self.proc, self.plan, layer.name
        if isinstance(layer, layers.WindowFire):
            neuron = self._window_neurons(layer)
            proc.states[name].alias(neuron.w)
        elif isinstance(layer, layers.SpikeCount | layers.GroupFire | layers.EachLevel | layers.AtLeast):
            neuron = self._stateless_neurons(layer)
        elif not isinstance(layer, layers.IntegrateFire):
            raise GraphError(f"layer {name!r}: Lava has no neuron for a {type(layer).__name__}")
        elif plan.parts.neuron == "atrlif":
            neuron = self._stock_neurons(layer)
            proc.states[name].alias(neuron.v)
            proc.refractory[name].alias(neuron.r)
        else:
            neuron = self._own_neurons(layer)
            proc.states[name].alias(neuron.u)
        self.parts.append(neuron)
        if name in proc.inputs:
            proc.inputs[name].connect(neuron.bias_in)
        if name in proc.potentials:
            neuron.u_out.connect(proc.potentials[name])
        if name in proc.spikes:
            neuron.s_out.connect(proc.spikes[name])
        self._connect(plan.heard[name], neuron.a_in, plan.due[name])
        self.outputs[name] = neuron.s_out

    def _window_neurons(self, layer: layers.WindowFire) -> WindowFire:
        layout = Layout(self.plan.shape(layer.name))
        return WindowFire(
            shape=layout.ports(self.lanes),
            level=_per_neuron(layer.level, layout),
            threshold=_per_neuron(layer.threshold, layout),
            steps=layer.steps,
            interval=self.interval,
            offset=self.plan.offsets[layer.name],
            name=layer.name,
        )

    def _stateless_neurons(
        self, layer: layers.SpikeCount | layers.GroupFire | layers.EachLevel | layers.AtLeast
    ) -> Thresholds | SpikeCount:
        plan, name = self.plan, layer.name
        read = Layout(plan.shape(layer.inputs[0]))
        bias = plan.biases[layer.inputs[0]]
        options: dict[str, Any] = {"shape": read.ports(self.lanes), "bias": bias, "name": name}
        if isinstance(layer, layers.SpikeCount):
            level, threshold = _per_neuron(layer.level, read), _per_neuron(layer.threshold, read)
            return SpikeCount(level=level, threshold=threshold, most=layer.steps, **options)
        if isinstance(layer, layers.GroupFire):
            return Thresholds(level=np.stack([_per_neuron(level, read) for level in layer.level]), **options)
        units = plan.pool_level(layer) if isinstance(layer, layers.EachLevel) else layer.level
        return Thresholds(level=_per_neuron(units, read)[None], **options)

    def _own_neurons(self, layer: layers.IntegrateFire) -> IntegrateFire:
        layout = Layout(self.plan.graph.shapes[layer.name])
        mantissa, exponent = self.plan.bias(layer)
        return IntegrateFire(
            shape=layout.ports(self.lanes),
            level=_per_neuron(layer.level, layout),
            threshold=_per_neuron(layer.threshold, layout),
            bias_mant=mantissa,
            bias_exp=exponent,
            shift=self.plan.shift(layer),
            interval=self.interval,
            offset=self.plan.depths[layer.name],
            name=layer.name,
        )

    def _stock_neurons(self, layer: layers.IntegrateFire) -> ATRLIF:
        """Lava's own neuron. It knows no rest: what it gets at each step beside spikes waits for those, if any come."""
        plan, shift, offset = self.plan, self.plan.shift(layer), self.plan.depths[layer.name]
        constant = self.currents[layer.name] if layer.name in plan.fed else plan.biases[layer.inputs[0]]
        threshold = int(layer.threshold[0])
        level = threshold // 2 if shift else threshold // (2 * UNIT)
        neuron = ATRLIF(
            shape=constant.shape,
            theta=level,
            theta_0=level,
            theta_step=0,
            delta_v=0,
            delta_r=0,
            delta_theta=0,
            delta_i=4095 / 4096,  # in units of 1/4096 and with 1 added to it: the whole of the current
            bias_mant=0 if offset else constant,
            bias_exp=shift,
            name=layer.name,
        )
        if offset and constant.any():
            steps = np.zeros((*constant.shape, offset + self.interval))
            steps[..., offset:] = constant[..., None]
            held_back = RingBuffer(data=steps)
            held_back.s_out.connect(neuron.a_in)
            self.parts.append(held_back)
        return neuron

    def _add_readout(self) -> None:
        name = self.plan.graph.output.name
        fed = name in self.plan.fed and name not in self.plan.graph.spiking
        readout = Readout(
            shape=self.proc.y_out.shape,
            bias=0.0 if fed else self.plan.biases[name],
            once=self.plan.graph.staged,
            interval=self.interval,
            offset=self.plan.delay,
            name=f"{name}_readout",
        )
        self.parts.append(readout)
        self._connect(self.plan.output, readout.a_in, self.plan.graph.lasts[name])
        if fed:
            self.proc.inputs[name].connect(readout.bias_in)
        readout.y_out.connect(self.proc.y_out)
        self.proc.v.alias(readout.v)

    def _connect(self, heard: Counter[str], entry: InPort, due: int) -> None:
        """Sum the Processes `heard` at `entry`, where Lava adds what arrives, all of them as late as the last.

        What ends before the network's step `due` waits until then.
        """
        arrival = self.plan.arrival(heard)
        for source, count in heard.items():
            late = arrival - self.plan.depths[source] + self.plan.waits(source, due)
            port = self._output(source, late, count)
            if port.shape != entry.shape:  # flattened on the way, in the graph's order
                axes, lead = list(range(len(port.shape))), int(self.lanes > 1)
                port = port.transpose(axes[:lead] + axes[lead:][::-1]).reshape(entry.shape)
            port.connect(entry)

    def _output(self, source: str, steps: int, gain: int) -> Any:
        """The output of the Process `source`, `steps` steps late and taken `gain` times."""
        port = self.outputs[source]
        if steps == 0 and gain == 1:
            return port
        key = (source, steps, gain)
        if key not in self.delays:
            delay = Delay(shape=port.shape, steps=steps, gain=gain, name=f"{source}_delay_{steps}_{gain}")
            self.parts.append(delay)
            port.connect(delay.a_in)
            self.delays[key] = delay.a_out
        return self.delays[key]


def _per_neuron(values: NDArray[np.generic], layout: Layout) -> Float64:
    """One value a channel, or one a neuron, for every neuron in Lava's order."""
    # The reference computes in float32: its values, exactly, are the ones to use.
    exact = values.astype(np.float32).astype(np.float64)
    return np.ascontiguousarray(layout.to_lava(layers.spread(exact, layout.shape)))


def lava_kernel(weight: NDArray[np.generic]) -> NDArray[np.float64]:
    """A cross-correlation kernel ``[C_out, C_in, H, W]`` as Lava's convolution kernel ``[C_out, W, H, C_in]``."""
    return np.ascontiguousarray(weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1), dtype=np.float64)
