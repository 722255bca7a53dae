"""What each ONNX operator does to the data: the layer or the step it becomes. One rule an operator.

Rules are handed the reader, which knows what the node's inputs hold and takes the layers. An operator that has no rule
is refused, with what to use instead.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.converters.index_tracing import NOTHING
from bridge.converters.onnx_files import pools, weights
from bridge.converters.onnx_files.folding import FOLDS, whole
from bridge.converters.onnx_files.layer_list import Source, placeholder
from bridge.converters.onnx_files.reader import Reader, Rule
from bridge.converters.onnx_files.values import (
    Bound,
    Constant,
    Data,
    Floor,
    Gain,
    Node,
    Shift,
    StraightThrough,
    Value,
    kind_name,
    numpy_type,
    shown,
)
from bridge.converters.remedies import (
    AS_MATRIX,
    BATCH_NORM,
    BY_AVERAGE,
    BY_QCFS,
    ENLARGES,
    LEAVE_OUT,
    NOT_AFFINE,
    ONLY_QCFS,
    PRODUCT,
)
from bridge.converters.torch_models.contractions import by_matrix
from bridge.converters.torch_models.joins import joined
from bridge.converters.torch_models.measuring import MOST_MEASURED as MOST_IN_MATRIX
from bridge.converters.torch_models.measuring import measure, measure_matrix
from bridge.converters.torch_models.signals import Floats, Signal, simplified
from bridge.errors import ConversionError, GraphError
from bridge.graph import Add, Concat, Scale

REMEDIES: dict[str, str] = {
    **dict.fromkeys(("Relu", "Clip"), f"{BY_QCFS}, and export again"),
    **dict.fromkeys(("LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Sigmoid", "HardSigmoid"), ONLY_QCFS),
    **dict.fromkeys(("HardSwish", "Mish", "Swish", "Tanh", "Softplus", "Softsign", "Erf"), ONLY_QCFS),
    **dict.fromkeys(("Softmax", "LogSoftmax"), LEAVE_OUT),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool", "LpPool", "ReduceMax"), BY_AVERAGE),
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization", "LRN"), BATCH_NORM),
    **dict.fromkeys(("Round", "Ceil"), "QCFS rounds with Floor after adding 1/2; nothing else has its spiking twin"),
    **dict.fromkeys(("If", "Loop", "Scan"), "it depends on the data; a network is a fixed graph of layers"),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "recurrent layers are not supported"),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), "export the float model; the bridge quantises by itself"),
    **dict.fromkeys(("ConvTranspose", "Resize", "Upsample", "MaxUnpool"), ENLARGES),
}
SUPPORTED = (
    "Conv, Gemm, MatMul, Einsum, BatchNormalization, AveragePool, GlobalAveragePool, ReduceMean, ReduceSum, sums and "
    "multiples as Add, Sub, Mul, Div, Neg, Sum, Mean and Where, what moves data as Reshape, Transpose, Slice, Gather, "
    "Split, Concat, Pad and SpaceToDepth, Dropout, Identity, and QCFS as Mul or Div, Add, Floor, Clip"
)
MOST_MEASURED = 2**24
"""Numbers in all that an operation takes and gives, of which is measured what it does."""


# Sums, multiples and moves, told by numbers


def _move(reader: Reader, node: Node) -> tuple[Value, ...]:
    """Apply what only moves data to indices in its place."""
    source = reader.signal(node)
    options = [reader.value(node, at) if node.has(at) else None for at in range(1, len(node.inputs))]
    if not all(isinstance(option, Constant | None) for option in options):
        raise ConversionError("where it moves data depends on the data")
    constants = [None if option is None else option.values for option in options]  # type: ignore[union-attr]

    def move(numbers: Tensor) -> list[Tensor]:
        return [torch.from_numpy(np.array(each)) for each in reader.compute(node, [numbers.numpy(), *constants])]

    reader.tensors.spend(math.prod(source.shape))
    return reader.made_of(node, *source.moved(move, node.title))


def _measured(reader: Reader, node: Node) -> tuple[Value, ...]:
    """Find out by numbers what multiples of which elements of the data the node adds up, and join them."""
    values = [reader.value(node, at) if node.has(at) else None for at in range(len(node.inputs))]
    sources = {at: reader.signal(node, at) for at, value in enumerate(values) if not isinstance(value, Constant | None)}
    arrays = [
        placeholder(sources[at].shape).double().numpy()
        if at in sources
        else None
        if value is None
        else _number(reader, node, at)
        for at, value in enumerate(values)
    ]
    shapes = [signal.shape for signal in sources.values()]
    if sum(map(math.prod, shapes)) + reader.size(node, arrays) > MOST_MEASURED:
        raise GraphError(f"it takes or gives more than {MOST_MEASURED} numbers, and is not measured")
    results = reader.compute(node, arrays)

    def on_numbers(*numbers: Tensor) -> list[Tensor]:
        given = dict(zip(sources, numbers, strict=True))
        operands = [given[at].numpy() if at in given else array for at, array in enumerate(arrays)]
        made = FOLDS[node.op](node, *operands)
        return [torch.from_numpy(np.array(each)) for each in (made if isinstance(made, list) else [made])]

    found = measure(on_numbers, shapes)
    if found is None:
        return (_as_matrix(reader, node, on_numbers, list(sources.values()), results),)
    return tuple(
        _joined(
            reader,
            node,
            [part.of(signal, node.title) for part, signal in zip(parts, sources.values(), strict=True) if part],
            offset,
        )
        for parts, offset in found
    )


def _joined(reader: Reader, node: Node, terms: list[Signal], offset: Floats) -> Value:
    """The sum of `terms` and `offset`."""
    if not terms:
        raise ConversionError("it leaves nothing of its input, only constants")
    terms = [_in_place(term) for term in terms]
    for term in terms:
        reader.layers.expect_alike(term)
    try:
        return reader.made_of(node, joined(reader.layers, terms, offset, node.title))[0]
    except ConversionError:
        moved = _as_one(terms, offset)
        if moved is None:
            raise
        return reader.made_of(node, moved)[0]


def _as_one(terms: list[Signal], offset: Floats) -> Signal | None:
    """The sum of `terms` and `offset`, if that is only another order of one layer's output: no two terms overlap."""
    first, shape = terms[0], offset.shape
    index, gain = np.full(shape, NOTHING), np.zeros(shape)
    for term in terms:
        there = term.indices() >= 0
        if term.origin != first.origin or (index[there] >= 0).any():
            return None
        index[there] = term.indices()[there]
        gain[there] = 1.0 if term.gain is None else term.gain[there]
        offset = offset if term.offset is None else offset + term.offset
    return simplified(Signal(first.origin, first.whole, index, gain, offset, first.title))


