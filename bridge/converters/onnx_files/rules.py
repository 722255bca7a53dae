"""What each ONNX operator does to the data: the layer or the step it becomes. One rule an operator.

Rules are handed the reader, which knows what the node's inputs hold and takes the layers. An operator that has no rule
is refused, with what to use instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bridge.converters.onnx_files.folding import FOLDS
from bridge.converters.onnx_files.reader import Reader, Rule
from bridge.converters.onnx_files.values import (
    Bound,
    Constant,
    Floor,
    Gain,
    Node,
    Rearranged,
    Shift,
    Signal,
    StraightThrough,
    Value,
    kind_name,
    numpy_type,
    shown,
)
from bridge.converters.remedies import BATCH_NORM, BY_AVERAGE, BY_QCFS, LEAVE_OUT, ONLY_QCFS, PRODUCT
from bridge.errors import ConversionError, GraphError
from bridge.graph import Add, Array, BatchNorm, Concat, Conv1d, Conv2d, Flatten, Linear, Scale, Shape, average_pool

REMEDIES: dict[str, str] = {
    **dict.fromkeys(("Relu", "Clip"), f"{BY_QCFS}, and export again"),
    **dict.fromkeys(("LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Sigmoid", "HardSigmoid"), ONLY_QCFS),
    **dict.fromkeys(("HardSwish", "Mish", "Swish", "Tanh", "Softplus", "Softsign", "Erf"), ONLY_QCFS),
    **dict.fromkeys(("Softmax", "LogSoftmax"), LEAVE_OUT),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool", "LpPool"), BY_AVERAGE),
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization", "LRN"), BATCH_NORM),
    **dict.fromkeys(("Round", "Ceil"), "QCFS rounds with Floor after adding 1/2; nothing else has its spiking twin"),
    **dict.fromkeys(("If", "Loop", "Scan", "Where"), "it depends on the data; a network is a fixed graph of layers"),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "recurrent layers are not supported"),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), "export the float model; the bridge quantises by itself"),
    **dict.fromkeys(("Pad", "Resize", "Upsample"), "NIR has nothing like it; use padding of a convolution"),
    "ConvTranspose": "NIR has no transposed convolution; use a Conv",
}
SUPPORTED = (
    "Conv, Gemm, MatMul, BatchNormalization, AveragePool, GlobalAveragePool, ReduceMean over space, flattening, "
    "channel splits and shuffles, Add, Concat, Dropout, Identity, and QCFS as Mul or Div, Add, Floor, Clip"
)


def _conv(reader: Reader, node: Node) -> Value:
    source = reader.source(node)
    shape = reader.shapes[source]
    weight = reader.numbers(node, 1, np.float32)
    kernel = weight.shape[2:]
    if len(kernel) not in (1, 2):
        raise ConversionError(f"a convolution over {max(len(kernel), 0)} dimensions; 1 and 2 are supported")
    if tuple(node.get("kernel_shape", kernel)) != kernel:
        raise GraphError(f"its kernel_shape {node.get('kernel_shape', [])} is not that of its weight {weight.shape}")
    groups = node.get("group", 1)
    if groups < 1 or weight.shape[0] % groups:
        raise GraphError(f"{weight.shape[0]} output channels do not divide into {groups} groups")
    count = len(weight)
    bias = reader.vector(node, 2, count, "bias") if node.has(2) else np.zeros(count)
    stride, dilation, padding = _window(node, kernel, shape)
    name, inputs = reader.name(node), (source,)
    if len(kernel) == 1:
        (s,), (d,), (p,) = stride, dilation, padding
        return reader.put(
            node,
            Conv1d(name=name, inputs=inputs, weight=weight, bias=bias, stride=s, padding=p, dilation=d, groups=groups),
        )
    return reader.put(
        node,
        Conv2d(
            name=name,
            inputs=inputs,
            weight=weight,
            bias=bias,
            stride=_two(stride),
            padding=_two(padding),
            dilation=_two(dilation),
            groups=groups,
        ),
    )


def _window(node: Node, kernel: Shape, shape: Shape) -> tuple[Shape, Shape, Shape]:
    """Strides, dilations and paddings of a window of `kernel` that slides over `shape` ``[C, ...]``, checked."""
    space = len(kernel)
    if len(shape) != space + 1 or min(kernel) < 1:
        raise GraphError(
            f"a {list(kernel)} window does not slide over an input of shape [B, {', '.join(map(str, shape))}]"
        )
    stride, dilation = tuple(node.get("strides", [1] * space)), tuple(node.get("dilations", [1] * space))
    if len(stride) != space or len(dilation) != space or min(stride + dilation) < 1:
        raise GraphError(f"its strides {list(stride)} or dilations {list(dilation)} do not fit {space} dimensions")
    automatic = node.get("auto_pad", "NOTSET")
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        sizes = zip(shape[1:], reach, stride, strict=True)
        total = [max((-(-n // s) - 1) * s + r - n, 0) for n, r, s in sizes]
        before, after = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    elif automatic == "VALID":
        before = after = (0,) * space
    else:
        pads = tuple(node.get("pads", [0] * 2 * space))
        if automatic != "NOTSET" or len(pads) != 2 * space or min(pads) < 0:
            raise GraphError(f"its padding {automatic} {list(pads)} does not fit {space} dimensions")
        before, after = pads[:space], pads[space:]
    if before != after:
        raise ConversionError(
            f"its padding is lopsided, {list(before)} before and {list(after)} after; make it symmetric"
        )
    return stride, dilation, before


def _average_pool(reader: Reader, node: Node) -> Value:
    source = reader.source(node)
    shape = reader.shapes[source]
    kernel = tuple(node.get("kernel_shape", ()))
    stride, dilation, padding = _window(node, kernel or (0,), shape)
    if max(dilation) > 1 or (any(padding) and not node.get("count_include_pad", 0)):
        raise ConversionError("NIR's AvgPool2d has no dilation and no count_include_pad=0 with padding")
    sizes = zip(shape[1:], kernel, stride, padding, strict=True)
    if node.get("ceil_mode", 0) and any((n + 2 * p - k) % s for n, k, s, p in sizes):
        raise ConversionError("NIR's AvgPool2d has no ceil_mode; use sizes that divide, or ceil_mode=0")
    return _pool(reader, node, source, kernel, stride, padding)


def _pool(reader: Reader, node: Node, source: str, kernel: Shape, stride: Shape, padding: Shape) -> Signal:
    """Averages over windows; over one dimension a convolution of each channel by itself, for want of an AvgPool1d."""
    if len(kernel) not in (1, 2):
        raise ConversionError(f"it pools over {len(kernel)} dimensions; 1 and 2 are supported")
    channels = reader.shapes[source][0]
    if len(kernel) == 1:
        reader.tensors.spend(channels * kernel[0])
    return reader.put(node, average_pool(reader.name(node), source, channels, kernel, stride, padding))


def _global_pool(reader: Reader, node: Node) -> Signal:
    source = reader.source(node)
    space = reader.shapes[source][1:]
    if not space:
        raise GraphError("it pools over space, but its input has none")
    if set(space) == {1}:
        return Signal(source)
    return _pool(reader, node, source, space, space, (0,) * len(space))


def _reduce_mean(reader: Reader, node: Node) -> Value:
    rank = len(reader.shapes[reader.source(node)]) + 1
    if rank < 3 or reader.axes(node, rank) != tuple(range(2, rank)):
        raise ConversionError("only a mean over all dimensions of space, as [2, 3] of [B, C, H, W], is supported")
    if node.get("keepdims", 1):
        return _global_pool(reader, node)
    pooled = _global_pool(reader, replace(node, title=f"{node.title}_pool"))
    return reader.put(node, Flatten(name=reader.name(node), inputs=(pooled.base,)))


def _gemm(reader: Reader, node: Node) -> Value:
    source = reader.source(node)
    if node.get("transA", 0):
        raise ConversionError("it transposes the data (transA)")
    weight = reader.numbers(node, 1, np.float32)
    if weight.ndim != 2:
        raise GraphError(f"its weight has shape {list(weight.shape)}, expected two dimensions")
    if not node.get("transB", 0):
        weight = np.ascontiguousarray(weight.T)
    if (alpha := node.get("alpha", 1.0)) != 1:
        weight = weight * np.float32(alpha)
        _check_finite(weight)
    bias: Array = np.zeros(len(weight))
    if node.has(2):
        given = reader.numbers(node, 2)
        if given.shape not in {(), (1,), (len(weight),), (1, 1), (1, len(weight))}:
            raise GraphError(f"its bias has shape {list(given.shape)}, expected [{len(weight)}]")
        bias = bias + node.get("beta", 1.0) * given.reshape(-1)
        _check_finite(bias)
    return reader.put(node, Linear(name=reader.name(node), inputs=(source,), weight=weight, bias=bias))


def _mat_mul(reader: Reader, node: Node) -> Value:
    source = reader.source(node)
    weight = reader.numbers(node, 1, np.float32)
    if weight.ndim != 2:
        raise ConversionError(f"its second factor has shape {list(weight.shape)}; only a matrix [F_in, F_out] will do")
    weight = np.ascontiguousarray(weight.T)
    layer = Linear(name=reader.name(node), inputs=(source,), weight=weight, bias=np.zeros(len(weight)))
    if reader.readers[node.outputs[0]] == 1:
        reader.bias_free.add(layer.name)
    return reader.put(node, layer)


def _batch_norm(reader: Reader, node: Node) -> Value:
    source = reader.source(node)
    if node.get("training_mode", 0) or not node.get("spatial", 1):
        raise ConversionError("only batch normalisation at inference, per channel, is supported; export in eval mode")
    channels = reader.shapes[source][0]
    gain, shift, mean, variance = (
        reader.vector(node, at, channels, what)
        for at, what in enumerate(("scale", "bias", "mean", "variance"), start=1)
    )
    variance = variance + node.get("epsilon", 1e-5)
    if not (variance > 0).all():
        raise ConversionError(f"its variance and epsilon must be positive together, got {variance.min():g}")
    scale = gain / np.sqrt(variance)
    _check_finite(scale, shift - scale * mean)
    return reader.put(
        node, BatchNorm(name=reader.name(node), inputs=(source,), scale=scale, shift=shift - scale * mean)
    )


def _move(reader: Reader, node: Node) -> tuple[Value, ...]:
    """Apply what only moves data to indices in its place."""
    source = reader.value(node, 0)
    if not isinstance(source, Rearranged):
        name = reader.source(node)
        sizes = [(batch, *reader.shapes[name]) for batch in reader.batches]
        reader.tensors.spend(sum(map(math.prod, sizes)))
        first, second = (np.arange(math.prod(size)).reshape(size) for size in sizes)
        source = Rearranged(node, name, (first, second))
    options = [reader.value(node, at) if node.has(at) else None for at in range(1, len(node.inputs))]
    if not all(isinstance(option, Constant | None) for option in options):
        raise ConversionError("where it moves data depends on the data")
    return tuple(
        Rearranged(node, source.origin, pair) for pair in reader.compute(node, FOLDS[node.op], [source, *options])
    )


def _concat(reader: Reader, node: Node) -> Value:
    sources = tuple(reader.source(node, at) for at in range(len(node.inputs)))
    if node.get("axis", None) not in (1, -len(reader.shapes[sources[0]])):
        raise ConversionError(f"it joins along axis {node.get('axis', None)}; only 1, the channels, is supported")
    if len(sources) == 1:
        return Signal(sources[0])
    return reader.put(node, Concat(name=reader.name(node), inputs=sources))


def _add(reader: Reader, node: Node) -> Value:
    first, second = reader.value(node, 0), reader.value(node, 1)
    for level, difference in ((first, second), (second, first)):
        if isinstance(difference, StraightThrough) and level == difference.level:
            return difference.floored
    if isinstance(first, Constant) or isinstance(second, Constant):
        return _add_constant(reader, node, *((1, 0) if isinstance(first, Constant) else (0, 1)))
    return _join(reader, node, reader.signal(node, 0), reader.signal(node, 1))


def _add_constant(reader: Reader, node: Node, data: int, constant: int) -> Value:
    signal = reader.signal(node, data)
    term = reader.channels(node, constant, signal)
    if not signal.steps and signal.base in reader.bias_free and term.size > 1:
        reader.bias_free.discard(signal.base)
        index, layer = reader.layers[signal.base]
        assert isinstance(layer, Linear)
        reader.layers[signal.base] = (index, replace(layer, bias=term))
        return signal
    return reader.step(signal, Shift(node, term))


def _join(reader: Reader, node: Node, first: Signal, second: Signal) -> Signal:
    """The sum of two signals; of a signal with itself, its double, for no NIR graph has the same edge twice."""
    one, other = reader.layer(first), reader.layer(second)
    if one == other:
        double = np.full(reader.shapes[one][0], 2.0)
        return reader.put(node, Scale(name=reader.name(node), inputs=(one,), scale=double))
    return reader.put(node, Add(name=reader.name(node), inputs=(one, other)))


def _sum(reader: Reader, node: Node) -> Value:
    total = reader.signal(node, 0)
    for at in range(1, len(node.inputs)):
        total = _join(reader, node, total, reader.signal(node, at))
    return total


def _sub(reader: Reader, node: Node) -> Value:
    first, second = reader.value(node, 0), reader.value(node, 1)
    if isinstance(second, Constant):
        signal = reader.signal(node, 0)
        return reader.step(signal, Shift(node, -reader.channels(node, 1, signal)))
    if isinstance(first, Constant):
        signal = reader.signal(node, 1)
        return reader.step(signal, Gain(node, -np.ones(1)), Shift(node, reader.channels(node, 0, signal)))
    floored, level = reader.signal(node, 0), reader.signal(node, 1)
    last = floored.steps[-1] if floored.steps else None
    if isinstance(last, Floor) and Signal(floored.base, floored.steps[:-1]) == level:
        return StraightThrough(level, floored)
    raise ConversionError("it subtracts one signal from another; only sums are supported")


def _mul(reader: Reader, node: Node) -> Value:
    constant = 0 if isinstance(reader.value(node, 0), Constant) else 1
    if not isinstance(reader.value(node, constant), Constant):
        raise ConversionError(PRODUCT)
    signal = reader.signal(node, 1 - constant)
    return reader.step(signal, Gain(node, reader.channels(node, constant, signal)))


def _div(reader: Reader, node: Node) -> Value:
    if not isinstance(reader.value(node, 1), Constant):
        raise ConversionError("it divides by a signal; no spiking layer does that")
    signal = reader.signal(node, 0)
    divisor = reader.channels(node, 1, signal)
    if not np.all(divisor):
        raise ConversionError("it divides by zero")
    return reader.step(signal, Gain(node, 1 / divisor))


def _neg(reader: Reader, node: Node) -> Value:
    return reader.step(reader.signal(node), Gain(node, -np.ones(1)))


def _floor(reader: Reader, node: Node) -> Value:
    return reader.step(reader.signal(node), Floor(node))


def _clip(reader: Reader, node: Node) -> Value:
    low = _limit(reader, node, 1) if node.has(1) else node.get("min", -math.inf)
    high = _limit(reader, node, 2) if node.has(2) else node.get("max", math.inf)
    return _bound(reader, node, 0, low, high)


def _max(reader: Reader, node: Node) -> Value:
    data, limit = _data_and_limit(reader, node)
    return _bound(reader, node, data, _limit(reader, node, limit), math.inf)


def _min(reader: Reader, node: Node) -> Value:
    data, limit = _data_and_limit(reader, node)
    return _bound(reader, node, data, -math.inf, _limit(reader, node, limit))


def _relu(reader: Reader, node: Node) -> Value:
    return _bound(reader, node, 0, 0.0, math.inf)


def _data_and_limit(reader: Reader, node: Node) -> tuple[int, int]:
    if len(node.inputs) != 2:
        raise ConversionError(f"it compares {len(node.inputs)} tensors; only data with one constant is supported")
    return (1, 0) if isinstance(reader.value(node, 0), Constant) else (0, 1)


def _limit(reader: Reader, node: Node, index: int) -> float:
    limit = reader.numbers(node, index, finite=False)
    if limit.size != 1 or np.isnan(limit).any():
        raise ConversionError(f"its limit {shown(node.inputs[index])} must be one number")
    return float(limit.reshape(()))


def _bound(reader: Reader, node: Node, data: int, low: float, high: float) -> Value:
    if not low <= high:
        raise ConversionError(f"it clips between {low:g} and {high:g}")
    return reader.step(reader.signal(node, data), Bound(node, low, high))


def _same(reader: Reader, node: Node) -> Value:
    """Nodes that do nothing at inference."""
    return reader.value(node, 0)


def _dropout(reader: Reader, node: Node) -> Value:
    if node.has(2) and reader.raw(node, 2).any():
        raise ConversionError("it drops at inference too; export in eval mode")
    return reader.value(node, 0)


def _cast(reader: Reader, node: Node) -> Value:
    if node.get("to", 0) != reader.element:
        raise ConversionError(
            f"it casts to {kind_name(node.get('to', 0))}; the whole network must have the input's type"
        )
    return reader.value(node, 0)


def _cast_like(reader: Reader, node: Node) -> Value:
    """Data stays as it is, for all of it has one type; constants become what other constants, or the data, are."""
    value, like = reader.value(node, 0), reader.value(node, 1)
    if not isinstance(value, Constant):
        return value
    kind = like.values[0].dtype if isinstance(like, Constant) else numpy_type(reader.element)
    first, second = value.values
    cast = first.astype(kind)
    return Constant((cast, cast if second is first else second.astype(kind)))


def _shape(reader: Reader, node: Node) -> Value:
    value = reader.value(node, 0)
    if isinstance(value, Rearranged):
        shapes = [indices.shape for indices in value.indices]
    else:
        shapes = [(batch, *reader.shapes[reader.signal(node).base]) for batch in reader.batches]
    part = slice(node.get("start", 0), node.get("end", None))
    first, second = (np.array(shape[part], dtype=np.int64) for shape in shapes)
    return Constant((first, second))


def _constant(reader: Reader, node: Node) -> Value:
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if len(node.attributes) != 1:
        raise GraphError("expected one attribute with its value")
    ((attribute, given),) = node.attributes.items()
    if attribute == "value" and hasattr(given, "data_type"):
        array = reader.tensors.read(given)
    elif attribute in kinds and isinstance(given, float | int | list):
        array = np.array(given, dtype=kinds[attribute])
    else:
        raise ConversionError(f"a constant given as {attribute} is not supported")
    return Constant((array, array))


def _two(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second


def _check_finite(*arrays: Array) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise ConversionError("its constants multiply to NaN or infinity")


MOVES = ("Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
RULES: dict[str, Rule] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _conv,
    "Div": _div,
    "Dropout": _dropout,
    "Floor": _floor,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "Identity": _same,
    "MatMul": _mat_mul,
    "Max": _max,
    "Min": _min,
    "Mul": _mul,
    "Neg": _neg,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Shape": _shape,
    "Sub": _sub,
    "Sum": _sum,
    **dict.fromkeys(MOVES, _move),
}
STAND_INS: dict[str, Rule] = {
    **dict.fromkeys((op for op, remedy in REMEDIES.items() if remedy in (ONLY_QCFS, BATCH_NORM)), _same),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Round", "Ceil"), _same),
    "GlobalMaxPool": _global_pool,
}
"""Refused operators, and the rules that give a tensor of the same shape."""
