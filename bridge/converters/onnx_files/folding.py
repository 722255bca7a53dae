"""What ONNX operators compute, in numpy: for constants, and for numbers that show what is done with data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.converters.onnx_files.values import Node, numpy_type
from bridge.errors import ConversionError, GraphError
from bridge.graph import Shape


def _axes_of(node: Node, given: NDArray[Any] | None) -> tuple[int, ...]:
    return tuple(node.get("axes", ())) if given is None else whole(given)


def _fold_squeeze(node: Node, data: NDArray[Any], axes: NDArray[Any] | None = None) -> NDArray[Any]:
    return np.squeeze(data, _axes_of(node, axes) or None)


def _fold_unsqueeze(node: Node, data: NDArray[Any], axes: NDArray[Any] | None = None) -> NDArray[Any]:
    return np.expand_dims(data, _axes_of(node, axes))


def _fold_slice(node: Node, data: NDArray[Any], *inputs: NDArray[Any] | None) -> NDArray[Any]:
    given = [whole(value) if value is not None else None for value in (*inputs, *[None] * (4 - len(inputs)))]
    starts, ends, axes, steps = (
        given if inputs else (node.get("starts", ()), node.get("ends", ()), node.get("axes", None), None)
    )
    parts = [slice(None)] * data.ndim
    for at, axis in enumerate(axes or range(len(starts or ()))):
        parts[axis] = slice((starts or ())[at], (ends or ())[at], steps[at] if steps else 1)
    return data[tuple(parts)]


def _fold_reshape(node: Node, data: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
    return data.reshape(_resolve(data.shape, whole(wanted), bool(node.get("allowzero", 0))))


def _fold_div(node: Node, first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    if np.issubdtype(first.dtype, np.integer):
        return np.asarray(np.sign(first) * np.sign(second) * (np.abs(first) // np.abs(second)))  # towards zero
    return np.asarray(first / second)


def _fold_clip(node: Node, data: NDArray[Any], *limits: NDArray[Any] | None) -> NDArray[Any]:
    low, high = (*limits, None, None)[:2]
    low = np.asarray(node.get("min", -math.inf)) if low is None else low
    high = np.asarray(node.get("max", math.inf)) if high is None else high
    return np.asarray(np.minimum(np.maximum(data, low), high), dtype=data.dtype)


def _fold_cast(node: Node, data: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(data, dtype=numpy_type(node.get("to", 0)))


def _fold_expand(node: Node, data: NDArray[Any], shape: NDArray[Any]) -> NDArray[Any]:
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, whole(shape)))


def _fold_flatten(node: Node, data: NDArray[Any]) -> NDArray[Any]:
    return data.reshape(math.prod(data.shape[: node.get("axis", 1)]), -1)


def _fold_split(node: Node, data: NDArray[Any], sizes: NDArray[Any] | None = None) -> list[NDArray[Any]]:
    """Into parts of the given sizes, or else of one size, the last one perhaps smaller."""
    axis, count = node.get("axis", 0), len(node.outputs)
    given = node.get("split", None) if sizes is None else whole(sizes)
    each = -(-data.shape[axis] // count)
    bounds = np.cumsum(given)[:-1] if given else [each * at for at in range(1, count)]
    if given and (sum(given) != data.shape[axis] or min(given) < 0 or len(given) != count):
        raise ValueError(f"{given} are not the sizes of {count} parts of {data.shape[axis]}")
    return list(np.split(data, bounds, axis))


def _fold_shape(node: Node, data: NDArray[Any]) -> NDArray[Any]:
    return np.array(data.shape[node.get("start", 0) : node.get("end", None)], dtype=np.int64)


def _fold_pad(
    node: Node,
    data: NDArray[Any],
    pads: NDArray[Any] | None = None,
    value: NDArray[Any] | None = None,
    axes: NDArray[Any] | None = None,
) -> NDArray[Any]:
    if (mode := node.get("mode", "constant")) != "constant":
        raise ConversionError(f"it pads with values of the map ({mode}), which no NIR node does; pad with zeros")
    sizes = pads_of(node, data.ndim, pads, axes)
    cut = tuple(
        slice(max(-before, 0), size - max(-after, 0)) for size, (before, after) in zip(data.shape, sizes, strict=True)
    )
    filling = node.get("value", 0.0) if value is None else value.reshape(()).item()
    return np.pad(data[cut], [(max(b, 0), max(a, 0)) for b, a in sizes], constant_values=filling)


def pads_of(
    node: Node, rank: int, pads: NDArray[Any] | None, axes: NDArray[Any] | None = None
) -> list[tuple[int, int]]:
    """How much Pad adds before and after each of `rank` axes; what is negative is cut away."""
    given = tuple(node.get("pads", ())) if pads is None else whole(pads)
    over = range(rank) if axes is None else [axis % rank for axis in whole(axes)]
    if len(given) != 2 * len(over):
        raise GraphError(f"its padding {list(given)} does not fit {len(over)} dimensions")
    result = [(0, 0)] * rank
    for at, axis in enumerate(over):
        result[axis] = (given[at], given[at + len(over)])
    return result


def _fold_gather_nd(node: Node, data: NDArray[Any], at: NDArray[Any]) -> NDArray[Any]:
    if node.get("batch_dims", 0):
        raise ConversionError("it chooses other elements for each image (batch_dims); use a Gather")
    return np.asarray(data[tuple(np.moveaxis(at, -1, 0))])


def _fold_depth_to_space(node: Node, data: NDArray[Any]) -> NDArray[Any]:
    batch, channels, height, width = data.shape
    size = node.get("blocksize", 1)
    rest = channels // size**2
    if node.get("mode", "DCR") == "DCR":  # the block before the channel, or behind it
        blocks = data.reshape(batch, size, size, rest, height, width).transpose(0, 3, 4, 1, 5, 2)
    else:
        blocks = data.reshape(batch, rest, size, size, height, width).transpose(0, 1, 4, 2, 5, 3)
    return blocks.reshape(batch, rest, height * size, width * size)


def _fold_space_to_depth(node: Node, data: NDArray[Any]) -> NDArray[Any]:
    batch, channels, height, width = data.shape
    size = node.get("blocksize", 1)
    blocks = data.reshape(batch, channels, height // size, size, width // size, size).transpose(0, 3, 5, 1, 2, 4)
    return blocks.reshape(batch, channels * size * size, height // size, width // size)


def _fold_reduce(node: Node, data: NDArray[Any], axes: NDArray[Any] | None = None) -> NDArray[Any]:
    over = _axes_of(node, axes)
    if not over and node.get("noop_with_empty_axes", 0):
        return data
    return np.asarray(REDUCTIONS[node.op](data, axis=over or None, keepdims=bool(node.get("keepdims", 1))))


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceL2": lambda data, **options: np.sqrt(np.sum(np.square(data), **options)),
    "ReduceMean": np.mean,
    "ReduceSum": np.sum,
}


def _fold_cumulative_sum(node: Node, data: NDArray[Any], axis: NDArray[Any]) -> NDArray[Any]:
    if node.get("exclusive", 0) or node.get("reverse", 0):
        raise ConversionError("it sums exclusively or in reverse; flip and shift instead")
    return np.cumsum(data, int(axis.reshape(())))


def _fold_einsum(node: Node, *operands: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.einsum(node.get("equation", ""), *operands))


Fold = Callable[..., NDArray[Any] | list[NDArray[Any]]]
BROADCAST: dict[str, Fold] = {
    "Add": lambda node, a, b: a + b,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
    "Div": _fold_div,
    "Equal": lambda node, a, b: a == b,
    "Max": lambda node, a, b: np.maximum(a, b),
    "Mean": lambda node, a, *more: sum(more, a) / (1 + len(more)),
    "Min": lambda node, a, b: np.minimum(a, b),
    "Sum": lambda node, a, *more: sum(more, a),
    "Where": lambda node, choice, a, b: np.where(choice, a, b),
    "Clip": _fold_clip,
}
FOLDS: dict[str, Fold] = {
    **BROADCAST,
    "Abs": lambda node, a: np.abs(a),
    "Cast": _fold_cast,
    "Concat": lambda node, *parts: np.concatenate(parts, node.get("axis", 0)),
    "CumSum": _fold_cumulative_sum,
    "DepthToSpace": _fold_depth_to_space,
    "Einsum": _fold_einsum,
    "Expand": _fold_expand,
    "Flatten": _fold_flatten,
    "Floor": lambda node, a: np.floor(a),
    "Gather": lambda node, a, at: np.take(a, at, node.get("axis", 0)),
    "GatherND": _fold_gather_nd,
    "Identity": lambda node, a: a,
    "MatMul": lambda node, a, b: np.asarray(np.matmul(a, b)),
    "Neg": lambda node, a: -a,
    "Pad": _fold_pad,
    "Reciprocal": lambda node, a: np.reciprocal(a),
    "Range": lambda node, start, stop, step: np.arange(
        *(each.item() for each in (start, stop, step)), dtype=start.dtype
    ),
    "ReduceL2": _fold_reduce,
    "ReduceMean": _fold_reduce,
    "ReduceSum": _fold_reduce,
    "Reshape": _fold_reshape,
    "Shape": _fold_shape,
    "Slice": _fold_slice,
    "SpaceToDepth": _fold_space_to_depth,
    "Split": _fold_split,
    "Sqrt": lambda node, a: np.sqrt(a),
    "Squeeze": _fold_squeeze,
    "Tile": lambda node, a, repeats: np.tile(a, whole(repeats)),
    "Transpose": lambda node, a: np.transpose(a, node.get("perm", None)),
    "Unsqueeze": _fold_unsqueeze,
}
"""In the type that the constants have, as a runtime would."""


def size_of_fold(node: Node, arrays: Sequence[NDArray[Any] | None]) -> int:
    """How many numbers folding the node gives, at most, and how many it takes; known before they are computed."""
    present = [array for array in arrays if array is not None]
    if node.op in BROADCAST:
        return math.prod(np.broadcast_shapes(*(array.shape for array in present)))
    if node.op == "Expand":
        data, shape = present
        return math.prod(np.broadcast_shapes(data.shape, whole(shape)))
    if node.op == "Gather":
        data, at = present
        return int(data.size // max(data.shape[node.get("axis", 0)], 1) * at.size)
    if node.op == "GatherND":
        data, at = present
        return int(math.prod(at.shape[:-1]) * math.prod(data.shape[at.shape[-1] :]))
    if node.op == "Range":
        start, stop, step = (each.item() for each in present)
        return int(max(0, math.ceil((stop - start) / step)))
    if node.op == "Tile":
        data, repeats = present
        return data.size * max(math.prod(whole(repeats)), 1)
    if node.op == "Pad":
        (_, pads, _, axes), rank = [*arrays, None, None, None][:4], present[0].ndim
        sizes = zip(present[0].shape, pads_of(node, rank, pads, axes), strict=True)
        return int(max(present[0].size, math.prod(max(size + before + after, 0) for size, (before, after) in sizes)))
    if node.op == "MatMul":
        one, other = present
        return int(one.size * (other.shape[-1] if other.ndim > 1 else 1) + other.size)
    if node.op == "Einsum":
        return _size_of_einsum(node, present)
    return sum(array.size for array in present)


def _size_of_einsum(node: Node, arrays: Sequence[NDArray[Any]]) -> int:
    """The products that are summed up."""
    equation = node.get("equation", "")
    if "." in equation:
        raise ConversionError("its equation has an ellipsis; write out the dimensions")
    labels = equation.replace(" ", "").partition("->")[0].split(",")
    sizes = {
        label: size
        for text, array in zip_longest(labels, arrays)
        if text is not None and array is not None
        for label, size in zip(text, array.shape, strict=False)
    }
    return math.prod(sizes.values())


def _resolve(shape: Shape, wanted: Shape, allow_zero: bool) -> Shape:
    """The shape that Reshape gives, with its 0 (copied) and −1 (whatever is left) replaced."""
    sizes = [shape[at] if size == 0 and not allow_zero and at < len(shape) else size for at, size in enumerate(wanted)]
    rest = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and rest > 0:
        sizes[sizes.index(-1)] = math.prod(shape) // rest
    if min(sizes, default=0) < 1 or math.prod(sizes) != math.prod(shape):
        raise GraphError(f"it reshapes to {list(wanted)}, which does not fit its input")
    return tuple(sizes)


def whole(array: NDArray[Any]) -> tuple[int, ...]:
    """A short list of integers, such as axes or a shape."""
    if not np.issubdtype(array.dtype, np.integer) or array.ndim > 1 or array.size > 16:
        raise GraphError(f"expected a short list of integers, got {array.dtype} {list(array.shape)}")
    return tuple(int(value) for value in array.reshape(-1))
