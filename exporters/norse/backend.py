"""Norse: torch's own layers and a cell built on Norse's own ``SNNCell``, with Norse's soft reset."""

from __future__ import annotations

import operator
import warnings
from typing import TYPE_CHECKING, Any, cast

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from bridge.graph import IntegrateFire
from bridge.nir_graph import from_nir
from bridge.records import Recorder, SpikeRecord
from bridge.simulate.ops import tensor
from exporters.base import Availability, check_input, probe
from exporters.torch_module import build

if TYPE_CHECKING:
    from exporters.norse.neuron import SoftResetIAFCell


class Norse:
    """Native object: a `torch.fx.GraphModule` of torch layers and `exporters.norse.neuron.SoftResetIAFCell`.

    It is called as Norse's ``SequentialState`` is, ``readout, state = net(x, state)`` for one time step's input
    ``[B, *input]``, and starts afresh where no state is given. The state is ``{layer: IAFState(z, v)}``: each layer's
    spikes of this step, and its potentials after reset. Whatever Norse does with stateful modules works:

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

    def export(self, graph: nir.NIRGraph) -> fx.GraphModule:
        return _with_state(build(from_nir(graph), nn, _neuron, "NorseNetwork"))

    def run(
        self, native: fx.GraphModule, x: NDArray[np.float32], steps: int, *, membranes: bool = False
    ) -> SpikeRecord:
        check_input(native.meta["input_shape"], x, steps)
        images = tensor(x)
        parameter = next(native.parameters(), images)
        images = images.to(device=parameter.device, dtype=parameter.dtype)
        state = recorder = None
        with torch.no_grad():
            for _ in range(steps):
                readout, state = native(images, state)
                recorder = recorder or Recorder(self.name, {name: tuple(z.shape[1:]) for name, (z, _) in state.items()})
                for name, (z, v) in state.items():
                    cell = cast("SoftResetIAFCell", native.get_submodule(name))
                    membrane = (v + cell.p.theta * z).cpu().numpy() if membranes else None
                    recorder.spikes(name, z.cpu().numpy(), membrane)
                recorder.readout(readout.cpu().numpy())
        assert recorder is not None  # there is at least one step
        return recorder.finish()


def state_of(state: dict[str, Any] | None, layer: str) -> Any:
    """The state of `layer`, or None at the first step."""
    return None if state is None else state[layer]


def _with_state(network: fx.GraphModule) -> fx.GraphModule:
    """Make `network` hand each cell its state of the last step, and return the states beside the readout."""
    from exporters.norse.neuron import SoftResetIAFCell

    calls = network.graph
    placeholder, *others = calls.nodes
    with calls.inserting_after(placeholder):
        before = calls.placeholder("state", default_value=None)
    after: dict[str, fx.Node] = {}
    for node in others:
        if node.op != "call_module" or not isinstance(network.get_submodule(node.target), SoftResetIAFCell):
            continue
        layer, readers = node.target, tuple(node.users)
        with calls.inserting_before(node):
            node.args = (*node.args, calls.call_function(state_of, (before, layer)))
        with calls.inserting_before(node.next):
            spikes = calls.create_node("call_function", operator.getitem, (node, 0), name=f"{layer}_spikes")
            after[layer] = calls.create_node("call_function", operator.getitem, (node, 1), name=f"{layer}_state")
        for reader in readers:
            reader.replace_input_with(node, spikes)
    output = others[-1]
    output.args = ((*output.args, after),)
    network.recompile()
    return network


def _neuron(layer: IntegrateFire, rank: int) -> nn.Module:
    from exporters.norse.neuron import SoftResetIAFCell

    return SoftResetIAFCell(layer.level, layer.threshold, rank)
