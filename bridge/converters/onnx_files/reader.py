"""Capture an ONNX file by following its tensors from the input to the output, node by node.

What a tensor holds is in `onnx_values`, what a node does to it in `onnx_rules`, and to constants in `onnx_folding`.

Files come from anywhere. Nothing in one is executed or unpickled, no size that it declares is believed before the
data is there, external data stays in the file's folder, and whatever is wrong with it is a `BridgeError`.
"""

from __future__ import annotations

import keyword
import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from bridge.converters import index_tracing as movement
from bridge.converters.onnx_files.folding import FOLDS, Fold, size_of_fold, whole
from bridge.converters.onnx_files.rules import REMEDIES, RULES, STAND_INS, SUPPORTED
from bridge.converters.onnx_files.values import (
    LONGEST_NAME,
    Both,
    Constant,
    Floor,
    Gain,
    Node,
    Rearranged,
    Shift,
    Signal,
    Step,
    StepError,
    StraightThrough,
    Unknown,
    Value,
    both,
    kind_name,
    recognise,
    shown,
)
from bridge.converters.onnx_files.writer import require_onnx
from bridge.errors import BridgeError, ConversionError, GraphError
from bridge.graph import Array, BatchNorm, ClipFloorShift, Input, Layer, LayerGraph, Scale, Shape

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

INPUT = "input"
STANDARD = ("", "ai.onnx")
FLOATS = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")
INTEGERS = ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8", "BOOL")
OLDEST_OPSET = 7  # before it, Add and Mul had their own rules for broadcasting
LARGEST = 2**27
"""Numbers that one tensor may hold, without batch; 40 times the largest of VGG-16 on ImageNet."""
LONGEST = 64
"""Elementwise steps in a row; the longest way of writing QCFS takes eight."""
BATCHES = (2, 3)
"""What a symbolic batch size stands for while shapes are computed: what differs between the two depends on it."""


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
            return Reader(_load(path), path).graph()
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


# Following the graph