def _in_place(signal: Signal) -> Signal:
    """`signal` with factors of 0 in the place of elements that are missing, if all others are in their places."""
    index = signal.index
    if index is None or index.shape != signal.whole:
        return signal
    there = index >= 0
    if (index != np.arange(index.size).reshape(index.shape))[there].any():
        return signal
    return replace(signal, index=None, gain=np.where(there, 1.0 if signal.gain is None else signal.gain, 0.0))


def _as_matrix(reader: Reader, node: Node, function: Any, sources: list[Signal], results: list[NDArray[Any]]) -> Value:
    """What a matrix makes of each image, found by as many runs as an image has elements."""
    if len(sources) > 1 or len(results) > 1:
        raise ConversionError(PRODUCT if len(sources) > 1 else NOT_AFFINE)
    (source,), (result,) = sources, results
    if math.prod(source.shape[1:]) > MOST_IN_MATRIX:
        raise ConversionError(f"it mixes more than {MOST_IN_MATRIX} values of an image in a way of its own; use a Gemm")
    matrix = measure_matrix(function, source.shape)
    if matrix is None:
        raise ConversionError(NOT_AFFINE)
    made = by_matrix(
        reader.layers,
        node.title,
        Source(source, placeholder(source.shape)),
        matrix,
        placeholder(result.shape),
        AS_MATRIX,
    )
    return reader.made_of(node, made)[0]


def _number(reader: Reader, node: Node, at: int) -> NDArray[Any]:
    """A constant operand: finite if it is of floats."""
    array = reader.raw(node, at)
    return reader.numbers(node, at) if np.issubdtype(array.dtype, np.floating) else array


