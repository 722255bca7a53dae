"""The spiking network layer by layer, each through all steps: for what looks at how a layer fires, or changes it.

Memory grows with T and the number of images; results of a whole data set are the engine's business.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bridge._util.progress import progress
from bridge.graph import IntegrateFire, LayerGraph
from bridge.simulate.ops import evaluate

Fire = Callable[[IntegrateFire, Tensor], Tensor]
"""Of a layer of neurons and what drives them, ``[T, B, *shape]``, their spikes 0/1 of that shape."""
Compute = Callable[..., Tensor]
"""Of a layer without state and its inputs ``[B, ...]``, its output, as `evaluate` gives it."""


def layer_by_layer(
    graph: LayerGraph, x: Tensor, steps: int, fire: Fire, title: str = "", compute: Compute = evaluate
) -> Tensor:
    """Take images `x` ``[B, *input]``, held constant, through the spiking `graph`, with `fire` for its neurons.

    Other layers are what `compute` makes of them. Returns the readout at each step, ``[T, B, ...]``, with gradients if
    there are any. With a `title` there is a progress bar.
    """
    values: dict[str, Tensor] = {}  # rows [T · B, ...], or images [B, ...] where no spike has come in
    readers = {layer.name: len(graph.consumers(layer.name)) for layer in graph}
    for layer in progress(graph.layers, title) if title else graph.layers:
        constant = layer.name in graph.constant
        if not layer.inputs:
            values[layer.name] = x
        elif isinstance(layer, IntegrateFire):
            (source,) = layer.inputs
            drive = _over_time(values[source], steps, source in graph.constant)
            values[layer.name] = fire(layer, drive).flatten(0, 1)
        else:
            values[layer.name] = compute(
                layer,
                *(
                    values[source]
                    if constant
                    else _over_time(values[source], steps, source in graph.constant).flatten(0, 1)
                    for source in layer.inputs
                ),
            )
        for source in layer.inputs:
            readers[source] -= 1
            if readers[source] == 0:
                del values[source]
    return _over_time(values[graph.output.name], steps, graph.output.name in graph.constant)


def _over_time(value: Tensor, steps: int, constant: bool) -> Tensor:
    """``[T, B, ...]`` of rows, or of what is the same at each step."""
    if constant:
        return value.expand(steps, *value.shape)
    return value.reshape(steps, len(value) // steps, *value.shape[1:])
