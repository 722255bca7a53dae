"""The frameworks' own importers of NIR as backends: what they make of a graph with NIR's own IF."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bridge import SpikingNetwork
from bridge.backends.protocol import Availability
from bridge.nir_graph import from_nir, to_nir
from bridge.records import Recorder, SpikeRecord
from bridge.simulate.ops import tensor
from support.backends import require

Images = NDArray[np.float32]


class SpikingJellyImporter:
    """SpikingJelly's ``import_from_nir``: hard reset, no initial potential."""

    framework = "spikingjelly"

    def imported(self, graph: nir.NIRGraph) -> nn.Module:
        from spikingjelly.activation_based.nir_exchange import import_from_nir

        module: nn.Module = import_from_nir(graph, dt=1.0)
        return module

    def integrated(self, neuron: Any, current: Tensor) -> Tensor:
        potential: Tensor = neuron.module.v + current
        return potential

    def available(self) -> Availability:
        return require(self.framework).available()

    def export(self, graph: nir.NIRGraph) -> SpikingNetwork:
        return SpikingNetwork(from_nir(graph))

    def run(self, native: SpikingNetwork, x: Images, steps: int, *, membranes: bool = False) -> SpikeRecord:
        module = self.imported(to_nir(native.graph, "if"))  # anew, since it keeps its state
        recorder = Recorder(self.framework, {layer: native.graph.shapes[layer] for layer in native.layers})
        potentials: dict[str, NDArray[Any]] = {}

        def watch(layer: str, neuron: nn.Module) -> None:
            def integrate(neuron: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                potentials[layer] = (self.integrated(neuron, inputs[0]) + 0 * inputs[0]).numpy()

            def keep(neuron: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
                spikes = output[0] if isinstance(output, tuple) else output
                recorder.spikes(layer, spikes.numpy(), potentials[layer] if membranes else None)

            neuron.register_forward_pre_hook(integrate)
            neuron.register_forward_hook(keep)

        for layer in native.layers:
            watch(layer, module.get_submodule(layer))
        state = None
        with torch.no_grad():
            for _ in range(steps):
                readout, state = module(tensor(x), state)
                recorder.readout(readout.numpy())
        return recorder.finish()


class SnnTorchImporter(SpikingJellyImporter):
    """snnTorch's ``import_from_nir``: a leak of 0.9 besides."""

    framework = "snntorch"

    def imported(self, graph: nir.NIRGraph) -> nn.Module:
        import snntorch
        from snntorch.import_nir import import_from_nir

        with contextlib.redirect_stdout(io.StringIO()):
            module: nn.Module = import_from_nir(graph)
        for neuron in module.modules():
            if isinstance(neuron, snntorch.Leaky):
                neuron.init_hidden = True  # as imported it returns a tuple, on which the next layer crashes
        return module

    def integrated(self, neuron: Any, current: Tensor) -> Tensor:
        return neuron.beta * neuron.mem + current if neuron.mem.shape == current.shape else current


IMPORTERS: dict[str, type[SpikingJellyImporter]] = {
    "spikingjelly's importer": SpikingJellyImporter,
    "snntorch's importer": SnnTorchImporter,
}
