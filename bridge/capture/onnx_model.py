"""Capture an ONNX file by following its tensors from the input to the output, node by node.

What a tensor holds is one of

* a *signal*: the output of a layer, and the elementwise steps taken since (times a constant, plus a constant, clipped,
  floored). Steps become layers only when something else reads the tensor: that is how QCFS is told from a batch norm;
* a signal *rearranged*: indices into it, which tell what has been done to it (see `bridge.capture.movement`);
* a *constant*: an initializer, or what the file computes from constants and shapes.

Files come from anywhere. Nothing in one is executed or unpickled, no size that it declares is believed before the
data is there, external data stays in the file's folder, and whatever is wrong with it is a `BridgeError`.
"""

from __future__ import annotations

import keyword
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from bridge.capture import movement
from bridge.capture.torch_rules import BATCH_NORM, BY_AVERAGE, BY_QCFS, LEAVE_OUT, ONLY_QCFS, PRODUCT
from bridge.errors import BridgeError, ConversionError, GraphError
from bridge.graph import (
    Add,
    Array,
    AvgPool2d,
    BatchNorm,
    ClipFloorShift,
    Concat,
    Conv1d,
    Conv2d,
    Flatten,
    Input,
    Layer,
    LayerGraph,
    Linear,
    Scale,
    Shape,
)
from bridge.onnx_graph import require_onnx

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

INPUT = "input"
STANDARD = ("", "ai.onnx")
FLOATS = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")
INTEGERS = ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8", "BOOL")
NUMPY: dict[str, type[np.generic]] = {
    "FLOAT": np.float32,
    "DOUBLE": np.float64,
    "FLOAT16": np.float16,
    "BFLOAT16": np.float32,
    "INT64": np.int64,
    "INT32": np.int32,
}
OLDEST_OPSET = 7  # before it, Add and Mul had their own rules for broadcasting
LARGEST = 2**27
"""Numbers that one tensor may hold, without batch; 40 times the largest of VGG-16 on ImageNet."""
LONGEST = 64
"""Elementwise steps in a row; the longest way of writing QCFS takes eight."""
LONGEST_NAME = 100
BATCHES = (2, 3)
"""What a symbolic batch size stands for while shapes are computed: what differs between the two depends on it."""
ROUNDING = 1e-5
"""Relative error allowed between constants that float32 has rounded, such as L/λ and λ/L."""

REMEDIES: dict[str, str] = {
    **dict.fromkeys(("Relu", "Clip"), f"{BY_QCFS}, and export again"),
    **dict.fromkeys(("LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Sigmoid", "HardSigmoid"), ONLY_QCFS),
    **dict.fromkeys(("HardSwish", "Mish", "Swish", "Tanh", "Softplus", "Softsign", "Erf"), ONLY_QCFS),
    **dict.fromkeys(("Softmax", "LogSoftmax"), LEAVE_OUT),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool", "LpPool"), BY_AVERAGE),
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization", "LRN"), BATCH_NORM),
    **dict.fromkeys(("Round", "Ceil"), "QCFS rounds with Floor after adding 1/2; nothing else has its spiking twin"),
    **dict.fromkeys(("If", "Loop", "Scan", "Where"), "it depends on the data; a network is a fixed graph of layers"),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "recurrent layers are not supported"),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), "export the float model; the bridge quantises by itself"),
    **dict.fromkeys(("Pad", "Resize", "Upsample"), "NIR has nothing like it; use padding of a convolution"),
    "ConvTranspose": "NIR has no transposed convolution; use a Conv",
}
SUPPORTED = (
    "Conv, Gemm, MatMul, BatchNormalization, AveragePool, GlobalAveragePool, ReduceMean over space, flattening, "
    "channel splits and shuffles, Add, Concat, Dropout, Identity, and QCFS as Mul or Div, Add, Floor, Clip"
)


def capture(path: str | Path) -> LayerGraph:
    """The ANN in the ONNX file at `path`, at inference.

    The file has one input ``[B, C, H, W]``, ``[B, C, N]`` or ``[B, F]`` and one output; only the batch size may be
    symbolic. QCFS is recognised by what it computes: ``λ·clip(floor(z·L/λ + 1/2)/L, 0, 1)`` or
    ``λ·floor(clip(z/λ, 0, 1)·L + 1/2)/L``, in any order of the factors, clipped with Clip or Min and Max, with
    straight-through terms ``x + (floor(x) − x)``, as torch's exporters write them.

    Layers are named after the torch modules they came from where the file tells, else after their nodes.

    Raises:
        ConversionError: an operation has no exact spiking form, or its constants are not what they must be. The message
            lists every such node by name, with what to use instead.
        GraphError: the file is missing, damaged, not ONNX, or contradicts itself.
        BridgeError: onnx is not installed.
    """
    require_onnx()
    path = Path(path)
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused where it is used
            return _Reader(_load(path), path).graph()
    except BridgeError:
        raise
    except Exception as error:  # the file is not ours: whatever onnx or protobuf trip over is the file's fault
        reason = str(error).strip() or "no reason given"
        raise GraphError(f"{path}: not a usable ONNX file ({type(error).__name__}: {reason[:500]})") from error


def _load(path: Path) -> ModelProto:
    """The model in the file, with external data still outside."""
    onnx = require_onnx()
    if not path.is_file():
        raise GraphError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        model: ModelProto = onnx.load_model(path, format="protobuf", load_external_data=False)
    except Exception as error:
        raise GraphError(f"{path}: damaged, or not an ONNX file ({error})") from error
    if not model.graph.node or not model.ir_version:
        raise GraphError(f"{path}: no ONNX graph in it")
    return model


# What tensors hold


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


# Following the graph


