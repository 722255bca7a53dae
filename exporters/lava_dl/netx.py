"""Files for NetX, lava-dl's importer for Loihi, and running them exactly.

NetX knows sequences of convolutions and matrices with a spiking layer after each. What the images pass before the
first spiking layer is computed on the host; its result is the bias current of those neurons, the file's ``input``
layer, as in NetX's own examples with analog input. All after it is in the file: for the readout, which does not spike,
a layer that keeps nothing from step to step (``vDecay`` 4096, all of it), so that its potential is the output.

The neuron is the one thing that NetX does not have: it resets to 0, "hard", and starts there. The file says what it
can (a threshold, no leak), and `PySoftResetModel` is the rest::

    network = Network(net_config=path, reset_interval=T, reset_offset=1)
    run_config = Loihi2SimCfg(select_tag="fixed_pt", exception_proc_model_map={LIFReset: PySoftResetModel})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
from numpy.typing import NDArray

from bridge._util.files import replacing
from bridge.errors import BackendError, GraphError
from bridge.graph import Conv2d, Flatten, IntegrateFire, Layer, LayerGraph, Linear
from bridge.graph.loihi_registers import (
    LARGEST_BIAS_MANTISSA,
    LARGEST_INPUT,
    LARGEST_STATE,
    LARGEST_THRESHOLD,
    SHIFT,
    UNIT,
    WEIGHT_BITS,
)
from bridge.graph.ranges import ranges
from bridge.nir_graph import from_nir
from bridge.passes.fold_pooling import fold_pooling
from bridge.records import SpikeRecord
from bridge.simulate.ops import evaluate, tensor
from exporters.base import check_input
from exporters.lava.layout import Layout
from exporters.lava_dl.slayer import INSTALL
from exporters.lava_dl.thresholds import layer_thresholds

DECAY_ALL = 2**12  # of iDecay and vDecay: nothing is left after one step


@dataclass(frozen=True, eq=False)
class Block:
    """One layer of the file: the neurons called `name`, or the readout, and the synapses before them.

    The first block has no synapse, the readout no threshold.
    """

    name: str
    threshold: int | None = None
    synapse: Conv2d | Linear | None = None


class NetX:
    """A spiking network as NetX can run it: write it to a file, and run the file on images."""

    def __init__(self, graph: nir.NIRGraph) -> None:
        """Plan the file. Raises `GraphError`, naming the layer, for what NetX or Loihi's registers cannot express.

        Pools are folded into the layers that read them.
        """
        self.graph = fold_pooling(from_nir(graph))
        self.blocks = _blocks(self.graph, layer_thresholds(self.graph))
        _check_registers(self.graph, self.blocks)

    @property
    def shift(self) -> int:
        """The ``bias_exp`` that the ``input`` layer needs, where NetX sets 6.

        Its registers hold bias currents alone. They count in the network's own units if its threshold allows
        (`bridge.graph.loihi_registers`), and those of all other layers in 1/64.
        """
        return 0 if _in_units(self.blocks[0]) else SHIFT

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all. Raises `InputError` if it cannot be written."""
        with replacing(path) as temporary, h5py.File(temporary, "w") as file:
            layers = file.create_group("layer")
            for block in self.blocks:
                if block.synapse is not None and isinstance(self.graph[block.synapse.inputs[0]], Flatten):
                    _text(layers.create_group(str(len(layers))), "type", "flatten")
                self._write(layers.create_group(str(len(layers))), block)

    def currents(self, x: NDArray[np.floating]) -> NDArray[np.int32]:
        """The bias currents of the first spiking layer for images `x` ``[B, *input]``, ``[B, *shape]``."""
        first = self.graph[self.blocks[0].name]
        values = {self.graph.input.name: tensor(x).double()}
        for layer in self.graph.layers[1:]:
            if layer is first:
                break
            values[layer.name] = evaluate(layer, *(values[source] for source in layer.inputs))
        return values[first.inputs[0]].numpy().astype(np.int32)

    def run(self, path: str | Path, x: NDArray[np.float32], steps: int, model: type[Any] | None = None) -> SpikeRecord:
        """Run the file at `path`, written from this network, on images `x` ``[B, *input]``, `steps` steps each.

        All images pass through NetX's ``Network`` in one stream, its neurons reset between them. `model` is the
        ProcessModel of their ``LIFReset``, `PySoftResetModel` by default; with Lava's own, the record shows what a
        hard reset makes of the network.

        Raises `InputError` if `x` does not fit and `BackendError`, with Lava's own traceback, if Lava fails or takes
        longer than the time limit. No process outlives the call.
        """
        try:
            from exporters.lava_dl.netx_run import run
        except ImportError as error:
            raise BackendError(f"running NetX needs lava-dl ({error}): {INSTALL}") from error
        check_input(self.graph.input.shape, x, steps)
        return run(self, path, x, steps, model)

    def _write(self, layer: h5py.Group, block: Block) -> None:
        neuron = layer.create_group("neuron")
        _text(neuron, "type", "CUBA")
        mantissa = LARGEST_THRESHOLD if block.threshold is None else block.threshold
        neuron["vThMant"] = mantissa // UNIT if _in_units(block) else mantissa
        neuron["iDecay"] = DECAY_ALL
        neuron["vDecay"] = DECAY_ALL if block.threshold is None else 0
        neuron["refDelay"] = 1
        layer["shape"] = np.array(Layout(self.graph.shapes[block.name]).grid)
        synapse = block.synapse
        if synapse is None:
            _text(layer, "type", "input")
            neuron["biasExp"] = self.shift  # NetX does not read it
            return
        layer["weight"] = synapse.weight.astype(np.int32)
        layer["bias"] = synapse.bias.astype(np.int32)
        if isinstance(synapse, Linear):
            _text(layer, "type", "dense")
            layer["outFeatures"], layer["inFeatures"] = synapse.weight.shape
            return
        _text(layer, "type", "conv")
        layer["outChannels"], layer["inChannels"] = len(synapse.weight), synapse.weight.shape[1] * synapse.groups
        layer["kernelSize"] = synapse.weight.shape[2:]
        layer["stride"], layer["padding"], layer["dilation"] = synapse.stride, synapse.padding, synapse.dilation
        layer["groups"] = synapse.groups


def _in_units(block: Block) -> bool:
    """Whether the registers of `block` count in the network's own units, not in 1/64 of them."""
    return block.synapse is None and block.threshold is not None and block.threshold % UNIT == 0


def _text(group: h5py.Group, key: str, value: str) -> None:
    group[key] = np.array([value.encode("ascii")])


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
            raise _refusal(layer, "NetX knows convolutions and matrices, each with a spiking layer or nothing after it")
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
        unit = UNIT if _in_units(block) else 1
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
        _expect(block.synapse, "weight", float(np.abs(weight).max()), 2 ** (WEIGHT_BITS - 1) - 1)
        _expect(block.synapse, "bias", float(np.abs(bias).max()), LARGEST_BIAS_MANTISSA)
        _expect(block.synapse, "output in one step", heard, LARGEST_INPUT)
        if not weight.any():
            raise _refusal(block.synapse, "its weights are all 0, which NetX cannot read")


def _expect(layer: Layer, what: str, value: float, limit: int) -> None:
    if value > limit:
        raise _refusal(layer, f"its {what} reaches {value:.0f} in size, and Loihi's register holds {limit}")


def _refusal(layer: Layer, reason: str) -> GraphError:
    return GraphError(f"layer {layer.name!r} ({type(layer).__name__}) cannot be in a NetX file: {reason}")
