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

from bridge.converters.onnx_files.file import (
    STANDARD,
    attributes_of,
    check_edges,
    dims,
    live_nodes,
    node_of,
    opset_of,
)
from bridge.converters.onnx_files.folding import FOLDS, size_of_fold, whole
from bridge.converters.onnx_files.layer_list import ShapedLayers, Source, placeholder
from bridge.converters.onnx_files.library import require_onnx
from bridge.converters.onnx_files.recognise import Found, StepError, recognise
from bridge.converters.onnx_files.tensors import FLOATS, LARGEST, Tensors
from bridge.converters.onnx_files.values import (
    Constant,
    Data,
    Floor,
    Gain,
    Node,
    Shift,
    Step,
    StraightThrough,
    Unknown,
    Value,
    kind_name,
    shown,
)
from bridge.converters.torch_models.signals import Signal, simplified
from bridge.errors import BridgeError, ConversionError, GraphError
from bridge.graph import Affine, Array, BatchNorm, ClipFloorShift, Layer, LayerGraph, Scale, Shape

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto

LONGEST = 64
"""Elementwise steps in a row; the longest way of writing QCFS takes eight."""
BATCHES = (2, 3)
"""What a symbolic batch size stands for: the file is read with each, and what differs depends on it."""


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


BY_BATCH = "what it does depends on the batch size; treat each image by itself"


def read(model: ModelProto, path: Path, rules: Rules) -> LayerGraph:
    """The layers of `model`, from the file at `path`.

    Raises `ConversionError` with every problem there is.
    """
    first, second = BATCHES
    reader = Reader(model, path, rules, first)
    graph = reader.graph()
    if reader.fixed:
        return graph
    try:
        other = Reader(model, path, rules, second).graph()
    except BridgeError as error:
        raise type(error)(f"{error}\n(with {second} images; with {first} it can be converted)") from error
    for one, two in zip(graph, other, strict=False):
        if not _alike(one, two):
            where = reader.layers.made_by.get(one.name, one.name)
            raise ConversionError(f"{path} cannot be converted:\n  - {where}: {BY_BATCH}")
    if len(graph.layers) != len(other.layers):
        raise ConversionError(f"{path} cannot be converted: {BY_BATCH}")
    return graph


def _alike(one: Layer, other: Layer) -> bool:
    """Whether two layers are the same."""
    if type(one) is not type(other):
        return False
    pairs = [(value, getattr(other, key)) for key, value in vars(one).items()]
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)


