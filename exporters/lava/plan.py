"""A layer graph as a plan for Lava, as plain data: what becomes a Process, what it receives, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bridge import graph as layers
from bridge.backends.protocol import expect_plain
from bridge.errors import GraphError
from bridge.graph import LayerGraph, Shape
from bridge.graph.loihi_registers import SHIFT
from bridge.simulate.connections import fires
from bridge.simulate.counting_form import counting_form
from bridge.simulate.registers import held_bias, register_shift
from exporters.lava.layout import Layout
from exporters.lava.lowering import Float64, Synapse, at_rest, lower

CONNECTIONS = layers.Add | layers.Flatten | layers.Impulse | layers.BiasOnce
"""Layers that are no Process: what they read goes on to their readers, in their place."""


@dataclass(frozen=True)
class Parts:
    """Which Processes a network is made of.

    * ``synapses``: ``"stock"``, Lava's own Dense and Conv, or ``"torch"``, ours, equal and fast.
    * ``neuron``: ``"integrate_fire"``, ours, or ``"atrlif"``, Lava's own `ATRLIF`, for one image.
    * ``inputs``: ``"currents"``, what the images give to the first neurons, computed beforehand, or ``"graded"``, the
      images themselves.
    * ``spikes``: ``"binary"``, or ``"graded"``, a group of neurons as one that sends its count.
    * ``fixed``: whole numbers, meant for the registers of the chip. Our parts run in floating point as well; Lava's own
      Dense then has its weights in another unit, and its ATRLIF leaks.
    """

    synapses: Literal["stock", "torch"] = "stock"
    neuron: Literal["integrate_fire", "atrlif"] = "integrate_fire"
    inputs: Literal["currents", "graded"] = "currents"
    spikes: Literal["binary", "graded"] = "binary"
    fixed: bool = False


class LavaPlan:
    """What a network of Lava's is made of, and at which of Lava's steps each value is there.

    A layer at depth d, behind d synapses, runs the network's step k at Lava's step k + d. In a staged network each
    image begins `interval` steps after the last, and layers whose windows end before a reader's opens wait until then,
    so that images do not mix.

    Attributes:
        graph: the network as its Processes are. recorded: the network whose spikes are asked for: another one only with
            graded spikes. parts: which Processes it is made of.
        synapses: the layers with weights, by name.
        heard: by layer, which Processes its inputs are the sum of, and how many times each.
        depths: by layer that is a Process, how many Lava steps late it is.
        due: by layer that is a Process, the network's step, counted from 0, at which the last that it reads is there.
        fed: what the images give directly, by the layer that gets it: the layer whose output at rest it is.
    """

    def __init__(self, graph: LayerGraph, parts: Parts) -> None:
        """Plan `graph`. Raises `GraphError` for a layer that Lava cannot run."""
        if parts.neuron == "atrlif":
            expect_plain(graph, "Lava with neuron='atrlif'")
        self.recorded = graph
        self.graph = graph = _arranged(graph, parts)
        self.parts = parts
        self.synapses: dict[str, Synapse] = {}
        self.heard: dict[str, Counter[str]] = {}
        self.depths: dict[str, int] = {}
        self.fed: dict[str, str] = {}
        analog: set[str] = set()
        given: dict[str, Counter[str]] = {}
        for layer in graph:
            name = layer.name
            heard = sum((given[source] for source in layer.inputs), Counter[str]())
            instant = fires(layer) or isinstance(layer, layers.GroupSum | layers.MaxPool)
            if isinstance(layer, layers.Input):
                if parts.inputs == "graded":
                    self.depths[name], self.fed[name] = 0, name
                else:
                    analog.add(name)
            elif not analog.isdisjoint(layer.inputs):
                if fires(layer):
                    self.fed[name] = layer.inputs[0]
                else:
                    analog.add(name)
            if not instant and not isinstance(layer, layers.Input | CONNECTIONS):
                self.synapses[name] = lower(layer, graph.shapes[layer.inputs[0]])
            if instant or (heard and name in self.synapses):
                self.depths[name] = self.arrival(heard) + (not instant)
            self.heard[name] = heard
            given[name] = Counter([name]) if name in self.depths else heard
        self.output = given[graph.output.name]
        if graph.output.name in analog:
            self.fed[graph.output.name] = graph.output.name
        self.due = self._due()

    def _due(self) -> dict[str, int]:
        """Windows tell when their layers read; what lies before is due at the earliest of its readers."""
        last = self.graph.lasts[self.graph.output.name]
        due = dict.fromkeys(self.depths, last)
        for layer in reversed(self.graph.layers):
            name = layer.name
            if name in self.depths:
                if isinstance(layer, layers.WindowFire):
                    due[name] = layer.opens
                for source in self.heard[name]:
                    due[source] = min(due[source], due[name])
        return due

    def waits(self, source: str, until: int) -> int:
        """How many steps the output of the Process `source` waits for a reader that is due at step `until`."""
        layer = self.graph[source]
        ends = isinstance(layer, layers.WindowFire | layers.Input)
        return until - (self.graph.lasts[source] if ends else self.due[source])

    @property
    def before_readout(self) -> set[str]:
        """The Processes between the last neurons and the readout, those neurons among them."""
        found: set[str] = set()
        waiting = [*self.output]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                if not isinstance(self.graph[name], layers.WindowFire):
                    waiting += self.heard[name]
        return found

    def at_once(self, feed: Mapping[str, Float64]) -> Float64:
        """What a staged network's readout gets once, in the order of its graph: a bias, and what images `feed` it."""
        name = self.graph.output.name
        return self.readout_layout.from_lava(feed[name] if name in self.fed else self.biases[name])

    def interval(self, steps: int) -> int:
        """Steps from one image to the next, if `steps` are wanted for each: a staged network takes what it takes."""
        windows = [layer.steps for layer in self.graph if isinstance(layer, layers.WindowFire)]
        return max(windows, default=steps)

    def opens(self, name: str) -> int:
        """The first step, counted from 0, at which the layer `name` may spike."""
        layer = self.graph[name]
        return layer.opens if isinstance(layer, layers.WindowFire) else 0

    def shape(self, name: str) -> Shape:
        """The shape of what layer `name` gives, the levels of groups being channels."""
        shape = self.graph.shapes[name]
        if isinstance(self.graph[name], layers.GroupFire | layers.EachLevel):
            return (shape[0] * shape[1], *shape[2:])
        return shape

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Lava's order of each spiking layer's neurons."""
        return {name: Layout(self.shape(name)) for name in self.graph.spiking}

    @property
    def readout_layout(self) -> Layout:
        """Lava's order of the readout."""
        return Layout(self.graph.shapes[self.graph.output.name])

    @property
    def delay(self) -> int:
        """How many Lava steps late the readout begins: the most synapses between the input and it.

        In a staged network, also the steps until the last windows before it may open.
        """
        return self.arrival(self.output) + self.readout_begins

    @property
    def readout_begins(self) -> int:
        """The network's step, counted from 0, at which the readout of an image begins."""
        return self.graph.lasts[self.graph.output.name] + 1 - self.interval(1)

    @property
    def offsets(self) -> dict[str, int]:
        """By spiking layer and feed: how many Lava steps late its values are."""
        first = {name: self.depths[name] + self.opens(name) for name in self.depths}
        feeds = {name: first.get(name, self.delay) for name in self.fed}
        return feeds | {name: first[name] for name in self.graph.spiking}

    def arrival(self, heard: Counter[str]) -> int:
        """How many Lava steps late the sum of the Processes `heard` is, the earlier ones waiting for the last."""
        return max((self.depths[source] for source in heard), default=0)

    def shift(self, neuron: layers.IntegrateFire) -> int:
        """By how many bits a layer's units are shifted in its registers.

        None if it hears nothing but currents and its threshold and level, which the chip shifts in any case, allow it.
        """
        if not self.parts.fixed:
            return SHIFT
        return register_shift(self.graph, neuron, currents=self.parts.inputs == "currents")

    @cached_property
    def biases(self) -> Mapping[str, Float64]:
        """What each layer gives while no neuron spikes, apart from what the images add; in Lava's order."""
        black = np.zeros((1, *self.graph.input.shape), np.float32)
        values = at_rest(self.graph, self.synapses, black)
        fed = set(self.fed.values())
        return {name: self._in_order(name, value * (name not in fed))[0] for name, value in values.items()}

    def bias(self, neuron: layers.IntegrateFire) -> tuple[Float64, int]:
        """The current that `neuron` gets at each step, ``mantissa · 2^(exponent − SHIFT)``, in Lava's order."""
        bias = self.biases[neuron.inputs[0]]
        return held_bias(bias) if self.parts.fixed else (bias, SHIFT)

    def feed(self, x: NDArray[np.floating]) -> dict[str, Float64]:
        """What images `x` ``[B, *input]`` give at each of their steps, by the layer that gets it: ``[B, *port shape]``.

        In a staged network they give it once.
        Pixels for the input itself, else currents in the network's units.
        """
        if self.parts.inputs == "graded":
            return {name: self._in_order(name, x.astype(np.float64)) for name in self.fed}
        values = at_rest(self.graph, self.synapses, x)
        return {name: self._in_order(source, values[source]) for name, source in self.fed.items()}

    def pool_level(self, layer: layers.EachLevel) -> layers.Array:
        """What the units of a pool of groups have to reach: the same at each level, ``[L·C]`` or ``[L·C, …]``."""
        unit = layer.layer
        assert isinstance(unit, layers.AtLeast)
        levels = self.graph.shapes[layer.name][0]
        return np.tile(unit.level, (levels, *[1] * (unit.level.ndim - 1)))

    def drive_shape(self, name: str, lanes: int) -> Shape:
        """The shape of Lava's ports for what the layer `name` gets from images: one for all levels of a group."""
        return Layout(self.graph.activation_shape(name)).ports(lanes)

    def port_shape(self, name: str, lanes: int) -> Shape:
        """The shape of Lava's ports for what layer `name` gives."""
        return Layout(self.shape(name)).ports(lanes)

    def _in_order(self, name: str, values: Float64) -> Float64:
        shape = self.shape(name)
        return np.ascontiguousarray(Layout(shape).to_lava(values.reshape(-1, *shape)))


def _arranged(graph: LayerGraph, parts: Parts) -> LayerGraph:
    """`graph` as its Processes are: with a neuron that counts in place of each group, if spikes are graded.

    Raises `GraphError` for staged networks that cannot be streamed, and for graded spikes of others than grouped ones.
    """
    if parts.spikes == "graded":
        if not graph.grouped:
            raise GraphError(
                "graded spikes carry how many neurons of a group fire, and this network has no groups: convert with "
                "schedule='grouped', or use spikes='binary'"
            )
        form = counting_form(graph)
        if form is None:
            raise GraphError(
                "graded spikes carry how many neurons of a group fire; here the levels of a group are not equally far "
                "apart, or a pool is no maximum: use spikes='binary'"
            )
        return form.graph
    if graph.staged and counting_form(graph) is None:
        raise GraphError(
            "Lava streams staged networks in which all but spikes comes in the first step: here an image or a bias "
            "comes at every step, or in the middle, or a pool is no maximum; convert with schedule='staged'"
        )
    return graph
