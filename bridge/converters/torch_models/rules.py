"""What the functions that hold a model's weights, its pools and its activations become, by the function's name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy

from bridge.converters.index_tracing import LARGEST_MATRIX, NOTHING, Indices
from bridge.converters.remedies import (
    BATCH_NORM,
    BY_AVERAGE,
    BY_QCFS,
    ENLARGES,
    LEAVE_OUT,
    NOT_AFFINE,
    ONLY_QCFS,
    PRODUCT,
)
from bridge.converters.torch_models.layer_list import LayerList, Turn
from bridge.converters.torch_models.signals import Floats, Signal, simplified
from bridge.errors import ConversionError, InputError
from bridge.graph import Add, BatchNorm, ClipFloorShift, Concat, Conv1d, Conv2d, Layer, Linear, average_pool, pointwise
from bridge.prepare.qcfs import QCFS

Rule = Callable[[LayerList, str, Sequence[Any], dict[str, Any], Any], "Signal | None"]
"""From the layers so far, a name, the function's arguments and what it returned. None if no layer is needed for it."""

SCRIPTED = "a TorchScript module cannot be looked into; pass the Python model that it was made of"
WRITES = "it writes data into a tensor that was made beforehand; join the parts with torch.cat or torch.stack"
QUANTISED = "it computes with quantised weights; pass the float model, and quantize the spiking network"
ATTENTION = "attention multiplies signals with each other, which has no exact spiking form"

REMEDIES: dict[str, str] = {
    **dict.fromkeys(("relu", "relu_", "relu6", "relu6_", "clamp_min", "clamp_min_", "threshold"), BY_QCFS),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d"), BY_AVERAGE),
    **dict.fromkeys(("max_pool1d_with_indices", "max_pool2d_with_indices", "max", "amax"), BY_AVERAGE),
    **dict.fromkeys(
        ("gelu", "silu", "sigmoid", "tanh", "leaky_relu", "elu", "celu", "selu", "mish", "prelu"), ONLY_QCFS
    ),
    **dict.fromkeys(
        ("softplus", "softsign", "hardswish", "hardsigmoid", "hardtanh", "clamp", "clip", "rrelu"), ONLY_QCFS
    ),
    **dict.fromkeys(("clip", "rrelu", "mish", "prelu", "logsigmoid", "glu"), ONLY_QCFS),
    **dict.fromkeys(("floor", "round", "ceil", "sign", "abs", "exp", "log", "sqrt"), ONLY_QCFS),
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm", "local_response_norm", "rms_norm"), BATCH_NORM),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "softmin", "gumbel_softmax"), LEAVE_OUT),
    **dict.fromkeys(("multi_head_attention_forward", "scaled_dot_product_attention"), ATTENTION),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "fold", "interpolate"), ENLARGES),
    **dict.fromkeys(("upsample", "grid_sample", "max_unpool1d", "max_unpool2d"), ENLARGES),
    **dict.fromkeys(("quantize_per_tensor", "dequantize", "linear_dynamic", "quantized_linear"), QUANTISED),
    "conv3d": "NIR has no convolution in three dimensions; use Conv1d or Conv2d",
    "dropout": "it drops at inference too; pass training=self.training",
    "embedding": "indices are no analog input; pass what the embedding gives to the model",
}
MULTIPLIES = {
    "mul",
    "mul_",
    "multiply",
    "__mul__",
    "__rmul__",
    "__imul__",
    "matmul",
    "__matmul__",
    "bmm",
    "einsum",
    "mm",
}


def why_not(name: str, module: str, sources: int) -> str:
    """Why the function of this `name`, called in a `module` on so many traced tensors, becomes no layer."""
    short = name.strip("_")
    if "dropout" in short:
        return REMEDIES["dropout"]
    if sources > 1 and short in MULTIPLIES:
        return PRODUCT
    if module.startswith(("MultiheadAttention", "TransformerEncoder")):
        return ATTENTION
    return REMEDIES.get(name) or REMEDIES.get(short) or NOT_AFFINE


# Convolutions and matrices