class Reader:
    """Goes through a model's nodes in order; collects layers, what each tensor holds, and problems.

    A symbolic batch size is taken to be `batch`; ``fixed`` tells whether it is none.
    """

    def __init__(self, model: ModelProto, path: Path, rules: Rules, batch: int) -> None:
        self.model = model
        self.path = path
        self.rules = rules
        self.opset = opset_of(model)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.readers = Counter(name for node in model.graph.node for name in node.input)
        self.values: dict[str, Value] = {}
        self.made: dict[Data, Signal] = {}
        self.bias_free: set[str] = set()
        self.problems: dict[str, int] = {}  # and the number of the node, to list them in order
        self.tensors = Tensors(path)
        source, self.output = self._ends()
        check_edges(model, source.name)
        self.layers = ShapedLayers(*self._start(source, batch))

    def graph(self) -> LayerGraph:
        """The layers. Raises `ConversionError` with every problem there is."""
        live = live_nodes(self.model, self.output.name)
        for index, proto in enumerate(self.model.graph.node):
            if index in live:
                self._visit(index, proto)
        last = self._finish(self.output)
        if self.problems:
            listed = "\n".join(
                f"  - {problem}" for problem in sorted(self.problems, key=lambda each: self.problems[each])
            )
            raise ConversionError(f"{self.path} cannot be converted:\n{listed}")
        layers = self.layers.in_order(last)
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

    def _start(self, source: ValueInfoProto, batch: int) -> tuple[Shape, int]:
        """Check what the file says of its input, and return its shape and the batch size."""
        onnx = require_onnx()
        where = f"{self.path}: input {shown(source.name)}"
        tensor = source.type.tensor_type
        kinds = [getattr(onnx.TensorProto, name) for name in FLOATS]
        if not source.type.HasField("tensor_type") or tensor.elem_type not in kinds:
            raise ConversionError(f"{where}: expected a tensor of floats, got {kind_name(tensor.elem_type)}")
        if not tensor.HasField("shape") or len(tensor.shape.dim) < 2:
            raise ConversionError(f"{where}: expected a shape [B, ...], got {dims(tensor.shape)}")
        first, *rest = tensor.shape.dim
        if any(dim.dim_value < 1 for dim in rest):
            raise ConversionError(
                f"{where}: only the batch size may be symbolic, got {dims(tensor.shape)}; "
                "export with fixed channels and sizes"
            )
        shape = tuple(int(dim.dim_value) for dim in rest)
        if math.prod(shape) > LARGEST:
            raise ConversionError(f"{where}: its shape {dims(tensor.shape)} is larger than {LARGEST} numbers")
        self.fixed = first.dim_value > 0
        self.batch = first.dim_value if self.fixed else batch
        self.values[source.name] = Data(Signal(ShapedLayers.input, (self.batch, *shape)))
        self.element = tensor.elem_type
        return shape, self.batch

    def _visit(self, index: int, proto: NodeProto) -> None:
        """Find out what the node's outputs hold."""
        node = node_of(index, proto)
        try:
            with self.layers.at(node):
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
            operands = [self.raw(node, at) if name else None for at, name in enumerate(node.inputs)]
            return tuple(map(Constant, self.compute(node, operands)))
        assert rule is not None
        return rule(self, node)

    def _settle(self, node: Node) -> None:
        """Make layers of what a node reads that does not read it itself, so that problems in there are found."""
        for value in map(self.values.get, node.inputs):
            if isinstance(value, Data):
                with suppress(BridgeError):
                    self.moved(value)

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
        if not isinstance(value, Data):
            raise ConversionError(f"{self.path}: output {shown(output.name)} is not the output of a layer")
        try:
            name = self.layer(self.moved(value))
        except BridgeError as error:
            self.problems[f"output {shown(output.name)}: {error}"] = len(self.model.graph.node)
            return ""
        declared = output.type.tensor_type.shape
        shape = (0, *self.layers.shapes[name])
        if output.type.tensor_type.HasField("shape") and not self.problems:
            sizes = [dim.dim_value for dim in declared.dim]
            if len(sizes) != len(shape) or any(s and t and s != t for s, t in zip(sizes, shape, strict=True)):
                raise GraphError(
                    f"{self.path}: output {shown(output.name)} is declared as {dims(declared)}, "
                    f"but is [B, {', '.join(map(str, shape[1:]))}]"
                )
        return name

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
        constant = Constant(self.tensors.read(self.initializers[name]))
        if self.readers[name] > 1:  # others are dropped after use: weights need not be kept twice
            self.values[name] = constant
        return constant

    def data(self, node: Node, index: int = 0) -> Data:
        """The data that the node's input holds. Raises `ConversionError` if it is anything else."""
        value = self.value(node, index)
        if isinstance(value, StraightThrough):
            raise ConversionError("it takes the difference of two signals, which is not supported")
        if not isinstance(value, Data):
            raise ConversionError(f"its input {shown(node.inputs[index])} is a constant, expected data")
        return value

    def signal(self, node: Node, index: int = 0) -> Signal:
        """The data that the node's input holds, after its steps."""
        return self.moved(self.data(node, index))

    def source(self, node: Node, index: int = 0) -> Source:
        """`signal`, as the rules that are shared with torch models take it."""
        signal = self.signal(node, index)
        return Source(signal, placeholder(signal.shape))

    def raw(self, node: Node, index: int) -> NDArray[Any]:
        """The constant that the node's input holds, as it is in the file."""
        value = self.value(node, index)
        name = shown(node.inputs[index])
        if not isinstance(value, Constant):
            raise ConversionError(f"its input {name} is computed from the data; only a constant is supported there")
        return value.values

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

    def term(self, node: Node, index: int, shape: Shape) -> Array | None:
        """The constant that the node's input holds, which broadcasts over tensors of `shape` ``[B, ...]``.

        None if it does not, as where it enlarges them or tells images apart.
        """
        array = self.numbers(node, index)
        full = (1,) * (len(shape) - array.ndim) + array.shape
        inside = len(full) == len(shape) and all(each in (1, size) for each, size in zip(full, shape, strict=True))
        return array if inside and full[0] == 1 else None

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

    def made_of(self, node: Node, *signals: Signal) -> tuple[Data, ...]:
        """`signals` as what the node's outputs hold. Raises `ConversionError` if one is empty or tells images apart."""
        for signal in signals:
            if not math.prod(signal.shape):
                raise ConversionError(f"it leaves nothing of its input: {list(signal.shape)}")
            self.layers.expect_alike(signal)
            self.layers.handed[signal] = node.where
        return tuple(Data(signal) for signal in signals)

    def put(self, node: Node, layer: Layer) -> Data:
        """Add `layer` to the graph, and return its output. Raises `ConversionError` if it does not fit its inputs."""
        name = self.layers.add(layer)
        return Data(Signal(name, self.layers.whole(name), title=node.title))

    def step(self, data: Data, *steps: Step) -> Data:
        """`data` after more `steps`."""
        if len(data.steps) > LONGEST:
            raise ConversionError(f"more than {LONGEST} elementwise operations in a row")
        return Data(data.signal, data.steps + steps)

    def per_channel(self, values: Array, signal: Signal) -> Array | None:
        """`values`, which broadcast over `signal`, as one for each channel of its origin; None if they are not."""
        channels, shape = self.layers.shapes[signal.origin][0], signal.shape
        self.tensors.spend(channels)
        if values.size == 1:
            return np.full(channels, values.item())
        if signal.index is None:
            full = (1,) * (len(shape) - values.ndim) + values.shape
            return values.reshape(-1) if full == (1, channels, *[1] * (len(shape) - 2)) else None
        there = np.full(math.prod(signal.whole), np.nan)
        self.tensors.spend(2 * there.size)
        known = signal.index >= 0
        there[signal.index[known]] = np.broadcast_to(values, shape)[known]
        by_channel = there.reshape(self.batch, channels, -1)
        alike = (by_channel == by_channel[:1, :, :1]).all()
        return by_channel[0, :, 0].copy() if alike else None

    # From steps to layers

    def layer(self, signal: Signal) -> str:
        """The name of the layer that gives `signal` as it stands."""
        return self.layers.settled(signal, placeholder(signal.shape))

    def moved(self, data: Data) -> Signal:
        """`data` without steps, which become layers, or gains and offsets, when this is first asked."""
        if not data.steps:
            return data.signal
        if data not in self.made:
            try:
                with self.layers.at(data.steps[-1].node):
                    self.made[data] = self._make(data)
            except ConversionError as error:
                self.refuse(error.node if isinstance(error, StepError) else data.steps[-1].node, error)
                self.made[data] = data.signal
        return self.made[data]

    def _make(self, data: Data) -> Signal:
        steps = data.steps
        floor = next((at for at, step in enumerate(steps) if isinstance(step, Floor)), None)
        if floor is None:
            return self._make_affine(data)
        found = recognise(steps, floor)
        if found.stop < len(steps):
            quantised = self.moved(Data(data.signal, steps[: found.stop]))
            return self.moved(Data(quantised, steps[found.stop :]))
        return self._make_activation(self.moved(Data(data.signal, steps[: found.start])), found, steps[-1].node)

    def _make_activation(self, signal: Signal, found: Found, node: Node) -> Signal:
        name, index = self.layers.somewhere(signal, placeholder(signal.shape))
        threshold = self.per_channel(found.threshold, Signal(name, self.layers.whole(name), index))
        if threshold is None and index is not None:  # its channels may be those of the map as it stands
            name, index = self.layer(signal), None
            threshold = self.per_channel(found.threshold, Signal(name, self.layers.whole(name)))
        if threshold is None:
            raise StepError(node, "its threshold λ differs within a channel; use one λ, or one for each channel")
        title = self.layers.name(node.title)
        self.layers.add(ClipFloorShift(name=title, inputs=(name,), levels=found.levels, threshold=threshold))
        made = Signal(title, self.layers.whole(title), index, title=signal.title)
        self.layers.handed[made] = self.layers.handed.get(signal, node.where)
        return made

    def _make_affine(self, data: Data) -> Signal:
        """Constants times and plus the signal: a `Scale`, or a `BatchNorm` if something is added."""
        scale: Array = np.ones(1)
        shift: Array = np.zeros(1)
        for step in data.steps:
            if isinstance(step, Gain):
                scale, shift = scale * step.factor, shift * step.factor
            elif isinstance(step, Shift):
                shift = shift + step.term
            else:
                raise StepError(step.node, self.rules.remedies.get(step.node.op, self.rules.remedies["Clip"]))
        node, signal = data.steps[-1].node, data.signal
        if np.all(shift == 0) and np.all(scale == 1):
            return signal
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise StepError(node, "its constants and those before it multiply to NaN or infinity")
        gains, terms = self.per_channel(scale, signal), self.per_channel(shift, signal)
        if signal.index is not None or not signal.plain or gains is None or terms is None:
            return self._woven(signal, scale, shift, node)
        name, inputs = self.layers.name(node.title), (signal.origin,)
        if np.any(shift):
            return self.put(node, BatchNorm(name=name, inputs=inputs, scale=gains, shift=terms)).signal
        return self.put(node, Scale(name=name, inputs=inputs, scale=gains)).signal

    def _woven(self, signal: Signal, scale: Array, shift: Array, node: Node) -> Signal:
        """`signal` times and plus constants for each element."""
        shape = signal.shape
        self.tensors.spend(3 * math.prod(shape))
        gain = np.broadcast_to(scale if signal.gain is None else signal.gain * scale, shape).astype(np.float64)
        offset = np.zeros(shape) if signal.offset is None else signal.offset * scale
        offset = (offset + shift).astype(np.float64)
        woven = simplified(Signal(signal.origin, signal.whole, signal.index, gain, offset, node.title))
        self.layers.expect_alike(woven)
        self.layers.handed[woven] = node.where
        return woven

    def give_bias(self, name: str, bias: Array) -> None:
        """Add to the bias of the layer `name`."""
        at = next(at for at, layer in enumerate(self.layers.layers) if layer.name == name)
        layer = self.layers.layers[at]
        assert isinstance(layer, Affine)
        self.layers.layers[at] = replace(layer, bias=layer.bias + bias)

    def size(self, node: Node, arrays: Sequence[NDArray[Any] | None]) -> int:
        """How many numbers the node makes of constants, at most."""
        try:
            return size_of_fold(node, arrays)
        except BridgeError:
            raise
        except Exception as error:
            raise GraphError(f"its operands do not fit ({error})") from error

    def compute(self, node: Node, arrays: Sequence[NDArray[Any] | None]) -> list[NDArray[Any]]:
        """What the node makes of constants, one array an output."""
        self.tensors.spend(self.size(node, arrays))
        try:
            result = FOLDS[node.op](node, *arrays)
        except BridgeError:
            raise
        except Exception as error:
            raise GraphError(f"its operands do not fit ({error})") from error
        return result if isinstance(result, list) else [np.asarray(result)]
