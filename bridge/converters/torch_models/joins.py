"""Sums and concatenations: signals of several layers that become one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from bridge.converters.index_tracing import NOTHING, Indices, of_one_image
from bridge.converters.remedies import MIXES_IMAGES
from bridge.converters.torch_models.layer_list import LayerList
from bridge.converters.torch_models.signals import Floats, Signal, simplified
from bridge.errors import ConversionError
from bridge.graph import Add, Concat, Scale, Shape


def joined(layers: LayerList, terms: Sequence[Signal], offset: Floats, title: str) -> Signal:
    """The sum of `terms`, all of one shape, and of `offset`. A term is zero where its index is `NOTHING`.

    Raises `ConversionError` if no layers make it.
    """
    shape = offset.shape
    for term in terms:
        offset = offset if term.offset is None else offset + term.offset
    merged = _merged([replace(term, offset=None) for term in terms])
    if len(merged) == 1:
        (only,) = merged
        return simplified(replace(only, offset=offset))
    order = _by_image(layers, merged, shape)
    images = [
        (term, _taken(layers, term, order), None if term.gain is None else term.gain.reshape(-1)[order[0]])
        for term in merged
    ]
    why = None
    for layout in _layouts(layers, images):
        for join in (_concatenated, _added):  # the last one says why it is not possible
            try:
                name = layers.trying(lambda join=join, layout=layout: join(layers, images, layout, title))  # type: ignore[misc]
            except ConversionError as error:
                why = error if join is _added and why is None else why
                continue
            place = np.empty(layout.size, np.int64)
            place[layout.reshape(-1)] = np.arange(layout.size)
            index = np.empty(order.size, np.int64)
            index[order] = place + layout.size * np.arange(len(order))[:, None]
            return simplified(Signal(name, layers.whole(name), index.reshape(shape), None, offset, title))
    raise why or ConversionError("its parts do not fit together")


def _merged(terms: Sequence[Signal]) -> list[Signal]:
    """`terms`, with those that are the same signal times something summed up: NIR has no double edges."""
    result: list[Signal] = []
    for term in terms:
        for at, other in enumerate(result):
            if other.origin == term.origin and np.array_equal(other.indices(), term.indices()):
                result[at] = replace(other, gain=_gain(other) + _gain(term))
                break
        else:
            result.append(term)
    return result


def _gain(signal: Signal) -> Floats:
    return np.ones(signal.shape) if signal.gain is None else signal.gain


Part = tuple[Signal, Indices, "Floats | None"]
"""A term, the elements of the origin's output it takes for one image, flat, and their gains."""


def _by_image(layers: LayerList, terms: Sequence[Signal], shape: Shape) -> Indices:
    """Which elements of a value of this `shape` belong to which image: ``[B, elements of an image]``.

    The batch may be any dimension, or the outer part of one, as where images and tokens are one dimension.
    """
    image = np.full(shape, NOTHING)
    for term in terms:
        index = term.indices()
        image = np.where(index >= 0, index // layers.size(term.origin), image)
    flat = np.arange(math.prod(shape)).reshape(shape)
    for axis, size in enumerate(shape):
        if size % layers.batch:
            continue
        inner = size // layers.batch
        expected = (np.arange(size) // inner).reshape(-1, *[1] * (len(shape) - 1 - axis))
        if ((image == expected) | (image == NOTHING)).all():
            split = flat.reshape(*shape[:axis], layers.batch, inner, *shape[axis + 1 :])
            return np.moveaxis(split, axis, 0).reshape(layers.batch, -1)
    raise ConversionError(MIXES_IMAGES)


def _taken(layers: LayerList, term: Signal, order: Indices) -> Indices:
    pattern = of_one_image(term.indices().reshape(-1)[order], layers.size(term.origin))
    if pattern is None:
        raise ConversionError(MIXES_IMAGES)
    return pattern


def _layouts(layers: LayerList, parts: Sequence[Part]) -> Iterator[Indices]:
    """Orders in which the elements of one image could be a layer's output, ``[C, ...]``: those of the terms' origins,
    and the value's own if it has that of a layer's.
    """
    seen = set()
    for term, pattern, _ in parts:
        shape, size = layers.shapes[term.origin], layers.size(term.origin)
        if len(pattern) == size and bool((np.sort(pattern) == np.arange(size)).all()):
            layout = np.empty(size, np.int64)
            layout[pattern] = np.arange(size)
            key = (shape, layout.tobytes())
            if key not in seen:
                seen.add(key)
                yield layout.reshape(shape)
    batch, *rest = parts[0][0].shape
    own = tuple(rest) if batch == layers.batch else (batch, *rest[1:]) if rest and rest[0] == layers.batch else ()
    count = len(parts[0][1])
    if math.prod(own) != count:
        own = (count,)
    if len(own) > 3:
        own = (math.prod(own[:-2]), *own[-2:])
    flat = np.arange(count).reshape(own)
    yield flat
    if len(own) < 3:  # one channel of a map
        yield flat[None]
    if len(own) > 1:
        yield np.moveaxis(flat, -1, 0)
    if len(own) > 1 and all(len(layers.shapes[term.origin]) == 1 for term, _, _ in parts):
        yield flat.reshape(-1)


def _concatenated(layers: LayerList, parts: Sequence[Part], layout: Indices, title: str) -> str:
    """The name of the layer that joins `parts` if each channel of `layout` is of one of them."""
    channels = layout.reshape(len(layout), -1)
    there = np.array([(pattern[channels] >= 0).any(1) for _, pattern, _ in parts])  # [part, channel]
    if not (there.sum(0) == 1).all():
        raise ConversionError("it adds signals that overlap in part")
    owner = there.argmax(0)
    starts = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(owner)]
    names = [_put(layers, parts[owner[start]], layout[start:stop]) for start, stop in pairwise(starts)]
    return layers.add(Concat(name=layers.name(title), inputs=tuple(names)))


def _added(layers: LayerList, parts: Sequence[Part], layout: Indices, title: str) -> str:
    """The name of the layer that gives the sum of `parts`."""
    names = [_put(layers, part, layout) for part in parts]
    counts = dict.fromkeys(names, 0)
    for name in names:
        counts[name] += 1
    single = [
        name
        if count == 1
        else layers.add(
            Scale(name=layers.name(title), inputs=(name,), scale=np.full(layers.shapes[name][0], float(count)))
        )
        for name, count in counts.items()
    ]
    total, *others = single
    for other in others:
        total = layers.add(Add(name=layers.name(title), inputs=(total, other)))
    return total


def _put(layers: LayerList, part: Part, layout: Indices) -> str:
    """The name of a layer that gives `part` in the order of `layout`."""
    signal, pattern, gain = part
    return layers.laid_out(signal, pattern[layout], None if gain is None else gain[layout], None)
