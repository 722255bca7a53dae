"""The backend: a NIR graph as a module of torch's and Sinabs' layers, and what its neurons spike."""

from __future__ import annotations

from typing import Any, cast

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

# What Sinabs declares it needs includes nir <= 1.0.4 and the drivers of its chips; importing it needs neither.
INSTALL = "pip install matplotlib nirtorch pbr && pip install --no-deps sinabs==3.1.3"


class Sinabs:
    """Native object: a `torch.fx.GraphModule` of torch layers and ``sinabs.layers.IAFSqueeze``, or in a staged network
    the layers of `exporters.sinabs.staged`, in a grouped one those of `exporters.sinabs.grouped`.

    Like all of Sinabs' squeezed layers it takes ``[B·T, *input]``, the T steps of an image one after the other, and
    keeps its state between calls: ``sinabs.set_batch_size(net, B)`` tells it B, which is 1 at first, and
    ``sinabs.reset_states(net)`` clears the state. Do that before B changes: Sinabs would hand the states of the
    previous images to the new ones at random. Example: docs/backends.md.
    """

    name = "sinabs"

    def available(self) -> Availability:
        """Whether Sinabs can be imported, which does not take all that it declares: see `INSTALL`."""
        return probe({"sinabs.layers": "sinabs"}, INSTALL)

    @neutral()
    def export(self, graph: nir.NIRGraph) -> fx.GraphModule:
        from exporters.sinabs.grouped import SpikeGroup
        from exporters.sinabs.neuron import neuron_of
        from exporters.sinabs.staged import staged_module

        # Sinabs' own SumPool2d is no sum in floating point: torch.nn.LPPool2d multiplies an average.
        return build(from_nir(graph), nn, neuron_of, "SinabsNetwork", staged_module, SpikeGroup)

    @neutral()
    def run(
        self, native: fx.GraphModule, x: NDArray[np.float32], steps: int, *, membranes: bool = False
    ) -> SpikeRecord:
        from sinabs.layers import IAFSqueeze, SqueezeMixin

        from exporters.sinabs.grouped import SpikeGroup
        from exporters.sinabs.staged import WindowIAFSqueeze

        kinds = IAFSqueeze | WindowIAFSqueeze | SpikeGroup
        neurons: dict[str, Any] = {n: m for n, m in native.named_modules() if isinstance(m, kinds)}
        squeezed: list[Any] = [module for module in native.modules() if isinstance(module, SqueezeMixin)]
        sizes = {module: (module.batch_size, module.num_timesteps) for module in squeezed}
        for module in squeezed:
            module.batch_size, module.num_timesteps = -1, 1
            _forget(module)
        try:
            return run(self.name, native, neurons, _potential, x, steps, membranes)
        finally:
            for module, (module.batch_size, module.num_timesteps) in sizes.items():
                _forget(module)


def _forget(layer: nn.Module) -> None:
    """Make `layer` as it was before its first step: Sinabs' ``reset_states`` would keep it to one batch size."""
    for name, state in list(layer.named_buffers()):
        setattr(layer, name, state.new_zeros(0))


def _potential(neuron: nn.Module, spikes: Tensor) -> Tensor:
    from exporters.sinabs.staged import WindowIAFSqueeze

    if isinstance(neuron, WindowIAFSqueeze):
        return neuron.v_mem  # no spike takes anything off
    taken_off = cast(Any, neuron.reset_fn).subtract_value
    return cast(Tensor, neuron.v_mem) + spikes * torch.as_tensor(taken_off).to(spikes)
