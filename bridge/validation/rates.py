"""What is held against the ANN's activation a/λ at each time step: firing rates, or what stands for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bridge.graph import GroupFire, LayerGraph, WindowFire
from bridge.records import SpikeRecord


def rates(graph: LayerGraph, record: SpikeRecord, name: str) -> Iterable[NDArray[np.float32]]:
    """φ(t) of the layer `name` at each step, ``[B, *shape]``, of the activation's shape.

    In a staged network it is the share of its window's steps at which a neuron has fired by then, in a grouped one the
    share of a group that fires.
    """
    layer = graph[name]
    running = record.running_rates(name)
    if isinstance(layer, WindowFire):
        return _counted(running, layer.steps)
    if isinstance(layer, GroupFire):
        return (rate.sum(axis=1) / np.float32(layer.levels) for rate in running)
    return running


def _counted(running: Iterable[NDArray[np.float32]], steps: int) -> Iterator[NDArray[np.float32]]:
    for t, rate in enumerate(running, 1):  # as the ANN divides: equal counts, equal values
        yield np.rint(rate * np.float32(t)) / np.float32(steps)


@dataclass(frozen=True, eq=False)
class Fraction:
    """φ(t) of a layer's neurons at a step: ``counts`` ``[B, N]`` of ``most`` spikes; ``same``: as a step before."""

    counts: NDArray[np.int64]
    most: int
    same: bool


def fractions(graph: LayerGraph, record: SpikeRecord, name: str) -> Iterator[Fraction]:
    """The rates of the layer `name`, as `rates` gives them, in whole numbers."""
    layer, size = graph[name], math.prod(record.shapes[name])
    total = np.zeros((record.images, size), np.int64)
    before = None
    for t, bits in enumerate(record.packed[name], 1):
        if isinstance(layer, GroupFire):
            same = before is not None and np.array_equal(bits, before)
            if not same:
                members = np.unpackbits(bits, axis=-1, count=size).reshape(record.images, layer.levels, -1)
                total = members.sum(axis=1, dtype=np.int64)
            yield Fraction(total, layer.levels, same)
        else:
            same = before is not None and not bits.any()
            if not same:
                total += np.unpackbits(bits, axis=-1, count=size)
            if isinstance(layer, WindowFire):
                yield Fraction(total, layer.steps, same)
            else:
                yield Fraction(total, t, False)
        before = bits


def counts(graph: LayerGraph, record: SpikeRecord, name: str) -> NDArray[np.int64]:
    """How often each neuron of the layer `name` of a staged or grouped network fires for an image, ``[B, *shape]``."""
    shape = record.shapes[name]
    grouped = isinstance(graph[name], GroupFire)
    total = np.zeros((record.images, math.prod(shape)), np.int64)
    for bits in record.packed[name][-1:] if grouped else record.packed[name]:
        if bits.any():  # most steps are outside the layer's window
            total += np.unpackbits(bits, axis=-1, count=total.shape[1])
    result = total.reshape(-1, *shape)
    return result.sum(axis=1) if grouped else result
