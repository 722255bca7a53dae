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
from bridge.graph import LayerGraph, Shape
from bridge.graph.loihi_registers import LARGEST_BIAS_MANTISSA, SHIFT, UNIT
from exporters.lava.layout import Layout
from exporters.lava.lowering import Float64, Synapse, at_rest, lower


@dataclass(frozen=True)
class Parts:
    """Which Processes a network is made of.

    * ``synapses``: ``"stock"``, Lava's own Dense and Conv, or ``"torch"``, ours, equal and fast.
    * ``neuron``: ``"integrate_fire"``, ours, or ``"atrlif"``, Lava's own `ATRLIF`, for one image.
    * ``inputs``: ``"currents"``, what the images give to the first neurons, computed beforehand, or ``"graded"``, the
      images themselves.
    * ``fixed``: whole numbers, meant for the registers of the chip. Our parts run in floating point as well; Lava's own
      Dense then has its weights in another unit, and its ATRLIF leaks.
    """

    synapses: Literal["stock", "torch"] = "stock"
    neuron: Literal["integrate_fire", "atrlif"] = "integrate_fire"
    inputs: Literal["currents", "graded"] = "currents"
    fixed: bool = False


class LavaPlan:
    """What a network of Lava's is made of, and at which of Lava's steps each value is there.

    Attributes:
        graph: the network. parts: which Processes it is made of.
        synapses: the layers with weights, by name.
        heard: by layer, which Processes its inputs are the sum of, and how many times each.
        depths: by layer that is a Process, how many Lava steps late it is.
        fed: what the images give directly, by the layer that gets it: the layer whose output at rest it is.
    """

    def __init__(self, graph: LayerGraph, parts: Parts) -> None:
        """Plan `graph`. Raises `GraphError` for a layer that Lava cannot run: staged and grouped ones, too."""
        expect_plain(graph, "Lava")
        self.graph = graph
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
            fires = isinstance(layer, layers.IntegrateFire)
            if isinstance(layer, layers.Input):
                if parts.inputs == "graded":
                    self.depths[name], self.fed[name] = 0, name
                else:
                    analog.add(name)
            elif not analog.isdisjoint(layer.inputs):
                if fires:
                    self.fed[name] = layer.inputs[0]
                else:
                    analog.add(name)
            if not isinstance(layer, layers.Input | layers.IntegrateFire | layers.Add | layers.Flatten):
                self.synapses[name] = lower(layer, graph.shapes[layer.inputs[0]])
            if fires or (heard and name in self.synapses):
                self.depths[name] = self.arrival(heard) + (not fires)
            self.heard[name] = heard
            given[name] = Counter([name]) if name in self.depths else heard
        self.output = given[graph.output.name]
        if graph.output.name in analog:
            self.fed[graph.output.name] = graph.output.name

    @property
    def layouts(self) -> dict[str, Layout]:
        """Lava's order of each spiking layer's neurons."""
        return {name: Layout(self.graph.shapes[name]) for name in self.graph.spiking}

    @property
    def readout_layout(self) -> Layout:
        """Lava's order of the readout."""
        return Layout(self.graph.shapes[self.graph.output.name])

    @property
    def delay(self) -> int:
        """How many Lava steps late the readout is: the most synapses between the input and it."""
        return self.arrival(self.output)

    @property
    def offsets(self) -> dict[str, int]:
        """By spiking layer and feed: how many Lava steps late its values are."""
        feeds = {name: self.depths.get(name, self.delay) for name in self.fed}
        return feeds | {name: self.depths[name] for name in self.graph.spiking}

    def arrival(self, heard: Counter[str]) -> int:
        """How many Lava steps late the sum of the Processes `heard` is, the earlier ones waiting for the last."""
        return max((self.depths[source] for source in heard), default=0)

    def shift(self, neuron: layers.IntegrateFire) -> int:
        """By how many bits a layer's units are shifted in its registers.

        None if it hears nothing but currents and its threshold and level, which the chip shifts in any case, allow it.
        """
        whole = bool((neuron.level % UNIT == 0).all() and (neuron.threshold % UNIT == 0).all())
        alone = neuron.name in self.fed and not self.heard[neuron.name]
        return 0 if self.parts.fixed and alone and whole else SHIFT

    @cached_property
    def biases(self) -> Mapping[str, Float64]:
        """What each layer gives while no neuron spikes, apart from what the images add; in Lava's order."""
        black = np.zeros((1, *self.graph.input.shape), np.float32)
        values = at_rest(self.graph, self.synapses, black)
        fed = set(self.fed.values())
        return {name: self._in_order(name, value * (name not in fed))[0] for name, value in values.items()}

    def bias(self, neuron: layers.IntegrateFire) -> tuple[Float64, int]:
        """The current that `neuron` gets at each step, ``mantissa · 2^(exponent − SHIFT)``, in Lava's order.

        The exponent is the shift unless that makes a mantissa too large, and one more then.
        """
        bias = self.biases[neuron.inputs[0]]
        if self.parts.fixed and np.abs(bias).max() > LARGEST_BIAS_MANTISSA:
            return bias / 2, SHIFT + 1
        return bias, SHIFT

    def feed(self, x: NDArray[np.floating]) -> dict[str, Float64]:
        """What images `x` ``[B, *input]`` give at each of their steps, by the layer that gets it: ``[B, *port shape]``.

        Pixels for the input itself, else currents in the network's units.
        """
        if self.parts.inputs == "graded":
            return {name: self._in_order(name, x.astype(np.float64)) for name in self.fed}
        values = at_rest(self.graph, self.synapses, x)
        return {name: self._in_order(source, values[source]) for name, source in self.fed.items()}

    def port_shape(self, name: str, lanes: int) -> Shape:
        """The shape of Lava's ports for what layer `name` gives, and so also for a feed of that name."""
        return Layout(self.graph.shapes[name]).ports(lanes)

    def _in_order(self, name: str, values: Float64) -> Float64:
        return np.ascontiguousarray(Layout(self.graph.shapes[name]).to_lava(values))
