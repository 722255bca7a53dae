"""An ANN's activations become whole numbers of spikes: the form from which staged and grouped networks are made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bridge.graph import ClipFloorShift, Layer, LayerGraph, SpikeCount
from bridge.passes.fold_thresholds import fold_thresholds


def with_levels(ann: LayerGraph, steps: int | None) -> LayerGraph:
    """`ann` with `steps` levels in every activation; None: each keeps its own L."""
    if steps is None:
        return ann
    changes = {layer.name: [replace(layer, levels=steps)] for layer in ann if isinstance(layer, ClipFloorShift)}
    return ann.rewrite(changes)


def counting(ann: LayerGraph) -> LayerGraph:
    """`ann`, whose batch norms are folded and whose concatenations are sums, with a `SpikeCount` for each activation.

    A spike of a layer is worth q = λ / L, which takes λ's place in folding: ``W' = W · q_in / q_out``.
    """
    found = {layer.name: layer for layer in ann if isinstance(layer, ClipFloorShift)}
    charges = {
        name: [replace(layer, threshold=layer.threshold.astype(np.float64) / layer.levels)]
        for name, layer in found.items()
    }
    folded = fold_thresholds(ann.rewrite(charges))
    counts: dict[str, list[Layer]] = {}
    for name, layer in found.items():
        level = np.full(folded.shapes[name][:1], -0.5)
        counts[name] = [SpikeCount(name=name, inputs=folded[name].inputs, level=level, steps=layer.levels)]
    return folded.rewrite(counts)
