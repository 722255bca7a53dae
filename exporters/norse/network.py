"""A layer graph as a torch module that hands its state from step to step as Norse's own modules do."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

from norse.torch.module.snn import SNNCell
from torch import fx, nn

from bridge.graph import LayerGraph
from exporters.norse.grouped import ThresholdGroup
from exporters.norse.neuron import neuron_of
from exporters.norse.staged import staged_module
from exporters.torch_module import build


def build_network(graph: LayerGraph) -> fx.GraphModule:
    """The module of `graph`, ``readout, state = net(x, state)``. Raises `GraphError` for a layer without a rule."""
    staged = partial(staged_module, integer=graph.integer)
    group = partial(ThresholdGroup, integer=graph.integer)
    return _with_state(build(graph, nn, neuron_of, "NorseNetwork", staged, group))


def state_of(state: dict[str, Any] | None, layer: str) -> Any:
    """The state of `layer`, or None at the first step."""
    return None if state is None else state[layer]


def _with_state(network: fx.GraphModule) -> fx.GraphModule:
    """Make `network` hand each cell its state of the last step, and return the states beside the readout."""
    calls = network.graph
    placeholder, *others = calls.nodes
    with calls.inserting_after(placeholder):
        before = calls.placeholder("state", default_value=None)
    after: dict[str, fx.Node] = {}
    for node in others:
        if node.op != "call_module" or not isinstance(network.get_submodule(node.target), SNNCell):
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
