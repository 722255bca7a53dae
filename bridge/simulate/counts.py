"""A staged network from its spike counts: each layer's weights are applied once, whatever the number of steps.

What a neuron has got by the time its window opens is its inputs' counts times the weights, and its spikes are then as
many ones as fit, one behind the other, and zeros. So a layer's count says all of its train.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bridge._util.progress import progress
from bridge.graph import Affine, AtLeast, BiasOnce, Impulse, LayerGraph, WindowFire
from bridge.records import Recorder, SpikeRecord, running_sum
from bridge.simulate import reference
from bridge.simulate.engine.simulation import Simulation
from bridge.simulate.ops import evaluate, tensor

NAME = "engine"


@torch.inference_mode()
def from_counts(
    graph: LayerGraph, x: Tensor, steps: int, *, record: bool, memory: int, device: torch.device
) -> Simulation:
    """Run the staged `graph` on images `x` for `steps` steps, at least its latency: as `SpikingNetwork.simulate`."""
    largest = max(int(np.prod(shape)) for shape in graph.shapes.values())
    size = max(1, min(len(x), memory // (16 * largest)))
    run = _batch if _counts_tell_all(graph) else _stepped
    parts = [
        run(graph, x[at : at + size].to(device), steps, record) for at in progress(range(0, len(x), size), "simulating")
    ]
    return Simulation(
        outputs=np.concatenate([part.outputs for part in parts], axis=1),
        spikes={name: np.concatenate([part.spikes[name] for part in parts], axis=1) for name in graph.spiking},
        steps=np.full(len(x), steps),
        record=SpikeRecord.concatenate([part.record for part in parts if part.record]) if record else None,
    )


def _counts_tell_all(graph: LayerGraph) -> bool:
    """Whether what comes at each step but spikes comes once, and each pool is of trains that begin together."""
    for layer in graph:
        if layer.name in graph.constant or isinstance(layer, Impulse):
            continue
        if graph.constant.intersection(layer.inputs):
            return False
        if isinstance(layer, Affine) and layer.bias.any():
            return False
        if isinstance(layer, AtLeast):
            (pooled,) = graph[layer.inputs[0]].inputs
            if not isinstance(graph[pooled], WindowFire | AtLeast):
                return False
    return True


def _stepped(graph: LayerGraph, x: Tensor, steps: int, record: bool) -> Simulation:
    found = reference.simulate(graph, x.cpu(), steps)
    fired = {name: found.spikes(name).reshape(steps, len(x), -1).sum(2) for name in graph.spiking}
    kept = replace(found, backend=NAME) if record else None
    return Simulation(outputs=found.outputs(), spikes=fired, steps=np.full(len(x), steps), record=kept)


def _batch(graph: LayerGraph, x: Tensor, steps: int, record: bool) -> Simulation:
    counts: dict[str, Tensor] = {}
    for layer in graph:
        if not layer.inputs:
            counts[layer.name] = x
            continue
        inputs = [counts[source] for source in layer.inputs]
        if isinstance(layer, Impulse):
            counts[layer.name] = inputs[0]
        elif isinstance(layer, BiasOnce):
            counts[layer.name] = inputs[0] + tensor(layer.bias).to(inputs[0])
        elif isinstance(layer, WindowFire):
            counts[layer.name] = _fired(layer, inputs[0])
        elif isinstance(layer, AtLeast):
            counts[layer.name] = _count_of(graph, layer, counts)
        else:
            counts[layer.name] = evaluate(layer, *inputs)
    fired = {name: _over_time(graph, name, counts[name], steps) for name in graph.spiking}
    outputs, readout = _outputs(graph, x, counts, steps)
    kept = None
    if record:
        recorder = Recorder(NAME, {name: graph.shapes[name] for name in graph.spiking}, summed=True)
        for t in range(steps):
            for name in graph.spiking:
                recorder.spikes(name, _train(graph, name, counts[name], t).cpu().numpy())
            recorder.readout(readout[t])
        kept = recorder.finish()
    return Simulation(outputs=outputs, spikes=fired, steps=np.full(len(x), steps), record=kept)


def _fired(layer: WindowFire, drive: Tensor) -> Tensor:
    """How often each neuron fires, rounded as in the simulation of each step."""
    u, level = drive.clone(), tensor(layer.level).to(drive)
    total = torch.zeros_like(drive)
    for _ in range(layer.steps):
        total += u.sub_(1) >= level
    return total


def _train(graph: LayerGraph, name: str, counts: Tensor, t: int) -> Tensor:
    """Spikes of the layer `name` at step `t`, counted from 0."""
    layer = graph[name]
    assert isinstance(layer, WindowFire)
    inside = layer.opens <= t < layer.opens + layer.steps
    return counts > t - layer.opens if inside else torch.zeros_like(counts, dtype=torch.bool)


def _over_time(graph: LayerGraph, name: str, counts: Tensor, steps: int) -> np.ndarray:
    """Spikes of each image at each step, ``[T, B]``."""
    flat = counts.reshape(len(counts), -1)
    result = np.zeros((steps, len(counts)), np.int64)
    layer = graph[name]
    assert isinstance(layer, WindowFire)
    for k in range(layer.steps):
        result[layer.opens + k] = (flat > k).sum(1).cpu().numpy()
    return result


def _count_of(graph: LayerGraph, layer: AtLeast, counts: dict[str, Tensor]) -> Tensor:
    """How often `layer` fires: its source is a pool of trains of one window, each as many ones as it counts."""
    pool = graph[layer.inputs[0]]
    trains = counts[pool.inputs[0]]
    total = torch.zeros_like(counts[pool.name])
    for k in range(int(trains.max())):
        summed = evaluate(pool, (trains > k).to(trains.dtype))
        total += evaluate(layer, summed)
    return total


def _outputs(graph: LayerGraph, x: Tensor, counts: dict[str, Tensor], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The output after each step, and the readout at each, ``[T, B, ...]``."""
    path = {graph.output.name}
    for layer in reversed(graph.layers):
        if layer.name in path and not isinstance(layer, WindowFire | Impulse):
            path.update(layer.inputs)
    readout = []
    for t in range(steps):
        values: dict[str, Tensor] = {}
        for layer in graph:
            if layer.name not in path or not layer.inputs:
                continue
            if isinstance(layer, WindowFire):
                values[layer.name] = _train(graph, layer.name, counts[layer.name], t).to(x.dtype)
            elif isinstance(layer, Impulse):
                values[layer.name] = x if t == 0 else torch.zeros_like(x)
            elif isinstance(layer, BiasOnce):
                value = values[layer.inputs[0]]
                values[layer.name] = value + tensor(layer.bias).to(value) if t == 0 else value
            else:
                values[layer.name] = evaluate(layer, *(values[source] for source in layer.inputs))
        readout.append(values[graph.output.name].cpu().numpy())
    stacked = np.stack(readout)
    return running_sum(stacked), stacked
