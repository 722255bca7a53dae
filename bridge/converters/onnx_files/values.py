"""What a tensor of an ONNX file can hold: one of

* *data*: elements of a layer's output, moved, times and plus constants (a `Signal`), and the elementwise steps taken
  since (times a constant, plus a constant, clipped, floored). Steps become layers only when something else reads the
  tensor: that is how QCFS is told from a batch norm;
* a *constant*: an initializer, or what the file computes from constants and shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.converters.onnx_files.library import require_onnx
from bridge.converters.torch_models.signals import Signal
from bridge.errors import GraphError
from bridge.graph import Array, Shape

NUMPY: dict[str, type[np.generic]] = {
    "FLOAT": np.float32,
    "DOUBLE": np.float64,
    "FLOAT16": np.float16,
    "BFLOAT16": np.float32,
    "INT64": np.int64,
    "INT32": np.int32,
    "BOOL": np.bool_,
}
LONGEST_NAME = 100


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
    """``y = factor · x``. The factor broadcasts over the tensor's shape."""

    factor: Array


@dataclass(frozen=True, eq=False)
class Shift(Step):
    """``y = x + term``. The term broadcasts over the tensor's shape."""

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
class Data:
    """The `signal` after `steps`. Two are equal if they are the same tensor."""

    signal: Signal
    steps: tuple[Step, ...] = ()

    @property
    def shape(self) -> Shape:
        """The tensor's shape, batch included."""
        return self.signal.shape


@dataclass(frozen=True, eq=False)
class Constant:
    """Numbers that do not depend on the data."""

    values: NDArray[Any]


@dataclass(frozen=True, eq=False)
class StraightThrough:
    """``floor(x) − x``. Adding ``x`` gives ``floor(x)``, exactly: the term only redirects gradients."""

    level: Data
    floored: Data


@dataclass(frozen=True, eq=False)
class Unknown:
    """What comes out of a node that was refused, or that follows one."""


Value = Data | Constant | StraightThrough | Unknown


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
