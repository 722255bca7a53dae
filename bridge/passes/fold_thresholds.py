"""QCFS layers with thresholds λ become integrate-and-fire layers with threshold 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from bridge.graph import (
    Affine,
    Array,
    AvgPool2d,
    ClipFloorShift,
    Conv2d,
    Flatten,
    IntegrateFire,
    Layer,
    LayerGraph,
    Scale,
)

Factors = dict[str, Array]
"""Per layer, by name: the per-channel factor by which its output is still to be multiplied."""


def fold_thresholds(graph: LayerGraph) -> LayerGraph:
    """Replace every `ClipFloorShift` by an `IntegrateFire` of unit threshold: ``W' = W·λ_in/λ_out``, ``b' = b/λ_out``.

    Spikes are 0/1 where the ANN had 0…λ, so what reads them is multiplied by λ_in, and what feeds a neuron is divided
    by its λ_out. A first sweep carries each λ_in forward to the next affine layer, a second carries each 1/λ_out
    back to the one before, both through pooling and flattening, with which a factor per channel commutes. A factor
    that meets no affine layer becomes a `Scale`.
    """
    forwarded, owed = _carry_forward(graph)
    layers, owed = _carry_back(forwarded, graph, owed)
    changes: dict[str, list[Layer]] = {}
    for layer in layers:
        changes[layer.name] = [layer]
        if layer.name in owed:
            changes[layer.name].append(Scale(name=f"{layer.name}_scale", inputs=(layer.name,), scale=owed[layer.name]))
    return graph.rewrite(changes)


def _carry_forward(graph: LayerGraph) -> tuple[list[Layer], Factors]:
    """Layers with every λ_in folded in, and what each layer's output must still be multiplied by."""
    layers: list[Layer] = []
    pending: Factors = {}
    owed: Factors = {}
    for layer in graph:
        factor = pending.get(layer.inputs[0]) if layer.inputs else None
        if isinstance(layer, ClipFloorShift):
            layers.append(_twin(layer))
            owed[layer.inputs[0]] = (1.0 if factor is None else factor) / layer.threshold
            pending[layer.name] = layer.threshold
        elif factor is not None and isinstance(layer, Affine):
            layers.append(_scale_inputs(layer, factor))
        else:
            layers.append(layer)
            if isinstance(layer, Flatten) and factor is not None:
                factor = np.repeat(factor, int(np.prod(graph.shapes[layer.inputs[0]][1:])))
            if factor is not None:
                pending[layer.name] = factor
    if graph.output.name in pending:
        owed[graph.output.name] = pending[graph.output.name]
    return layers, owed


def _carry_back(layers: list[Layer], graph: LayerGraph, owed: Mapping[str, Array]) -> tuple[list[Layer], Factors]:
    """Layers with every 1/λ_out folded in, and the factors that no affine layer could take."""
    owed = dict(owed)
    result: list[Layer] = []
    for layer in reversed(layers):
        factor = owed.get(layer.name)
        if factor is not None:
            if isinstance(layer, Affine):
                layer = _scale_outputs(layer, owed.pop(layer.name))
            elif isinstance(layer, AvgPool2d):
                owed[layer.inputs[0]] = owed.pop(layer.name)
            elif isinstance(layer, Flatten):
                per_channel = factor.reshape(graph.shapes[layer.inputs[0]][0], -1)
                if (per_channel == per_channel[:, :1]).all():
                    owed[layer.inputs[0]] = per_channel[:, 0]
                    del owed[layer.name]
        result.append(layer)
    return result[::-1], owed


def _twin(layer: ClipFloorShift) -> IntegrateFire:
    return IntegrateFire(name=layer.name, inputs=layer.inputs, level=np.full_like(layer.threshold, 0.5))


def _scale_inputs(layer: Affine, factor: Array) -> Affine:
    """`layer` with the weights on input channel c multiplied by ``factor[c]``."""
    if isinstance(layer, Conv2d):  # within its group, an output channel sees a slice of the input channels
        per_group = factor.reshape(layer.groups, 1, -1, 1, 1)
        grouped = layer.weight.reshape(layer.groups, -1, *layer.weight.shape[1:])
        return replace(layer, weight=(grouped * per_group).reshape(layer.weight.shape))
    return replace(layer, weight=layer.weight * factor)


def _scale_outputs(layer: Affine, factor: Array) -> Affine:
    """`layer` with output channel c multiplied by ``factor[c]``."""
    rows = factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
    return replace(layer, weight=layer.weight * rows, bias=layer.bias * factor)