def array(value: Tensor | None, what: str, size: int = 0, dtype: torch.dtype = torch.float64) -> NDArray[Any]:
    """A copy of a parameter, zeros of `size` for one that is absent. Weights, the bulk, are float32 all the way."""
    if value is None:
        return np.zeros(size)
    if type(value) is not Tensor and not isinstance(value, torch.nn.Parameter):
        raise ConversionError(f"its {what} depends on the input: {PRODUCT}")
    result: NDArray[Any] = value.detach().to(device="cpu", dtype=dtype, copy=True).contiguous().numpy()
    if not np.isfinite(result).all():
        raise ConversionError(f"its {what} holds {int((~np.isfinite(result)).sum())} values that are NaN or infinite")
    return result


def conv(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal:
    given = _bound(_of_conv, args, kwargs)
    _expect_batch(given.input, given.weight.dim())
    weight = array(given.weight, "weight", dtype=torch.float32)
    bias = array(given.bias, "bias", len(weight))
    rank = weight.ndim - 2
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


def convolution(
    name: str,
    source: str,
    weight: NDArray[Any],
    bias: NDArray[Any],
    groups: int,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Layer:
    """The convolution in one or two dimensions."""
    common = {"name": name, "inputs": (source,), "weight": weight, "bias": bias, "groups": groups}
    if len(stride) == 1:
        return Conv1d(**common, stride=stride[0], padding=padding[0], dilation=dilation[0])
    if len(stride) != 2:
        raise ConversionError(REMEDIES["conv3d"])
    pairs = {"stride": stride, "padding": padding, "dilation": dilation}
    return Conv2d(**common, **{key: (each[0], each[1]) for key, each in pairs.items()})


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
            raise ConversionError(
                "it reads a mirrored map with a stride that leaves out its last values, and no NIR node mirrors a map; "
                "mirror it elsewhere, or choose a size that the stride divides"
            )


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


def linear(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal:
    given = _bound(_of_linear, args, kwargs)
    weight = array(given.weight, "weight", dtype=torch.float32)
    return _last_dimension(layers, title, given.input, weight, array(given.bias, "bias", len(weight)), value)


def matmul(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    one, other = [*args, *(kwargs[key] for key in ("other", "mat2", "tensor2", "vec", "vec2") if key in kwargs)][:2]
    if _traced(one) and _traced(other):
        raise ConversionError(PRODUCT)
    if _traced(one) and other.dim() == 2:
        weight = array(other, "matrix", dtype=torch.float32).T
        return _last_dimension(layers, title, one, np.ascontiguousarray(weight), np.zeros(len(weight)), value)
    if _traced(other) and one.dim() == 2 and other.plain.dim() > 1:
        weight = array(one, "matrix", dtype=torch.float32)
        return _dimension(layers, title, other, weight, np.zeros(len(weight)), value, -2)
    return None


def addmm(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    bias, one, other = args[:3]
    if not _traced(one) or _traced(other) or _traced(bias) or kwargs or bias.dim() > 1:
        return None
    weight = np.ascontiguousarray(array(other, "matrix", dtype=torch.float32).T)
    return _last_dimension(layers, title, one, weight, np.broadcast_to(array(bias, "bias"), len(weight)).copy(), value)


def einsum(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or "." in equation:
        return None
    if all(map(_traced, operands)):
        raise ConversionError(PRODUCT)
    inputs, _, output = equation.replace(" ", "").partition("->")
    labels = inputs.split(",")
    at = 0 if _traced(operands[0]) else 1
    data, constant = labels[at], labels[1 - at]
    summed = [each for each in constant if each in data and each not in output]
    new = [each for each in constant if each not in data and each in output]
    if len(summed) != 1 or len(new) != 1 or len(constant) != 2 or set(data) - set(summed) != set(output) - set(new):
        return None
    weight = operands[1 - at] if constant[0] == new[0] else operands[1 - at].t()
    source, axis = operands[at], data.index(summed[0])
    order = [each if each != summed[0] else new[0] for each in data]
    back = torch.permute(value, [output.index(each) for each in order])
    kept = array(weight, "operand", dtype=torch.float32)
    signal = _dimension(layers, title, source, np.ascontiguousarray(kept), np.zeros(len(kept)), back, axis)
    return signal.moved(lambda each: [torch.permute(each, [order.index(label) for label in output])], title)[0]


def _last_dimension(
    layers: LayerList, title: str, source: Any, weight: NDArray[Any], bias: Floats, value: Tensor
) -> Signal:
    return _dimension(layers, title, source, weight, bias, value, -1)


def _dimension(
    layers: LayerList, title: str, source: Any, weight: NDArray[Any], bias: Floats, value: Tensor, axis: int
) -> Signal:
    """``value[..., o, ...] = Σ_i weight[o, i] · source[..., i, ...] + bias[o]`` along the dimension `axis`."""
    shape = tuple(source.plain.shape)
    rows = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), axis, -1).reshape(-1, shape[axis])
    result = np.moveaxis(np.arange(value.numel()).reshape(tuple(value.shape)), axis, -1).reshape(-1, len(weight))
    return contracted(layers, title, source, rows, weight, bias, result, value)


def contracted(
    layers: LayerList,
    title: str,
    source: Any,
    rows: Indices,
    weight: NDArray[Any],
    bias: Floats,
    result: Indices,
    value: Tensor,
) -> Signal:
    """The signal `value`, of which the elements `result` ``[rows, out]`` are ``weight`` ``[out, in]`` times those of
    `source` at `rows` ``[rows, in]``, plus ``bias`` ``[out]``.

    A matrix where each image has one row; a 1×1 convolution where the rows are the positions of a map; else a larger
    matrix, if it is not too large.
    """
    signal: Signal = source.signal
    size = layers.size(signal.origin)
    index = signal.indices().reshape(-1)[rows]
    image = np.where(index >= 0, index // size, NOTHING).max(1)
    order = np.argsort(image, kind="stable")
    if len(rows) % layers.batch or (image[order] != np.arange(len(rows)) // (len(rows) // layers.batch)).any():
        raise ConversionError("it mixes the images of a batch, or does not use all of them; keep each image to itself")
    index, result = index[order], result[order]
    first = index[: len(rows) // layers.batch]
    each = np.where(first < 0, NOTHING, first + size * np.arange(layers.batch).reshape(-1, 1, 1))
    if (index.reshape(layers.batch, *first.shape) != each).any():
        raise ConversionError("it treats the images of a batch differently; keep each image to itself")

    def part(values: Floats | None) -> Floats | None:
        return None if values is None else values.reshape(-1)[rows][order][: len(first)]

    gain, offset = part(signal.gain), part(signal.offset)
    name, place = _by_channels(layers, title, signal, first, weight, bias, gain, offset) or _by_matrix(
        layers, title, signal, first, weight, bias, gain, offset
    )
    where = place + layers.size(name) * np.arange(layers.batch).reshape(-1, 1, 1)
    found = np.empty(value.numel(), np.int64)
    found[result.reshape(-1)] = where.reshape(-1)
    made = simplified(Signal(name, layers.whole(name), found.reshape(value.shape), title=title))
    layers.check(made, value)
    return made


def _by_channels(
    layers: LayerList,
    title: str,
    signal: Signal,
    index: Indices,
    weight: NDArray[Any],
    bias: Floats,
    gain: Floats | None,
    offset: Floats | None,
) -> tuple[str, Indices] | None:
    """A 1×1 convolution and where each result is in its output, if each row of `index` is a position of a map."""
    channels, *space = layers.shapes[signal.origin]
    positions = math.prod(space)
    if not space or (len(index) == 1 and positions > 1) or (index < 0).any():
        return None
    channel, position = index // positions, index % positions
    uneven = [each for each in (channel, gain, offset) if each is not None and (each != each[:1]).any()]
    if uneven or (position != position[:, :1]).any() or (len(index) == 1 and index.size == channels):
        return None
    matrix = np.zeros((len(weight), channels))
    scaled = weight if gain is None else weight * gain[0]
    np.add.at(matrix, (slice(None), channel[0]), scaled)
    layer = pointwise(layers.name(title), signal.origin, matrix, len(space) + 1)
    shifted = bias if offset is None else bias + weight @ offset[0]
    name = layers.add(replace(layer, bias=shifted))
    return name, np.arange(len(weight)) * positions + position[:, :1]


def _by_matrix(
    layers: LayerList,
    title: str,
    signal: Signal,
    index: Indices,
    weight: NDArray[Any],
    bias: Floats,
    gain: Floats | None,
    offset: Floats | None,
) -> tuple[str, Indices]:
    """A matrix on all of the origin's output, and where each result is in its output."""
    size, rows, out = layers.size(signal.origin), len(index), len(weight)
    if rows > 1 and rows * out * size > LARGEST_MATRIX:
        raise ConversionError(
            f"it mixes positions of a map of {size} values, which takes a matrix of {rows * out * size} weights, and "
            f"at most {LARGEST_MATRIX} are made; use a smaller map"
        )
    in_order = rows == 1 and index.size == size and bool((index[0] == np.arange(size)).all())
    if in_order and gain is None:
        matrix = weight
    else:
        matrix = np.zeros((rows * out, size))
        for row in range(rows):
            there = np.flatnonzero(index[row] >= 0)
            scaled = weight[:, there] if gain is None else weight[:, there] * gain[row, there]
            block = matrix[row * out : (row + 1) * out]
            np.add.at(block, (slice(None), index[row, there]), scaled)
    shift = np.concatenate([bias + (0 if offset is None else weight @ offset[row]) for row in range(rows)])
    source = signal.origin
    if len(layers.shapes[source]) > 1:
        source = layers.laid_out(signal, np.arange(size), None, None)
    name = layers.add(Linear(name=layers.name(title), inputs=(source,), weight=matrix, bias=shift))
    return name, np.arange(rows * out).reshape(rows, out)


def by_matrix(layers: LayerList, title: str, source: Any, matrix: tuple[Floats, Floats], value: Tensor) -> Signal:
    """The signal `value` that a matrix and offsets make of each image of `source`."""
    weight, bias = matrix
    rows = np.arange(source.plain.numel()).reshape(layers.batch, -1)
    result = np.arange(value.numel()).reshape(layers.batch, -1)
    return contracted(layers, title, source, rows, weight, bias, result, value)


# Pools and means


def avg_pool(
    layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor, rank: int
) -> Signal:
    given = _bound(_of_pool, args, kwargs)
    _expect_batch(given.input, rank + 2)
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
    given = _bound(_of_adaptive, args, kwargs)
    _expect_batch(given.input, rank + 2)
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


def mean(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    return _reduced(layers, title, args, kwargs, value, average=True)


def total(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    return _reduced(layers, title, args, kwargs, value, average=False)


def _reduced(
    layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor, average: bool
) -> Signal | None:
    """A mean or a sum over dimensions: average pooling where windows of a map are meant, else a matrix."""
    given = _bound(_of_mean, args, {key: each for key, each in kwargs.items() if key != "dtype"})
    if not _traced(given.input):
        return None
    shape = tuple(given.input.plain.shape)
    dims = range(len(shape)) if given.dim in (None, (), []) else given.dim
    axes = sorted({d % len(shape) for d in (dims if isinstance(dims, tuple | list | range) else [dims])})
    if not axes:
        return None
    flat = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), axes, range(-len(axes), 0))
    rows = flat.reshape(value.numel(), -1)
    factor = 1 / rows.shape[1] if average else 1.0
    pooled = _by_pool(layers, title, given.input.signal, rows)
    if pooled is not None:
        made = _times(pooled, factor * rows.shape[1], tuple(value.shape))
        layers.check(made, value)
        return made
    result = np.arange(value.numel()).reshape(-1, 1)
    weight = np.full((1, rows.shape[1]), factor)
    return contracted(layers, title, given.input, rows, weight, np.zeros(1), result, value)


def _by_pool(layers: LayerList, title: str, signal: Signal, rows: Indices) -> Signal | None:
    """The means over `rows` of a signal's elements, if these are the windows of a pool on the origin's output."""
    channels, *space = layers.shapes[signal.origin]
    positions, size = math.prod(space), layers.size(signal.origin)
    index = signal.indices().reshape(-1)[rows]
    if not space or (index < 0).any() or (index // positions != index[:, :1] // positions).any():
        return None
    gain, offset = (None if each is None else each.reshape(-1)[rows] for each in (signal.gain, signal.offset))
    if gain is not None and (gain != gain[:, :1]).any():
        return None
    here = np.stack(np.unravel_index(index % positions, space), -1)  # [row, element, axis]
    start = here.min(1)
    kernel = here.max(1) - start + 1
    inside = math.prod(kernel[0]) == index.shape[1] and len(np.unique(index[0])) == index.shape[1]
    if not inside or (kernel != kernel[0]).any() or (start % kernel[0]).any():
        return None
    window = tuple(int(each) for each in kernel[0])
    if any(len(np.unique(row)) != len(row) for row in index[:1]):
        return None
    name = signal.origin
    if math.prod(window) > 1:
        pool = average_pool(layers.name(title), name, channels, window, window, (0,) * len(window))
        name = layers.add(pool)
    pooled = tuple(s // k for s, k in zip(space, window, strict=True))
    place = np.ravel_multi_index(tuple((start // kernel[0]).T), pooled)
    channel, image = (index[:, 0] % size) // positions, index[:, 0] // size
    found = (image * channels + channel) * math.prod(pooled) + place
    return Signal(
        name,
        layers.whole(name),
        found,
        None if gain is None else gain[:, 0],
        None if offset is None else offset.mean(1),
        title,
    )


def _times(signal: Signal, factor: float, shape: tuple[int, ...]) -> Signal:
    """`signal` times `factor`, in another shape of as many elements."""
    assert signal.index is not None
    gain, offset = (None if each is None else each.reshape(shape) * factor for each in (signal.gain, signal.offset))
    if gain is None and factor != 1:
        gain = np.full(shape, factor)
    return simplified(Signal(signal.origin, signal.whole, signal.index.reshape(shape), gain, offset, signal.title))


# What is written so often that it is not measured


def add(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    terms = [each.signal for each in args if _traced(each)]
    if kwargs or len(args) != len(terms) or any(term.index is not None or not term.plain for term in terms):
        return None
    one, other = terms
    if one.origin == other.origin or one.whole != other.whole:
        return None
    return Signal(layers.add(Add(name=layers.name(title), inputs=(one.origin, other.origin)), value), one.whole)


def cat(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    given = _bound(_of_cat, args, {"dim" if key == "axis" else key: each for key, each in kwargs.items()})
    if not all(map(_traced, given.tensors)) or len(given.tensors) < 2 or given.dim not in (1, 1 - value.dim()):
        return None
    terms = [each.signal for each in given.tensors]
    if any(term.index is not None or not term.plain for term in terms):
        return None
    layer = Concat(name=layers.name(title), inputs=tuple(term.origin for term in terms))
    return Signal(layers.add(layer, value), tuple(value.shape))


def dropout(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    given = _bound(_of_dropout, args, kwargs)
    if given.training and given.p > 0:
        raise ConversionError(REMEDIES["dropout"])
    signal: Signal = given.input.signal
    return signal


# Normalisation and activations


def batch_norm(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Any) -> Signal | None:
    if not isinstance(value, Tensor):  # aten's, which returns statistics, too
        return None
    given = _bound(_of_batch_norm, args, kwargs)
    if given.training or given.running_mean is None or given.running_var is None:
        raise ConversionError("it keeps no running statistics; train with track_running_stats=True")
    average, variance = array(given.running_mean, "running_mean"), array(given.running_var, "running_var")
    gain = np.ones(len(average)) if given.weight is None else array(given.weight, "weight")
    if not (variance + given.eps > 0).all():
        raise ConversionError(f"its running_var + eps is not positive: {(variance + given.eps).min():g}")
    scale = gain / np.sqrt(variance + given.eps)
    shift = array(given.bias, "bias", len(average)) - scale * average
    try:
        source = layers.settled(given.input.signal, given.input.plain)
    except ConversionError:
        return None  # its channels are no layer's channels: factors and offsets for each element then
    layer = BatchNorm(name=layers.name(title), inputs=(source,), scale=scale, shift=shift)
    return Signal(layers.add(layer, value), tuple(value.shape))


def activation(layers: LayerList, title: str, source: Any, qcfs: QCFS, value: Tensor) -> Signal:
    """A QCFS, with one λ or one for each index of dimension 1."""
    if is_lazy(qcfs.threshold):
        raise ConversionError("λ per channel has no channels yet; run the model once on an input")
    values = array(qcfs.threshold, "threshold").reshape(-1)
    if not (values > 0).all():
        raise ConversionError(f"every threshold λ must be positive, got {values.min():g}; retrain or set it")
    name, index = layers.somewhere(source.signal, source.plain)
    if len(values) > 1 and index is not None:
        shape = tuple(value.shape)
        spread = np.broadcast_to(values.reshape(1, -1, *[1] * (len(shape) - 2)), shape)
        there = np.empty(spread.size)
        there[index.reshape(-1)] = spread.reshape(-1)
        by_channel = there.reshape(layers.batch * layers.shapes[name][0], -1)
        if (by_channel == by_channel[:, :1]).all():
            values = by_channel[: layers.shapes[name][0], 0].copy()
        else:
            name, index = layers.settled(source.signal, source.plain), None
    channels = layers.shapes[name][0]
    threshold = np.repeat(values, channels) if len(values) == 1 else values
    layer = ClipFloorShift(name=layers.name(title), inputs=(name,), levels=qcfs.levels, threshold=threshold)
    there_value = value
    if index is not None:
        moved = torch.empty(value.numel(), dtype=value.dtype)
        moved[torch.from_numpy(index.reshape(-1))] = value.detach().cpu().reshape(-1)
        there_value = moved
    made = layers.add(layer, there_value)
    return Signal(made, layers.whole(made), index, title=source.signal.title)


# Arguments


def _traced(value: Any) -> bool:
    return hasattr(value, "signal")


def numbers(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """One number for each of `count` dimensions."""
    return tuple(int(each) for each in np.broadcast_to(value, (count,)))


def _expect_batch(source: Any, dimensions: int) -> None:
    """Raise `InputError` if torch took `source` for one image without a batch."""
    if not _traced(source):
        raise ConversionError("its weight depends on the input: " + PRODUCT)
    if source.plain.dim() != dimensions:
        raise InputError(
            f"example_input: it reaches a layer as {list(source.plain.shape)}, one image without a batch or without "
            "channels; pass x[None] for one image, x[:, None] for images without channels"
        )


def _bound(signature: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> SimpleNamespace:
    """A function call's arguments by name, with their defaults."""
    renamed = {"input" if key == "self" else key: value for key, value in kwargs.items()}
    bound = inspect.signature(signature).bind(*args, **renamed)
    bound.apply_defaults()
    return SimpleNamespace(**bound.arguments)


def _of_conv(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # type: ignore[no-untyped-def]
    """Signature of F.conv1d and F.conv2d."""


def _of_linear(input, weight, bias=None):  # type: ignore[no-untyped-def]
    """Signature of F.linear."""


def _of_batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):  # type: ignore[no-untyped-def]
    """Signature of F.batch_norm."""


def _of_pool(  # type: ignore[no-untyped-def]
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """Signature of F.avg_pool1d and F.avg_pool2d."""


def _of_adaptive(input, output_size):  # type: ignore[no-untyped-def]
    """Signature of F.adaptive_avg_pool1d and F.adaptive_avg_pool2d."""


def _of_mean(input, dim=None, keepdim=False):  # type: ignore[no-untyped-def]
    """Signature of torch.mean and torch.sum."""


def _of_cat(tensors, dim=0):  # type: ignore[no-untyped-def]
    """Signature of torch.cat."""


def _of_dropout(input, p=0.5, training=True, inplace=False):  # type: ignore[no-untyped-def]
    """Signature of F.dropout and its relatives."""


DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
SHORT_CUTS: dict[str, Rule] = {
    **dict.fromkeys(("add", "__add__"), add),
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    **dict.fromkeys(DROPOUTS, dropout),
}
"""For functions that could be measured as well, but of every larger network has many. None: measure it."""

FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv),
    "linear": linear,
    **dict.fromkeys(("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "inner"), matmul),
    "addmm": addmm,
    "einsum": einsum,
    "batch_norm": batch_norm,
    "avg_pool1d": partial(avg_pool, rank=1),
    "avg_pool2d": partial(avg_pool, rank=2),
    "adaptive_avg_pool1d": partial(adaptive_avg_pool, rank=1),
    "adaptive_avg_pool2d": partial(adaptive_avg_pool, rank=2),
    "mean": mean,
    "sum": total,
}
