"""What each stateless layer computes in the engine: weights packed once, and int8 arithmetic where it is exact.

A kernel maps rows, one an image and step, to rows: ``[R, ...] -> [R, ...]``. Spikes, and small sums of them, are uint8;
all else is float32. Feature maps are stored channels last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bridge.graph import Add, Affine, Conv2d, Flatten, Layer, LayerGraph, Linear, MaxPool, Shape, SumPool2d
from bridge.graph.ranges import Range, exact_in_int8, small
from bridge.simulate.ops import evaluate, tensor

logger = logging.getLogger(__name__)

Kernel = Callable[..., Tensor]


def kernel(graph: LayerGraph, layer: Layer, *, of_small: bool, bounds: dict[str, Range] | None) -> Kernel:
    """The kernel of `layer` on the processor; `bounds` are those of a whole-number network (`bridge.graph.ranges`)."""
    if isinstance(layer, Add):
        return lambda x, other: _real(x) + _real(other)
    if isinstance(layer, Flatten):
        return lambda x: x.flatten(1)
    if isinstance(layer, SumPool2d) and small(layer, of_small, bounds[layer.name] if bounds else None):
        return _small_sum(layer)
    if isinstance(layer, MaxPool) and of_small:
        return _small_maximum(layer)
    if isinstance(layer, Affine) and of_small and bounds is not None:
        packed = int8(layer, bounds[layer.inputs[0]], bounds[layer.name])
        if packed is not None:
            return packed
    if isinstance(layer, Conv2d):
        return _convolution(layer, graph.shapes[layer.inputs[0]])
    if isinstance(layer, Linear):
        return _linear(layer)
    return lambda x: evaluate(layer, _real(x))


def on_device(layer: Layer, device: torch.device) -> Kernel:
    """The kernel of `layer` elsewhere: the reference's own arithmetic, with the parameters there."""
    if isinstance(layer, Conv2d | Linear):
        weight, bias = tensor(layer.weight).to(device), tensor(layer.bias).to(device)
        if isinstance(layer, Linear):
            return lambda x: F.linear(_real(x), weight, bias)
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return lambda x: F.conv2d(_real(x), weight, bias, *options)
    return lambda *inputs: evaluate(layer, *map(_real, inputs))


