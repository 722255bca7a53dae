"""The counting network of a staged or grouped one: what is computed once stands for all steps, or all levels.

What a neuron has got by the time its window opens is its inputs' counts times the weights, and its spikes are then as
many ones as fit, one behind the other, and zeros. So a layer's count says all of its train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bridge.graph import (
    Affine,
    AtLeast,
    BiasOnce,
    EachLevel,
    GroupFire,
    GroupSum,
    Impulse,
    Layer,
    LayerGraph,
    SpikeCount,
    WindowFire,
    aligned,
)
from bridge.simulate.spike_pools import as_max_pool


@dataclass(frozen=True, eq=False)
class CountingForm:
    """A network of `SpikeCount` layers by the names of the spiking ones, and the bias of its output, or None."""

    graph: LayerGraph
    bias: NDArray[np.float32] | None


def counting_form(graph: LayerGraph) -> CountingForm | None:
    """The counting form of the staged or grouped `graph`.

    None if counts do not tell all: something other than spikes comes at several steps, or a pool is of no trains that
    begin together.
    """
    if graph.staged and not _comes_once(graph):
        return None
    changes: dict[str, Sequence[Layer]] = {}
    bias = None
    for layer in graph:
        count = _count(layer)
        if isinstance(layer, BiasOnce):
            if layer is not graph.output:
                return None
            bias = layer.bias
            changes[layer.name] = []
        elif isinstance(layer, Impulse | GroupSum):
            changes[layer.name] = []
        elif count is not None:
            changes[layer.name] = [count]
        elif isinstance(layer, GroupFire):
            return None
        elif isinstance(fired := _inner(layer), AtLeast):
            summed = _inner(graph[layer.inputs[0]])
            if not summed.inputs or len(graph.consumers(summed.name)) > 1:
                return None
            (pooled, *_) = summed.inputs
            if not isinstance(_inner(graph[pooled]), WindowFire | GroupFire | AtLeast):
                return None
            pool = as_max_pool(summed, fired, graph.activation_shape(pooled))
            if pool is None:
                return None
            changes |= {summed.name: [], layer.name: [pool]}
    return CountingForm(graph.rewrite(changes), bias)


def _inner(layer: Layer) -> Layer:
    return layer.layer if isinstance(layer, EachLevel) else layer


def _count(layer: Layer) -> SpikeCount | None:
    """The layer that counts what `layer` fires; None if there is none."""
    if isinstance(layer, WindowFire):
        level, steps, threshold = layer.level, layer.steps, layer.threshold
    elif isinstance(layer, GroupFire):
        first, steps = layer.level[0], layer.levels
        gaps = np.diff(layer.level, axis=0).reshape(steps - 1, len(first), first.size // len(first))
        threshold = np.ones(len(first), np.float32) if steps == 1 else gaps[0, :, 0]
        level = first - aligned(threshold, first.ndim)
        if not (gaps == threshold[:, None]).all() or not (threshold > 0).all():
            return None
    else:
        return None
    return SpikeCount(name=layer.name, inputs=layer.inputs, level=level, threshold=threshold, steps=steps)


def _comes_once(graph: LayerGraph) -> bool:
    """Whether what comes at each step of the staged `graph` but spikes comes once."""
    for layer in graph:
        if layer.name in graph.constant or isinstance(layer, Impulse):
            continue
        if graph.constant.intersection(layer.inputs):
            return False
        if isinstance(layer, Affine) and layer.bias.any():
            return False
    return True
