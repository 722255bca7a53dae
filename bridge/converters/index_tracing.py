"""Operations that only move data, followed by moving indices: what a rearranged signal is, as layers.

Instead of one rule for each way to write a flattening, a crop or a channel shuffle, the operations themselves are
applied to a tensor of indices. Where a layer reads the result, the indices show what has happened to the data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.converters.remedies import ENLARGES, REPEATS, TURNS, UNFLATTENS
from bridge.errors import ConversionError
from bridge.graph import Conv1d, Conv2d, Flatten, Layer, Shape, pointwise

Indices = NDArray[np.int64]

NOTHING = -1
"""The index of an element that is zero and comes from nowhere, as padding does."""

LARGEST_MATRIX = 2**24
"""Most weights in a matrix that stands for a rearrangement: 64 MiB in float32."""


def of_one_image(index: Indices, size: int) -> Indices | None:
    """The indices of the first image of `index` ``[B, ...]``, if all other images are treated alike; else None.

    `size` is the number of elements of an image where the indices lead to.
    """
    first = index[0]
    start = size * np.arange(len(index)).reshape(-1, *[1] * first.ndim)
    alike = np.where(first < 0, NOTHING, first + start)
    inside = first.size == 0 or int(first.max()) < size
    return first if inside and bool((index == alike).all()) else None


def layers_of(index: Indices, origin: str, shape: Shape, names: Callable[[], str]) -> list[Layer]:
    """The layers that make of the output of the layer `origin`, of `shape`, what `index` says; none if that is nothing.

    Args:
        index: for each element of the result, without batch, the element of the origin's output, in C order, or
            `NOTHING`.
        origin: the layer's name.
        shape: of its output, without batch.
        names: gives a name for each layer made.

    Raises:
        ConversionError: no layers do this.
    """
    size, target = math.prod(shape), index.shape
    in_order = index.size == size and bool((index.reshape(-1) == np.arange(size)).all())
    if in_order and target == shape:
        return []
    if in_order and index.ndim == 1:
        return [Flatten(name=names(), inputs=(origin,))]
    if len(shape) == index.ndim == 1:
        return [pointwise(names(), origin, _selection(index, size), 1)]
    if index.ndim == len(shape):
        chosen = _window(index, shape)
        if chosen is not None:
            return [chosen(names(), origin)]
    if index.ndim == 1:
        chosen, first = _window_of_flat(index, shape), names()
        if chosen is not None:
            return [chosen(first, origin), Flatten(name=names(), inputs=(first,))]
        matrix = _selection(index, size)
        last = names()
        return [Flatten(name=first, inputs=(origin,)), pointwise(last, first, matrix, 1)]
    came = f"[B, {', '.join(map(str, shape))}] became [B, {', '.join(map(str, target))}]"
    if len(shape) == 1:
        raise ConversionError(f"{came}: {UNFLATTENS}")
    if _repeats(index, shape):
        raise ConversionError(f"{came}: {REPEATS}")
    if math.prod(target[1:]) > math.prod(shape[1:]):
        raise ConversionError(f"{came}: {ENLARGES}")
    raise ConversionError(f"{came}: {TURNS}")


def _repeats(index: Indices, shape: Shape) -> bool:
    """Whether `index` holds all of a map as it is, with more of its values around it."""
    if index.ndim != len(shape) or index.shape[0] != shape[0] or (index < 0).any():
        return False
    whole = np.arange(math.prod(shape)).reshape(shape)
    more = [out - size for out, size in zip(index.shape[1:], shape[1:], strict=True)]
    if min(more) < 0 or not any(more) or any(m >= size for m, size in zip(more, shape[1:], strict=True)):
        return False
    for before in itertools.product(*(range(each + 1) for each in more)):
        part = tuple(slice(at, at + size) for at, size in zip(before, shape[1:], strict=True))
        if np.array_equal(index[(slice(None), *part)], whole):
            return True
    return False


def _selection(index: Indices, size: int) -> NDArray[np.float64]:
    """The matrix ``[index.size, size]`` that picks these elements."""
    if index.size * size > LARGEST_MATRIX:
        raise ConversionError(
            f"a rearrangement of {size} values into {index.size} that is neither a flattening nor a choice of channels "
            f"would take a matrix of {index.size * size} weights, and at most {LARGEST_MATRIX} are made"
        )
    matrix = np.zeros((index.size, size))
    rows = np.flatnonzero(index.reshape(-1) >= 0)
    matrix[rows, index.reshape(-1)[rows]] = 1.0
    return matrix


def _window_of_flat(index: Indices, shape: Shape) -> Callable[[str, str], Layer] | None:
    """As `_window`, for indices into a map that were flattened after it was chosen from."""
    positions = math.prod(shape[1:])
    here = np.unravel_index(index[index >= 0] % positions, shape[1:])
    sizes = tuple(len(np.unique(each)) for each in here)  # rows and columns that are left
    for rest in dict.fromkeys((shape[1:], sizes)):
        if min(rest) > 0 and index.size % math.prod(rest) == 0:
            chosen = _window(index.reshape(-1, *rest), shape)
            if chosen is not None:
                return chosen
    return None


def _window(index: Indices, shape: Shape) -> Callable[[str, str], Layer] | None:
    """A convolution whose kernels hold a single one, if `index` can be written so: each channel of the result is one of
    the channels of `shape`, shifted, with a stride, and zero outside. A 1×1 one where only channels are chosen.
    """
    space, positions = shape[1:], math.prod(shape[1:])
    there = index >= 0
    axes = tuple(range(1, index.ndim))
    channel = index // positions
    highest = np.where(there, channel, NOTHING).max(axes)
    if (np.where(there, channel, np.iinfo(np.int64).max).min(axes) < highest).any():
        return None
    stride, shift = [], []
    for axis, here in zip(axes, np.unravel_index(np.where(there, index % positions, 0), space), strict=True):
        step = _step(here, there, axis)
        if step is None:
            return None
        along = np.arange(index.shape[axis]).reshape(-1, *[1] * (index.ndim - 1 - axis))
        offset = np.where(there, here - step * along, np.iinfo(np.int64).min).max(axes)
        stride.append(step)
        shift.append(np.where(highest >= 0, offset, 0))
    if not np.array_equal(_slid(highest, space, index.shape[1:], stride, shift), index):
        return None
    found = [
        _kernel(size, out, step, offsets)
        for size, out, step, offsets in zip(space, index.shape[1:], stride, shift, strict=True)
    ]
    kernel, padding = tuple(each[0] for each in found), tuple(each[1] for each in found)
    alone = len(index) == shape[0] and bool(((highest < 0) | (highest == np.arange(len(highest)))).all())
    plain = set(kernel) == {1} and not any(padding)
    groups = shape[0] if alone and not plain else 1
    if len(index) * shape[0] // groups * math.prod(kernel) > LARGEST_MATRIX:
        return None
    weight = np.zeros((len(index), shape[0] // groups, *kernel))
    for out in np.flatnonzero(highest >= 0):
        taps = tuple(int(offsets[out]) + pad for offsets, pad in zip(shift, padding, strict=True))
        weight[(out, 0 if groups > 1 else int(highest[out]), *taps)] = 1.0
    sizes = (tuple(stride), padding, (1,) * len(space))

    def make(name: str, origin: str) -> Layer:
        return convolution(name, origin, weight, np.zeros(len(weight)), groups, *sizes)

    return make


def _slid(channels: Indices, space: Shape, out: Shape, stride: list[int], shift: list[Indices]) -> Indices:
    """The indices of the values that windows of one element find, which slide over these `channels`, one for each of
    the result, from a `shift` of its own.
    """
    result = channels.reshape(-1, *[1] * len(out))
    there = result >= 0
    for axis, (size, count, step, offsets) in enumerate(zip(space, out, stride, shift, strict=True)):
        behind = [1] * (len(out) - 1 - axis)
        here = step * np.arange(count).reshape(-1, *behind) + offsets.reshape(-1, *[1] * len(out))
        there = there & (here >= 0) & (here < size)
        result = result * size + here
    return np.where(there, result, NOTHING)


def _step(here: Indices, there: NDArray[np.bool_], axis: int) -> int | None:
    """The stride along `axis`: by how much the coordinates `here` grow from one element to the next; None if unevenly.

    1 where no two elements lie beside each other.
    """
    both = np.take(there, range(1, there.shape[axis]), axis) & np.take(there, range(there.shape[axis] - 1), axis)
    steps = np.unique(np.diff(here, axis=axis)[both])
    if len(steps) == 0:
        return 1
    return int(steps[0]) if len(steps) == 1 and steps[0] >= 1 else None


def _kernel(size: int, out: int, stride: int, shifts: Indices) -> tuple[int, int]:
    """The size and the padding of a kernel that gives `out` values of `size`, with a one at each of the `shifts`.

    Padding is the same on both sides, so a kernel is longer than its ones need where less is padded on one side.
    """
    padding = max(0, -int(shifts.min(initial=0)))
    while True:
        longest = size + 2 * padding - stride * (out - 1)  # with a longer one, fewer values come out
        needed = max(1, longest - stride + 1, int(shifts.max(initial=0)) + padding + 1)
        if needed <= longest:
            return needed, padding
        padding += 1


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
    """A convolution in one or two dimensions of space."""
    common: dict[str, Any] = {"name": name, "inputs": (source,), "weight": weight, "bias": bias, "groups": groups}
    if len(stride) == 1:
        return Conv1d(**common, stride=stride[0], padding=padding[0], dilation=dilation[0])
    pairs: dict[str, Any] = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    return Conv2d(**common, **pairs)
