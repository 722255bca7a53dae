"""What a tensor inside a model's forward holds: for each element, a gain times an element of a layer's output, plus an
offset.

Everything that moves data, scales it or adds constants to it is of this kind, however it is written; what an operation
does is found out by giving it numbers (`measure`), not by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.converters.index_tracing import NOTHING, Indices
from bridge.graph import Shape

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Signal:
    """``value = gain · output[index] + offset``, where ``output`` ``[B, *shape]`` is that of the layer ``origin``.

    ``whole`` is the output's shape, batch included. ``index`` counts its elements in C order and has the value's shape;
    it is `NOTHING` where the value is the offset alone. None stands for every element in its place, for gains of 1 and
    for offsets of 0. ``title`` is the operation that made it.
    """

    origin: str
    whole: Shape
    index: Indices | None = None
    gain: Floats | None = None
    offset: Floats | None = None
    title: str = ""

    @property
    def shape(self) -> Shape:
        """Of the value, batch included."""
        return self.whole if self.index is None else self.index.shape

    @property
    def plain(self) -> bool:
        """Whether data is only moved."""
        return self.gain is None and self.offset is None

    def indices(self) -> Indices:
        """The index, written out."""
        if self.index is not None:
            return self.index
        return np.arange(math.prod(self.whole)).reshape(self.whole)

    def of(self, output: Tensor) -> Floats:
        """The value, for this output of the origin."""
        values = output.detach().cpu().double().reshape(-1).numpy()
        index = self.indices()
        result: Floats = np.where(index >= 0, values[index], 0.0)
        if self.gain is not None:
            result = result * self.gain
        return result if self.offset is None else result + self.offset

    def moved(self, function: Callable[[Tensor], list[Tensor]], title: str) -> list[Signal]:
        """What comes of it by a `function` that only moves data, and returns one tensor or several."""

        def apply(values: Floats | Indices) -> list[Any]:
            return [each.numpy() for each in function(torch.from_numpy(np.ascontiguousarray(values)))]

        indices = apply(self.indices())
        gains = [None] * len(indices) if self.gain is None else apply(self.gain)
        offsets = [None] * len(indices) if self.offset is None else apply(self.offset)
        return [
            simplified(Signal(self.origin, self.whole, index, gain, offset, title))
            for index, gain, offset in zip(indices, gains, offsets, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Part:
    """``gain · argument[index]``: what one argument of an operation contributes to its result."""

    index: Indices
    gain: Floats

    def of(self, signal: Signal, title: str) -> Signal:
        """The contribution of `signal`, if that is the argument."""
        there = self.index >= 0
        index = np.where(there, signal.indices().reshape(-1)[self.index], NOTHING)
        gain = self.gain if signal.gain is None else self.gain * signal.gain.reshape(-1)[self.index]
        offset = None
        if signal.offset is not None:
            offset = np.where(there, self.gain * signal.offset.reshape(-1)[self.index], 0.0)
        index = np.where(gain == 0, NOTHING, index)
        title = signal.title if gain is self.gain and (gain == 1).all() and signal.title else title
        return simplified(Signal(signal.origin, signal.whole, index, gain, offset, title))


def simplified(signal: Signal) -> Signal:
    """`signal` with None for what says nothing."""
    index, gain, offset = signal.index, signal.gain, signal.offset
    if index is not None and index.shape == signal.whole and np.array_equal(index.reshape(-1), np.arange(index.size)):
        index = None
    if gain is not None and (gain[signal.indices() >= 0] == 1).all():
        gain = None
    if offset is not None and not offset.any():
        offset = None
    return replace(signal, index=index, gain=gain, offset=offset)
