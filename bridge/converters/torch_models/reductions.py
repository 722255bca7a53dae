"""Means and sums over dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from bridge.converters.index_tracing import Indices
from bridge.converters.torch_models.arguments import bound, is_traced, of_mean
from bridge.converters.torch_models.contractions import contracted
from bridge.converters.torch_models.layer_list import LayerList
from bridge.converters.torch_models.signals import Signal, simplified
from bridge.graph import average_pool


def mean(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    """Average pooling, where it averages windows of a map or all of space; else a matrix."""
    return _reduced(layers, title, args, kwargs, value, average=True)


def total(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    """As `mean`, times the number of values."""
    return _reduced(layers, title, args, kwargs, value, average=False)


def _reduced(
    layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor, average: bool
) -> Signal | None:
    """A mean or a sum over dimensions: average pooling where windows of a map are meant, else a matrix."""
    given = bound(of_mean, args, {key: each for key, each in kwargs.items() if key != "dtype"})
    if not is_traced(given.input):
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
