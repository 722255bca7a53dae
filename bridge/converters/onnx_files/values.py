"""What a tensor of an ONNX file holds, and how steps that it holds are recognised as QCFS. It holds one of

* a *signal*: the output of a layer, and the elementwise steps taken since (times a constant, plus a constant, clipped,
  floored). Steps become layers only when something else reads the tensor: that is how QCFS is told from a batch norm;
* a signal *rearranged*: indices into it, which tell what has been done to it (see `bridge.converters.index_tracing`);
* a *constant*: an initializer, or what the file computes from constants and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.converters.onnx_files.writer import require_onnx
from bridge.errors import ConversionError, GraphError
from bridge.graph import Array

NUMPY: dict[str, type[np.generic]] = {
    "FLOAT": np.float32,
    "DOUBLE": np.float64,
    "FLOAT16": np.float16,
    "BFLOAT16": np.float32,
    "INT64": np.int64,
    "INT32": np.int32,
}
LONGEST_NAME = 100
ROUNDING = 1e-5
"""Relative error allowed between constants that float32 has rounded, such as L/λ and λ/L."""


@dataclass(frozen=True, eq=False)
class Node:
    """One ONNX node: operator, place in the file, tensors, attributes that it gives, and what messages call it."""

    op: str
    index: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    title: str
    where: str
    attributes: dict[str, Any]

    def get(self, attribute: str, default: Any) -> Any:
        return self.attributes.get(attribute, default)

    def has(self, index: int) -> bool:
        """Whether it has an input of that number; optional ones may be left out or have an empty name."""
        return index < len(self.inputs) and bool(self.inputs[index])


@dataclass(frozen=True, eq=False)
class Step:
    """One elementwise operation, and the node that does it. A step is equal to itself only."""

    node: Node


@dataclass(frozen=True, eq=False)
class Gain(Step):
    """``y_c = factor_c x_c``, factor ``[C]`` or ``[1]``."""

    factor: Array


@dataclass(frozen=True, eq=False)
class Shift(Step):
    """``y_c = x_c + term_c``, term ``[C]`` or ``[1]``."""

    term: Array


@dataclass(frozen=True, eq=False)
class Bound(Step):
    """``y = min(max(x, low), high)``; either may be infinite."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Floor(Step):
    """``y = floor(x)``."""


@dataclass(frozen=True)
class Signal:
    """The output of the layer `base` after `steps`. Two are equal if they are the same tensor."""

    base: str
    steps: tuple[Step, ...] = ()


Both = tuple[NDArray[Any], NDArray[Any]]
"""Arrays at the two batch sizes: the same object twice unless it was computed from a batch size."""


@dataclass(frozen=True, eq=False)
class Constant:
    """Numbers that do not depend on the data."""

    values: Both


@dataclass(frozen=True, eq=False)
class Rearranged:
    """The output of the layer `origin` with its elements moved: indices into it, at each of the two batch sizes."""

    node: Node
    origin: str
    indices: Both


@dataclass(frozen=True, eq=False)
class StraightThrough:
    """``floor(x) − x``. Adding ``x`` gives ``floor(x)``, exactly: the term only redirects gradients."""

    level: Signal
    floored: Signal


@dataclass(frozen=True, eq=False)
class Unknown:
    """What comes out of a node that was refused, or that follows one."""


Value = Signal | Rearranged | Constant | StraightThrough | Unknown


def both(value: Value) -> Both:
    assert isinstance(value, Constant | Rearranged)
    return value.values if isinstance(value, Constant) else value.indices


def numpy_type(number: int) -> type[np.generic]:
    """What numpy calls one of ONNX's types of numbers. Raises `GraphError` for one that networks have no use for."""
    kinds = {getattr(require_onnx().TensorProto, name): kind for name, kind in NUMPY.items()}
    if number not in kinds:
        raise GraphError(f"it casts to {kind_name(number)}")
    return kinds[number]


def kind_name(number: int) -> str:
    """The name of one of ONNX's types of numbers."""
    kinds = require_onnx().TensorProto.DataType
    return str(kinds.Name(number)) if number in kinds.values() else f"type {number}"


def shown(text: object) -> str:
    """`text` from a file as it is if it is short and printable, else quoted."""
    text = str(text)  # protobuf gives bytes where it is not UTF-8
    return text if len(text) <= LONGEST_NAME and text.isprintable() else repr(text[:LONGEST_NAME])


# Recognising QCFS


class StepError(ConversionError):
    """An elementwise step that is no part of any layer, and the node it is."""

    def __init__(self, node: Node, why: str) -> None:
        super().__init__(why)
        self.node = node


@dataclass(frozen=True)
class Found:
    """QCFS in ``steps[start:stop]``; the threshold is ``[C]`` or ``[1]``."""

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
