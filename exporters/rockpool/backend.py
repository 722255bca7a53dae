"""The backend: a NIR graph as a module of Rockpool's, and what its neurons spike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bridge._util.neutral import neutral
from bridge.backends.protocol import Availability, check_input, exact, may_leave_exact, probe
from bridge.nir_graph import from_nir
from bridge.records import Recorder, SpikeRecord
from bridge.simulate.ops import tensor

if TYPE_CHECKING:
    from exporters.rockpool.network import RockpoolNetwork


class Rockpool:
    """Native object: an `exporters.rockpool.network.RockpoolNetwork`, a ``TorchModule`` of Rockpool.

    It takes all time steps at once, as Rockpool's modules do, and signals are flat: ``[B, T, C·H·W]``.
    ``net.reset_state()`` restores its initial state.

    >>> net = Rockpool().export(nir.read("net.nir", type_check=False))
    >>> x = images.flatten(1).unsqueeze(1).expand(-1, 8, -1)  # [B, T, C·H·W], here T = 8
    >>> readout, state, record = net(x, record=True)
    >>> prediction = readout.mean(dim=1).argmax(dim=1)
    >>> rate = {layer: record[layer]["spikes"].mean().item() for layer in record}
    >>> net = net.reset_state()  # before other images: Rockpool's modules go on from where they were
    >>> weights_and_biases = list(net.parameters().astorch())  # for an optimizer; thresholds stay as they are

    The output of a staged network is the sum of the readout, not its mean; a grouped one's is there at each step.
    """

    name = "rockpool"

    def available(self) -> Availability:
        return probe({"rockpool.nn.modules": "rockpool"}, 'pip install "rockpool>=3.1.0"')

    @neutral()
    def export(self, graph: nir.NIRGraph) -> RockpoolNetwork:
        from exporters.rockpool.network import RockpoolNetwork

        return RockpoolNetwork(from_nir(graph))

    @neutral()
    def run(
        self, native: RockpoolNetwork, x: NDArray[np.float32], steps: int, *, membranes: bool = False
    ) -> SpikeRecord:
        shapes = native.shapes
        input_name, *_, output_name = shapes
        x = check_input(shapes[input_name], x, steps, integer=native.integer)
        images = tensor(x).flatten(1).unsqueeze(1).expand(-1, steps, -1)
        parameter = next(native.parameters().astorch(), images)
        native.reset_state()
        try:
            with torch.no_grad():
                readout, _, record = native(images.to(parameter.device), record=True)
        finally:
            native.reset_state()
        watched = may_leave_exact(native.drives, steps)
        recorder = Recorder(self.name, {name: shapes[name] for name in record}, summed=native.summed)
        for t in range(steps):
            for name, kept in record.items():
                spikes, membrane = kept["spikes"][:, t].cpu(), None
                if membranes or watched:
                    before_reset = _before_reset(native.get_submodule(name), spikes, kept["vmem"][:, t].cpu())
                    membrane = before_reset.unflatten(1, shapes[name]).numpy()
                recorder.spikes(name, spikes.unflatten(1, shapes[name]).numpy(), membrane)
            recorder.readout(readout[:, t].unflatten(1, shapes[output_name]).cpu().numpy())
        result = recorder.finish()
        return exact(result, membranes=membranes) if watched else result


def _before_reset(neuron: nn.Module, spikes: Tensor, vmem: Tensor) -> Tensor:
    """What `neuron` compared with its level, on the CPU. Outside of plain networks, no spike takes anything off."""
    from exporters.rockpool.neuron import SoftResetIF

    return vmem + neuron.threshold.cpu() * spikes if isinstance(neuron, SoftResetIF) else vmem
