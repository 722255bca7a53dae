"""Follow an ONNX model's tensors from the input to the output, node by node, and collect the layers they are made by.

What a tensor holds is in `values`, what nodes make of constants in `folding`. What a node does to data is told by the
rules that the reader is handed: they, in `rules`, are written in terms of the reader, which knows none of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from bridge.converters import index_tracing
from bridge.converters.onnx_files.file import (
    STANDARD,
    attributes_of,
    check_edges,
    dims,
    live_nodes,
    node_of,
    opset_of,
)
from bridge.converters.onnx_files.folding import FOLDS, Fold, size_of_fold, whole
from bridge.converters.onnx_files.library import require_onnx
from bridge.converters.onnx_files.recognise import StepError, recognise
from bridge.converters.onnx_files.tensors import FLOATS, LARGEST, Tensors
from bridge.converters.onnx_files.values import (
    Both,
    Constant,
    Floor,
    Gain,
    Node,
    Rearranged,
    Shift,
    Signal,
    Step,
    StraightThrough,
    Unknown,
    Value,
    both,
    kind_name,
    shown,
)
from bridge.converters.remedies import MIXES_IMAGES
from bridge.errors import BridgeError, ConversionError, GraphError
from bridge.graph import Array, BatchNorm, ClipFloorShift, Input, Layer, LayerGraph, Scale, Shape

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto

INPUT = "input"
LONGEST = 64
"""Elementwise steps in a row; the longest way of writing QCFS takes eight."""
BATCHES = (2, 3)
"""What a symbolic batch size stands for while shapes are computed: what differs between the two depends on it."""


Rule = Callable[["Reader", Node], Value | tuple[Value, ...]]
"""Takes the layers of a node to the reader, and returns what the node's outputs hold."""


@dataclass(frozen=True)
class Rules:
    """What to do with each operator.

    ``by_operator`` holds the rules of those that have one. Of those that have none ``remedies`` tells what to use
    instead, else ``supported`` what there is; ``stand_ins`` are rules that give a tensor of the same shape, so that
    what follows a refused node can still be looked at.
    """

    by_operator: Mapping[str, Rule]
    stand_ins: Mapping[str, Rule]
    remedies: Mapping[str, str]
    supported: str


class Reader:
    """Goes through a model's nodes in order; collects layers, what each tensor holds, and problems."""

    def __init__(self, model: ModelProto, path: Path, rules: Rules) -> None:
        self.model = model
        self.path = path
        self.rules = rules
        self.opset = opset_of(model)
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
        self.tensors = Tensors(path)

    def graph(self) -> LayerGraph:
        """The layers. Raises `ConversionError` with every problem there is."""
        source, output = self._ends()
        check_edges(self.model, source.name)
        self._start(source)
        live = live_nodes(self.model, output.name)
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
            raise ConversionError(f"{where}: expected a shape [B, ...], got {dims(tensor.shape)}")
        batch, *rest = tensor.shape.dim
        if any(dim.dim_value < 1 for dim in rest):
            raise ConversionError(
                f"{where}: only the batch size may be symbolic, got {dims(tensor.shape)}; "
                "export with fixed channels and sizes"
            )
        shape = tuple(int(dim.dim_value) for dim in rest)
        if math.prod(shape) > LARGEST:
            raise ConversionError(f"{where}: its shape {dims(tensor.shape)} is larger than {LARGEST} numbers")
        if batch.dim_value:
            self.batches = (batch.dim_value, batch.dim_value)
        self.layers[INPUT] = (-1, Input(name=INPUT, shape=shape))
        self.shapes[INPUT] = shape
        self.values[source.name] = Signal(INPUT)
        self.element = tensor.elem_type

    def _visit(self, index: int, proto: NodeProto) -> None:
        """Find out what the node's outputs hold."""
        node = node_of(index, proto)
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
        fold, rule = FOLDS.get(node.op), self.rules.by_operator.get(node.op)
        constant = bool(node.inputs) and all(map(self._is_constant, filter(None, node.inputs)))
        if rule is None and not (constant and fold):
            unknown = f"not supported; supported are {self.rules.supported}"
            made = "makes a constant; run onnxsim on the file"
            raise ConversionError(self.rules.remedies.get(node.op, made if constant else unknown))
        if any(isinstance(self.values.get(name), Unknown) for name in node.inputs):
            self._settle(node)
            return Unknown()
        node.attributes.update(attributes_of(proto, self.opset, self.model.ir_version))
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
        rule = self.rules.stand_ins.get(node.op)
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
                    f"{self.path}: output {shown(output.name)} is declared as {dims(declared)}, "
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
        array = self.tensors.read(self.initializers[name])
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
        self.tensors.spend(array.size)
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
                raise StepError(step.node, self.rules.remedies.get(step.node.op, self.rules.remedies["Clip"]))
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
        self.tensors.spend(channels)
        return np.array(np.broadcast_to(values, (channels,)))

    def _arrived(self, value: Signal | Rearranged, index: int) -> Signal:
        """`value` as a signal, for the node number `index`, before which its layer goes if it takes one.

        Raises `ConversionError` if its elements were moved as no layer moves them.
        """
        if isinstance(value, Signal):
            return value
        shape = self.shapes[value.origin]
        first, second = (self._layers_of_indices(value, indices, shape) for indices in value.indices)
        if len(first) != len(second) or not all(map(_alike, first, second)):
            raise ConversionError(f"what {value.node.where} hands it depends on the batch size")
        signal = Signal(value.origin)
        for layer in first:
            named = replace(layer, name=self.name(value.node), inputs=(signal.base,))
            signal = self.put(replace(value.node, index=index), named)
        return signal

    def _layers_of_indices(self, value: Rearranged, indices: NDArray[Any], shape: Shape) -> list[Layer]:
        if not _in_order(indices):
            # A choice of channels is a matrix.
            self.tensors.spend(shape[0] * (shape[0] + math.prod(indices.shape[1:2])))
        pattern = index_tracing.of_one_image(np.asarray(indices), math.prod(shape)) if indices.ndim > 1 else None
        try:
            if pattern is None:
                raise ConversionError(MIXES_IMAGES)
            return index_tracing.layers_of(pattern, value.origin, shape, lambda: value.node.title)
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
                self.tensors.spend(size_of_fold(node, arrays))
                result = fold(node, *arrays)
            except BridgeError:
                raise
            except Exception as error:
                raise GraphError(f"its operands do not fit ({error})") from error
            results.append(tuple(result) if isinstance(result, list) else (np.asarray(result),))
        return list(zip(*results, strict=True))


def _alike(one: Layer, other: Layer) -> bool:
    """Whether two rearrangements are the same layer."""
    first, second = (np.asarray(getattr(layer, "weight", 0)) for layer in (one, other))
    return type(one) is type(other) and np.array_equal(first, second)


def _in_order(indices: NDArray[Any]) -> bool:
    return bool((indices.reshape(-1) == np.arange(indices.size)).all())
