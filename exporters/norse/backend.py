"""The backend: a NIR graph as a module that carries its state as Norse's do, and what its neurons spike."""

from __future__ import annotations

import warnings
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from bridge._util.neutral import neutral
from bridge.backends.protocol import Availability, check_input, probe
from bridge.nir_graph import from_nir
from bridge.records import Recorder, SpikeRecord
from bridge.simulate.ops import tensor
from exporters.torch_module import Group, expect_exact, watched


class Norse:
    """Native object: a `torch.fx.GraphModule` of torch layers and `exporters.norse.neuron.SoftResetIAFCell`.

    It is called as Norse's ``SequentialState`` is, ``readout, state = net(x, state)`` for one time step's input
    ``[B, *input]``, and starts afresh where no state is given. The state is ``{layer: IAFState(z, v)}``: each layer's
    spikes of this step, and its potentials after reset. In a staged network it is ``WindowIAFState(z, v, step)``, and
    the layers that count steps beside the neurons have a ``ClockState`` (`exporters.norse.staged`); that of a grouped
    network is empty. Whatever Norse does with stateful modules works:

    >>> import norse.torch as snn
    >>> net = Norse().export(nir.read("net.nir", type_check=False))
    >>> readout, state = snn.Lift(net)(images.expand(8, *images.shape))  # [T, B, ...], here T = 8
    >>> prediction = readout.mean(dim=0).argmax(dim=1)
    >>> readout, state = net(images, state)  # one more step
    >>> rate = {layer: z.mean().item() for layer, (z, v) in state.items()}
    """

    name = "norse"

    def available(self) -> Availability:
        with warnings.catch_warnings():
            # Norse 1.1.0 uses it in two modules that nothing here needs; torch 2.13 deprecates it.
            warnings.filterwarnings("ignore", r".*torch\.jit\.script", DeprecationWarning)
            return probe({"norse.torch": "norse"}, 'pip install "norse>=1.1.0"')

    @neutral()
    def export(self, graph: nir.NIRGraph) -> fx.GraphModule:
        from exporters.norse.network import build_network

        return build_network(from_nir(graph))

    @neutral()
    def run(
        self, native: fx.GraphModule, x: NDArray[np.float32], steps: int, *, membranes: bool = False
    ) -> SpikeRecord:
        from exporters.norse.neuron import SoftResetIAFCell
        from exporters.norse.staged import WindowIAFCell

        images = tensor(check_input(native.meta["input_shape"], x, steps, integer=native.meta["integer"]))
        kinds = SoftResetIAFCell | WindowIAFCell | Group
        neurons = {name: module for name, module in native.named_children() if isinstance(module, kinds)}
        parameter = next(native.parameters(), images)
        images = images.to(device=parameter.device, dtype=parameter.dtype)
        state = recorder = None
        with torch.no_grad(), watched(neurons) as seen:
            for t in range(steps):
                readout, state = native(images, state)
                fired = {name: _spikes_and_potential(neurons[name], *values) for name, values in seen.items()}
                shapes = {name: tuple(z.shape[1:]) for name, (z, _) in fired.items()}
                recorder = recorder or Recorder(self.name, shapes, summed=native.meta["staged"])
                for name, (z, v) in fired.items():
                    expect_exact(native, name, t, lambda: v)  # noqa: B023  (it is called at once)
                    recorder.spikes(name, z.cpu().numpy(), v.cpu().numpy() if membranes else None)
                recorder.readout(readout.cpu().numpy())
        assert recorder is not None  # there is at least one step
        return recorder.finish()


def _spikes_and_potential(neuron: nn.Module, given: Tensor, output: Any) -> tuple[Tensor, Tensor]:
    """What `neuron` fired, and its potentials before reset, from what it was `given` and its `output`."""
    from exporters.norse.neuron import SoftResetIAFCell

    if isinstance(neuron, Group):
        return output, neuron.drive(given)
    z, state = output
    if isinstance(neuron, SoftResetIAFCell):
        return z, state.v + neuron.p.theta * z
    return z, state.v  # in a window, no spike takes anything off