def _pad(reader: Reader, node: Node) -> Value | tuple[Value, ...]:
    if isinstance(reader.value(node, 0), Constant):
        raise ConversionError("where it moves data depends on the data")
    return _measured(reader, node)


def _where(reader: Reader, node: Node) -> Value | tuple[Value, ...]:
    if not isinstance(reader.value(node, 0), Constant):
        raise ConversionError("what it chooses depends on the data, which the wiring of a spiking network cannot")
    return _measured(reader, node)


def _mat_mul(reader: Reader, node: Node) -> Value | tuple[Value, ...]:
    return weights.mat_mul(reader, node) or _measured(reader, node)


def _einsum(reader: Reader, node: Node) -> Value | tuple[Value, ...]:
    return weights.einsum(reader, node) or _measured(reader, node)


def _concat(reader: Reader, node: Node) -> Value | tuple[Value, ...]:
    values = [reader.value(node, at) for at in range(len(node.inputs))]
    if not all(isinstance(value, Data) for value in values):
        return _measured(reader, node)
    signals = [reader.signal(node, at) for at in range(len(values))]
    if len(signals) == 1:
        return values[0]
    if not all(map(_as_it_stands, signals)) or node.get("axis", None) not in (1, 1 - len(signals[0].shape)):
        return _measured(reader, node)
    names = tuple(signal.origin for signal in signals)
    return reader.put(node, Concat(name=reader.layers.name(node.title), inputs=names))


def _as_it_stands(signal: Signal) -> bool:
    return signal.index is None and signal.plain


# Steps of a QCFS, or of what is scaled and shifted


def _add(reader: Reader, node: Node) -> Value | tuple[Value, ...]:
    first, second = reader.value(node, 0), reader.value(node, 1)
    for level, difference in ((first, second), (second, first)):
        if isinstance(difference, StraightThrough) and level == difference.level:
            return difference.floored
    if isinstance(first, Constant) or isinstance(second, Constant):
        return _add_constant(reader, node, *((1, 0) if isinstance(first, Constant) else (0, 1)))
    return _join(reader, node, reader.signal(node, 0), reader.signal(node, 1))


def _add_constant(reader: Reader, node: Node, at: int, constant: int) -> Value | tuple[Value, ...]:
    data = reader.data(node, at)
    term = reader.term(node, constant, data.shape)
    if term is None:
        return _measured(reader, node)
    if node.inputs[at] in reader.bias_free and term.size > 1:
        bias = reader.per_channel(term, data.signal)
        if bias is not None:
            reader.give_bias(data.signal.origin, bias)
            return data
    return reader.step(data, Shift(node, term))


def _join(reader: Reader, node: Node, first: Signal, second: Signal) -> Value | tuple[Value, ...]:
    """The sum of two signals; of a signal with itself, its double, for no NIR graph has the same edge twice."""
    one, other = first.origin, second.origin
    if first.shape != second.shape:
        return _measured(reader, node)
    if not (_as_it_stands(first) and _as_it_stands(second)):
        return _joined(reader, node, [first, second], np.zeros(first.shape))
    name = reader.layers.name(node.title)
    if one == other:
        return reader.put(node, Scale(name=name, inputs=(one,), scale=np.full(reader.layers.shapes[one][0], 2.0)))
    return reader.put(node, Add(name=name, inputs=(one, other)))


def _sum(reader: Reader, node: Node) -> Value | tuple[Value, ...]:
    values = [reader.value(node, at) for at in range(len(node.inputs))]
    if not all(isinstance(value, Data) for value in values):
        return _measured(reader, node)
    total, *others = (reader.signal(node, at) for at in range(len(values)))
    if not all(_as_it_stands(each) and each.shape == total.shape for each in (total, *others)):
        return _measured(reader, node)
    for other in others:
        added = _join(reader, node, total, other)
        assert isinstance(added, Data)
        total = added.signal
    return Data(total)


