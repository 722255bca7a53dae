"""How a row of elementwise steps is recognised as QCFS, by what it computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bridge.converters.onnx_files.values import Bound, Gain, Node, Shift, Step
from bridge.errors import ConversionError
from bridge.graph import Array

ROUNDING = 1e-5
"""Relative error allowed between constants that float32 has rounded, such as L/λ and λ/L."""


class StepError(ConversionError):
    """An elementwise step that is no part of any layer, and the node it is."""

    def __init__(self, node: Node, why: str) -> None:
        super().__init__(why)
        self.node = node


@dataclass(frozen=True)
class Found:
    """QCFS in ``steps[start:stop]``; the threshold broadcasts over the tensor's shape."""

    start: int
    stop: int
    levels: int
    threshold: Array


def recognise(steps: Sequence[Step], floor: int) -> Found:
    """The QCFS around ``steps[floor]``. Raises `StepError` naming the floor if there is none.

    Two forms, with gains wherever a product stands (q is the height of a stair, so L = λ/q):

    * ``gains · (+ 1/2) · floor · gains · bound(0, …) · gains``
    * ``gains · bound(0, …) · gains · (+ 1/2) · floor · gains``

    Gains before and after cannot be told from a `Scale` before or after. Those belong to QCFS with which its stairs are
    as high as they are wide; of several such choices, the one that leaves out the fewest.
    """
    node = steps[floor].node
    half = steps[floor - 1] if floor else None
    if not isinstance(half, Shift) or not np.all(half.term == 0.5):
        raise StepError(node, "it floors, but QCFS adds exactly 1/2 before it does")
    entry = floor - 1 - _run(steps[: floor - 1][::-1], Gain)
    exit_ = floor + 1 + _run(steps[floor + 1 :], Gain)
    inner = outer = _product(())
    clipped_before = _run(steps[:entry][::-1], Bound)
    if clipped_before:
        low, high = _bounds(steps[entry - clipped_before : entry])
        inner = _product(steps[entry : floor - 1])
        latest_start, earliest_stop, latest_stop = entry - clipped_before, floor + 1, exit_
        earliest_start = latest_start - _run(steps[:latest_start][::-1], Gain)
        levels = inner * high
    else:
        clipped_after = _run(steps[exit_:], Bound)
        if not clipped_after:
            raise StepError(node, "it floors, but is not clipped between 0 and λ as QCFS is")
        low, high = _bounds(steps[exit_ : exit_ + clipped_after])
        outer = _product(steps[floor + 1 : exit_])
        earliest_start, latest_start, earliest_stop = entry, floor - 1, exit_ + clipped_after
        latest_stop = earliest_stop + _run(steps[earliest_stop:], Gain)
        levels = high / outer
    count = _levels(node, low, levels)

    def height(stop: int) -> Array:
        return outer * _product(steps[earliest_stop:stop])

    fitting = [
        (start - earliest_start + latest_stop - stop, start, stop)  # first, how many gains are left out
        for start in range(earliest_start, latest_start + 1)
        for stop in range(earliest_stop, latest_stop + 1)
        if np.allclose(_product(steps[start:latest_start]) * inner * height(stop), 1, rtol=ROUNDING, atol=0)
    ]
    if not fitting:
        raise StepError(node, "its stairs are not as high as wide: QCFS multiplies by L/λ before and by λ/L after")
    _, start, stop = min(fitting)
    return Found(start, stop, count, _threshold(node, height(stop) * count))


def _levels(node: Node, low: float, levels: Array) -> int:
    """L, from one value of it a channel. Raises `StepError` unless it is a whole number."""
    if low != 0:
        raise StepError(node, f"it is clipped at {low:g} below; QCFS is clipped at 0")
    if not np.isfinite(levels).all():
        raise StepError(node, "it is not clipped above; QCFS is clipped at λ")
    count = round(float(levels.flat[0]))
    if not 1 <= count < 2**24 or not np.allclose(levels, count, rtol=ROUNDING, atol=0):
        raise StepError(node, f"its number of levels L must be a whole number of at least 1, got {levels.flat[0]:g}")
    return count


def _threshold(node: Node, values: Array) -> Array:
    """λ, as the float32 that it was before it was multiplied and divided by L."""
    if not (values > 0).all() or not np.isfinite(values).all():
        raise StepError(node, f"every threshold λ must be positive, got {values.min():g}; retrain or set it")
    single = values.astype(np.float32).astype(np.float64)
    return np.where(np.abs(single - values) <= 1e-12 * values, single, values)


def _run(steps: Sequence[Step], kind: type[Step]) -> int:
    """How many of the first `steps` are of that kind."""
    return next((at for at, step in enumerate(steps) if not isinstance(step, kind)), len(steps))


def _product(steps: Sequence[Step]) -> Array:
    result: Array = np.ones(1)
    for step in steps:
        assert isinstance(step, Gain)
        result = result * step.factor
    return result


def _bounds(steps: Sequence[Step]) -> tuple[float, float]:
    """One clip that does what several in a row do."""
    low, high = -math.inf, math.inf
    for step in steps:
        assert isinstance(step, Bound)
        low, high = (min(max(value, step.low), step.high) for value in (low, high))
    return low, high
