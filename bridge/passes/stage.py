"""A counting network becomes a staged spiking network: each neuron fires its count in a window of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bridge.graph import (
    Affine,
    BiasOnce,
    Impulse,
    Layer,
    LayerGraph,
    MaxPool,
    SpikeCount,
    WindowFire,
    aligned,
)
from bridge.passes.to_float32 import to_float32
from bridge.simulate.at_rest import at_rest
from bridge.simulate.spike_pools import spike_pool


def stage(counting: LayerGraph) -> LayerGraph:
    """The staged network of `counting` (`bridge.passes.counting`), in integers if that is.

    Affine layers lose their biases: what they come to at a neuron, its drive with a zero image and no spikes, is part
    of its level.
    """
    rest = at_rest(counting)
    impulse = counting.free(f"{counting.input.name}_once")
    layers: list[Layer] = []
    lasts: dict[str, int] = {}
    for layer in counting:
        inputs = tuple(impulse if source == counting.input.name else source for source in layer.inputs)
        last = max((lasts[source] for source in inputs), default=0)
        if isinstance(layer, SpikeCount):
            drive = rest[layer.inputs[0]]
            layers.append(
                WindowFire(
                    name=layer.name,
                    inputs=inputs,
                    level=aligned(layer.level.astype(np.float64), drive.ndim) - drive,
                    threshold=layer.threshold,
                    opens=last,
                    steps=layer.steps,
                )
            )
            last += layer.steps - 1
        elif isinstance(layer, MaxPool):
            name, before = counting.free(f"{layer.name}_any"), counting.shapes[layer.inputs[0]]
            layers += spike_pool(replace(layer, inputs=inputs), before, name, whole=counting.integer)
        elif isinstance(layer, Affine):
            layers.append(replace(layer, inputs=inputs, bias=np.zeros_like(layer.bias)))
        else:
            layers.append(replace(layer, inputs=inputs))
        lasts[layer.name] = last
        if layer is counting.input:
            layers.append(Impulse(name=impulse, inputs=(layer.name,)))
            lasts[impulse] = 0
    output = layers[-1]
    total = rest[counting.output.name]
    if total.any():
        name = counting.free(f"{output.name}_once")
        layers.append(BiasOnce(name=name, inputs=(output.name,), bias=total))
    return to_float32(LayerGraph(tuple(layers)))
