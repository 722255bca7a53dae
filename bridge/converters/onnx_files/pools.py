"""What ONNX's pools, means and sums over dimensions become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bridge.converters.onnx_files.layer_list import expect_size, placeholder
from bridge.converters.onnx_files.reader import Reader
from bridge.converters.onnx_files.values import Data, Gain, Node, Value
from bridge.converters.onnx_files.weights import convolved, window
from bridge.converters.torch_models.rules import FUNCTIONS
from bridge.converters.torch_models.signals import Signal
from bridge.errors import ConversionError, GraphError
from bridge.graph import Array, MaxPool, Shape, average_pool


def average(reader: Reader, node: Node) -> Value:
    """Means over windows. Where these hold more or less of the padding, a `Scale` with a factor for each position."""
    source = reader.source(node)
    channels, *space = source.signal.shape[1:]
    kernel = tuple(node.get("kernel_shape", ()))
    stride, dilation, before, after = window(node, kernel or (0,), (channels, *space))
    _expect_dimensions(kernel)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    out: list[int] = []
    longer: list[int] = []
    divisor: Array = np.ones(())
    for n, k, r, s, d, b, a in zip(space, kernel, reach, stride, dilation, before, after, strict=True):
        if n + b + a < r:
            raise GraphError(f"expected a feature map at least as large as the {list(kernel)} window, got {space}")
        count = (n + b + a - r) // s + 1
        if node.get("ceil_mode", 0) and (n + b + a - r) % s and count * s < n + b:
            count += 1  # one that reaches beyond the padding, but does not start there
        expect_size((channels, *out, count))
        low, high = (-b, n + a) if node.get("count_include_pad", 0) else (0, n)
        divisor = np.multiply.outer(divisor, _inside(np.arange(count) * s - b, k, d, low, high))
        out.append(count)
        longer.append(a + max(0, (count - 1) * s + r - (n + b + a)))
    if not divisor.all():
        raise ConversionError("some of its windows hold nothing but padding; pad less")
    if before == tuple(longer) and max(dilation) == 1:
        pooled = _pool(reader, node, kernel, stride, before, tuple(out))
    else:
        reader.tensors.spend(channels * math.prod(kernel))
        weight: Array = np.full((channels, 1, *kernel), 1 / math.prod(kernel))
        pooled = convolved(reader, node, weight, np.zeros(channels), stride, dilation, before, tuple(longer), channels)
    gain = math.prod(kernel) / divisor
    return pooled if (gain == 1).all() else reader.step(pooled, Gain(node, gain))


def _inside(start: Array, kernel: int, dilation: int, low: int, high: int) -> Array:
    """How many taps of the windows that begin at `start` lie from `low` up to `high`."""
    first, last = (np.clip(-((start - limit) // dilation), 0, kernel) for limit in (low, high))
    return last - first


def _expect_dimensions(kernel: Sequence[int]) -> None:
    if len(kernel) not in (1, 2):
        raise ConversionError(f"it pools over {len(kernel)} dimensions; 1 and 2 are supported")


def _pool(reader: Reader, node: Node, kernel: Shape, stride: Shape, padding: Shape, out: Shape) -> Data:
    """Averages over windows, padded zeros included, of the node's first input."""
    source = reader.source(node)
    channels = source.signal.shape[1]
    if len(kernel) == 1:
        reader.tensors.spend(channels * kernel[0])
    arguments = (source, kernel, stride, padding)
    result = placeholder((reader.batch, channels, *out))
    signal = FUNCTIONS[f"avg_pool{len(kernel)}d"](reader.layers, node.title, arguments, {}, result)
    assert signal is not None
    return reader.made_of(node, signal)[0]


def maximum(reader: Reader, node: Node) -> Value:
    """A `MaxPool`, which the staged schedule has."""
    source = reader.source(node)
    channels, *space = source.signal.shape[1:]
    kernel = tuple(node.get("kernel_shape", ()))
    stride, dilation, before, after = window(node, kernel or (0,), (channels, *space))
    _expect_dimensions(kernel)
    if before != after:
        raise ConversionError(f"it pads {before} in front and {after} behind; pad the same on both sides")
    return _maximum(reader, node, kernel, stride, before, dilation, bool(node.get("ceil_mode", 0)))


