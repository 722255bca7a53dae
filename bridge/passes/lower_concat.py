"""Concatenation becomes addition, the only way in which NIR joins two signals."""

from __future__ import annotations

import numpy as np

from bridge.graph import Add, Affine, Concat, Conv1d, Conv2d, Layer, LayerGraph, Linear, Shape


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
            new.append(select(f"{layer.name}_part{number}", source, rows, shape))
        joined = new[0].name
        for number, part in enumerate(list(new[1:]), start=2):
            name = layer.name if number == len(layer.inputs) else f"{layer.name}_sum{number}"
            new.append(Add(name=name, inputs=(joined, part.name)))
            joined = name
        changes[layer.name] = new
    return graph.rewrite(changes)


def select(name: str, source: str, rows: np.ndarray, shape: Shape) -> Affine:
    """The layer that gives output channel o the sum of its input's channels i where ``rows[o, i]`` is 1.

    `shape` is the output's (or input's) and tells a vector from a signal from a feature map.
    """
    bias = np.zeros(len(rows))
    if len(shape) == 3:
        return Conv2d(name=name, inputs=(source,), weight=rows[:, :, None, None], bias=bias)
    if len(shape) == 2:
        return Conv1d(name=name, inputs=(source,), weight=rows[:, :, None], bias=bias)
    return Linear(name=name, inputs=(source,), weight=rows, bias=bias)
