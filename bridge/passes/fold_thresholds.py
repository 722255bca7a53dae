"""QCFS layers with thresholds λ become integrate-and-fire layers with threshold 1."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np

from bridge.graph import (
    Add,
    Affine,
    Array,
    AvgPool2d,
    ClipFloorShift,
    Flatten,
    IntegrateFire,
    Layer,
    LayerGraph,
    MaxPool,
    Scale,
)
from bridge.passes.scaling import scale_inputs, scaled

Factors = dict[tuple[str, str], Array]
"""By edge (source, reader): the factor per channel by which the reader wants the source's output multiplied."""

OUTSIDE = ""
"""The reader of the network's output."""


def fold_thresholds(graph: LayerGraph) -> LayerGraph:
    """Replace every `ClipFloorShift` by an `IntegrateFire` of unit threshold: ``W' = W·λ_in/λ_out``, ``b' = b/λ_out``.

    Spikes are 0/1 where the ANN had 0…λ, so what reads them is multiplied by λ_in, and what feeds a neuron is divided
    by its λ_out. A first sweep carries each λ_in forward to the next affine layer, a second carries each 1/λ_out
    back to the one before: through pooling and flattening, with which a factor per channel commutes, and back
    through a sum to both of its branches. A factor that meets no affine layer becomes a `Scale` on its edge.
    """
    readers = {layer.name: [reader.name for reader in graph.consumers(layer.name)] for layer in graph}
    readers[graph.output.name].append(OUTSIDE)
    layers, factors = _carry_forward(graph)
    layers = _carry_back(layers, graph, readers, factors)
    factors = {edge: factor for edge, factor in factors.items() if not (factor == 1).all()}
    return _insert_scales(layers, readers, factors)


def _carry_forward(graph: LayerGraph) -> tuple[list[Layer], Factors]:
    """Layers with every λ_in folded in, and what is left to be folded back."""
    layers: list[Layer] = []
    pending: dict[str, Array] = {}
    factors: Factors = {}
    for layer in graph:
        known = {source: pending[source] for source in layer.inputs if source in pending}
        if isinstance(layer, ClipFloorShift):
            (source,) = layer.inputs
            threshold = layer.threshold.astype(np.float64)
            factors[source, layer.name] = known.get(source, 1.0) / threshold
            pending[layer.name] = threshold
            layers.append(IntegrateFire(name=layer.name, inputs=layer.inputs, level=np.full_like(threshold, 0.5)))
            continue
        for source, factor in known.items():
            if isinstance(layer, Affine):
                layer = scale_inputs(layer, factor)
            elif isinstance(layer, Flatten):
                pending[layer.name] = np.repeat(factor, int(np.prod(graph.shapes[source][1:])))
            elif isinstance(layer, AvgPool2d | Scale | MaxPool):
                pending[layer.name] = factor
            else:
                factors[source, layer.name] = factor
        layers.append(layer)
    if graph.output.name in pending:
        factors[graph.output.name, OUTSIDE] = pending[graph.output.name]
    return layers, factors


def _carry_back(layers: list[Layer], graph: LayerGraph, readers: dict[str, list[str]], factors: Factors) -> list[Layer]:
    """Layers with every factor folded in that all readers of a layer share; uses up `layers` and what it folds."""
    result: list[Layer] = []
    while layers:
        layer = layers.pop()  # and so let go of it: two sets of weights at once would be one too many
        factor = _shared(layer.name, readers, factors)
        taken = factor is not None
        if factor is None:
            pass
        elif isinstance(layer, Affine):
            layer = _scale_outputs(layer, factor)
        elif isinstance(layer, AvgPool2d | Scale | Add):
            _multiply(factors, layer, factor)
        elif isinstance(layer, Flatten):
            per_channel = factor.reshape(graph.shapes[layer.inputs[0]][0], -1)
            taken = bool((per_channel == per_channel[:, :1]).all())
            if taken:
                _multiply(factors, layer, per_channel[:, 0])
        else:
            taken = False
        if taken:
            for reader in readers[layer.name]:
                del factors[layer.name, reader]
        result.append(layer)
    return result[::-1]


def _shared(name: str, readers: dict[str, list[str]], factors: Factors) -> Array | None:
    """The factor that all readers of `name` want, or None if they differ or want none."""
    wanted = [factors.get((name, reader)) for reader in readers[name]]
    first = wanted[0]
    if first is None or any(other is None or not np.array_equal(first, other) for other in wanted):
        return None
    return first


def _multiply(factors: Factors, layer: Layer, factor: Array) -> None:
    for source in layer.inputs:
        factors[source, layer.name] = factors.get((source, layer.name), 1.0) * factor


def _insert_scales(layers: list[Layer], readers: dict[str, list[str]], factors: Factors) -> LayerGraph:
    """The graph with a `Scale` for every factor that is left, one where all readers of a layer want the same."""
    result: list[Layer] = []
    moved: dict[str, dict[str, str]] = defaultdict(dict)  # by reader: where it finds each of its sources now
    taken = {layer.name for layer in layers}

    def scale(name: str, source: str, factor: Array) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        result.append(Scale(name=name, inputs=(source,), scale=factor))
        return name

    for layer in layers:
        result.append(replace(layer, inputs=tuple(moved[layer.name].get(source, source) for source in layer.inputs)))
        factor = _shared(layer.name, readers, factors)
        if factor is not None:
            name = scale(f"{layer.name}_scale", layer.name, factor)
            for reader in readers[layer.name]:
                moved[reader][layer.name] = name
            continue
        for reader in readers[layer.name]:
            if (layer.name, reader) in factors:
                name = f"{layer.name}_to_{reader}"
                moved[reader][layer.name] = scale(name, layer.name, factors[layer.name, reader])
    return LayerGraph(tuple(result))


def _scale_outputs(layer: Affine, factor: Array) -> Affine:
    """`layer` with output channel c multiplied by ``factor[c]``."""
    rows = factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
    return replace(layer, weight=scaled(layer.weight, rows), bias=layer.bias * factor)
