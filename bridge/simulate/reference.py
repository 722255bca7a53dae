"""The reference simulator: the spiking network in float32, one time step after another, nothing clever.

For a network in whole numbers this is integer arithmetic, since float32 holds them all up to 2^24: the network's sums
stay below that (`bridge.passes.quantization.quantize`), and its potentials are watched here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from bridge.graph import BiasOnce, GroupFire, Impulse, IntegrateFire, LayerGraph, WindowFire
from bridge.graph.ranges import EXACT, beyond_exact
from bridge.records import Recorder, SpikeRecord
from bridge.simulate.images import BATCH
from bridge.simulate.ops import channels, evaluate, tensor

NAME = "reference"

Watch = Callable[[str, int, Tensor, Tensor], None]
"""Told of each layer and step: the layer's name, the steps before, u after integration, and the spikes, bool."""


def run(graph: LayerGraph, x: Tensor, steps: int, *, membranes: bool = False) -> SpikeRecord:
    """As `simulate`, for any number of images: `BATCH` of them at a time."""
    parts = (x[at : at + BATCH] for at in range(0, len(x), BATCH))
    return SpikeRecord.concatenate([simulate(graph, part, steps, membranes=membranes) for part in parts])


@torch.inference_mode()
def simulate(
    graph: LayerGraph,
    x: Tensor,
    steps: int,
    *,
    membranes: bool = False,
    heard: SpikeRecord | None = None,
    only: Collection[str] | None = None,
    watch: Watch | None = None,
) -> SpikeRecord:
    """Run the spiking `graph` on images `x` ``[B, *input]``, held constant, for `steps` steps from a fresh state.

    All layers are synchronous: spikes of step t reach the next layer in step t.

    Args:
        graph: layers whose activations are `IntegrateFire`.
        x: images; the arithmetic is done in their type, float32 but for an oracle in float64.
        steps: T, at least 1.
        membranes: also record every layer's potential u after integration, before reset.
        heard: another run's record on the same images. Each layer then hears the spikes recorded there, its own
            past ones included, instead of those simulated here. So every spike is judged by itself: one that differs
            is due to that layer in that step, and to nothing before.
        only: with `heard`, the spiking layers to judge; the others are taken as recorded, without membranes.
        watch: told of each plain layer at each step.

    Raises:
        InputError: a potential of a whole-number network passes 2^24, which float32 cannot hold exactly.
    """
    recorder = Recorder(NAME, {name: graph.shapes[name] for name in graph.spiking}, summed=graph.staged)
    replayed = {name: heard.spikes(name) for name in graph.spiking} if heard else {}
    idle = frozenset[str]() if only is None else _idle(graph, only)
    x = x if x.is_floating_point() else x.float()  # weights are computed in the type of the images
    constant: dict[str, Tensor] = {graph.input.name: x}
    for layer in graph.layers[1:]:  # what depends on the input alone is the same at every step
        if layer.name in graph.constant:
            constant[layer.name] = evaluate(layer, *(constant[source] for source in layer.inputs))
    potentials: dict[str, Tensor] = {}
    unheard: dict[str, Tensor] = {}  # what layers make of no spike at all: in a staged network, most steps
    for t in range(steps):
        values, silent = dict(constant), set[str]()
        for layer in graph:
            if layer.name in constant:
                continue
            if layer.name in idle:
                if layer.name in replayed:
                    values[layer.name] = tensor(replayed[layer.name][t]).to(x.dtype)
                    recorder.spikes(layer.name, replayed[layer.name][t])
                continue
            inputs = [values[source] for source in layer.inputs]
            if isinstance(layer, Impulse):
                values[layer.name] = inputs[0] if t == 0 else torch.zeros_like(inputs[0])
                silent |= {layer.name} if t else set()
                continue
            if isinstance(layer, BiasOnce):
                values[layer.name] = inputs[0] + tensor(layer.bias).to(x.dtype) if t == 0 else inputs[0]
                continue
            if isinstance(layer, WindowFire):
                u = potentials[layer.name] + inputs[0] if t else inputs[0].clone()
                if t >= layer.opens:
                    u = u - channels(layer.threshold, u)
                potentials[layer.name] = u
                open_now = layer.opens <= t < layer.opens + layer.steps
                spikes = (u >= tensor(layer.level).to(u.dtype)).to(u.dtype) * float(open_now)
                values[layer.name] = tensor(replayed[layer.name][t]).to(u.dtype) if heard else spikes
                silent |= set() if values[layer.name].any() else {layer.name}
                recorder.spikes(layer.name, spikes.numpy(), u.numpy() if membranes else None)
                continue
            if isinstance(layer, GroupFire):
                spikes = evaluate(layer, *inputs)
                values[layer.name] = tensor(replayed[layer.name][t]).to(x.dtype) if heard else spikes
                shown = inputs[0].unsqueeze(1).expand_as(spikes)
                recorder.spikes(layer.name, spikes.numpy(), shown.numpy() if membranes else None)
                continue
            if not isinstance(layer, IntegrateFire):
                if silent.issuperset(layer.inputs):
                    if layer.name not in unheard:
                        unheard[layer.name] = evaluate(layer, *inputs)
                    values[layer.name] = unheard[layer.name]
                    silent |= set() if values[layer.name].any() else {layer.name}
                else:
                    values[layer.name] = evaluate(layer, *inputs)
                continue
            u = inputs[0] + potentials[layer.name] if t else inputs[0]
            if graph.integer and (largest := float(u.abs().max())) > EXACT:
                raise beyond_exact(layer.name, t + 1, largest)
            fired = u >= channels(layer.level, u)
            said = tensor(replayed[layer.name][t]).to(u.dtype) if heard else fired.to(u.dtype)
            potentials[layer.name] = u - said * channels(layer.threshold, u)
            values[layer.name] = said
            recorder.spikes(layer.name, fired.numpy(), u.numpy() if membranes else None)
            if watch:
                watch(layer.name, t, u, fired)
        recorder.readout(values[graph.output.name].numpy())
    return recorder.finish()


def _idle(graph: LayerGraph, only: Collection[str]) -> frozenset[str]:
    """What need not be computed where spikes are known: all but the layers `only`, the output, and what leads there."""
    needed: set[str] = set()
    waiting = [*only, graph.output.name]
    while waiting:
        name = waiting.pop()
        if name not in needed and (name in only or name not in graph.spiking):
            needed.add(name)
            waiting += graph[name].inputs
    return frozenset(layer.name for layer in graph if layer.name not in needed)
