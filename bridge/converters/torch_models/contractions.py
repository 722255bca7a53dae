"""Linear layers and matrix products: along one dimension of whatever stands there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.converters.index_tracing import LARGEST_MATRIX, NOTHING, Indices
from bridge.converters.remedies import AS_MATRIX, MIXES_IMAGES, PRODUCT
from bridge.converters.torch_models.arguments import array, bound, is_traced, of_linear
from bridge.converters.torch_models.layer_list import LayerList
from bridge.converters.torch_models.signals import Floats, Signal, simplified
from bridge.errors import ConversionError
from bridge.graph import Linear, pointwise


def linear(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal:
    """A matrix; on the last dimension of several rows, a 1×1 convolution where the rows are positions of a map."""
    given = bound(of_linear, args, kwargs)
    weight = array(given.weight, "weight", dtype=torch.float32)
    return _last_dimension(layers, title, given.input, weight, array(given.bias, "bias", len(weight)), value)


def matmul(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    """A matrix, if one of the two is constant."""
    one, other = [*args, *(kwargs[key] for key in ("other", "mat2", "tensor2", "vec", "vec2") if key in kwargs)][:2]
    if is_traced(one) and is_traced(other):
        raise ConversionError(PRODUCT)
    if is_traced(one) and other.dim() == 2:
        weight = array(other, "matrix", dtype=torch.float32).T
        return _last_dimension(layers, title, one, np.ascontiguousarray(weight), np.zeros(len(weight)), value)
    if is_traced(other) and one.dim() == 2 and other.plain.dim() > 1:
        weight = array(one, "matrix", dtype=torch.float32)
        return _dimension(layers, title, other, weight, np.zeros(len(weight)), value, -2)
    return None


def addmm(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    """A matrix and a bias, if both are constant."""
    bias, one, other = args[:3]
    if not is_traced(one) or is_traced(other) or is_traced(bias) or kwargs or bias.dim() > 1:
        return None
    weight = np.ascontiguousarray(array(other, "matrix", dtype=torch.float32).T)
    return _last_dimension(layers, title, one, weight, np.broadcast_to(array(bias, "bias"), len(weight)).copy(), value)


def einsum(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    """A matrix along one dimension, if one of two operands is a constant matrix."""
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or "." in equation:
        return None
    if all(map(is_traced, operands)):
        raise ConversionError(PRODUCT)
    inputs, _, output = equation.replace(" ", "").partition("->")
    labels = inputs.split(",")
    at = 0 if is_traced(operands[0]) else 1
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
    # A row of constants alone belongs to the image at its place.
    image = np.where(image < 0, rows[:, 0] // (source.plain.numel() // layers.batch), image)
    order = np.argsort(image, kind="stable")
    if len(rows) % layers.batch or (image[order] != np.arange(len(rows)) // (len(rows) // layers.batch)).any():
        raise ConversionError(MIXES_IMAGES)
    index, result = index[order], result[order]
    first = index[: len(rows) // layers.batch]
    each = np.where(first < 0, NOTHING, first + size * np.arange(layers.batch).reshape(-1, 1, 1))
    if (index.reshape(layers.batch, *first.shape) != each).any():
        raise ConversionError(MIXES_IMAGES)

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
    if (position != position[:, :1]).any() or (len(index) == 1 and index.size == channels):
        return None
    # Rows of the same channels are positions of the same outputs.
    groups, group = np.unique(channel, axis=0, return_inverse=True)
    group = group.reshape(-1)
    start = np.array([int(np.argmax(group == each)) for each in range(len(groups))])
    uneven = [each for each in (gain, offset) if each is not None and (each != each[start][group]).any()]
    if uneven or len(groups) * len(weight) * channels > LARGEST_MATRIX:
        return None
    matrix = np.zeros((len(groups), len(weight), channels))
    shift = np.tile(bias, (len(groups), 1))
    for at, (row, taken) in enumerate(zip(start, groups, strict=True)):
        scaled = weight if gain is None else weight * gain[row]
        np.add.at(matrix[at].T, taken, scaled.T)
        if offset is not None:
            shift[at] += weight @ offset[row]
    layer = pointwise(layers.name(title), signal.origin, matrix.reshape(-1, channels), len(space) + 1)
    name = layers.add(replace(layer, bias=shift.reshape(-1)))
    return name, (group[:, None] * len(weight) + np.arange(len(weight))) * positions + position[:, :1]


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
            np.add.at(block.T, index[row, there], scaled.T)
    shift = np.concatenate([bias + (0 if offset is None else weight @ offset[row]) for row in range(rows)])
    source = signal.origin
    if len(layers.shapes[source]) > 1:
        source = layers.laid_out(signal, np.arange(size), None, None)
    name = layers.add(Linear(name=layers.name(title), inputs=(source,), weight=matrix, bias=shift))
    if rows > 1:
        layers.matrices[name] = AS_MATRIX
    return name, np.arange(rows * out).reshape(rows, out)


def by_matrix(
    layers: LayerList, title: str, source: Any, matrix: tuple[Floats, Floats], value: Tensor, why: str
) -> Signal:
    """The signal `value` that a matrix and offsets make of each image of `source`. `why` says in whose place."""
    weight, bias = matrix
    rows = np.arange(source.plain.numel()).reshape(layers.batch, -1)
    result = np.arange(value.numel()).reshape(layers.batch, -1)
    made = contracted(layers, title, source, rows, weight, bias, result, value)
    layers.matrices[made.origin] = why
    return made
