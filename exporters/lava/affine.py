"""The layers between two spiking layers, lowered to Lava's two, `Conv2d` and `Linear`, and computed on the host.

Everything is float64, as in Lava's floating-point models: on a dyadic grid that is exact, off it the rounding stays
far below float32's, and both halves of the network, on the host and in Lava, compute in one precision.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from bridge.errors import GraphError
from bridge.graph import AvgPool2d, Conv2d, Flatten, Layer, Linear, Scale, Shape

Float64 = NDArray[np.float64]
Lowered = Conv2d | Linear | Flatten


def lower(layer: Layer, shape: Shape) -> Lowered:
    """`layer`, whose input has `shape`, as a convolution, a matrix or a flattening of the same name.

    A pooling and a scaled feature map become depthwise convolutions, a scaled vector a diagonal matrix. Raises
    `GraphError` for any other kind of layer.
    """
    match layer:
        case Conv2d() | Linear() | Flatten():
            return layer
        case AvgPool2d(name=name, inputs=inputs, kernel=kernel, stride=stride, padding=padding):
            weight = np.full((shape[0], 1, *kernel), 1 / np.prod(kernel))
            return _depthwise(name, inputs, weight, stride, padding)
        case Scale(name=name, inputs=inputs, scale=scale) if len(shape) == 3:
            return _depthwise(name, inputs, scale.astype(np.float64).reshape(-1, 1, 1, 1))
        case Scale(name=name, inputs=inputs, scale=scale) if len(shape) == 1:
            return Linear(name=name, inputs=inputs, weight=np.diag(scale.astype(np.float64)), bias=np.zeros(shape))
    raise GraphError(
        f"layer {layer.name!r} ({type(layer).__name__}, input {shape}): the Lava backend knows Conv2d, Linear, Scale, "
        "AvgPool2d, Flatten and IntegrateFire; rewrite the network with these"
    )


def evaluate(layers: Iterable[Lowered], x: NDArray[np.generic]) -> Float64:
    """The output of a chain of lowered layers for inputs `x` ``[B, *shape]``, in float64."""
    values: Float64 = np.asarray(x, dtype=np.float64)
    for layer in layers:
        match layer:
            case Flatten():
                values = values.reshape(len(values), -1)
            case Linear():
                values = values @ layer.weight.astype(np.float64).T + layer.bias.astype(np.float64)
            case Conv2d():
                values = np.stack([_convolve(layer, image) for image in values])
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
