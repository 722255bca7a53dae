"""Convolutions and average pools, as modules or as functions, of maps as they stand or turned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.converters.index_tracing import convolution
from bridge.converters.remedies import MIRRORED, THREE_DIMENSIONS, UNEVEN
from bridge.converters.torch_models.arguments import (
    array,
    bound,
    expect_batch,
    numbers,
    of_adaptive,
    of_conv,
    of_max_pool,
    of_mean,
    of_pool,
)
from bridge.converters.torch_models.layer_list import LayerList, Turn
from bridge.converters.torch_models.signals import Signal
from bridge.errors import ConversionError
from bridge.graph import Layer, MaxPool, average_pool


def conv(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal:
    """A convolution in one or two dimensions; what padding="same" adds on one side alone is written into the kernel."""
    given = bound(of_conv, args, kwargs)
    expect_batch(given.input, given.weight.dim())
    weight = array(given.weight, "weight", dtype=torch.float32)
    bias = array(given.bias, "bias", len(weight))
    rank = weight.ndim - 2
    if rank > 2:
        raise ConversionError(THREE_DIMENSIONS)
    stride, dilation = numbers(given.stride, rank), numbers(given.dilation, rank)
    if given.padding == "same":  # as torch does: the smaller half in front
        reach = [d * (k - 1) for k, d in zip(weight.shape[2:], dilation, strict=True)]
        before = [each // 2 for each in reach]
        after = [each - each // 2 for each in reach]
        weight, padding, dilation = _padded(weight, before, after, dilation)
    else:
        padding = numbers(0 if given.padding == "valid" else given.padding, rank)
    source, turn = layers.turned(given.input.signal, given.input.plain)
    _expect_even(turn, given.input.plain, weight.shape[2:], stride, padding, dilation)
    weight = turn.back(weight)
    options = {"stride": turn.pairs(stride), "padding": turn.pairs(padding), "dilation": turn.pairs(dilation)}
    layer = convolution(layers.name(title), source, weight, bias, int(given.groups), **options)
    return _added(layers, layer, turn, title, value)


def _added(layers: LayerList, layer: Layer, turn: Turn, title: str, value: Tensor) -> Signal:
    """The output of `layer`, turned, which is what the model computed: `value`."""
    if turn == Turn():
        return Signal(layers.add(layer, value), tuple(value.shape))
    made = layers.turned_signal(layers.add(layer), turn, title)
    layers.check(made, value)
    return made


def _expect_even(
    turn: Turn,
    images: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """Raise `ConversionError` if a window that slides over mirrored `images` leaves something out at their end."""
    for axis in turn.mirrored:
        left = images.shape[axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1
        if left % stride[axis]:
            raise ConversionError(MIRRORED)


def _padded(
    weight: NDArray[Any], before: Sequence[int], after: Sequence[int], dilation: tuple[int, ...]
) -> tuple[NDArray[Any], tuple[int, ...], tuple[int, ...]]:
    """A kernel, and its padding and dilation, that pads the same on both sides where `before` and `after` differ.

    The kernel is longer by zeros in front, so it is written out with a dilation of 1.
    """
    if list(before) == list(after):
        return weight, tuple(before), dilation
    reach = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    more = [late - early for early, late in zip(before, after, strict=True)]
    longer = np.zeros((*weight.shape[:2], *(r + m for r, m in zip(reach, more, strict=True))), weight.dtype)
    places = tuple(slice(m, None, d) for m, d in zip(more, dilation, strict=True))
    longer[(slice(None), slice(None), *places)] = weight
    return longer, tuple(after), (1,) * len(dilation)


def avg_pool(
    layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor, rank: int
) -> Signal:
    """Average pooling; with `ceil_mode` a depthwise convolution, and what cut windows lack becomes factors."""
    given = bound(of_pool, args, kwargs)
    expect_batch(given.input, rank + 2)
    kernel = numbers(given.kernel_size, rank)
    stride = kernel if given.stride in (None, [], ()) else numbers(given.stride, rank)
    padding = numbers(given.padding, rank)
    source, turn = layers.turned(given.input.signal, given.input.plain)
    channels = layers.shapes[source][0]
    out = tuple(value.shape[2:])
    # Each window, cut at the end of the padding, is divided by what it holds.
    all_of_it, real = np.ones(()), np.ones(())
    longer = []
    for size, k, s, p, o in zip(given.input.plain.shape[2:], kernel, stride, padding, out, strict=True):
        start = np.arange(o) * s - p
        stop = np.minimum(start + k, size + p)
        all_of_it = np.multiply.outer(all_of_it, stop - start)
        real = np.multiply.outer(real, np.minimum(stop, size) - np.maximum(start, 0))
        longer.append(max(0, int(start[-1]) + k - size - p))  # how far the last window reaches beyond the padding
    override = given.divisor_override
    divisor = override if override is not None else all_of_it if given.count_include_pad else real
    gain = math.prod(kernel) / np.broadcast_to(divisor, out).astype(np.float64)
    if any(longer):  # as many zeros more on both sides, and in front of the kernel
        weight = np.zeros((channels, 1, *(k + e for k, e in zip(kernel, longer, strict=True))))
        weight[(slice(None), slice(None), *(slice(e, None) for e in longer))] = 1 / math.prod(kernel)
        padding = tuple(p + e for p, e in zip(padding, longer, strict=True))
        _expect_even(turn, given.input.plain, weight.shape[2:], stride, padding, (1,) * rank)
        sizes = {"stride": turn.pairs(stride), "padding": turn.pairs(padding), "dilation": (1,) * rank}
        weight = turn.back(weight)
        layer = convolution(layers.name(title), source, weight, np.zeros(channels), channels, **sizes)
    else:
        _expect_even(turn, given.input.plain, kernel, stride, padding, (1,) * rank)
        windows = [turn.pairs(each) for each in (kernel, stride, padding)]
        layer = average_pool(layers.name(title), source, channels, *windows)
    made = layers.turned_signal(layers.add(layer), turn, title)
    if (gain != 1).any():
        made = replace(made, gain=np.broadcast_to(gain, value.shape).copy())
    layers.check(made, value)
    return made


def adaptive_avg_pool(
    layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor, rank: int
) -> Signal | None:
    """Average pooling, where it pools with one window size."""
    given = bound(of_adaptive, args, kwargs)
    expect_batch(given.input, rank + 2)
    space, out = tuple(given.input.plain.shape[2:]), tuple(value.shape[2:])
    if any(size % o for size, o in zip(space, out, strict=True)):
        return None  # windows of several sizes: no pool, but a matrix if it is small
    kernel = tuple(size // o for size, o in zip(space, out, strict=True))
    source, turn = layers.turned(given.input.signal, given.input.plain)
    window = turn.pairs(kernel)
    if set(kernel) != {1}:
        source = layers.add(
            average_pool(layers.name(title), source, layers.shapes[source][0], window, window, (0,) * rank)
        )
    made = layers.turned_signal(source, turn, title)
    layers.check(made, value)
    return made


def max_pool(
    layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor, rank: int
) -> Signal | None:
    """A `MaxPool`, where these may be layers."""
    given = bound(of_max_pool, args, kwargs)
    expect_batch(given.input, rank + 2)
    if not layers.maximum or given.return_indices:
        return None
    kernel = numbers(given.kernel_size, rank)
    stride = kernel if given.stride in (None, [], ()) else numbers(given.stride, rank)
    sizes = {"padding": numbers(given.padding, rank), "dilation": numbers(given.dilation, rank)}
    return _maximum(layers, title, given.input, value, kernel, stride, ceil=bool(given.ceil_mode), **sizes)


def adaptive_max_pool(
    layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor, rank: int
) -> Signal | None:
    """A `MaxPool` with windows of one size."""
    given = bound(of_adaptive, args, {key: each for key, each in kwargs.items() if key != "return_indices"})
    expect_batch(given.input, rank + 2)
    space, out = tuple(given.input.plain.shape[2:]), tuple(value.shape[2:])
    if not layers.maximum:
        return None
    if any(size % o for size, o in zip(space, out, strict=True)):
        raise ConversionError(UNEVEN)
    kernel = tuple(size // o for size, o in zip(space, out, strict=True))
    ones = (1,) * rank
    return _maximum(layers, title, given.input, value, kernel, kernel, padding=(0,) * rank, dilation=ones, ceil=False)


def amax(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    """A `MaxPool` over all of a map, if that is what the dimensions are."""
    given = bound(of_mean, args, kwargs)
    rank = given.input.plain.dim() - 2
    dims = given.dim if isinstance(given.dim, tuple | list) else [given.dim]
    if not layers.maximum or rank < 1 or None in dims or sorted(d % (rank + 2) for d in dims) != [*range(2, rank + 2)]:
        return None
    kernel = tuple(given.input.plain.shape[2:])
    pooled = value if given.keepdim else value.reshape(*value.shape, *[1] * rank)
    ones = (1,) * rank
    made = _maximum(layers, title, given.input, pooled, kernel, kernel, padding=(0,) * rank, dilation=ones, ceil=False)
    return made.moved(lambda each: [each.reshape(value.shape)], title)[0]


def _maximum(
    layers: LayerList,
    title: str,
    source: Any,
    value: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    **rest: Any,
) -> Signal:
    name = layers.settled(source.signal, source.plain)
    layer = MaxPool(name=layers.name(title), inputs=(name,), kernel=kernel, stride=stride, **rest)
    return Signal(layers.add(layer, value), tuple(value.shape))
