"""Concatenation becomes addition, the only way in which NIR joins two signals."""

from __future__ import annotations

import numpy as np

from bridge.graph import Add, Concat, Layer, LayerGraph, pointwise


def lower_concat(graph: LayerGraph) -> LayerGraph:
    """Replace every `Concat` by a sum of its inputs, each moved to its own channels: ``[a; b] = E_a a + E_b b``.

    ``E`` is a 1×1 convolution (on vectors, a matrix) of zeros and ones, so the sum is exact: every value is added to
    zeros only.
    """
    changes: dict[str, list[Layer]] = {}
    for layer in graph:
        if not isinstance(layer, Concat):
            continue
        total, *_ = shape = graph.shapes[layer.name]
        new: list[Layer] = []
        start = 0
        for number, source in enumerate(layer.inputs):
            channels = graph.shapes[source][0]
            rows = np.zeros((total, channels))
            rows[start : start + channels] = np.eye(channels)
            start += channels
            new.append(pointwise(f"{layer.name}_part{number}", source, rows, len(shape)))
        joined = new[0].name
        for number, part in enumerate(list(new[1:]), start=2):
            name = layer.name if number == len(layer.inputs) else f"{layer.name}_sum{number}"
            new.append(Add(name=name, inputs=(joined, part.name)))
            joined = name
        changes[layer.name] = new
    return graph.rewrite(changes)
