"""How far each layer of a whole-number network can go: bounds that hold for every image, by interval arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bridge.errors import InputError
from bridge.graph.grouped import EachLevel, GroupFire, GroupSum
from bridge.graph.layer_graph import LayerGraph
from bridge.graph.layers import (
    Add,
    Affine,
    AvgPool2d,
    Flatten,
    Input,
    IntegrateFire,
    Layer,
    Linear,
    MaxPool,
    Scale,
    SumPool2d,
)
from bridge.graph.staged import AtLeast, BiasOnce, Impulse, SpikeCount, WindowFire

LARGEST_PIXEL = 255
"""Images of a whole-number network hold 8 bits: 0…255."""
EXACT = 2**24
"""Up to here, float32 holds every whole number, so that sums are exact in any order."""
LARGEST_PAIR = 2**15 - 1
"""Without VNNI, int8 instructions add two products in 16 bits; no two that can occur may pass this."""


@dataclass(frozen=True, eq=False)
class Range:
    """The least and the largest value of a layer's output at one time step, each float64 ``[C]``, one a channel.

    ``partial`` bounds the size of every partial sum on the way there, in whatever order the terms are added.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    partial: NDArray[np.float64]

    @property
    def size(self) -> NDArray[np.float64]:
        """The largest absolute value, ``[C]``."""
        size: NDArray[np.float64] = np.maximum(np.abs(self.low), np.abs(self.high))
        return size


def ranges(graph: LayerGraph, *, spike: float = 1.0) -> dict[str, Range]:
    """By layer of the spiking `graph`: what its output can be, for images in 0…255 and any spikes whatever.

    Of a staged network, and of a counting one, that is the sum over all steps. The bounds are reached if every input of
    a neuron can take its own bound at once. With ``spike=0``, no neuron spikes, and what is left are biases and what
    the images give.
    """
    result: dict[str, Range] = {}
    for layer in graph:
        inputs = [result[source] for source in layer.inputs]
        if isinstance(layer, AtLeast):  # of a pool's windows, as often as what it pools
            pooled = graph[graph[layer.inputs[0]].inputs[0]]
            if isinstance(pooled, WindowFire | AtLeast):
                result[layer.name] = result[pooled.name]
                continue
        shape = graph.shapes[layer.name]
        if isinstance(layer, GroupSum):
            most = inputs[0].high * graph.shapes[layer.inputs[0]][0]
            result[layer.name] = Range(0 * most, most, most)
            continue
        channels = shape[1] if isinstance(layer, GroupFire | EachLevel) else shape[0]
        result[layer.name] = _range(layer, channels, inputs, spike)
    return result


def potentials(graph: LayerGraph) -> dict[str, NDArray[np.float64]]:
    """By layer of a staged or counting network that fires: the largest size of its potential until it ends, ``[C]``."""
    bounds = ranges(graph)
    return {
        layer.name: bounds[layer.inputs[0]].partial + layer.steps * layer.threshold.astype(np.float64)
        for layer in graph
        if isinstance(layer, WindowFire | SpikeCount)
    }


def largest_drives(graph: LayerGraph) -> dict[str, float]:
    """By layer of neurons of a plain network in integers: the largest drive of one step. Potentials grow with steps."""
    if not graph.integer or graph.latency is not None:
        return {}
    bounds = ranges(graph)
    return {name: float(bounds[graph[name].inputs[0]].size.max()) for name in graph.spiking}


def beyond_exact(layer: str, step: int, largest: float) -> InputError:
    """What is to be said when a potential of `layer` has reached `largest`, past `EXACT`, at `step`, counted from 1."""
    return InputError(
        f"layer {layer!r}: at step {step} a potential reaches {largest:.0f}; beyond 2^24 whole numbers are not exact "
        "in float32. Run fewer steps, or quantize with fewer weight bits"
    )


def small(layer: Layer, of_small: bool, output: Range | None) -> bool:
    """Whether the output of `layer` is kept in uint8, its input being so (`of_small`) and its `output` in range."""
    if isinstance(layer, WindowFire | SpikeCount):
        return layer.steps <= 255
    if isinstance(layer, IntegrateFire | GroupFire | AtLeast):
        return True
    if isinstance(layer, EachLevel):
        return small(layer.layer, of_small, output)
    if isinstance(layer, MaxPool):
        return of_small
    if isinstance(layer, GroupSum):
        return of_small and output is not None and bool(output.high.max() <= 255)
    if isinstance(layer, SumPool2d):
        return of_small and layer.padding == (0, 0) and output is not None and bool(output.high.max() <= 255)
    return isinstance(layer, Flatten) and of_small


