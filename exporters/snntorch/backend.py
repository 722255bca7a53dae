"""The backend: a NIR graph as a module of torch's layers and snnTorch's neurons, and what these spike."""

from __future__ import annotations

from functools import partial
from typing import cast

import nir
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from bridge._util.neutral import neutral
from bridge.backends.protocol import Availability, probe
from bridge.nir_graph import from_nir
from bridge.records import SpikeRecord
from exporters.torch_module import build, run


class SnnTorch:
    """Native object: a `torch.fx.GraphModule` of torch layers and `exporters.snntorch.neuron.SoftResetIF`, or in a
    staged network the modules of `exporters.snntorch.staged`, in a grouped one those of `exporters.snntorch.grouped`.

    The neurons keep their state between calls (``init_hidden=True``); ``snntorch.utils.reset(net)`` clears it. Example:
    docs/backends.md.
    """

    name = "snntorch"

    def available(self) -> Availability:
        return probe({"snntorch": "snntorch"}, 'pip install "snntorch>=1.0.0"')

    @neutral()
    def export(self, graph: nir.NIRGraph) -> fx.GraphModule:
        from exporters.snntorch.grouped import SpikingGroup
        from exporters.snntorch.neuron import neuron_of
        from exporters.snntorch.staged import staged_module

        network = from_nir(graph)
        staged = partial(staged_module, integer=network.integer)
        group = partial(SpikingGroup, integer=network.integer)
        return build(network, nn, neuron_of, "SnnTorchNetwork", staged, group)

    @neutral()
    def run(
        self, native: fx.GraphModule, x: NDArray[np.float32], steps: int, *, membranes: bool = False
    ) -> SpikeRecord:
        from snntorch import Leaky

        from exporters.snntorch.grouped import SpikingGroup
        from exporters.snntorch.neuron import SoftResetIF
        from exporters.snntorch.staged import WindowIF

        kinds = SoftResetIF | WindowIF | SpikingGroup
        neurons: dict[str, nn.Module] = {n: m for n, m in native.named_modules() if isinstance(m, kinds)}

        def reset() -> None:  # snntorch.utils.reset would also reset every other network in the process
            for module in native.modules():
                if isinstance(module, Leaky):
                    module.reset_mem()

        reset()
        try:
            return run(self.name, native, neurons, _potential, x, steps, membranes)
        finally:
            reset()


def _potential(neuron: nn.Module, spikes: Tensor) -> Tensor:
    from exporters.snntorch.staged import WindowIF

    if isinstance(neuron, WindowIF):
        return cast(Tensor, neuron.mem)  # no spike takes anything off
    return cast(Tensor, neuron.mem) + cast(Tensor, neuron.threshold) * spikes
