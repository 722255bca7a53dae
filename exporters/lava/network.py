"""A layer graph as a network of Lava Processes. Importing this module imports Lava."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bridge import graph as layers
from bridge.graph import Layer, LayerGraph, Shape
from exporters.lava.affine import Float64, Synapse, at_rest, lower
from exporters.lava.processes import CurrentSource, Delay, IntegrateFire, Readout

# isort: split
import lava.proc.dense.models  # noqa: F401  (a missing dependency of Dense would else show only when Lava compiles)
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.proc.conv.process import Conv
from lava.proc.dense.process import Dense

SPIKE_BITS = 0  # Dense and Conv read a plain spike
GRADED_BITS = 24  # …or a value, such as a pooled mean or a sum of spikes; what Loihi 2's graded spikes carry at most

Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True)
class Layout:
    """How Lava orders a layer's neurons: a feature map ``[C, H, W]`` as ``[W, H, C]``, a signal ``[C, N]`` as the
    feature map of height 1, ``[N, 1, C]``, a vector as it is. ``shape`` is the layer's own.
    """

    shape: Shape

    @property
    def grid(self) -> Shape:
        """``shape`` with the height that a signal lacks."""
        return (self.shape[0], 1, self.shape[1]) if len(self.shape) == 2 else self.shape

    @property
    def lava_shape(self) -> Shape:
        """The shape of Lava's ports for this layer."""
        return self.grid[::-1] if len(self.grid) == 3 else self.grid

    def to_lava(self, values: NDArray[Kind]) -> NDArray[Kind]:
        """``[..., *shape]`` in Lava's order and shape."""
        values = values.reshape(*values.shape[: values.ndim - len(self.shape)], *self.grid)
        return np.swapaxes(values, -1, -3) if len(self.grid) == 3 else values

    def from_lava(self, values: NDArray[Kind]) -> NDArray[Kind]:
        """``[..., *lava_shape]`` in the layer's order and shape."""
        values = np.swapaxes(values, -1, -3) if len(self.grid) == 3 else values
        return values.reshape(*values.shape[: values.ndim - len(self.grid)], *self.shape)


@dataclass(frozen=True, eq=False)
class Processes:
    """One set of connected Lava Processes, ready for one run of `steps` Lava steps.

    ``layers`` maps a layer's name to its Dense, Conv or `IntegrateFire`. Layers that the images reach without passing
    a neuron are computed on the host and found in the ``sources`` of those neurons that hear them; an Add and a
    Flatten are connections. ``delays`` hold back what would reach a join too early. ``offsets`` tells at which Lava
    step, counted from 0, a spiking layer has its first input, and ``delay`` the same of the readout.
    """

    layers: Mapping[str, AbstractProcess]
    readout: Readout
    sources: tuple[CurrentSource, ...]
    delays: tuple[Delay, ...]
    offsets: Mapping[str, int]
    delay: int
    steps: int

    @property
    def all(self) -> list[AbstractProcess]:
        """Every Process."""
        return [*self.sources, *self.layers.values(), *self.delays, self.readout]


