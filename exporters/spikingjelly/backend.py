"""The backend: a NIR graph as a module of SpikingJelly's layers, and what its neurons spike."""

from __future__ import annotations

import logging
from functools import partial
from typing import cast

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from bridge._util.neutral import neutral
from bridge.backends.protocol import Availability, probe
from bridge.nir_graph import from_nir
from bridge.records import SpikeRecord
from exporters.torch_module import build, run


class SpikingJelly:
    """Native object: a `torch.fx.GraphModule` of SpikingJelly layers, in step mode "s".

    ``functional.reset_net`` restores its initial state; ``functional.set_step_mode(net, "m")`` makes it take
    ``[T, B, ...]``. Example: docs/backends.md.
    """

    name = "spikingjelly"

    def available(self) -> Availability:
        # On its import, torch would tell every user without a GPU that Triton is missing, which nothing here needs.
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
        return probe({"spikingjelly.activation_based": "spikingjelly"}, 'pip install "spikingjelly>=2.0.0"')

    @neutral()
    def export(self, graph: nir.NIRGraph) -> fx.GraphModule:
        from spikingjelly.activation_based import layer

        from exporters.spikingjelly.grouped import GroupNode
        from exporters.spikingjelly.neuron import neuron_of
        from exporters.spikingjelly.staged import staged_module

        network = from_nir(graph)
        neuron = partial(neuron_of, integer=network.integer)
        return build(network, layer, neuron, "SpikingJellyNetwork", staged_module, GroupNode)

    @neutral()
    def run(
        self, native: fx.GraphModule, x: NDArray[np.float32], steps: int, *, membranes: bool = False
    ) -> SpikeRecord:
        from spikingjelly.activation_based import base, functional, neuron

        from exporters.spikingjelly.grouped import GroupNode
        from exporters.spikingjelly.staged import WindowIFNode

        kinds = neuron.ActivationAwareIFNode | WindowIFNode | GroupNode
        neurons = {name: m for name, m in native.named_modules() if isinstance(m, kinds)}
        modes = {m: m.step_mode for m in native.modules() if isinstance(m, base.StepModule)}
        functional.set_step_mode(native, "s")
        functional.reset_net(native)
        try:
            return run(self.name, native, neurons, _potential, x, steps, membranes)
        finally:
            functional.reset_net(native)
            for module, mode in modes.items():
                module.step_mode = mode


def _potential(node: nn.Module, spikes: Tensor) -> Tensor:
    from exporters.spikingjelly.staged import WindowIFNode

    if isinstance(node, WindowIFNode):
        return cast(Tensor, node.v)  # no spike takes anything off
    threshold = torch.as_tensor(node.v_threshold, device=spikes.device)
    return cast(Tensor, node.v) + spikes * threshold.reshape(-1, *[1] * (spikes.dim() - 2))
