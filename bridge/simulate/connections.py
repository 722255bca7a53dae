"""Counting connections: from every spiking neuron to those that hear it, through the layers in between.

A connection is a path of weights from a neuron to another. So a sum pool is folded into the weights that follow it,
and costs nothing itself; a join adds the connections of its branches. Where paths share both ends (windows that
overlap, two affine layers without neurons between them) each path counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.graph import (
    NEURONS,
    Affine,
    AtLeast,
    BiasOnce,
    EachLevel,
    Impulse,
    Input,
    Layer,
    LayerGraph,
    Scale,
    Shape,
)
from bridge.simulate.ops import evaluate

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Connections:
    """The connections into one layer.

    ``fan_out[source]``, ``[*shape of source]``: by spiking layer heard, how many each of its neurons has into this one.
    ``fan_in``, ``[*shape]``: how many each neuron of this layer has from spiking neurons.
    """

    fan_out: dict[str, Counts]
    fan_in: Counts

    @property
    def total(self) -> int:
        return int(self.fan_in.sum())


def fires(layer: Layer) -> bool:
    """Whether `layer` emits spikes: neurons, and the units of a maximum pool."""
    return isinstance(layer.layer if isinstance(layer, EachLevel) else layer, NEURONS | AtLeast)


@torch.inference_mode(False)
@torch.enable_grad()
def connections(graph: LayerGraph, *, zeros: bool) -> dict[str, Connections]:
    """By layer of neurons, and for the readout: the connections into it; those of weight zero only if `zeros`.

    Every weight is replaced by 1 and every spike is sent at once: what arrives at a neuron is its fan-in, and the
    gradient of all that arrives is each sender's fan-out. Sums are whole numbers in float64, far below 2^53.
    """
    values: dict[str, Tensor] = {}
    heard: dict[str, Tensor] = {}
    spikes: dict[str, Tensor] = {}
    for layer in graph:
        inputs = [values[source] for source in layer.inputs]
        shape = (1, *graph.shapes[layer.name])
        if isinstance(layer, Input):
            values[layer.name] = torch.zeros(shape, dtype=torch.float64)
        elif isinstance(layer, Impulse | BiasOnce):
            values[layer.name] = inputs[0]
        elif fires(layer):
            heard[layer.name] = inputs[0]
            values[layer.name] = spikes[layer.name] = torch.ones(shape, dtype=torch.float64, requires_grad=True)
        else:
            values[layer.name] = evaluate(_ones(layer, zeros), *inputs)
    if not fires(graph.output):
        heard[graph.output.name] = values[graph.output.name]
    return {name: _connections(arriving, spikes) for name, arriving in heard.items()}


def _connections(arriving: Tensor, spikes: dict[str, Tensor]) -> Connections:
    fan_out: dict[str, Counts] = {}
    if arriving.requires_grad:  # else it hears the images alone
        gradients = torch.autograd.grad(arriving.sum(), [*spikes.values()], retain_graph=True, allow_unused=True)
        fan_out = {name: _whole(g) for name, g in zip(spikes, gradients, strict=True) if g is not None}
    return Connections(fan_out, _whole(arriving.detach()))


def multiplications(layer: Affine | Scale, shape: Shape, *, zeros: bool) -> int:
    """How many products of a weight and an input of `shape` the layer sums up; none with padding.

    Those with a weight of zero are counted only if `zeros`.
    """
    with torch.inference_mode():
        return int(evaluate(_ones(layer, zeros), torch.ones((1, *shape), dtype=torch.float64)).sum())


def between(graph: LayerGraph, name: str) -> list[Affine | Scale]:
    """The layers with weights that spikes pass on their way to the neurons, or the readout, called `name`."""
    found: dict[str, Layer] = {}
    end = graph[name]
    waiting = list(end.inputs) if fires(end) else [name]
    while waiting:
        layer = graph[waiting.pop()]
        if layer.name not in found and layer.name not in graph.constant and not fires(layer):
            found[layer.name] = layer
            waiting += layer.inputs
    return [layer for layer in found.values() if isinstance(layer, Affine | Scale)]


def weights(layer: Affine | Scale) -> NDArray[np.floating]:
    """The layer's weights, or its factors."""
    return layer.weight if isinstance(layer, Affine) else layer.scale


def _ones(layer: Layer, zeros: bool) -> Layer:
    """`layer` with 1 for every weight, but for those that are 0 unless `zeros`, and without a bias."""
    if isinstance(layer, EachLevel):
        return replace(layer, layer=_ones(layer.layer, zeros=False))  # the zeros before a pool's ones are no weights
    if not isinstance(layer, Affine | Scale):
        return layer
    kept = np.ones_like(weights(layer)) if zeros else (weights(layer) != 0).astype(np.float32)
    if isinstance(layer, Scale):
        return replace(layer, scale=kept)
    return replace(layer, weight=kept, bias=np.zeros_like(layer.bias))


def _whole(counts: Tensor) -> Counts:
    return counts[0].numpy().astype(np.int64)
