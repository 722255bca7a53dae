"""A counting network becomes a grouped spiking network: each neuron is as many thresholds as it may fire spikes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bridge.graph import EachLevel, GroupFire, GroupSum, Layer, LayerGraph, MaxPool, SpikeCount
from bridge.passes.to_float32 import to_float32
from bridge.simulate.spike_pools import spike_pool


def group(counting: LayerGraph) -> LayerGraph:
    """The grouped network of `counting` (`bridge.passes.counting`), in integers if that is."""
    layers: list[Layer] = []
    sums: dict[str, str] = {}  # by group: how many of it fire
    for layer in counting:
        inputs = tuple(sums.get(source, source) for source in layer.inputs)
        if isinstance(layer, SpikeCount):
            level, threshold = layer.level.astype(np.float64), layer.threshold.astype(np.float64)
            levels = np.stack([level + k * threshold for k in range(1, layer.steps + 1)])
            layers.append(GroupFire(name=layer.name, inputs=inputs, level=levels))
        elif isinstance(layer, MaxPool):
            name, before = counting.free(f"{layer.name}_any"), counting.shapes[layer.inputs[0]]
            for part in spike_pool(layer, before, name, whole=counting.integer):
                layers.append(EachLevel(name=part.name, inputs=part.inputs, layer=part))
        else:
            layers.append(replace(layer, inputs=inputs))
            continue
        readers = counting.consumers(layer.name)
        if not readers or not all(isinstance(reader, MaxPool) for reader in readers):
            sums[layer.name] = counting.free(f"{layer.name}_sum")
            layers.append(GroupSum(name=sums[layer.name], inputs=(layer.name,)))
    return to_float32(LayerGraph(tuple(layers)))