def global_maximum(reader: Reader, node: Node) -> Value:
    """A `MaxPool` over all of a map."""
    kernel = reader.source(node).signal.shape[2:]
    _expect_dimensions(kernel)
    ones = (1,) * len(kernel)
    return _maximum(reader, node, kernel, kernel, (0,) * len(kernel), ones, False)


def reduce_maximum(reader: Reader, node: Node) -> Value:
    """A `MaxPool` over all of a map, if that is what the axes are."""
    rank = len(reader.data(node).shape)
    if reader.axes(node, rank) != tuple(range(2, rank)) or rank < 3:
        raise ConversionError("a maximum over other dimensions than space has no spiking form; pool over space")
    pooled = global_maximum(reader, node)
    if node.get("keepdims", 1):
        return pooled
    assert isinstance(pooled, Data)
    signal = pooled.signal.moved(lambda each: [each.flatten(1)], node.title)[0]
    return reader.made_of(node, signal)[0]


def _maximum(
    reader: Reader, node: Node, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape, ceil: bool
) -> Data:
    source = reader.source(node)
    pool = MaxPool(
        name=node.title, inputs=("",), kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil=ceil
    )
    out = pool.output_shape(source.signal.shape[1:])
    reader.layers.maximum = True
    arguments = (source, kernel, stride, padding, dilation, ceil)
    result = placeholder((reader.batch, *out))
    signal = FUNCTIONS[f"max_pool{len(kernel)}d"](reader.layers, node.title, arguments, {}, result)
    assert signal is not None
    return reader.made_of(node, signal)[0]


def global_average(reader: Reader, node: Node) -> Value:
    shape = reader.data(node).shape
    if len(shape) < 3:
        raise GraphError("it pools over space, but its input has none")
    return _reduced(reader, node, tuple(range(2, len(shape))), True)


def reduce(reader: Reader, node: Node) -> Value:
    rank = len(reader.data(node).shape)
    axes = reader.axes(node, rank)
    if not axes and node.get("noop_with_empty_axes", 0):
        return reader.value(node, 0)
    return _reduced(reader, node, axes or tuple(range(rank)), bool(node.get("keepdims", 1)))


def _reduced(reader: Reader, node: Node, axes: tuple[int, ...], kept: bool) -> Data:
    """The mean or the sum over `axes`, which may be kept as dimensions of one element."""
    source = reader.source(node)
    shape, space = source.signal.shape, source.signal.shape[2:]
    sizes = [1 if axis in axes else size for axis, size in enumerate(shape)]
    as_it_stands = source.signal.index is None and source.signal.plain
    if axes == tuple(range(2, len(shape))) and as_it_stands and node.op != "ReduceSum":
        _expect_dimensions(space)
        if set(space) == {1}:
            pooled = reader.data(node)
        else:
            named = node if kept else replace(node, title=f"{node.title}_pool")
            pooled = _whole_map(reader, named, source.signal.origin, space)
    else:
        reader.tensors.spend(4 * math.prod(shape))
        _expect_once(source.signal, axes)
        name = "sum" if node.op == "ReduceSum" else "mean"
        result = placeholder(tuple(sizes))
        signal = FUNCTIONS[name](reader.layers, node.title, (source, axes, True), {}, result)
        assert signal is not None
        (pooled,) = reader.made_of(node, signal)
    if kept:
        return pooled
    rest = tuple(size for axis, size in enumerate(shape) if axis not in axes)
    return reader.made_of(node, *reader.moved(pooled).moved(lambda each: [each.reshape(rest)], node.title))[0]


def _expect_once(signal: Signal, axes: tuple[int, ...]) -> None:
    """Raise `ConversionError` if some sums over `axes` take a value twice and others do not, as no pool does."""
    rows = np.moveaxis(signal.indices(), axes, range(-len(axes), 0))
    if (rows < 0).any():  # padding is not pooled
        return
    rows = np.sort(rows.reshape(math.prod(rows.shape[: -len(axes)]), -1), 1)
    twice = (rows[:, 1:] == rows[:, :-1]).any(1)
    if twice.any() and not twice.all():
        raise ConversionError("it takes some values twice, but not everywhere; choose values after the sum")


def _whole_map(reader: Reader, node: Node, origin: str, space: Shape) -> Data:
    """The mean over all of a map."""
    channels = reader.layers.shapes[origin][0]
    if len(space) == 1:
        reader.tensors.spend(channels * space[0])
    name, nothing = reader.layers.name(node.title), (0,) * len(space)
    return reader.put(node, average_pool(name, origin, channels, space, space, nothing))