class _Reader:
    """Goes through a model's nodes in order; collects layers, what each tensor holds, and problems."""

    def __init__(self, model: ModelProto, path: Path) -> None:
        self.model = model
        self.path = path
        self.opset = _opset(model)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.readers = Counter(name for node in model.graph.node for name in node.input)
        self.layers: dict[str, tuple[int, Layer]] = {}
        self.shapes: dict[str, Shape] = {}
        self.values: dict[str, Value] = {}
        self.made: dict[Signal, str] = {}
        self.bias_free: set[str] = set()
        self.problems: dict[str, int] = {}  # and the number of the node, to list them in order
        self.taken = {INPUT, "output"}
        self.repeats: Counter[str] = Counter()
        self.batches = BATCHES
        self.data_files: set[Path] = set()
        self.budget = 2 * LARGEST + path.stat().st_size

    def graph(self) -> LayerGraph:
        """The layers. Raises `ConversionError` with every problem there is."""
        source, output = self._ends()
        _check_edges(self.model, source.name)
        self._start(source)
        live = _live(self.model, output.name)
        for index, proto in enumerate(self.model.graph.node):
            if index in live:
                self._visit(index, proto)
        last = self._finish(output)
        if self.problems:
            listed = "\n".join(
                f"  - {problem}" for problem in sorted(self.problems, key=lambda each: self.problems[each])
            )
            raise ConversionError(f"{self.path} cannot be converted:\n{listed}")
        layers = self._ordered(last)
        if not any(isinstance(layer, ClipFloorShift) for layer in layers):
            raise ConversionError(
                f"{self.path} has no QCFS activation, so nothing in it would spike: "
                "call bridge.replace_activations(model, levels=...), train it, and export again"
            )
        return LayerGraph(layers)

    def _ends(self) -> tuple[ValueInfoProto, ValueInfoProto]:
        """The one input that is data, and the one output."""
        graph = self.model.graph
        inputs = [value for value in graph.input if value.name not in self.initializers]  # old files list all
        for what, found in (("input", inputs), ("output", graph.output)):
            if len(found) != 1:
                names = ", ".join(_shown(value.name) for value in found) or "none"
                raise ConversionError(f"{self.path}: a network takes exactly one {what}; the file has {names}")
        return inputs[0], graph.output[0]

    def _start(self, source: ValueInfoProto) -> None:
        """Check what the file says of its input, and make it the first layer."""
        onnx = require_onnx()
        where = f"{self.path}: input {_shown(source.name)}"
        tensor = source.type.tensor_type
        kinds = [getattr(onnx.TensorProto, name) for name in FLOATS]
        if not source.type.HasField("tensor_type") or tensor.elem_type not in kinds:
            raise ConversionError(f"{where}: expected a tensor of floats, got {_kind(tensor.elem_type)}")
        if not tensor.HasField("shape") or len(tensor.shape.dim) < 2:
            raise ConversionError(f"{where}: expected a shape [B, ...], got {_dims(tensor.shape)}")
        batch, *rest = tensor.shape.dim
        if any(dim.dim_value < 1 for dim in rest):
            raise ConversionError(
                f"{where}: only the batch size may be symbolic, got {_dims(tensor.shape)}; "
                "export with fixed channels and sizes"
            )
        shape = tuple(int(dim.dim_value) for dim in rest)
        if math.prod(shape) > LARGEST:
            raise ConversionError(f"{where}: its shape {_dims(tensor.shape)} is larger than {LARGEST} numbers")
        if batch.dim_value:
            self.batches = (batch.dim_value, batch.dim_value)
        self.layers[INPUT] = (-1, Input(name=INPUT, shape=shape))
        self.shapes[INPUT] = shape
        self.values[source.name] = Signal(INPUT)
        self.element = tensor.elem_type

    def _visit(self, index: int, proto: NodeProto) -> None:
        """Find out what the node's outputs hold."""
        node = _node(index, proto)
        try:
            given = self._value(node, proto)
        except BridgeError as error:
            self.refuse(node, error)
            self._settle(node)
            given = self._stand_in(node)
        values = given if isinstance(given, tuple) else (given,)
        for at, name in enumerate(node.outputs):
            self.values[name] = values[at] if at < len(values) else Unknown()
            if at >= len(values) and name and self.readers[name]:
                self.refuse(node, "only its first output is supported")

    def _value(self, node: Node, proto: NodeProto) -> Value | tuple[Value, ...]:
        if proto.domain not in STANDARD:
            raise ConversionError(f"an operator of {_shown(proto.domain)}, not of ONNX; inline or replace it")
        fold, rule = FOLDS.get(node.op), RULES.get(node.op)
        constant = bool(node.inputs) and all(map(self._is_constant, filter(None, node.inputs)))
        if rule is None and not (constant and fold):
            made = (
                "makes a constant; run onnxsim on the file" if constant else f"not supported; supported are {SUPPORTED}"
            )
            raise ConversionError(REMEDIES.get(node.op, made))
        if any(isinstance(self.values.get(name), Unknown) for name in node.inputs):
            self._settle(node)
            return Unknown()
        node.attributes.update(_attributes(proto, self.opset, self.model.ir_version))
        if constant and fold:
            operands = [self.value(node, at) if name else None for at, name in enumerate(node.inputs)]
            return tuple(map(Constant, self.compute(node, fold, operands)))
        assert rule is not None
        return rule(self, node)

    def _settle(self, node: Node) -> None:
        """Make layers of what a node reads that does not read it itself, so that problems in there are found."""
        for value in map(self.values.get, node.inputs):
            if isinstance(value, Signal):
                with suppress(BridgeError):
                    self.layer(value)

    def _is_constant(self, name: str) -> bool:
        return name in self.initializers or isinstance(self.values.get(name), Constant)

    def _stand_in(self, node: Node) -> Value | tuple[Value, ...]:
        """A value of the right shape for what the refused `node` gives, so that later nodes can be checked too."""
        rule = STAND_INS.get(node.op)
        try:
            return rule(self, node) if rule else Unknown()
        except BridgeError:
            return Unknown()

    def _finish(self, output: ValueInfoProto) -> str:
        """Make the layer that gives the output, and return its name; "" if a refused node gives it."""
        value = self.values.get(output.name, Unknown())
        if isinstance(value, Unknown):
            if not self.problems:
                raise GraphError(f"{self.path}: output {_shown(output.name)} is not computed from the input")
            return ""
        if not isinstance(value, Signal | Rearranged):
            raise ConversionError(f"{self.path}: output {_shown(output.name)} is not the output of a layer")
        try:
            name = self.layer(self._arrived(value, len(self.model.graph.node)))
        except BridgeError as error:
            self.problems[f"output {_shown(output.name)}: {error}"] = len(self.model.graph.node)
            return ""
        declared = output.type.tensor_type.shape
        shape = (0, *self.shapes[name])
        if output.type.tensor_type.HasField("shape") and not self.problems:
            sizes = [dim.dim_value for dim in declared.dim]
            if len(sizes) != len(shape) or any(s and t and s != t for s, t in zip(sizes, shape, strict=True)):
                raise GraphError(
                    f"{self.path}: output {_shown(output.name)} is declared as {_dims(declared)}, "
                    f"but is [B, {', '.join(map(str, shape[1:]))}]"
                )
        return name

    def _ordered(self, last: str) -> tuple[Layer, ...]:
        """The layers that `last` depends on, in the order of the file."""
        layers = [layer for _, layer in sorted(self.layers.values(), key=lambda entry: entry[0])]
        used = {last, INPUT}
        for layer in reversed(layers):
            if layer.name in used:
                used.update(layer.inputs)
        return tuple(layer for layer in layers if layer.name in used)

    # Used by the rules

    def refuse(self, node: Node, why: object) -> None:
        self.problems[f"{node.where}: {why}"] = node.index

    def value(self, node: Node, index: int) -> Value:
        """What the node's input of that number holds."""
        if not node.has(index):
            raise GraphError(f"input {index} is missing")
        name = node.inputs[index]
        if name in self.values:
            return self.values[name]
        array = self.array(self.initializers[name])
        constant = Constant((array, array))
        if self.readers[name] > 1:  # others are dropped after use: weights need not be kept twice
            self.values[name] = constant
        return constant

    def signal(self, node: Node, index: int = 0) -> Signal:
        """The signal that the node's input holds. Raises `ConversionError` if it is anything else."""
        value = self.value(node, index)
        if isinstance(value, StraightThrough):
            raise ConversionError("it takes the difference of two signals, which is not supported")
        if not isinstance(value, Signal | Rearranged):
            raise ConversionError(f"its input {_shown(node.inputs[index])} is a constant, expected data")
        signal = self._arrived(value, node.index)
        self.values[node.inputs[index]] = signal
        return signal

    def source(self, node: Node, index: int = 0) -> str:
        """The layer that gives the node's input."""
        return self.layer(self.signal(node, index))

    def raw(self, node: Node, index: int) -> NDArray[Any]:
        """The constant that the node's input holds, as it is in the file."""
        value = self.value(node, index)
        name = _shown(node.inputs[index])
        if not isinstance(value, Constant):
            raise ConversionError(f"its input {name} is computed from the data; only a constant is supported there")
        first, second = value.values
        if first is not second and not np.array_equal(first, second):
            raise ConversionError(f"its constant {name} depends on the batch size")
        return first

    def numbers(self, node: Node, index: int, kind: type[np.floating] = np.float64, finite: bool = True) -> Array:
        """A copy of the float constant that the node's input holds, as `kind`."""
        array = self.raw(node, index)
        name = _shown(node.inputs[index])
        if not np.issubdtype(array.dtype, np.floating):
            raise GraphError(f"its constant {name} holds {array.dtype}, expected floats")
        if array.size == 0:
            raise GraphError(f"its constant {name} is empty: shape {list(array.shape)}")
        self.spend(array.size)
        copy: Array = array.astype(kind)
        if finite and not np.isfinite(copy).all():
            count = int((~np.isfinite(copy)).sum())
            raise ConversionError(f"its constant {name} holds {count} values that are NaN or infinite")
        return copy

    def channels(self, node: Node, index: int, like: Signal) -> Array:
        """The constant that the node's input holds, ``[C]`` or ``[1]``. Raises unless it is one number a channel."""
        shape = self.shapes[like.base]
        array = self.numbers(node, index)
        full = (1,) * (len(shape) + 1 - array.ndim) + array.shape
        if full not in {(1, shape[0]) + (1,) * (len(shape) - 1), (1,) * (len(shape) + 1)}:
            raise ConversionError(
                f"its constant {_shown(node.inputs[index])} has shape {list(array.shape)}; expected one number, or one "
                f"for each of the {shape[0]} channels of [B, {', '.join(map(str, shape))}]"
            )
        return array.reshape(-1)

    def vector(self, node: Node, index: int, size: int, what: str) -> Array:
        """The constant that the node's input holds, which must be ``[size]``."""
        array = self.numbers(node, index)
        if array.shape != (size,):
            raise GraphError(f"its {what} has shape {list(array.shape)}, expected [{size}]")
        return array

    def axes(self, node: Node, rank: int) -> tuple[int, ...] | None:
        """The axes that the node names, in an attribute or its second input, counted from 0; None if it names none."""
        given = node.get("axes", None)
        if given is None and node.has(1):
            given = _whole(self.raw(node, 1))
        if given is None:
            return None
        axes = tuple(sorted(axis + rank if axis < 0 else axis for axis in given))
        if len(set(axes)) != len(axes) or any(axis not in range(rank) for axis in axes):
            raise GraphError(f"its axes {list(given)} do not fit {rank} dimensions")
        return axes

    def array(self, tensor: TensorProto) -> NDArray[Any]:
        """The data of `tensor`. Allocates no more than what is really in the file."""
        onnx = require_onnx()
        what = f"tensor {_shown(tensor.name)} {list(tensor.dims)[:9]}"
        if tensor.data_type not in [getattr(onnx.TensorProto, name) for name in (*FLOATS, *INTEGERS)]:
            raise GraphError(f"{what} holds {_kind(tensor.data_type)}; expected numbers")
        if any(size < 0 for size in tensor.dims):
            raise GraphError(f"{what} has a negative size")
        try:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                self._check_data_file(tensor, what)
            array: NDArray[Any] = onnx.numpy_helper.to_array(tensor, str(self.path.parent))
        except BridgeError:
            raise
        except Exception as error:
            raise GraphError(f"{what}: its data cannot be read, or does not fit its shape ({error})") from error
        self.spend(array.size)
        if tensor.data_type == onnx.TensorProto.BFLOAT16:
            return array.astype(np.float32)
        return array

    def _check_data_file(self, tensor: TensorProto, what: str) -> None:
        """External data must be a plain file in the model's folder; onnx checks the same again as it opens it."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        folder = self.path.parent.resolve()
        file = (folder / location).resolve()
        if not location or Path(location).is_absolute() or not file.is_relative_to(folder):
            raise GraphError(f"{what}: its data is in {_shown(location)}, which is outside the model's folder")
        if not file.is_file():
            raise GraphError(f"{what}: its data is in {_shown(location)}, which is not a file beside the model")
        size = file.stat().st_size
        given = int(entries["length"]) if "length" in entries else size - int(entries.get("offset", 0))
        wanted = math.prod(tensor.dims) * require_onnx().helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if given != wanted:  # before anything is read
            raise GraphError(f"{what}: its data in {_shown(location)} takes {given} bytes, expected {wanted}")
        if file not in self.data_files:
            self.data_files.add(file)
            self.budget += size

    def spend(self, count: int) -> None:
        """Account for an array of `count` numbers. A small file cannot make the reader fill the memory."""
        self.budget -= count
        if self.budget < 0:
            raise GraphError("it would take far more memory than the file has data")

    def name(self, node: Node) -> str:
        """A name for a layer: the module's path, or else the node's name, as a unique Python identifier."""
        name = node.title
        while name in self.taken or hasattr(fx.GraphModule, name):  # exporters make attributes of these names
            self.repeats[node.title] += 1
            name = f"{node.title}_{self.repeats[node.title]}"
        self.taken.add(name)
        return name

    def put(self, node: Node, layer: Layer) -> Signal:
        """Add `layer` to the graph. Raises `GraphError` if it does not fit its inputs."""
        shape = layer.output_shape(*(self.shapes[source] for source in layer.inputs))
        if math.prod(shape) > LARGEST:
            raise GraphError(f"its output {list(shape)} is larger than {LARGEST} numbers")
        self.layers[layer.name] = (node.index, layer)
        self.shapes[layer.name] = shape
        return Signal(layer.name)

    def step(self, signal: Signal, *steps: Step) -> Signal:
        """`signal` after more `steps`."""
        if len(signal.steps) > LONGEST:
            raise ConversionError(f"more than {LONGEST} elementwise operations in a row")
        return Signal(signal.base, signal.steps + steps)

    # From steps to layers

    def layer(self, signal: Signal) -> str:
        """The name of the layer that gives `signal`. Its steps become layers when this is first asked."""
        if not signal.steps:
            return signal.base
        if signal not in self.made:
            try:
                self.made[signal] = self._make(signal)
            except _StepError as error:
                self.refuse(error.node, error)
                self.made[signal] = signal.base
        return self.made[signal]

    def _make(self, signal: Signal) -> str:
        base, steps = signal.base, signal.steps
        floor = next((at for at, step in enumerate(steps) if isinstance(step, Floor)), None)
        if floor is None:
            return self._make_affine(signal)
        found = recognise(steps, floor)
        if found.stop < len(steps):
            quantised = self.layer(Signal(base, steps[: found.stop]))
            return self.layer(Signal(quantised, steps[found.stop :]))
        source = self.layer(Signal(base, steps[: found.start]))
        node = steps[-1].node
        threshold = self._spread(found.threshold, source)
        layer = ClipFloorShift(name=self.name(node), inputs=(source,), levels=found.levels, threshold=threshold)
        return self.put(node, layer).base

    def _make_affine(self, signal: Signal) -> str:
        """Constants times and plus the signal: a `Scale`, or a `BatchNorm` if something is added."""
        scale: Array = np.ones(1)
        shift: Array = np.zeros(1)
        for step in signal.steps:
            if isinstance(step, Gain):
                scale, shift = scale * step.factor, shift * step.factor
            elif isinstance(step, Shift):
                shift = shift + step.term
            else:
                raise _StepError(step.node, REMEDIES.get(step.node.op, REMEDIES["Clip"]))
        node, base = signal.steps[-1].node, signal.base
        if np.all(shift == 0) and np.all(scale == 1):
            return base
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise _StepError(node, "its constants and those before it multiply to NaN or infinity")
        scale, shift = self._spread(scale, base), self._spread(shift, base)
        if np.all(shift == 0):
            return self.put(node, Scale(name=self.name(node), inputs=(base,), scale=scale)).base
        return self.put(node, BatchNorm(name=self.name(node), inputs=(base,), scale=scale, shift=shift)).base

    def _spread(self, values: Array, layer: str) -> Array:
        """`values` ``[C]`` or ``[1]`` as ``[C]``, for the channels of `layer`."""
        channels = self.shapes[layer][0]
        self.spend(channels)
        return np.array(np.broadcast_to(values, (channels,)))

    def _arrived(self, value: Signal | Rearranged, index: int) -> Signal:
        """`value` as a signal, for the node number `index`, before which its layer goes if it takes one.

        Raises `ConversionError` if its elements were moved as no layer moves them.
        """
        if isinstance(value, Signal):
            return value
        shape = self.shapes[value.origin]
        first, second = (self._layer_of_indices(value, indices, shape) for indices in value.indices)
        weights = [np.asarray(getattr(layer, "weight", 0)) for layer in (first, second)]
        if type(first) is not type(second) or not np.array_equal(weights[0], weights[1]):
            raise ConversionError(f"what {value.node.where} hands it depends on the batch size")
        if first is None:
            return Signal(value.origin)
        return self.put(replace(value.node, index=index), replace(first, name=self.name(value.node)))

    def _layer_of_indices(self, value: Rearranged, indices: NDArray[Any], shape: Shape) -> Layer | None:
        if indices.shape[1:] == (*indices.shape[1:2], *shape[1:]) and not _in_order(indices):
            self.spend(shape[0] * (shape[0] + indices.shape[1]))  # a choice of channels is a matrix
        moved = movement.Moved(value.origin, torch.from_numpy(np.ascontiguousarray(indices)))
        try:
            return movement.arrive(moved, value.node.title, shape)
        except ConversionError as error:
            raise ConversionError(f"what {value.node.where} hands it: {error}") from error

    def compute(self, node: Node, fold: Fold, operands: Sequence[Value | None]) -> list[Both]:
        """What the node makes of constants or indices, at each of the two batch sizes: one pair an output."""
        pairs = [_both(operand) if operand is not None else None for operand in operands]
        results: list[tuple[NDArray[Any], ...]] = []
        for batch in (0, 1):
            if batch == 1 and all(pair is None or pair[0] is pair[1] for pair in pairs):
                results.append(results[0])
                break
            arrays = [None if pair is None else pair[batch] for pair in pairs]
            try:
                self.spend(_size_of_fold(node, arrays))
                result = fold(node, *arrays)
            except BridgeError:
                raise
            except Exception as error:
                raise GraphError(f"its operands do not fit ({error})") from error
            results.append(tuple(result) if isinstance(result, list) else (np.asarray(result),))
        return list(zip(*results, strict=True))


# Recognising QCFS


class _StepError(ConversionError):
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
    """The QCFS around ``steps[floor]``. Raises `_StepError` naming the floor if there is none.

    Two forms, with gains wherever a product stands (q is the height of a stair, so L = λ/q):

    * ``gains · (+ 1/2) · floor · gains · bound(0, …) · gains``
    * ``gains · bound(0, …) · gains · (+ 1/2) · floor · gains``

    Gains before and after cannot be told from a `Scale` before or after. Those belong to QCFS with which its stairs are
    as high as they are wide; of several such choices, the one that leaves out the fewest.
    """
    node = steps[floor].node
    half = steps[floor - 1] if floor else None
    if not isinstance(half, Shift) or not np.all(half.term == 0.5):
        raise _StepError(node, "it floors, but QCFS adds exactly 1/2 before it does")
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
            raise _StepError(node, "it floors, but is not clipped between 0 and λ as QCFS is")
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
        raise _StepError(node, "its stairs are not as high as wide: QCFS multiplies by L/λ before and by λ/L after")
    _, start, stop = min(fitting)
    return Found(start, stop, count, _threshold(node, height(stop) * count))


def _levels(node: Node, low: float, levels: Array) -> int:
    """L, from one value of it a channel. Raises `_StepError` unless it is a whole number."""
    if low != 0:
        raise _StepError(node, f"it is clipped at {low:g} below; QCFS is clipped at 0")
    if not np.isfinite(levels).all():
        raise _StepError(node, "it is not clipped above; QCFS is clipped at λ")
    count = round(float(levels.flat[0]))
    if not 1 <= count < 2**24 or not np.allclose(levels, count, rtol=ROUNDING, atol=0):
        raise _StepError(node, f"its number of levels L must be a whole number of at least 1, got {levels.flat[0]:g}")
    return count


def _threshold(node: Node, values: Array) -> Array:
    """λ, as the float32 that it was before it was multiplied and divided by L."""
    if not (values > 0).all() or not np.isfinite(values).all():
        raise _StepError(node, f"every threshold λ must be positive, got {values.min():g}; retrain or set it")
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


# Rules: what a node does to the data


def _conv(reader: _Reader, node: Node) -> Value:
    source = reader.source(node)
    shape = reader.shapes[source]
    weight = reader.numbers(node, 1, np.float32)
    kernel = weight.shape[2:]
    if len(kernel) not in (1, 2):
        raise ConversionError(f"a convolution over {max(len(kernel), 0)} dimensions; 1 and 2 are supported")
    if tuple(node.get("kernel_shape", kernel)) != kernel:
        raise GraphError(f"its kernel_shape {node.get('kernel_shape', [])} is not that of its weight {weight.shape}")
    groups = node.get("group", 1)
    if groups < 1 or weight.shape[0] % groups:
        raise GraphError(f"{weight.shape[0]} output channels do not divide into {groups} groups")
    count = len(weight)
    bias = reader.vector(node, 2, count, "bias") if node.has(2) else np.zeros(count)
    stride, dilation, padding = _window(node, kernel, shape)
    name, inputs = reader.name(node), (source,)
    if len(kernel) == 1:
        (s,), (d,), (p,) = stride, dilation, padding
        return reader.put(
            node,
            Conv1d(name=name, inputs=inputs, weight=weight, bias=bias, stride=s, padding=p, dilation=d, groups=groups),
        )
    return reader.put(
        node,
        Conv2d(
            name=name,
            inputs=inputs,
            weight=weight,
            bias=bias,
            stride=_two(stride),
            padding=_two(padding),
            dilation=_two(dilation),
            groups=groups,
        ),
    )


def _window(node: Node, kernel: Shape, shape: Shape) -> tuple[Shape, Shape, Shape]:
    """Strides, dilations and paddings of a window of `kernel` that slides over `shape` ``[C, ...]``, checked."""
    space = len(kernel)
    if len(shape) != space + 1 or min(kernel) < 1:
        raise GraphError(
            f"a {list(kernel)} window does not slide over an input of shape [B, {', '.join(map(str, shape))}]"
        )
    stride, dilation = tuple(node.get("strides", [1] * space)), tuple(node.get("dilations", [1] * space))
    if len(stride) != space or len(dilation) != space or min(stride + dilation) < 1:
        raise GraphError(f"its strides {list(stride)} or dilations {list(dilation)} do not fit {space} dimensions")
    automatic = node.get("auto_pad", "NOTSET")
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        sizes = zip(shape[1:], reach, stride, strict=True)
        total = [max((-(-n // s) - 1) * s + r - n, 0) for n, r, s in sizes]
        before, after = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    elif automatic == "VALID":
        before = after = (0,) * space
    else:
        pads = tuple(node.get("pads", [0] * 2 * space))
        if automatic != "NOTSET" or len(pads) != 2 * space or min(pads) < 0:
            raise GraphError(f"its padding {automatic} {list(pads)} does not fit {space} dimensions")
        before, after = pads[:space], pads[space:]
    if before != after:
        raise ConversionError(
            f"its padding is lopsided, {list(before)} before and {list(after)} after; make it symmetric"
        )
    return stride, dilation, before


def _average_pool(reader: _Reader, node: Node) -> Value:
    source = reader.source(node)
    shape = reader.shapes[source]
    kernel = tuple(node.get("kernel_shape", ()))
    stride, dilation, padding = _window(node, kernel or (0,), shape)
    if max(dilation) > 1 or (any(padding) and not node.get("count_include_pad", 0)):
        raise ConversionError("NIR's AvgPool2d has no dilation and no count_include_pad=0 with padding")
    sizes = zip(shape[1:], kernel, stride, padding, strict=True)
    if node.get("ceil_mode", 0) and any((n + 2 * p - k) % s for n, k, s, p in sizes):
        raise ConversionError("NIR's AvgPool2d has no ceil_mode; use sizes that divide, or ceil_mode=0")
    return _pool(reader, node, source, kernel, stride, padding)


def _pool(reader: _Reader, node: Node, source: str, kernel: Shape, stride: Shape, padding: Shape) -> Signal:
    """Averages over windows; over one dimension a convolution of each channel by itself, for want of an AvgPool1d."""
    name, inputs = reader.name(node), (source,)
    if len(kernel) == 2:
        pool = AvgPool2d(name=name, inputs=inputs, kernel=_two(kernel), stride=_two(stride), padding=_two(padding))
        return reader.put(node, pool)
    if len(kernel) != 1:
        raise ConversionError(f"it pools over {len(kernel)} dimensions; 1 and 2 are supported")
    channels = reader.shapes[source][0]
    reader.spend(channels * kernel[0])
    weight = np.full((channels, 1, kernel[0]), 1 / kernel[0])
    conv = Conv1d(
        name=name,
        inputs=inputs,
        weight=weight,
        bias=np.zeros(channels),
        stride=stride[0],
        padding=padding[0],
        groups=channels,
    )
    return reader.put(node, conv)


def _global_pool(reader: _Reader, node: Node) -> Signal:
    source = reader.source(node)
    space = reader.shapes[source][1:]
    if not space:
        raise GraphError("it pools over space, but its input has none")
    if set(space) == {1}:
        return Signal(source)
    return _pool(reader, node, source, space, space, (0,) * len(space))


def _reduce_mean(reader: _Reader, node: Node) -> Value:
    rank = len(reader.shapes[reader.source(node)]) + 1
    if rank < 3 or reader.axes(node, rank) != tuple(range(2, rank)):
        raise ConversionError("only a mean over all dimensions of space, as [2, 3] of [B, C, H, W], is supported")
    if node.get("keepdims", 1):
        return _global_pool(reader, node)
    pooled = _global_pool(reader, replace(node, title=f"{node.title}_pool"))
    return reader.put(node, Flatten(name=reader.name(node), inputs=(pooled.base,)))


def _gemm(reader: _Reader, node: Node) -> Value:
    source = reader.source(node)
    if node.get("transA", 0):
        raise ConversionError("it transposes the data (transA)")
    weight = reader.numbers(node, 1, np.float32)
    if weight.ndim != 2:
        raise GraphError(f"its weight has shape {list(weight.shape)}, expected two dimensions")
    if not node.get("transB", 0):
        weight = np.ascontiguousarray(weight.T)
    if (alpha := node.get("alpha", 1.0)) != 1:
        weight = weight * np.float32(alpha)
        _check_finite(weight)
    bias: Array = np.zeros(len(weight))
    if node.has(2):
        given = reader.numbers(node, 2)
        if given.shape not in {(), (1,), (len(weight),), (1, 1), (1, len(weight))}:
            raise GraphError(f"its bias has shape {list(given.shape)}, expected [{len(weight)}]")
        bias = bias + node.get("beta", 1.0) * given.reshape(-1)
        _check_finite(bias)
    return reader.put(node, Linear(name=reader.name(node), inputs=(source,), weight=weight, bias=bias))


def _mat_mul(reader: _Reader, node: Node) -> Value:
    source = reader.source(node)
    weight = reader.numbers(node, 1, np.float32)
    if weight.ndim != 2:
        raise ConversionError(f"its second factor has shape {list(weight.shape)}; only a matrix [F_in, F_out] will do")
    weight = np.ascontiguousarray(weight.T)
    layer = Linear(name=reader.name(node), inputs=(source,), weight=weight, bias=np.zeros(len(weight)))
    if reader.readers[node.outputs[0]] == 1:
        reader.bias_free.add(layer.name)
    return reader.put(node, layer)


def _batch_norm(reader: _Reader, node: Node) -> Value:
    source = reader.source(node)
    if node.get("training_mode", 0) or not node.get("spatial", 1):
        raise ConversionError("only batch normalisation at inference, per channel, is supported; export in eval mode")
    channels = reader.shapes[source][0]
    gain, shift, mean, variance = (
        reader.vector(node, at, channels, what)
        for at, what in enumerate(("scale", "bias", "mean", "variance"), start=1)
    )
    variance = variance + node.get("epsilon", 1e-5)
    if not (variance > 0).all():
        raise ConversionError(f"its variance and epsilon must be positive together, got {variance.min():g}")
    scale = gain / np.sqrt(variance)
    _check_finite(scale, shift - scale * mean)
    return reader.put(
        node, BatchNorm(name=reader.name(node), inputs=(source,), scale=scale, shift=shift - scale * mean)
    )


def _move(reader: _Reader, node: Node) -> tuple[Value, ...]:
    """Apply what only moves data to indices in its place."""
    source = reader.value(node, 0)
    if not isinstance(source, Rearranged):
        name = reader.source(node)
        sizes = [(batch, *reader.shapes[name]) for batch in reader.batches]
        reader.spend(sum(map(math.prod, sizes)))
        first, second = (np.arange(math.prod(size)).reshape(size) for size in sizes)
        source = Rearranged(node, name, (first, second))
    options = [reader.value(node, at) if node.has(at) else None for at in range(1, len(node.inputs))]
    if not all(isinstance(option, Constant | None) for option in options):
        raise ConversionError("where it moves data depends on the data")
    return tuple(
        Rearranged(node, source.origin, pair) for pair in reader.compute(node, FOLDS[node.op], [source, *options])
    )


def _resolve(shape: Shape, wanted: Shape, allow_zero: bool) -> Shape:
    """The shape that Reshape gives, with its 0 (copied) and −1 (whatever is left) replaced."""
    sizes = [shape[at] if size == 0 and not allow_zero and at < len(shape) else size for at, size in enumerate(wanted)]
    rest = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and rest > 0:
        sizes[sizes.index(-1)] = math.prod(shape) // rest
    if min(sizes, default=0) < 1 or math.prod(sizes) != math.prod(shape):
        raise GraphError(f"it reshapes to {list(wanted)}, which does not fit its input")
    return tuple(sizes)


def _concat(reader: _Reader, node: Node) -> Value:
    sources = tuple(reader.source(node, at) for at in range(len(node.inputs)))
    if node.get("axis", None) not in (1, -len(reader.shapes[sources[0]])):
        raise ConversionError(f"it joins along axis {node.get('axis', None)}; only 1, the channels, is supported")
    if len(sources) == 1:
        return Signal(sources[0])
    return reader.put(node, Concat(name=reader.name(node), inputs=sources))


def _add(reader: _Reader, node: Node) -> Value:
    first, second = reader.value(node, 0), reader.value(node, 1)
    for level, difference in ((first, second), (second, first)):
        if isinstance(difference, StraightThrough) and level == difference.level:
            return difference.floored
    if isinstance(first, Constant) or isinstance(second, Constant):
        return _add_constant(reader, node, *((1, 0) if isinstance(first, Constant) else (0, 1)))
    return _join(reader, node, reader.signal(node, 0), reader.signal(node, 1))


def _add_constant(reader: _Reader, node: Node, data: int, constant: int) -> Value:
    signal = reader.signal(node, data)
    term = reader.channels(node, constant, signal)
    if not signal.steps and signal.base in reader.bias_free and term.size > 1:
        reader.bias_free.discard(signal.base)
        index, layer = reader.layers[signal.base]
        assert isinstance(layer, Linear)
        reader.layers[signal.base] = (index, replace(layer, bias=term))
        return signal
    return reader.step(signal, Shift(node, term))


def _join(reader: _Reader, node: Node, first: Signal, second: Signal) -> Signal:
    """The sum of two signals; of a signal with itself, its double, for no NIR graph has the same edge twice."""
    one, other = reader.layer(first), reader.layer(second)
    if one == other:
        double = np.full(reader.shapes[one][0], 2.0)
        return reader.put(node, Scale(name=reader.name(node), inputs=(one,), scale=double))
    return reader.put(node, Add(name=reader.name(node), inputs=(one, other)))


def _sum(reader: _Reader, node: Node) -> Value:
    total = reader.signal(node, 0)
    for at in range(1, len(node.inputs)):
        total = _join(reader, node, total, reader.signal(node, at))
    return total


def _sub(reader: _Reader, node: Node) -> Value:
    first, second = reader.value(node, 0), reader.value(node, 1)
    if isinstance(second, Constant):
        signal = reader.signal(node, 0)
        return reader.step(signal, Shift(node, -reader.channels(node, 1, signal)))
    if isinstance(first, Constant):
        signal = reader.signal(node, 1)
        return reader.step(signal, Gain(node, -np.ones(1)), Shift(node, reader.channels(node, 0, signal)))
    floored, level = reader.signal(node, 0), reader.signal(node, 1)
    last = floored.steps[-1] if floored.steps else None
    if isinstance(last, Floor) and Signal(floored.base, floored.steps[:-1]) == level:
        return StraightThrough(level, floored)
    raise ConversionError("it subtracts one signal from another; only sums are supported")


def _mul(reader: _Reader, node: Node) -> Value:
    constant = 0 if isinstance(reader.value(node, 0), Constant) else 1
    if not isinstance(reader.value(node, constant), Constant):
        raise ConversionError(PRODUCT)
    signal = reader.signal(node, 1 - constant)
    return reader.step(signal, Gain(node, reader.channels(node, constant, signal)))


def _div(reader: _Reader, node: Node) -> Value:
    if not isinstance(reader.value(node, 1), Constant):
        raise ConversionError("it divides by a signal; no spiking layer does that")
    signal = reader.signal(node, 0)
    divisor = reader.channels(node, 1, signal)
    if not np.all(divisor):
        raise ConversionError("it divides by zero")
    return reader.step(signal, Gain(node, 1 / divisor))


def _neg(reader: _Reader, node: Node) -> Value:
    return reader.step(reader.signal(node), Gain(node, -np.ones(1)))


def _floor(reader: _Reader, node: Node) -> Value:
    return reader.step(reader.signal(node), Floor(node))


def _clip(reader: _Reader, node: Node) -> Value:
    low = _limit(reader, node, 1) if node.has(1) else node.get("min", -math.inf)
    high = _limit(reader, node, 2) if node.has(2) else node.get("max", math.inf)
    return _bound(reader, node, 0, low, high)


def _max(reader: _Reader, node: Node) -> Value:
    data, limit = _data_and_limit(reader, node)
    return _bound(reader, node, data, _limit(reader, node, limit), math.inf)


def _min(reader: _Reader, node: Node) -> Value:
    data, limit = _data_and_limit(reader, node)
    return _bound(reader, node, data, -math.inf, _limit(reader, node, limit))


def _relu(reader: _Reader, node: Node) -> Value:
    return _bound(reader, node, 0, 0.0, math.inf)


def _data_and_limit(reader: _Reader, node: Node) -> tuple[int, int]:
    if len(node.inputs) != 2:
        raise ConversionError(f"it compares {len(node.inputs)} tensors; only data with one constant is supported")
    return (1, 0) if isinstance(reader.value(node, 0), Constant) else (0, 1)


def _limit(reader: _Reader, node: Node, index: int) -> float:
    limit = reader.numbers(node, index, finite=False)
    if limit.size != 1 or np.isnan(limit).any():
        raise ConversionError(f"its limit {_shown(node.inputs[index])} must be one number")
    return float(limit.reshape(()))


def _bound(reader: _Reader, node: Node, data: int, low: float, high: float) -> Value:
    if not low <= high:
        raise ConversionError(f"it clips between {low:g} and {high:g}")
    return reader.step(reader.signal(node, data), Bound(node, low, high))


def _same(reader: _Reader, node: Node) -> Value:
    """Nodes that do nothing at inference."""
    return reader.value(node, 0)


def _dropout(reader: _Reader, node: Node) -> Value:
    if node.has(2) and reader.raw(node, 2).any():
        raise ConversionError("it drops at inference too; export in eval mode")
    return reader.value(node, 0)


def _cast(reader: _Reader, node: Node) -> Value:
    if node.get("to", 0) != reader.element:
        raise ConversionError(f"it casts to {_kind(node.get('to', 0))}; the whole network must have the input's type")
    return reader.value(node, 0)


def _cast_like(reader: _Reader, node: Node) -> Value:
    """Data stays as it is, for all of it has one type; constants become what other constants, or the data, are."""
    value, like = reader.value(node, 0), reader.value(node, 1)
    if not isinstance(value, Constant):
        return value
    kind = like.values[0].dtype if isinstance(like, Constant) else _numpy_type(reader.element)
    first, second = value.values
    cast = first.astype(kind)
    return Constant((cast, cast if second is first else second.astype(kind)))


def _shape(reader: _Reader, node: Node) -> Value:
    value = reader.value(node, 0)
    if isinstance(value, Rearranged):
        shapes = [indices.shape for indices in value.indices]
    else:
        shapes = [(batch, *reader.shapes[reader.signal(node).base]) for batch in reader.batches]
    part = slice(node.get("start", 0), node.get("end", None))
    first, second = (np.array(shape[part], dtype=np.int64) for shape in shapes)
    return Constant((first, second))


def _constant(reader: _Reader, node: Node) -> Value:
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if len(node.attributes) != 1:
        raise GraphError("expected one attribute with its value")
    ((attribute, given),) = node.attributes.items()
    if attribute == "value" and hasattr(given, "data_type"):
        array = reader.array(given)
    elif attribute in kinds and isinstance(given, float | int | list):
        array = np.array(given, dtype=kinds[attribute])
    else:
        raise ConversionError(f"a constant given as {attribute} is not supported")
    return Constant((array, array))


MOVES = ("Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
Rule = Callable[[_Reader, Node], Value | tuple[Value, ...]]
RULES: dict[str, Rule] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _conv,
    "Div": _div,
    "Dropout": _dropout,
    "Floor": _floor,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "Identity": _same,
    "MatMul": _mat_mul,
    "Max": _max,
    "Min": _min,
    "Mul": _mul,
    "Neg": _neg,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Shape": _shape,
    "Sub": _sub,
    "Sum": _sum,
    **dict.fromkeys(MOVES, _move),
}
STAND_INS: dict[str, Rule] = {
    **dict.fromkeys((op for op, remedy in REMEDIES.items() if remedy in (ONLY_QCFS, BATCH_NORM)), _same),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Round", "Ceil"), _same),
    "GlobalMaxPool": _global_pool,
}
"""Refused operators, and the rules that give a tensor of the same shape."""


# What nodes make of constants, or of indices in place of data


def _axes_of(node: Node, given: NDArray[Any] | None) -> tuple[int, ...]:
    return tuple(node.get("axes", ())) if given is None else _whole(given)


def _fold_squeeze(node: Node, data: NDArray[Any], axes: NDArray[Any] | None = None) -> NDArray[Any]:
    return np.squeeze(data, _axes_of(node, axes) or None)


def _fold_unsqueeze(node: Node, data: NDArray[Any], axes: NDArray[Any] | None = None) -> NDArray[Any]:
    return np.expand_dims(data, _axes_of(node, axes))


def _fold_slice(node: Node, data: NDArray[Any], *inputs: NDArray[Any] | None) -> NDArray[Any]:
    given = [_whole(value) if value is not None else None for value in (*inputs, *[None] * (4 - len(inputs)))]
    starts, ends, axes, steps = (
        given if inputs else (node.get("starts", ()), node.get("ends", ()), node.get("axes", None), None)
    )
    parts = [slice(None)] * data.ndim
    for at, axis in enumerate(axes or range(len(starts or ()))):
        parts[axis] = slice((starts or ())[at], (ends or ())[at], steps[at] if steps else 1)
    return data[tuple(parts)]


def _fold_reshape(node: Node, data: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
    return data.reshape(_resolve(data.shape, _whole(wanted), bool(node.get("allowzero", 0))))


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
    return np.asarray(data, dtype=_numpy_type(node.get("to", 0)))


def _fold_expand(node: Node, data: NDArray[Any], shape: NDArray[Any]) -> NDArray[Any]:
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, _whole(shape)))


def _fold_flatten(node: Node, data: NDArray[Any]) -> NDArray[Any]:
    return data.reshape(math.prod(data.shape[: node.get("axis", 1)]), -1)


def _fold_split(node: Node, data: NDArray[Any], sizes: NDArray[Any] | None = None) -> list[NDArray[Any]]:
    """Into parts of the given sizes, or else of one size, the last one perhaps smaller."""
    axis, count = node.get("axis", 0), len(node.outputs)
    given = node.get("split", None) if sizes is None else _whole(sizes)
    each = -(-data.shape[axis] // count)
    bounds = np.cumsum(given)[:-1] if given else [each * at for at in range(1, count)]
    if given and (sum(given) != data.shape[axis] or min(given) < 0 or len(given) != count):
        raise ValueError(f"{given} are not the sizes of {count} parts of {data.shape[axis]}")
    return list(np.split(data, bounds, axis))


def _fold_shape(node: Node, data: NDArray[Any]) -> NDArray[Any]:
    return np.array(data.shape[node.get("start", 0) : node.get("end", None)], dtype=np.int64)


Fold = Callable[..., NDArray[Any] | list[NDArray[Any]]]
BROADCAST: dict[str, Fold] = {
    "Add": lambda node, a, b: a + b,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
    "Div": _fold_div,
    "Max": lambda node, a, b: np.maximum(a, b),
    "Min": lambda node, a, b: np.minimum(a, b),
    "Clip": _fold_clip,
}
FOLDS: dict[str, Fold] = {
    **BROADCAST,
    "Abs": lambda node, a: np.abs(a),
    "Cast": _fold_cast,
    "Concat": lambda node, *parts: np.concatenate(parts, node.get("axis", 0)),
    "Expand": _fold_expand,
    "Flatten": _fold_flatten,
    "Floor": lambda node, a: np.floor(a),
    "Gather": lambda node, a, at: np.take(a, at, node.get("axis", 0)),
    "Identity": lambda node, a: a,
    "Neg": lambda node, a: -a,
    "Reciprocal": lambda node, a: np.reciprocal(a),
    "Reshape": _fold_reshape,
    "Shape": _fold_shape,
    "Slice": _fold_slice,
    "Split": _fold_split,
    "Sqrt": lambda node, a: np.sqrt(a),
    "Squeeze": _fold_squeeze,
    "Transpose": lambda node, a: np.transpose(a, node.get("perm", None)),
    "Unsqueeze": _fold_unsqueeze,
}
"""In the type that the constants have, as a runtime would."""


def _size_of_fold(node: Node, arrays: Sequence[NDArray[Any] | None]) -> int:
    """How many numbers folding the node gives, at most; known before they are computed."""
    present = [array for array in arrays if array is not None]
    if node.op in BROADCAST:
        return math.prod(np.broadcast_shapes(*(array.shape for array in present)))
    if node.op == "Expand":
        data, shape = present
        return math.prod(np.broadcast_shapes(data.shape, _whole(shape)))
    if node.op == "Gather":
        data, at = present
        return int(data.size // max(data.shape[node.get("axis", 0)], 1) * at.size)
    return sum(array.size for array in present)


# Reading the file


def _opset(model: ModelProto) -> int:
    """The version of the standard operators. Raises `GraphError` if there is none, or one that onnx does not know."""
    onnx = require_onnx()
    versions = {entry.version for entry in model.opset_import if entry.domain in STANDARD}
    newest = onnx.defs.onnx_opset_version()
    if len(versions) != 1:
        raise GraphError(f"expected one version of the standard operators, the file names {sorted(versions)}")
    (version,) = versions
    if not OLDEST_OPSET <= version <= newest:
        raise GraphError(f"opset {version} is not supported; {OLDEST_OPSET} to {newest} are")
    return int(version)


def _check_edges(model: ModelProto, source: str) -> None:
    """Raise `GraphError` unless every tensor is made once, and before it is used."""
    graph = model.graph
    if graph.sparse_initializer or any(function.domain in STANDARD for function in model.functions):
        raise GraphError("sparse initializers and redefined standard operators are not supported")
    made_later = {name for node in graph.node for name in node.output}
    known = {source, *(tensor.name for tensor in graph.initializer)}
    if len(known) != 1 + len(graph.initializer) or "" in known:
        raise GraphError("two initializers have the same name, or one has none")
    for index, proto in enumerate(graph.node):
        if any(
            isinstance(text, bytes) for text in (proto.name, proto.op_type, proto.domain, *proto.input, *proto.output)
        ):
            raise GraphError(f"node {index}: a name in it is not text")
        where = _node(index, proto).where
        for name in filter(None, proto.input):
            if name not in known:
                why = (
                    "only a later node gives: a cycle, or nodes that are not in order"
                    if name in made_later
                    else "nothing gives"
                )
                raise GraphError(f"{where}: it reads {_shown(name)}, which {why}")
        if not proto.output or not proto.output[0]:
            raise GraphError(f"{where}: it has no output")
        for name in filter(None, proto.output):
            if name in known:
                raise GraphError(f"{where}: it gives {_shown(name)}, which exists already")
            known.add(name)


def _live(model: ModelProto, output: str) -> set[int]:
    """The nodes that `output` depends on. Others, such as a dropout's mask, are as good as not there."""
    wanted, live = {output}, set()
    for index in reversed(range(len(model.graph.node))):
        proto = model.graph.node[index]
        if not wanted.isdisjoint(proto.output):
            live.add(index)
            wanted.update(filter(None, proto.input))
    return live


