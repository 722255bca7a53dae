"""A staged or grouped network from its spike counts: each layer's weights are applied once, whatever the steps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge._util.progress import progress
from bridge.graph import GroupFire, LayerGraph, WindowFire
from bridge.records import SpikeRecord, running_sum
from bridge.simulate import reference
from bridge.simulate.counting_form import counting_form
from bridge.simulate.engine.count_engine import CountEngine
from bridge.simulate.engine.simulation import Simulation
from bridge.simulate.readouts import readout_path, readouts

NAME = "engine"


class CountSimulator:
    """A staged or grouped network made ready to run."""

    def __init__(self, graph: LayerGraph, device: torch.device) -> None:
        self.graph = graph
        self.device = device
        form = counting_form(graph)
        self._engine = None if form is None else CountEngine(form.graph, device)

    @torch.inference_mode()
    def run(self, x: Tensor, steps: int, *, record: bool, memory: int) -> Simulation:
        """Run images `x` for `steps` steps: as `SpikingNetwork.simulate`.

        A network of which counts do not tell all is simulated step by step.
        """
        largest = max(int(np.prod(shape)) for shape in self.graph.shapes.values())
        size = max(1, min(len(x), memory // (16 * largest)))
        run = self._stepped if self._engine is None else self._counted
        parts = [run(x[at : at + size], steps, record, memory) for at in progress(range(0, len(x), size), "simulating")]
        return Simulation(
            outputs=np.concatenate([part.outputs for part in parts], axis=1),
            spikes={name: np.concatenate([part.spikes[name] for part in parts], axis=1) for name in self.graph.spiking},
            steps=np.full(len(x), steps),
            record=SpikeRecord.concatenate([part.record for part in parts if part.record]) if record else None,
        )

    def _stepped(self, x: Tensor, steps: int, record: bool, memory: int) -> Simulation:
        graph = self.graph
        found = reference.simulate(graph, x.cpu(), steps)
        fired = {name: found.spikes(name).reshape(steps, len(x), -1).sum(2) for name in graph.spiking}
        kept = replace(found, backend=NAME) if record else None
        return Simulation(outputs=found.outputs(), spikes=fired, steps=np.full(len(x), steps), record=kept)

    def _counted(self, x: Tensor, steps: int, record: bool, memory: int) -> Simulation:
        graph = self.graph
        assert self._engine is not None
        near_output = {name for name in readout_path(graph) if isinstance(graph[name], WindowFire)}
        wanted = frozenset(graph.spiking) if record else frozenset(near_output)
        found = self._engine.count(x, wanted, memory)
        if graph.staged:
            readout = readouts(graph, lambda name, t: _fired(graph, name, found.of_layer[name], t), x, steps)
        else:
            readout = np.stack([found.output] * steps)
        kept = None
        if record:
            shapes = {name: graph.shapes[name] for name in graph.spiking}
            packed = {name: _trains(graph, name, found.of_layer[name], steps) for name in shapes}
            kept = SpikeRecord(NAME, shapes, packed, readout, summed=graph.staged)
        spikes = {name: _over_time(graph, name, above, steps) for name, above in found.above.items()}
        outputs = running_sum(readout) if graph.staged else readout
        return Simulation(outputs=outputs, spikes=spikes, steps=np.full(len(x), steps), record=kept)


def _fired(graph: LayerGraph, name: str, counts: NDArray[np.integer], t: int) -> NDArray[np.bool_]:
    """Spikes of the layer `name` at step `t`, counted from 0."""
    layer = graph[name]
    if isinstance(layer, GroupFire):
        return np.stack([counts > k for k in range(layer.levels)], axis=1)
    assert isinstance(layer, WindowFire)
    if layer.opens <= t < layer.opens + layer.steps:
        return counts > t - layer.opens
    return np.zeros(counts.shape, bool)


def _trains(graph: LayerGraph, name: str, counts: NDArray[np.integer], steps: int) -> NDArray[np.uint8]:
    """The spikes of the layer `name` as a record holds them, ``[T, B, bytes]``."""
    layer, size = graph[name], math.prod(graph.shapes[name])
    packed = np.zeros((steps, len(counts), (size + 7) // 8), np.uint8)
    busy = range(layer.opens, min(steps, layer.opens + layer.steps)) if isinstance(layer, WindowFire) else range(steps)
    for t in busy:
        packed[t] = np.packbits(_fired(graph, name, counts, t).reshape(len(counts), -1), axis=-1)
    return packed


def _over_time(graph: LayerGraph, name: str, above: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Spikes of each image at each step, ``[T, B]``, of which `above` neurons fire more than 0, 1, … times."""
    layer = graph[name]
    if not isinstance(layer, WindowFire):
        return np.stack([above.sum(axis=0)] * steps)
    result = np.zeros((steps, above.shape[1]), np.int64)
    there = max(0, min(layer.steps, steps - layer.opens))  # a backend may run fewer steps than the latency
    result[layer.opens : layer.opens + there] = above[:there]
    return result