class LavaNetwork:
    """A spiking network for Lava: what `Lava.export` returns.

    Lava's Processes run once, for a fixed number of images and steps, so this object holds what they are made of and
    makes a fresh set on demand, to look at, to probe, or to connect to your own::

        processes = network.build(images, steps=8)
        processes.layers["fc1"].weights.init          # Lava's own Dense
        processes.layers["act1"].s_out.connect(...)   # IntegrateFire: u_out, s_out
        processes.readout.run(RunSteps(processes.steps), Loihi2SimCfg(select_tag="floating_pt"))
        processes.readout.stop()

    Neurons are in Lava's order; ``layouts[name].from_lava`` puts a layer's recorded values back into the graph's.
    """

    def __init__(self, graph: LayerGraph) -> None:
        """Plan `graph`. Raises `GraphError` for a layer that Lava cannot run.

        ``synapses`` are the layers with weights, ``heard`` tells which Processes a layer's inputs are the sum of (and
        how many times each), and ``depths`` how many Lava steps late a Process is.
        """
        self.graph = graph
        self.synapses: dict[str, Synapse] = {}
        self.heard: dict[str, Counter[str]] = {}
        self.depths: dict[str, int] = {}
        self.analog: set[str] = set()
        given: dict[str, Counter[str]] = {}
        for layer in graph:
            name = layer.name
            heard = sum((given[source] for source in layer.inputs), Counter[str]())
            fires = isinstance(layer, layers.IntegrateFire)
            if isinstance(layer, layers.Input) or (not fires and not self.analog.isdisjoint(layer.inputs)):
                self.analog.add(name)
            if not isinstance(layer, layers.Input | layers.IntegrateFire | layers.Add | layers.Flatten):
                self.synapses[name] = lower(layer, graph.shapes[layer.inputs[0]])
            if fires or (heard and name in self.synapses):
                self.depths[name] = self.arrival(heard) + (not fires)
            self.heard[name] = heard
            given[name] = Counter([name]) if name in self.depths else heard
        self.output = given[graph.output.name]

    @property
    def layouts(self) -> dict[str, Layout]:
        """Lava's order of each spiking layer's neurons."""
        return {name: Layout(self.graph.shapes[name]) for name in self.graph.spiking}

    @property
    def readout_layout(self) -> Layout:
        """Lava's order of the readout."""
        return Layout(self.graph.shapes[self.graph.output.name])

    def arrival(self, heard: Counter[str]) -> int:
        """How many Lava steps late the sum of the Processes `heard` is, the earlier ones waiting for the last."""
        return max((self.depths[source] for source in heard), default=0)

    def build(self, x: NDArray[np.floating], steps: int) -> Processes:
        """Fresh, connected Processes that run images `x` ``[B, *input]`` for `steps` time steps each, in one stream."""
        wiring = _Wiring(self, at_rest(self.graph, self.synapses, x), steps)
        for layer in self.graph:
            if isinstance(layer, layers.IntegrateFire):
                wiring.add_neurons(layer)
            elif layer.name in self.depths:
                wiring.add_synapse(self.synapses[layer.name])
        readout = wiring.add_readout(self.graph.output)
        delay = self.arrival(self.output)
        return Processes(
            layers=wiring.processes,
            readout=readout,
            sources=tuple(wiring.sources),
            delays=tuple(wiring.delays.values()),
            offsets={name: self.depths[name] for name in self.graph.spiking},
            delay=delay,
            steps=len(x) * steps + delay,
        )


