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

from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
from numpy.typing import NDArray

from bridge._util.files import replacing
from bridge._util.neutral import neutral
from bridge.backends.protocol import check_input
from bridge.errors import BackendError
from bridge.graph import Flatten, Linear
from bridge.graph.loihi_registers import LARGEST_THRESHOLD, UNIT
from bridge.nir_graph import from_nir
from bridge.records import SpikeRecord
from exporters.lava.layout import Layout
from exporters.lava_dl.backend import INSTALL
from exporters.lava_dl.netx_plan import Block, NetXPlan

DECAY_ALL = 2**12  # of iDecay and vDecay: nothing is left after one step


class NetX(NetXPlan):
    """A spiking network as NetX can run it: write it to a file, and run the file on images."""

    def __init__(self, graph: nir.NIRGraph) -> None:
        """Plan the file. Raises `GraphError`, naming the layer, for what NetX or Loihi's registers cannot express.

        Pools are folded into the layers that read them.
        """
        super().__init__(from_nir(graph))

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all. Raises `InputError` if it cannot be written."""
        with replacing(path) as content, h5py.File(content, "w") as file:
            layers = file.create_group("layer")
            for block in self.blocks:
                if block.synapse is not None and isinstance(self.graph[block.synapse.inputs[0]], Flatten):
                    _text(layers.create_group(str(len(layers))), "type", "flatten")
                self._write(layers.create_group(str(len(layers))), block)

    @neutral()
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
        x = check_input(self.graph.input.shape, x, steps, integer=self.graph.integer)
        return run(self, path, x, steps, model)

    def _write(self, layer: h5py.Group, block: Block) -> None:
        neuron = layer.create_group("neuron")
        _text(neuron, "type", "CUBA")
        mantissa = LARGEST_THRESHOLD if block.threshold is None else block.threshold
        neuron["vThMant"] = mantissa // UNIT if block.in_units else mantissa
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


def _text(group: h5py.Group, key: str, value: str) -> None:
    group[key] = np.array([value.encode("ascii")])