def _node(index: int, proto: NodeProto) -> Node:
    label = proto.name or (proto.output[0] if proto.output else f"node {index}")
    path = _module(proto)
    return Node(
        op=proto.op_type,
        index=index,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        title=_identifier(path or label.rpartition("/")[2] if label.startswith("/") else path or label),
        where=f"{_shown(label)} ({_shown(proto.op_type)})",
        attributes={},
    )


def _module(proto: NodeProto) -> str:
    """The path of the torch module that the node came from, "" if the file does not tell.

    torch's exporter keeps it in the metadata, as ``['', 'features', 'features.0', 'conv2d']``; the older one in the
    name, as ``/features/features.0/Conv`` or ``/layer1/layer1.0/conv1/Conv``.
    """
    for entry in proto.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes" and isinstance(entry.value, str):
            scopes: list[str] = re.findall(r"'([^']*)'", entry.value[:4096])
            return scopes[-2] if len(scopes) > 1 else ""
    path = ""
    if proto.name.startswith("/"):
        previous = None
        for scope in proto.name.split("/")[1:-1]:
            inside = previous is not None and scope.startswith(f"{previous}.")
            path = path.removesuffix(str(previous)) + scope if inside else f"{path}.{scope}" if path else scope
            previous = scope
    return path


def _identifier(text: str) -> str:
    """`text` as a Python identifier, in the way torch.fx makes them of paths."""
    name = re.sub(r"\W", "_", text[:LONGEST_NAME], flags=re.ASCII)
    if not name.isidentifier() or name.startswith("_") or keyword.iskeyword(name):
        return f"layer_{name.strip('_')}".rstrip("_")
    return name


