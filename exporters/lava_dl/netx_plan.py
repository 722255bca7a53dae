"""A layer graph as a plan for NetX: the layers of its file, and the currents that come from the host. It is data.

NetX knows sequences of convolutions and matrices with a spiking layer after each. What the images pass before the
first spiking layer is computed on the host; its result is the bias current of those neurons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bridge.errors import GraphError
from bridge.graph import Conv2d, Flatten, IntegrateFire, Layer, LayerGraph, Linear
from bridge.graph.loihi_registers import (
    LARGEST_BIAS_MANTISSA,
    LARGEST_INPUT,
    LARGEST_STATE,
    LARGEST_THRESHOLD,
    LARGEST_WEIGHT,
    SHIFT,
    UNIT,
)
from bridge.graph.ranges import ranges
from bridge.passes.fold_pooling import fold_pooling
from bridge.simulate.ops import evaluate, tensor
from exporters.lava_dl.thresholds import layer_thresholds


@dataclass(frozen=True, eq=False)
class Block:
    """One layer of the file: the neurons called `name`, or the readout, and the synapses before them.

    The first block has no synapse, the readout no threshold.
    """

    name: str
    threshold: int | None = None
    synapse: Conv2d | Linear | None = None

    @property
    def in_units(self) -> bool:
        """Whether its registers count in the network's own units, not in 1/64 of them."""
        return self.synapse is None and self.threshold is not None and self.threshold % UNIT == 0


class NetXPlan:
    """What a spiking network is in a NetX file: ``blocks``, one a layer of the file, of the folded ``graph``."""

    def __init__(self, graph: LayerGraph) -> None:
        """Plan the file. Raises `GraphError`, naming the layer, for what NetX or Loihi's registers cannot express.

        Pools are folded into the layers that read them.
        """
        self.graph = fold_pooling(graph)
        self.blocks = _blocks(self.graph, layer_thresholds(self.graph))
        _check_registers(self.graph, self.blocks)

    @property
    def shift(self) -> int:
        """The ``bias_exp`` that the ``input`` layer needs, where NetX sets 6.

        Its registers hold bias currents alone. They count in the network's own units if its threshold allows
        (`bridge.graph.loihi_registers`), and those of all other layers in 1/64.
        """
        return 0 if self.blocks[0].in_units else SHIFT

    def currents(self, x: NDArray[np.floating]) -> NDArray[np.int32]:
        """The bias currents of the first spiking layer for images `x` ``[B, *input]``, ``[B, *shape]``."""
        first = self.graph[self.blocks[0].name]
        values = {self.graph.input.name: tensor(x).double()}
        for layer in self.graph.layers[1:]:
            if layer is first:
                break
            values[layer.name] = evaluate(layer, *(values[source] for source in layer.inputs))
        return values[first.inputs[0]].numpy().astype(np.int32)


def _blocks(graph: LayerGraph, thresholds: Mapping[str, int]) -> list[Block]:
    """The blocks of a sequential `graph`. Raises `GraphError` naming the first layer that cannot be in one."""
    start = [layer.name for layer in graph].index(graph.spiking[0])
    blocks = [Block(graph.spiking[0], thresholds[graph.spiking[0]])]
    synapse: Conv2d | Linear | None = None
    for before, layer in pairwise(graph.layers[start:]):
        if layer.inputs != (before.name,):
            raise _refusal(layer, f"it hears {', '.join(layer.inputs)}, and NetX knows sequences only")
        if isinstance(layer, Conv2d | Linear) and synapse is None:
            synapse = layer
        elif isinstance(layer, IntegrateFire) and synapse is not None:
            blocks.append(Block(layer.name, thresholds[layer.name], synapse))
            synapse = None
        elif not isinstance(layer, Flatten) or synapse is not None:
            known = "NetX knows convolutions and matrices, each with a spiking layer or nothing after it"
            raise _refusal(layer, f"{known}; the slayer backend runs others, too")
    if synapse is not None:
        blocks.append(Block(synapse.name, None, synapse))
    elif graph.output.name != blocks[-1].name:
        raise _refusal(graph.output, "the output is a spiking layer, a convolution or a matrix")
    return blocks


def _check_registers(graph: LayerGraph, blocks: Sequence[Block]) -> None:
    """Raise `GraphError` if a value, or what a neuron can hear in one step, does not fit Loihi's registers."""
    bounds = ranges(graph)
    for block in blocks:
        layer, threshold = graph[block.name], block.threshold or 0
        unit = UNIT if block.in_units else 1
        _expect(layer, "threshold", threshold, LARGEST_THRESHOLD * unit)
        if block.synapse is None:
            heard = float(bounds[layer.inputs[0]].size.max())
            _expect(
                layer,
                "input in one step plus threshold",
                heard + threshold,
                LARGEST_STATE if unit > 1 else LARGEST_INPUT,
            )
            continue
        weight, bias, bound = block.synapse.weight, block.synapse.bias, bounds[block.synapse.name]
        heard = float(np.maximum(np.abs(bound.low - bias), np.abs(bound.high - bias)).max())
        _expect(block.synapse, "weight", float(np.abs(weight).max()), LARGEST_WEIGHT)
        _expect(block.synapse, "bias", float(np.abs(bias).max()), LARGEST_BIAS_MANTISSA)
        _expect(block.synapse, "output in one step", heard, LARGEST_INPUT)
        if not weight.any():
            raise _refusal(block.synapse, "its weights are all 0, which NetX cannot read")


def _expect(layer: Layer, what: str, value: float, limit: int) -> None:
    if value > limit:
        raise _refusal(layer, f"its {what} reaches {value:.0f} in size, and Loihi's register holds {limit}")


def _refusal(layer: Layer, reason: str) -> GraphError:
    return GraphError(f"layer {layer.name!r} ({type(layer).__name__}) cannot be in a NetX file: {reason}")