class Reader:
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
                names = ", ".join(shown(value.name) for value in found) or "none"
                raise ConversionError(f"{self.path}: a network takes exactly one {what}; the file has {names}")
        return inputs[0], graph.output[0]

    def _start(self, source: ValueInfoProto) -> None:
        """Check what the file says of its input, and make it the first layer."""
        onnx = require_onnx()
        where = f"{self.path}: input {shown(source.name)}"
        tensor = source.type.tensor_type
        kinds = [getattr(onnx.TensorProto, name) for name in FLOATS]
        if not source.type.HasField("tensor_type") or tensor.elem_type not in kinds:
            raise ConversionError(f"{where}: expected a tensor of floats, got {kind_name(tensor.elem_type)}")
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
            raise ConversionError(f"an operator of {shown(proto.domain)}, not of ONNX; inline or replace it")
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
                raise GraphError(f"{self.path}: output {shown(output.name)} is not computed from the input")
            return ""
        if not isinstance(value, Signal | Rearranged):
            raise ConversionError(f"{self.path}: output {shown(output.name)} is not the output of a layer")
        try:
            name = self.layer(self._arrived(value, len(self.model.graph.node)))
        except BridgeError as error:
            self.problems[f"output {shown(output.name)}: {error}"] = len(self.model.graph.node)
            return ""
        declared = output.type.tensor_type.shape
        shape = (0, *self.shapes[name])
        if output.type.tensor_type.HasField("shape") and not self.problems:
            sizes = [dim.dim_value for dim in declared.dim]
            if len(sizes) != len(shape) or any(s and t and s != t for s, t in zip(sizes, shape, strict=True)):
                raise GraphError(
                    f"{self.path}: output {shown(output.name)} is declared as {_dims(declared)}, "
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
            raise ConversionError(f"its input {shown(node.inputs[index])} is a constant, expected data")
        signal = self._arrived(value, node.index)
        self.values[node.inputs[index]] = signal
        return signal

    def source(self, node: Node, index: int = 0) -> str:
        """The layer that gives the node's input."""
        return self.layer(self.signal(node, index))

    def raw(self, node: Node, index: int) -> NDArray[Any]:
        """The constant that the node's input holds, as it is in the file."""
        value = self.value(node, index)
        name = shown(node.inputs[index])
        if not isinstance(value, Constant):
            raise ConversionError(f"its input {name} is computed from the data; only a constant is supported there")
        first, second = value.values
        if first is not second and not np.array_equal(first, second):
            raise ConversionError(f"its constant {name} depends on the batch size")
        return first

    def numbers(self, node: Node, index: int, kind: type[np.floating] = np.float64, finite: bool = True) -> Array:
        """A copy of the float constant that the node's input holds, as `kind`."""
        array = self.raw(node, index)
        name = shown(node.inputs[index])
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
                f"its constant {shown(node.inputs[index])} has shape {list(array.shape)}; expected one number, or one "
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
            given = whole(self.raw(node, 1))
        if given is None:
            return None
        axes = tuple(sorted(axis + rank if axis < 0 else axis for axis in given))
        if len(set(axes)) != len(axes) or any(axis not in range(rank) for axis in axes):
            raise GraphError(f"its axes {list(given)} do not fit {rank} dimensions")
        return axes

    def array(self, tensor: TensorProto) -> NDArray[Any]:
        """The data of `tensor`. Allocates no more than what is really in the file."""
        onnx = require_onnx()
        what = f"tensor {shown(tensor.name)} {list(tensor.dims)[:9]}"
        if tensor.data_type not in [getattr(onnx.TensorProto, name) for name in (*FLOATS, *INTEGERS)]:
            raise GraphError(f"{what} holds {kind_name(tensor.data_type)}; expected numbers")
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
            raise GraphError(f"{what}: its data is in {shown(location)}, which is outside the model's folder")
        if not file.is_file():
            raise GraphError(f"{what}: its data is in {shown(location)}, which is not a file beside the model")
        size = file.stat().st_size
        given = int(entries["length"]) if "length" in entries else size - int(entries.get("offset", 0))
        wanted = math.prod(tensor.dims) * require_onnx().helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if given != wanted:  # before anything is read
            raise GraphError(f"{what}: its data in {shown(location)} takes {given} bytes, expected {wanted}")
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
            except StepError as error:
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
                raise StepError(step.node, REMEDIES.get(step.node.op, REMEDIES["Clip"]))
        node, base = signal.steps[-1].node, signal.base
        if np.all(shift == 0) and np.all(scale == 1):
            return base
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise StepError(node, "its constants and those before it multiply to NaN or infinity")
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
        pairs = [both(operand) if operand is not None else None for operand in operands]
        results: list[tuple[NDArray[Any], ...]] = []
        for batch in (0, 1):
            if batch == 1 and all(pair is None or pair[0] is pair[1] for pair in pairs):
                results.append(results[0])
                break
            arrays = [None if pair is None else pair[batch] for pair in pairs]
            try:
                self.spend(size_of_fold(node, arrays))
                result = fold(node, *arrays)
            except BridgeError:
                raise
            except Exception as error:
                raise GraphError(f"its operands do not fit ({error})") from error
            results.append(tuple(result) if isinstance(result, list) else (np.asarray(result),))
        return list(zip(*results, strict=True))


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
                raise GraphError(f"{where}: it reads {shown(name)}, which {why}")
        if not proto.output or not proto.output[0]:
            raise GraphError(f"{where}: it has no output")
        for name in filter(None, proto.output):
            if name in known:
                raise GraphError(f"{where}: it gives {shown(name)}, which exists already")
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
        where=f"{shown(label)} ({shown(proto.op_type)})",
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


def _in_order(indices: NDArray[Any]) -> bool:
    return bool((indices.reshape(-1) == np.arange(indices.size)).all())


def _dims(shape: Any) -> str:
    return f"[{', '.join(str(dim.dim_value or shown(dim.dim_param) or '?') for dim in shape.dim)}]"