def _real(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.float()


def _convolution(layer: Conv2d, shape: tuple[int, ...]) -> Kernel:
    weight = tensor(layer.weight).contiguous(memory_format=torch.channels_last)
    bias = tensor(layer.bias)
    stride, padding, dilation = list(layer.stride), list(layer.padding), list(layer.dilation)
    if layer.groups == 1 and torch.backends.mkldnn.is_available():
        # Packed for oneDNN once, not at each call: up to four times as fast where feature maps are small. One row takes
        # another order than several do; in the wrong one, each call packs anew, which takes ten times as long.
        @cache
        def packed(several: bool) -> Tensor:
            rows = [8 if several else 1, *shape]
            order = torch.ops.mkldnn._reorder_convolution_weight
            return cast(Tensor, order(weight, padding, stride, dilation, 1, rows))

        def run(x: Tensor) -> Tensor:
            options: tuple[Any, ...] = (bias, padding, stride, dilation, 1, "none", [], "")
            return cast(Tensor, torch.ops.mkldnn._convolution_pointwise(_real(x), packed(len(x) > 1), *options))

        return run
    return lambda x: F.conv2d(_real(x), weight, bias, stride, padding, dilation, layer.groups)


def _linear(layer: Linear) -> Kernel:
    weight, bias = tensor(layer.weight), tensor(layer.bias)
    if not torch.backends.mkldnn.is_available():
        return lambda x: F.linear(_real(x), weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 8)
    return lambda x: cast(Tensor, torch.ops.mkldnn._linear_pointwise(_real(x), packed, bias, "none", [], ""))


def _small_sum(layer: SumPool2d) -> Kernel:
    """Sums of windows in uint8: as many additions of whole feature maps as a window has places."""
    (height, width), (down, right) = layer.kernel, layer.stride

    def run(x: Tensor) -> Tensor:
        if x.shape[2:] == layer.kernel:
            return x.sum(dim=(2, 3), keepdim=True, dtype=torch.uint8)
        sizes = ((x.shape[2] - height) // down + 1, (x.shape[3] - width) // right + 1)
        places = _places(x, sizes, layer.kernel, layer.stride, (1, 1))
        total = places[0].clone(memory_format=torch.channels_last)
        for place in places[1:]:
            total += place
        return total

    return run


def _places(maps: Tensor, sizes: Shape, kernel: Shape, stride: Shape, dilation: Shape) -> list[Tensor]:
    """By place in a window: what of `maps` is there, in as many windows as `sizes` says; views."""
    (rows, columns), (down, right) = sizes, stride
    return [
        maps[:, :, i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right]
        for i in range(0, kernel[0] * dilation[0], dilation[0])
        for j in range(0, kernel[1] * dilation[1], dilation[1])
    ]


def _small_maximum(layer: MaxPool) -> Kernel:
    """The maximum of counts in uint8, of as many shifted maps as a window has places; torch's takes small maps only.

    A minimum is the maximum of what is missing to 255. Padding is 0 in both.
    """
    one = len(layer.kernel) == 1  # in one dimension, a map of one row
    kernel, stride, dilation = ((1, *size) if one else size for size in (layer.kernel, layer.stride, layer.dilation))
    before = (0, *layer.padding) if one else layer.padding
    turned = None if layer.minimum is None else torch.from_numpy(layer.minimum).reshape(1, -1, 1, 1)

    def run(x: Tensor) -> Tensor:
        rows, columns = (1, *layer.output_shape(tuple(x.shape[1:]))[1:])[-2:]
        maps = x.unsqueeze(2) if one else x
        if turned is not None:
            maps = torch.where(turned, 255 - maps, maps)
        ends = [
            (n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip((rows, columns), stride, dilation, kernel, strict=True)
        ]
        down, right = (max(0, end - size - pad) for end, size, pad in zip(ends, maps.shape[2:], before, strict=True))
        if any((*before, down, right)):
            maps = F.pad(maps, (before[1], right, before[0], down))
        places = _places(maps, (rows, columns), kernel, stride, dilation)
        found = places[0].clone(memory_format=torch.channels_last)
        for place in places[1:]:
            torch.maximum(found, place, out=found)
        if turned is not None:
            found = torch.where(turned, 255 - found, found)
        return found.squeeze(2) if one else found

    return run


def int8(layer: Affine, source: Range, output: Range) -> Kernel | None:
    """OneDNN's int8 arithmetic with float32 output; None where it is missing or would not be exact."""
    if not isinstance(layer, Conv2d | Linear) or not has_int8() or not exact_in_int8(layer, source, output):
        return None
    return _int8_convolution(layer) if isinstance(layer, Conv2d) else _int8_linear(layer)


def _int8_convolution(layer: Conv2d) -> Kernel:
    outputs = len(layer.weight)
    ones, zeros, bias = (
        torch.ones(outputs, dtype=torch.float32),
        torch.zeros(outputs, dtype=torch.int32),
        tensor(layer.bias),
    )
    stride, padding, dilation = list(layer.stride), list(layer.padding), list(layer.dilation)
    weight = tensor(layer.weight).to(torch.int8)
    packed = torch.ops.onednn.qconv_prepack(weight, ones, 1.0, 0, stride, padding, dilation, layer.groups, None)
    how: tuple[Any, ...] = (bias, stride, padding, dilation, layer.groups, 1.0, 0, torch.float32, "none", [], "")

    def run(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, torch.ops.onednn.qconv_pointwise(x, 1.0, 0, packed, ones, zeros, *how))

    return run


def _int8_linear(layer: Linear) -> Kernel:
    outputs = len(layer.weight)
    ones, zeros, bias = (
        torch.ones(outputs, dtype=torch.float32),
        torch.zeros(outputs, dtype=torch.int32),
        tensor(layer.bias),
    )
    packed = torch.ops.onednn.qlinear_prepack(tensor(layer.weight).to(torch.int8), None)
    how: tuple[Any, ...] = (bias, 1.0, 0, torch.float32, "none", [], "")

    def run(x: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.onednn.qlinear_pointwise(x, 1.0, 0, packed, ones, zeros, *how))

    return run


@cache
def has_int8() -> bool:
    """Whether oneDNN's int8 operators are here and give, on a small convolution and a matrix, what float32 gives."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (2, 19, 7, 7), generator=generator, dtype=torch.uint8)
    weight = torch.randint(-128, 128, (21, 19, 3, 3), generator=generator).float()
    bias = torch.randint(-1000, 1000, (21,), generator=generator).float()
    convolution = Conv2d(name="c", inputs=("x",), weight=weight.numpy(), bias=bias.numpy(), padding=(1, 1))
    linear = Linear(name="l", inputs=("x",), weight=weight.flatten(1).numpy(), bias=bias.numpy())
    rows = x[:, :, :3, :3].flatten(1)
    try:
        with torch.inference_mode():
            right = torch.equal(_int8_convolution(convolution)(x), evaluate(convolution, x.float()))
            right &= torch.equal(_int8_linear(linear)(rows), evaluate(linear, rows.float()))
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        logger.info("int8 operators are missing (%s): float32 is used in their place", error)
        return False
    if not right:
        logger.warning("int8 operators of this torch do not give exact sums here: float32 is used in their place")
    return right