def _sub(reader: Reader, node: Node) -> Value | tuple[Value, ...]:
    first, second = reader.value(node, 0), reader.value(node, 1)
    if isinstance(first, Constant) or isinstance(second, Constant):
        at = 0 if isinstance(second, Constant) else 1
        data = reader.data(node, at)
        term = reader.term(node, 1 - at, data.shape)
        if term is None:
            return _measured(reader, node)
        if at == 0:
            return reader.step(data, Shift(node, -term))
        return reader.step(data, Gain(node, -np.ones(1)), Shift(node, term))
    floored, level = reader.data(node, 0), reader.data(node, 1)
    last = floored.steps[-1] if floored.steps else None
    if isinstance(last, Floor) and Data(floored.signal, floored.steps[:-1]) == level:
        return StraightThrough(level, floored)
    return _measured(reader, node)


def _mul(reader: Reader, node: Node) -> Value | tuple[Value, ...]:
    constant = 0 if isinstance(reader.value(node, 0), Constant) else 1
    if not isinstance(reader.value(node, constant), Constant):
        raise ConversionError(PRODUCT)
    data = reader.data(node, 1 - constant)
    factor = reader.term(node, constant, data.shape)
    return _measured(reader, node) if factor is None else reader.step(data, Gain(node, factor))


def _div(reader: Reader, node: Node) -> Value | tuple[Value, ...]:
    if not isinstance(reader.value(node, 1), Constant):
        raise ConversionError("it divides by a signal; no spiking layer does that")
    if not np.all(reader.numbers(node, 1)):
        raise ConversionError("it divides by zero")
    data = reader.data(node)
    divisor = reader.term(node, 1, data.shape)
    return _measured(reader, node) if divisor is None else reader.step(data, Gain(node, 1 / divisor))


def _neg(reader: Reader, node: Node) -> Value:
    return reader.step(reader.data(node), Gain(node, -np.ones(1)))


def _floor(reader: Reader, node: Node) -> Value:
    return reader.step(reader.data(node), Floor(node))


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
    return reader.step(reader.data(node, data), Bound(node, low, high))


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
    return Constant(
        value.values.astype(like.values.dtype if isinstance(like, Constant) else numpy_type(reader.element))
    )


def _shape(reader: Reader, node: Node) -> Value:
    part = slice(node.get("start", 0), node.get("end", None))
    return Constant(np.array(reader.data(node).shape[part], dtype=np.int64))


def _constant_of_shape(reader: Reader, node: Node) -> Value:
    shape, value = whole(reader.raw(node, 0)), node.get("value", None)
    reader.tensors.spend(math.prod(shape))
    filling = np.zeros(1, np.float32) if value is None else reader.tensors.read(value)
    if min(shape, default=0) < 0 or filling.size != 1:
        raise GraphError(f"it fills the shape {list(shape)} with {filling.size} values")
    return Constant(np.full(shape, filling.reshape(())))


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
    return Constant(array)


MOVES = (
    *("DepthToSpace", "Expand", "Flatten", "Gather", "GatherND", "Reshape", "Slice", "SpaceToDepth", "Split"),
    *("Squeeze", "Tile", "Transpose", "Unsqueeze"),
)
RULES: dict[str, Rule] = {
    "Add": _add,
    "AveragePool": pools.average,
    "BatchNormalization": weights.batch_norm,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Conv": weights.conv,
    "CumSum": _measured,
    "Div": _div,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Floor": _floor,
    "Gemm": weights.gemm,
    "GlobalAveragePool": pools.global_average,
    "Identity": _same,
    "MatMul": _mat_mul,
    "Max": _max,
    "Mean": _measured,
    "Min": _min,
    "Mul": _mul,
    "Neg": _neg,
    "Pad": _pad,
    "ReduceMean": pools.reduce,
    "ReduceSum": pools.reduce,
    "Relu": _relu,
    "Shape": _shape,
    "Sub": _sub,
    "Sum": _sum,
    "Where": _where,
    **dict.fromkeys(MOVES, _move),
}
STAND_INS: dict[str, Rule] = {
    **dict.fromkeys((op for op, remedy in REMEDIES.items() if remedy in (ONLY_QCFS, BATCH_NORM)), _same),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Round", "Ceil"), _same),
    "GlobalMaxPool": pools.global_average,
}
"""Refused operators, and the rules that give a tensor of the same shape."""
