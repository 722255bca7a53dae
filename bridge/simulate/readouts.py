"""The readout of a staged network at each step, from the spikes of the layers before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.graph import BiasOnce, Impulse, LayerGraph, WindowFire
from bridge.simulate.ops import evaluate, tensor


@torch.inference_mode()
def readouts(
    graph: LayerGraph, fired: Callable[[str, int], NDArray[Any]], x: Tensor, steps: int
) -> NDArray[np.float32]:
    """The readout of the staged `graph` at each of `steps` steps, ``[T, B, ...]``, for images `x`.

    ``fired(name, t)`` gives the spikes ``[B, *shape]`` of a layer at step t, counted from 0. The readout is zero but at
    the steps at which something reaches it.
    """
    path = readout_path(graph)
    layers = [layer for layer in graph if layer.name in path and layer.inputs]
    busy = {0}
    for layer in layers:
        if isinstance(layer, WindowFire):
            busy.update(range(layer.opens, layer.opens + layer.steps))
    readout = np.zeros((steps, len(x), *graph.shapes[graph.output.name]), np.float32)
    for t in sorted(t for t in busy if t < steps):
        values: dict[str, Tensor] = {}
        for layer in layers:
            if isinstance(layer, WindowFire):
                values[layer.name] = tensor(fired(layer.name, t))
            elif isinstance(layer, Impulse):
                values[layer.name] = x.cpu() if t == 0 else torch.zeros_like(x, device="cpu")
            elif isinstance(layer, BiasOnce):
                value = values[layer.inputs[0]]
                values[layer.name] = value + tensor(layer.bias) if t == 0 else value
            else:
                values[layer.name] = evaluate(layer, *(values[source] for source in layer.inputs))
        readout[t] = values[graph.output.name].numpy()
    return readout


def readout_path(graph: LayerGraph) -> frozenset[str]:
    """The layers from the last spikes, or the image, to the output."""
    path = {graph.output.name}
    for layer in reversed(graph.layers):
        if layer.name in path and not isinstance(layer, WindowFire | Impulse):
            path.update(layer.inputs)
    return frozenset(path)