def _attributes(proto: NodeProto, opset: int, ir_version: int) -> dict[str, Any]:
    """The attributes that a node gives, after onnx has held it against the operator's schema."""
    onnx = require_onnx()
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = ir_version, {"": opset}
    try:
        if proto.op_type != "Constant":  # of which it would look for external data where Python was started
            onnx.checker.check_node(proto, context)
        given = {entry.name: onnx.helper.get_attribute_value(entry) for entry in proto.attribute}
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise GraphError(f"malformed: {reason[:300]}") from error
    return {
        name: value.decode("ascii", "replace") if isinstance(value, bytes) else value for name, value in given.items()
    }


def _whole(array: NDArray[Any]) -> tuple[int, ...]:
    """A short list of integers, such as axes or a shape."""
    if not np.issubdtype(array.dtype, np.integer) or array.ndim > 1 or array.size > 16:
        raise GraphError(f"expected a short list of integers, got {array.dtype} {list(array.shape)}")
    return tuple(int(value) for value in array.reshape(-1))


def _two(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second


def _both(value: Value) -> Both:
    assert isinstance(value, Constant | Rearranged)
    return value.values if isinstance(value, Constant) else value.indices


def _check_finite(*arrays: Array) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise ConversionError("its constants multiply to NaN or infinity")


def _in_order(indices: NDArray[Any]) -> bool:
    return bool((indices.reshape(-1) == np.arange(indices.size)).all())


def _numpy_type(number: int) -> type[np.generic]:
    """What numpy calls one of ONNX's types of numbers. Raises `GraphError` for one that networks have no use for."""
    kinds = {getattr(require_onnx().TensorProto, name): kind for name, kind in NUMPY.items()}
    if number not in kinds:
        raise GraphError(f"it casts to {_kind(number)}")
    return kinds[number]


def _kind(number: int) -> str:
    """The name of one of ONNX's types of numbers."""
    kinds = require_onnx().TensorProto.DataType
    return str(kinds.Name(number)) if number in kinds.values() else f"type {number}"


def _dims(shape: Any) -> str:
    return f"[{', '.join(str(dim.dim_value or _shown(dim.dim_param) or '?') for dim in shape.dim)}]"


def _shown(text: object) -> str:
    """`text` from a file as it is if it is short and printable, else quoted."""
    text = str(text)  # protobuf gives bytes where it is not UTF-8
    return text if len(text) <= LONGEST_NAME and text.isprintable() else repr(text[:LONGEST_NAME])
