"""The ANN's own activations, which the spiking network's rates are held against."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bridge.graph import ClipFloorShift, LayerGraph, SpikeCount
from bridge.simulate.ops import channels, evaluate


@torch.inference_mode()
def activations(
    graph: LayerGraph, x: Tensor, given: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What every activation of the ANN `graph` emits and receives, and the output, for `x` ``[B, *input]``.

    Args:
        graph: the ANN.
        x: images; the arithmetic is done in their type.
        given: by activation the ``a/λ`` that its readers receive instead of its own: each layer is then judged by
            itself.

    Returns:
        By activation its ``a/λ``, or count / L, in [0, 1], ``[B, *shape]``; likewise its input z; and the output
        ``[B, ...]``.
    """
    values: dict[str, Tensor] = {graph.input.name: x if x.is_floating_point() else x.float()}
    normalised, drives = {}, {}
    for layer in graph.layers[1:]:
        value = values[layer.name] = evaluate(layer, *(values[source] for source in layer.inputs))
        if isinstance(layer, ClipFloorShift | SpikeCount):
            counting = isinstance(layer, SpikeCount)
            most = np.array([layer.steps]) if isinstance(layer, SpikeCount) else layer.threshold
            largest = channels(most, value)
            normalised[layer.name] = value / largest
            drives[layer.name] = values[layer.inputs[0]]
            if given is not None:
                value = given[layer.name].to(value) * largest
                values[layer.name] = value.round() if counting else value
    return normalised, drives, values[graph.output.name]
