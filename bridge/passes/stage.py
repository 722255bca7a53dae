"""An ANN becomes a staged spiking network: one whose spike counts are the ANN's activations, in every layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bridge.graph import (
    Affine,
    AtLeast,
    BiasOnce,
    ClipFloorShift,
    Conv1d,
    Conv2d,
    Impulse,
    IntegrateFire,
    Layer,
    LayerGraph,
    MaxPool,
    SumPool2d,
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
        elif isinstance(layer, MaxPool):
            layers += _pool(folded, replace(layer, inputs=inputs))
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


def _pool(graph: LayerGraph, pool: MaxPool) -> list[Layer]:
    """The sum over windows of spikes, and the threshold that makes it their maximum, or their minimum.

    The spikes of a window's neurons begin together, so one of them fires when any of them does.
    """
    channels, *space = graph.shapes[pool.name]
    before = graph.shapes[pool.inputs[0]][1:]
    name = graph.free(f"{pool.name}_any")
    sizes = zip(before, space, pool.kernel, pool.stride, pool.padding, pool.dilation, strict=True)
    longer = [max(0, (o - 1) * s + d * (k - 1) + 1 - n - 2 * p) for n, o, k, s, p, d in sizes]
    summed: Layer
    if len(space) == 2 and set(pool.dilation) == {1} and not any(longer):
        kernel, stride, padding = ((one, two) for one, two in (pool.kernel, pool.stride, pool.padding))
        summed = SumPool2d(name=name, inputs=pool.inputs, kernel=kernel, stride=stride, padding=padding)
    else:  # ones, and as many zeros in front of them as the last window reaches too far
        reach = [d * (k - 1) + 1 for k, d in zip(pool.kernel, pool.dilation, strict=True)]
        weight = np.zeros((channels, 1, *(r + e for r, e in zip(reach, longer, strict=True))), np.float32)
        places = tuple(slice(e, None, d) for e, d in zip(longer, pool.dilation, strict=True))
        weight[(slice(None), slice(None), *places)] = 1.0
        padding = tuple(p + e for p, e in zip(pool.padding, longer, strict=True))
        common: dict[str, Any] = {"name": name, "inputs": pool.inputs, "weight": weight, "groups": channels}
        common["bias"] = np.zeros(channels, np.float32)
        if len(space) == 1:
            summed = Conv1d(**common, stride=pool.stride[0], padding=padding[0])
        else:
            pairs: dict[str, Any] = {"stride": pool.stride, "padding": padding}
            summed = Conv2d(**common, **pairs)
    level = np.full(channels, 0.5)
    if pool.minimum is not None:  # all that is really in the window, where the map ends fewer
        real = evaluate(summed, torch.ones(1, channels, *before, dtype=torch.float64))[0].numpy()
        level = np.where(pool.minimum.reshape(-1, *[1] * len(space)), real - 0.5, 0.5)
    return [summed, AtLeast(name=pool.name, inputs=(name,), level=level)]


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