def exact_in_int8(layer: Affine, source: Range, output: Range) -> bool:
    """Whether integer arithmetic gives the exact sums of whole-number weights, and they fit int8.

    Sums are of int32, and what leaves them is below 2^24, which float32 holds.
    """
    weight = layer.weight
    pair = 2 * float(source.high.max()) * max(1.0, float(np.abs(weight).max()))
    in_range = bool((weight >= -128).all() and (weight <= 127).all())
    return in_range and pair <= LARGEST_PAIR and float(output.partial.max()) <= EXACT


def _range(layer: Layer, channels: int, inputs: list[Range], spike: float) -> Range:
    zeros = np.zeros(channels)
    match layer:
        case Input():
            return Range(zeros, zeros + LARGEST_PIXEL, zeros + LARGEST_PIXEL)
        case WindowFire(steps=steps) | SpikeCount(steps=steps):
            return Range(zeros, zeros + spike * steps, zeros + spike * steps)
        case IntegrateFire() | GroupFire() | AtLeast():
            return Range(zeros, zeros + spike, zeros + spike)
        case EachLevel(layer=each):
            return _range(each, channels, inputs, spike)
        case Impulse() | MaxPool():
            return inputs[0]
        case BiasOnce(bias=bias):
            rows, given = bias.astype(np.float64).reshape(channels, -1), inputs[0]
            size = np.abs(rows).max(axis=1)
            return Range(given.low + rows.min(axis=1), given.high + rows.max(axis=1), given.partial + size)
        case Add():
            one, other = inputs
            partial = np.maximum(np.maximum(one.partial, other.partial), one.size + other.size)
            return Range(one.low + other.low, one.high + other.high, partial)
        case Affine():
            return _affine(layer, inputs[0])
        case Scale(scale=scale):
            factors = scale.astype(np.float64).reshape(channels, -1)
            two = np.stack([factors * inputs[0].low[:, None], factors * inputs[0].high[:, None]])
            return _exact(two.min(axis=(0, 2)), two.max(axis=(0, 2)))
        case AvgPool2d(kernel=kernel):
            window = np.prod(kernel) if isinstance(layer, SumPool2d) else 1.0
            padded = _with_zero(inputs[0], layer.padding)
            return _exact(padded.low * window, padded.high * window)
        case Flatten():
            given = inputs[0]
            ends = (given.low, given.high, given.partial)
            return Range(*(np.repeat(end, channels // len(end)) for end in ends))
    raise NotImplementedError(f"no range for a {type(layer).__name__}")


def _affine(layer: Affine, given: Range) -> Range:
    padding = 0 if isinstance(layer, Linear) else getattr(layer, "padding", 0)
    given = _with_zero(given, padding)
    weight = layer.weight.astype(np.float64).reshape(*layer.weight.shape[:2], -1)  # [C_out, C_in / groups, kernel]
    groups = getattr(layer, "groups", 1)
    low, high = (ends.reshape(groups, 1, -1) for ends in (given.low, given.high))
    # The channels that output o hears are those of its group.
    up, down = (
        part.sum(axis=-1).reshape(groups, -1, weight.shape[1])
        for part in (np.maximum(weight, 0), np.minimum(weight, 0))
    )
    bias = layer.bias.astype(np.float64)
    least, most = ((up * a + down * b).sum(axis=-1).reshape(-1) + bias for a, b in ((low, high), (high, low)))
    size = np.maximum(np.abs(low), np.abs(high))
    return Range(least, most, ((up - down) * size).sum(axis=-1).reshape(-1) + np.abs(bias))


def _with_zero(given: Range, padding: object) -> Range:
    """`given`, and zero among it where zeros are padded."""
    if not np.any(np.asarray(padding)):
        return given
    return Range(np.minimum(given.low, 0), np.maximum(given.high, 0), given.partial)


def _exact(low: NDArray[np.float64], high: NDArray[np.float64]) -> Range:
    return Range(low, high, np.maximum(np.abs(low), np.abs(high)))
