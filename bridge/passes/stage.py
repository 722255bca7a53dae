"""An ANN becomes a staged spiking network: one whose spike counts are the ANN's activations, in every layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from bridge.graph import (
    Affine,
    BiasOnce,
    ClipFloorShift,
    Impulse,
    IntegrateFire,
    Layer,
    LayerGraph,
    WindowFire,
)
from bridge.passes.fold_thresholds import fold_thresholds
from bridge.passes.to_float32 import to_float32
from bridge.simulate.ops import evaluate


def with_levels(ann: LayerGraph, steps: int | None) -> LayerGraph:
    """`ann` with `steps` levels in every activation; None: each keeps its own L."""
    if steps is None:
        return ann
    changes = {layer.name: [replace(layer, levels=steps)] for layer in ann if isinstance(layer, ClipFloorShift)}
    return ann.rewrite(changes)


def stage(ann: LayerGraph) -> LayerGraph:
    """The staged network of `ann`, whose batch norms are folded and whose concatenations are sums.

    A spike of a layer is worth q = λ / L, which takes λ's place in folding: ``W' = W · q_in / q_out``. Affine layers
    lose their biases: what they come to at a neuron, its drive with a zero image and no spikes, is part of its level.
    """
    levels = {layer.name: layer.levels for layer in ann if isinstance(layer, ClipFloorShift)}
    charges = {
        layer.name: [replace(layer, threshold=layer.threshold.astype(np.float64) / layer.levels)]
        for layer in ann
        if isinstance(layer, ClipFloorShift)
    }
    folded = fold_thresholds(ann.rewrite(charges))
    rest = _at_rest(folded)
    impulse = folded.free(f"{folded.input.name}_once")
    layers: list[Layer] = []
    lasts: dict[str, int] = {}
    for layer in folded:
        inputs = tuple(impulse if source == folded.input.name else source for source in layer.inputs)
        last = max((lasts[source] for source in inputs), default=0)
        if isinstance(layer, IntegrateFire):
            drive = rest[layer.inputs[0]]
            steps = levels[layer.name]
            layers.append(WindowFire(name=layer.name, inputs=inputs, level=-0.5 - drive, opens=last, steps=steps))
            last += steps - 1
        elif isinstance(layer, Affine):
            layers.append(replace(layer, inputs=inputs, bias=np.zeros_like(layer.bias)))
        else:
            layers.append(replace(layer, inputs=inputs))
        lasts[layer.name] = last
        if layer is folded.input:
            layers.append(Impulse(name=impulse, inputs=(layer.name,)))
            lasts[impulse] = 0
    output = layers[-1]
    total = rest[folded.output.name]
    if total.any():
        name = folded.free(f"{output.name}_once")
        layers.append(BiasOnce(name=name, inputs=(output.name,), bias=total))
    return to_float32(LayerGraph(tuple(layers)))


@torch.inference_mode()
def _at_rest(graph: LayerGraph) -> dict[str, np.ndarray]:
    """What each layer gives for a zero image and no spikes, in float64."""
    values: dict[str, torch.Tensor] = {}
    for layer in graph:
        if not layer.inputs or isinstance(layer, IntegrateFire):
            values[layer.name] = torch.zeros(1, *graph.shapes[layer.name], dtype=torch.float64)
        else:
            values[layer.name] = evaluate(layer, *(values[source] for source in layer.inputs))
    return {name: value[0].numpy() for name, value in values.items()}