@dataclass(eq=False)
class _Wiring:
    """Makes one Process after another and connects each to those it hears. ``rest`` is what `at_rest` returns."""

    plan: LavaNetwork
    rest: Mapping[str, Float64]
    interval: int
    processes: dict[str, AbstractProcess] = field(default_factory=dict)
    sources: list[CurrentSource] = field(default_factory=list)
    delays: dict[tuple[str, int, int], Delay] = field(default_factory=dict)

    def add_synapse(self, synapse: Synapse) -> None:
        """Lava's Dense or Conv."""
        heard = self.plan.heard[synapse.name]
        ((source, count), *more) = heard.items()
        plain = not more and count == 1 and isinstance(self.processes[source], IntegrateFire)
        bits = SPIKE_BITS if plain else GRADED_BITS
        if isinstance(synapse, layers.Linear):
            weight = synapse.weight.astype(np.float64)
            process = Dense(weights=weight, num_message_bits=bits, name=synapse.name)
        else:
            process = Conv(
                weight=lava_kernel(synapse.weight),
                input_shape=Layout(self.plan.graph.shapes[synapse.inputs[0]]).lava_shape,
                stride=synapse.stride[::-1],
                padding=synapse.padding[::-1],
                dilation=synapse.dilation[::-1],
                groups=synapse.groups,
                num_message_bits=bits,
                name=synapse.name,
            )
        self._connect(heard, process.s_in)
        self.processes[synapse.name] = process

    def add_neurons(self, layer: layers.IntegrateFire) -> None:
        """A layer of spiking neurons."""
        layout = Layout(self.plan.graph.shapes[layer.name])
        neuron = IntegrateFire(
            shape=layout.lava_shape,
            level=_per_neuron(layer.level, layout),
            threshold=_per_neuron(layer.threshold, layout),
            bias=self._bias(layer.inputs[0]),
            interval=self.interval,
            offset=self.plan.depths[layer.name],
            name=layer.name,
        )
        self._drive(layer.inputs[0], self.plan.heard[layer.name], neuron.a_in)
        self.processes[layer.name] = neuron

    def add_readout(self, layer: Layer) -> Readout:
        """The readout of `layer`, the network's last."""
        readout = Readout(
            shape=self.plan.readout_layout.lava_shape,
            bias=self._bias(layer.name),
            interval=self.interval,
            offset=self.plan.arrival(self.plan.output),
        )
        self._drive(layer.name, self.plan.output, readout.a_in)
        return readout

    def _bias(self, source: str) -> Float64:
        """What neurons that hear layer `source` get at every step of every image; what varies, a source delivers."""
        bias: Float64 = self._at_rest(source)[0]
        return np.zeros_like(bias) if source in self.plan.analog else bias

    def _drive(self, source: str, heard: Counter[str], entry: InPort) -> None:
        """Lead layer `source`, the sum of the Processes `heard` and of what the images give directly, into `entry`."""
        self._connect(heard, entry)
        if source in self.plan.analog:
            offset = self.plan.arrival(heard)
            current = CurrentSource(currents=self._at_rest(source), interval=self.interval, offset=offset)
            current.a_out.connect(entry)
            self.sources.append(current)

    def _at_rest(self, name: str) -> Float64:
        return np.ascontiguousarray(Layout(self.plan.graph.shapes[name]).to_lava(self.rest[name]))

    def _connect(self, heard: Counter[str], entry: InPort) -> None:
        """Sum the Processes `heard` at `entry`, where Lava adds what arrives, all of them as late as the last."""
        arrival = self.plan.arrival(heard)
        for source, count in heard.items():
            port = self._output(source, arrival - self.plan.depths[source], count)
            if port.shape != entry.shape:  # flattened on the way, in the graph's order
                port = (port.transpose([2, 1, 0]) if len(port.shape) == 3 else port).flatten()
            port.connect(entry)

    def _output(self, source: str, steps: int, gain: int) -> OutPort:
        """The output of the Process `source`, `steps` steps late and taken `gain` times."""
        process = self.processes[source]
        port = process.s_out if isinstance(process, IntegrateFire) else process.a_out
        if steps == 0 and gain == 1:
            return port
        key = (source, steps, gain)
        if key not in self.delays:
            self.delays[key] = Delay(shape=port.shape, steps=steps, gain=gain)
            port.connect(self.delays[key].a_in)
        return self.delays[key].a_out


def _per_neuron(values: NDArray[np.generic], layout: Layout) -> Float64:
    """One value a channel, for every neuron in Lava's order."""
    # The reference computes in float32: its values, exactly, are the ones to use.
    exact = values.astype(np.float32).astype(np.float64).reshape(-1, *[1] * (len(layout.shape) - 1))
    return np.ascontiguousarray(layout.to_lava(np.broadcast_to(exact, layout.shape)))


def lava_kernel(weight: NDArray[np.generic]) -> NDArray[np.float64]:
    """A cross-correlation kernel ``[C_out, C_in, H, W]`` as Lava's convolution kernel ``[C_out, W, H, C_in]``."""
    return np.ascontiguousarray(weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1), dtype=np.float64)
