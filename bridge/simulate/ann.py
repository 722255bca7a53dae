"""The ANN's own activations, which the spiking network's rates are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from bridge.graph import ClipFloorShift, LayerGraph
from bridge.simulate.ops import channels, evaluate


@torch.inference_mode()
def activations(graph: LayerGraph, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Normalised activations ``a/λ`` of every QCFS layer and the output of the ANN `graph`, for `x` ``[B, *input]``.

    Returns:
        Per QCFS layer its ``a/λ`` in [0, 1], ``[B, *shape]``, by name; and the output ``[B, ...]``.
    """
    values: dict[str, Tensor] = {graph.input.name: x}
    normalised = {}
    for layer in graph.layers[1:]:
        value = values[layer.name] = evaluate(layer, *(values[source] for source in layer.inputs))
        if isinstance(layer, ClipFloorShift):
            normalised[layer.name] = value / channels(layer.threshold, value)
    return normalised, values[graph.output.name]
