"""The ANN's own activations, which the spiking network's rates are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from bridge.graph import ClipFloorShift, LayerGraph
from bridge.simulate.ops import channels, evaluate


@torch.inference_mode()
def activations(graph: LayerGraph, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What every QCFS layer of the ANN `graph` says and hears, and the output, for `x` ``[B, *input]``.

    Returns:
        By QCFS layer its ``a/λ`` in [0, 1], ``[B, *shape]``; likewise its input z; and the output ``[B, ...]``.
    """
    values: dict[str, Tensor] = {graph.input.name: x}
    normalised, drives = {}, {}
    for layer in graph.layers[1:]:
        value = values[layer.name] = evaluate(layer, *(values[source] for source in layer.inputs))
        if isinstance(layer, ClipFloorShift):
            normalised[layer.name] = value / channels(layer.threshold, value)
            drives[layer.name] = values[layer.inputs[0]]
    return normalised, drives, values[graph.output.name]
