"""The layers between spiking layers, lowered to Lava's two, `Conv2d` and `Linear`, and computed on the host.

Everything is float64, as in Lava's floating-point models: on a dyadic grid that is exact, off it the rounding stays
far below float32's, and both halves of the network, on the host and in Lava, compute in one precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from bridge.errors import GraphError
from bridge.graph import (
    Add,
    AvgPool2d,
    BiasOnce,
    Conv1d,
    Conv2d,
    EachLevel,
    Flatten,
    Impulse,
    Input,
    Layer,
    LayerGraph,
    Linear,
    Scale,
    Shape,
    SumPool2d,
)

Float64 = NDArray[np.float64]
Synapse = Conv2d | Linear


def lower(layer: Layer, shape: Shape) -> Synapse:
    """`layer`, whose input has `shape`, as a convolution or a matrix of the same name and inputs.

    What an `EachLevel` does to every level is done to so many times the channels. A `Conv1d` becomes a convolution of
    height 1, a pooling and a `Scale` depthwise ones. A vector is scaled as a map of one pixel, since Lava's Dense has
    no more than nine bits. Raises `GraphError` for any other kind of layer, and for a `Scale` whose factors differ
    within a channel.
    """
    match layer:
        case Conv2d() | Linear():
            return layer
        case EachLevel(layer=inner):
            one = lower(inner, shape[1:])
            assert isinstance(one, Conv2d)  # a sum over windows: depthwise
            repeated = np.tile(one.weight, (shape[0], 1, 1, 1))
            zeros = np.zeros(len(repeated))
            return replace(one, name=layer.name, weight=repeated, bias=zeros, groups=shape[0] * one.groups)
        case Conv1d(name=name, inputs=inputs, weight=weight, bias=bias):
            return Conv2d(
                name=name,
                inputs=inputs,
                weight=weight[:, :, None],
                bias=bias,
                stride=(1, layer.stride),
                padding=(0, layer.padding),
                dilation=(1, layer.dilation),
                groups=layer.groups,
            )
        case AvgPool2d(name=name, inputs=inputs, kernel=kernel, stride=stride, padding=padding):
            share = 1.0 if isinstance(layer, SumPool2d) else 1 / np.prod(kernel)
            return _depthwise(name, inputs, np.full((shape[0], 1, *kernel), share), stride, padding)
        case Scale(name=name, per_position=True):
            raise GraphError(
                f"layer {name!r}: its factors differ within a channel, and the weights of Lava's convolutions do not; "
                "use average pools that count their padding (count_include_pad=True, ceil_mode=False), which need no "
                "such factors, or another backend"
            )
        case Scale(name=name, inputs=inputs, scale=scale):
            return _depthwise(name, inputs, scale.astype(np.float64).reshape(-1, 1, 1, 1))
    raise GraphError(
        f"layer {layer.name!r} ({type(layer).__name__}, input {shape}): the Lava backend knows Conv2d, Conv1d, Linear, "
        "Scale, AvgPool2d, SumPool2d, Flatten, Add and the neurons of all schedules; rewrite the network with these"
    )


def at_rest(graph: LayerGraph, lowered: Mapping[str, Synapse], x: NDArray[np.generic]) -> dict[str, Float64]:
    """What each layer of `graph` gives for images `x` ``[B, *input]`` while no neuron spikes, in float64.

    A layer that the images reach without passing a neuron is ``[B, *shape]``; any other is the same for all images and
    ``[1, *shape]``. `lowered` holds the layers that have weights, by name.
    """
    values: dict[str, Float64] = {}
    for layer in graph:
        shape = graph.shapes[layer.name]
        inputs = [values[source] for source in layer.inputs]
        value = np.zeros((1, *shape))  # what neurons send, and what only groups of them do
        match lowered.get(layer.name, layer):
            case _ if isinstance(layer, EachLevel):
                pass
            case Input():
                value = np.asarray(x, dtype=np.float64)
            case Add():
                value = inputs[0] + inputs[1]
            case Flatten() | Impulse():
                value = inputs[0]
            case BiasOnce(bias=bias):
                value = inputs[0] + bias.astype(np.float64)
            case Linear(weight=weight, bias=bias):
                value = inputs[0] @ weight.astype(np.float64).T + bias.astype(np.float64)
            case Conv2d() as synapse:
                channels, *size = graph.shapes[layer.inputs[0]]
                maps = inputs[0].reshape(-1, channels, *[1] * (2 - len(size)), *size)
                value = np.stack([_convolve(synapse, image) for image in maps])
        values[layer.name] = value.reshape(-1, *shape)
    return values


def _depthwise(
    name: str,
    inputs: tuple[str, ...],
    weight: Float64,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Conv2d:
    channels = len(weight)
    bias = np.zeros(channels)
    return Conv2d(name=name, inputs=inputs, weight=weight, bias=bias, stride=stride, padding=padding, groups=channels)


def _convolve(layer: Conv2d, image: Float64) -> Float64:
    """`layer`'s output for one image ``[C, H, W]``: every window times the kernel, as one matrix product a group."""
    kernel = layer.weight.astype(np.float64)
    out_channels, channels, *size = kernel.shape
    pad_h, pad_w = layer.padding
    padded = np.pad(image, ((0, 0), (pad_h, pad_h), (pad_w, pad_w)))
    (stride_h, stride_w), (dilation_h, dilation_w) = layer.stride, layer.dilation
    span = (dilation_h * (size[0] - 1) + 1, dilation_w * (size[1] - 1) + 1)
    windows = sliding_window_view(padded, span, axis=(1, 2))  # type: ignore[call-overload]
    windows = windows[:, ::stride_h, ::stride_w, ::dilation_h, ::dilation_w]
    height, width = windows.shape[1:3]
    grouped = windows.reshape(layer.groups, channels, height, width, *size).transpose(0, 1, 4, 5, 2, 3)
    columns = grouped.reshape(layer.groups, -1, height * width)
    products = kernel.reshape(layer.groups, out_channels // layer.groups, -1) @ columns
    maps: Float64 = products.reshape(out_channels, height, width) + layer.bias.astype(np.float64)[:, None, None]
    return maps
