"""Capture a torch model by following its data flow with torch.fx, activations and torch's own layers as leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from bridge.converters import index_tracing
from bridge.converters.index_tracing import Moved
from bridge.converters.torch_models import rules
from bridge.errors import ConversionError, GraphError, InputError
from bridge.graph import Add, ClipFloorShift, Concat, Input, Layer, LayerGraph, Scale, Shape
from bridge.prepare.adapters import as_qcfs
from bridge.prepare.qcfs import QCFS
from bridge.prepare.tracing import IN_PLACE, at_inference, device_and_dtype, trace
from bridge.simulate.ops import evaluate

INPUT = "input"
REFUSED = "?"
"""Stands for the output of a layer that cannot be converted, so that what follows can still be looked at."""


def capture(model: nn.Module, example_input: Tensor) -> LayerGraph:
    """The layers of `model` as it runs at inference, with shapes for `example_input` ``[B, ...]``.

    The model is read, not changed; the graph owns copies of its parameters. A module that is called in several places
    becomes a layer for each of them.

    Raises:
        ConversionError: an operation has no exact spiking form, a parameter is not finite, or a λ is not positive.
            The message lists every such layer by name, with what to use instead.
        InputError: `example_input` is not a float tensor that the model accepts.
    """
    check_example(model, example_input)
    walk = _Walk(type(model).__name__, *trace(model, rules.MODULES))
    with at_inference(model), torch.no_grad():
        # Two images show whether images are mixed; more would show no more.
        example = example_input[:2].to(**device_and_dtype(model))
        traced = walk.run(example.clone())
    if walk.problems:
        walk.give_up()
    if not any(isinstance(layer, ClipFloorShift) for layer in walk.layers):
        raise ConversionError(
            f"{type(model).__name__} has no bridge.QCFS activation, so nothing in it would spike: "
            "call bridge.replace_activations(model, levels=...) and train it"
        )
    with at_inference(model), torch.no_grad():
        if not torch.allclose(model(example), traced, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ConversionError(
                f"{type(model).__name__}: its forward computes something else than the operations it is made of, as "
                "when a tensor is changed in place (a += b) and read again; write a = a + b"
            )
    try:
        return LayerGraph(tuple(walk.layers))
    except GraphError as error:
        raise ConversionError(f"{type(model).__name__} cannot be converted: {error}") from error


class _Walk(fx.Interpreter):
    """Runs the trace on the example and turns one node after another into layers.

    Every layer made is held against what its module did with the same input, so a hook or an override that changes
    the result does not go unnoticed. ``names`` tells whose output a node's value is, ``moved`` holds the values of
    nodes that only move data, or that are sizes and other plain numbers.
    """

    def __init__(self, title: str, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.title = title
        self.extra_traceback = False  # errors are told in this package's own words
        self.layers: list[Layer] = []
        self.names: dict[fx.Node, str] = {}
        self.moved: dict[fx.Node, Any] = {}
        self.shapes: dict[fx.Node, Shape] = {}  # batch included
        self.sizes: dict[str, Shape] = {}  # by layer: its output, without batch
        self.problems: list[str] = []
        self.taken = {INPUT, "output"}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, then add what it does, or the reason why it cannot be done."""
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        title = type(module).__name__ if module is not None else str(getattr(n.target, "__name__", n.target))
        where = f"{n.name if module is None else n.target} ({title})"
        try:
            activation = as_qcfs(module) if module is not None else None
        except ConversionError as error:  # it cannot be run either: say this and stop
            self.problems.append(f"{where}: {error}")
            self.give_up()
        try:
            value = super().run_node(n)
        except Exception as error:
            if self.problems:  # the model is of no use anyway, and this may be why
                self.give_up()
            raise InputError(f"example_input: the model does not accept it, at {where}: {error}") from error
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        try:
            self._visit(n, module, activation, title, value)
        except ConversionError as error:
            self.problems.append(f"{where}: {error}")
            self.names[n] = REFUSED
        return value

    def give_up(self) -> NoReturn:
        """Raise the `ConversionError` that lists every problem found so far."""
        listed = "\n".join(f"  - {problem}" for problem in self.problems)
        raise ConversionError(f"{self.title} cannot be converted:\n{listed}")

    def _visit(self, node: fx.Node, module: nn.Module | None, activation: QCFS | None, title: str, value: Any) -> None:
        if node.op == "placeholder":
            self._input(node)
        elif node.op == "output":
            self._output(node)
        elif node.op == "get_attr":
            self.moved[node] = value
        else:
            self._operation(node, module, activation, title, value)

    def _input(self, node: fx.Node) -> None:
        if self.layers:
            raise ConversionError("a second input; a network takes exactly one")
        self._append(node, [Input(name=INPUT, shape=self.shapes[node][1:])], INPUT)

    def _output(self, node: fx.Node) -> None:
        if not isinstance(node.args[0], fx.Node):
            raise ConversionError("forward returns several values; return the one output tensor")
        last = self._signal(node.args[0])
        if last not in (REFUSED, self.layers[-1].name):
            raise ConversionError(f"{last!r} is returned, but {self.layers[-1].name!r} comes after it")

    def _operation(
        self, node: fx.Node, module: nn.Module | None, activation: QCFS | None, title: str, value: Any
    ) -> None:
        target = node.target
        if target in IN_PLACE and isinstance(node.args[0], fx.Node) and len(node.args[0].users) > 1:
            raise ConversionError("it changes in place what is read elsewhere too; write a + b")
        if node.op == "call_function" and all(self._is_plain(source) for source in node.all_input_nodes):
            self.moved[node] = value
        elif module is None and target in rules.ADDITIONS:
            self._add(node)
        elif module is None and target in rules.CONCATENATIONS:
            self._concatenate(node)
        elif self._moves(node, module):
            self._move(node, module)
        elif module is None and target in rules.FUNCTIONS:
            signature, rule = rules.FUNCTIONS[target]
            args, kwargs = self._plain(node.args[1:]), self._plain(node.kwargs)
            self._apply(node, rule, rules.bind(signature, (node.args[0], *args), kwargs), value)
        elif activation is not None:
            self._apply(node, rules.qcfs, activation, value)
        elif module is not None and type(module) in rules.MODULES:
            self._apply(node, rules.MODULES[type(module)], module, value)
        else:
            unknown = f"not supported; supported are {rules.SUPPORTED}"
            raise ConversionError(rules.REMEDIES.get(title, unknown))

    def _apply(self, node: fx.Node, rule: rules.Rule, options: Any, value: Tensor) -> None:
        """Add the layers that `rule` makes of a module or function with one input and the output `value`."""
        (source_node, *_) = node.all_input_nodes
        source = self._signal(source_node)
        new = rule(self._name(node), source, options, self.shapes[source_node][1:])
        try:
            size = self.shapes[source_node][1:]
            for layer in new:
                size = layer.output_shape(size)
        except GraphError as error:
            raise ConversionError(str(error)) from error
        if not _computes(new, self.env[source_node], value):
            raise ConversionError("it does not compute what a module of its kind does; remove its hooks and overrides")
        self._append(node, new, source)

    def _add(self, node: fx.Node) -> None:
        terms = [term for term in (*node.args, *node.kwargs.values()) if isinstance(term, fx.Node)]
        if len(node.args) != 2 or len(terms) != 2 or len(node.kwargs) > 0:
            raise ConversionError("only the sum of two signals is supported; put constants into a bias")
        one, other = (self._signal(term) for term in terms)
        if self.shapes[terms[0]] != self.shapes[terms[1]]:
            raise ConversionError(f"it adds shapes {self.shapes[terms[0]]} and {self.shapes[terms[1]]}")
        name = self._name(node)
        if one == other:  # NIR has no double edges
            doubled = Scale(name=name, inputs=(one,), scale=np.full(self.shapes[node][1], 2.0))
            self._append(node, [doubled], one)
        else:
            self._append(node, [Add(name=name, inputs=(one, other))], one)

    def _concatenate(self, node: fx.Node) -> None:
        tensors, dim = _arguments(node, "tensors", "dim", default=0)
        rank = len(self.shapes[node])
        if not isinstance(tensors, tuple | list) or dim % rank != 1:
            raise ConversionError("only a concatenation along the channels, dim=1, is supported")
        sources = tuple(self._signal(each) for each in tensors)
        joined = [Concat(name=self._name(node), inputs=sources)] if len(sources) > 1 else []
        self._append(node, joined, sources[0])

    def _moves(self, node: fx.Node, module: nn.Module | None) -> bool:
        if module is not None:
            return isinstance(module, index_tracing.MODULES)
        return node.target in (index_tracing.METHODS if node.op == "call_method" else index_tracing.FUNCTIONS)

    def _move(self, node: fx.Node, module: nn.Module | None) -> None:
        if any(self.names.get(source) == REFUSED for source in node.all_input_nodes):
            self.names[node] = REFUSED
            return
        if node.op == "call_method":
            method = str(node.target)

            def function(data: Any, *args: Any, **kwargs: Any) -> Any:
                return getattr(data, method)(*args, **kwargs)
        else:
            function = module if module is not None else node.target  # type: ignore[assignment]
        self.moved[node] = index_tracing.move(function, self._data(node.args), self._data(node.kwargs))

    def _signal(self, node: Any) -> str:
        """Name of the layer whose output `node` is, made now if the data has only been moved since the last one."""
        if not isinstance(node, fx.Node):
            raise ConversionError(f"it takes {node!r} where a signal is expected")
        if node not in self.names:
            moved = self.moved[node]
            if not isinstance(moved, Moved):
                raise ConversionError("it takes a constant where a signal is expected")
            try:
                layer = index_tracing.arrive(moved, self._name(node), self.sizes[moved.origin])
            except ConversionError as error:
                raise ConversionError(f"what {node.name} hands it: {error}") from error
            self._append(node, [layer] if layer is not None else [], moved.origin)
        return self.names[node]

    def _append(self, node: fx.Node, new: Sequence[Layer], source: str) -> None:
        """Note that the value of `node` is what the layers `new` make of that of `source`."""
        self.layers += new
        self.names[node] = new[-1].name if new else source
        self.sizes.setdefault(self.names[node], self.shapes[node][1:])

    def _is_plain(self, node: fx.Node) -> bool:
        """Whether `node` is a size, a parameter or another value that does not depend on the data."""
        return node in self.moved and not isinstance(self.moved[node], Moved)

    def _data(self, value: Any) -> Any:
        """`value` with nodes replaced by what they hold: moved data, numbers, or a layer's output not moved yet."""

        def look_up(node: fx.Node) -> Any:
            if node in self.moved:
                return self.moved[node]
            batch, *shape = self.shapes[node]
            return index_tracing.indices(self.names[node], batch, tuple(shape))

        return fx.node.map_arg(value, look_up)

    def _plain(self, value: Any) -> Any:
        """`value` with nodes replaced by the parameters and numbers that they hold."""

        def look_up(node: fx.Node) -> Any:
            if not self._is_plain(node):
                raise ConversionError("an option depends on the data")
            return self.moved[node]

        return fx.node.map_arg(value, look_up)

    def _name(self, node: fx.Node) -> str:
        """A name for the layer: the module's path with dots as underscores, unique, a Python identifier."""
        base = node.name if not node.name.startswith("_") else f"layer{node.name}"
        name, count = base, 1
        while name in self.taken or hasattr(fx.GraphModule, name):  # exporters make attributes of these names
            name, count = f"{base}_{count}", count + 1
        self.taken.add(name)
        return name


def _computes(layers: Sequence[Layer], x: Tensor, expected: Tensor) -> bool:
    """Whether `layers` make of `x` what the model made of it, `expected`, but for float32 rounding."""
    if expected.dtype not in (torch.float32, torch.float64):
        return True  # the model itself rounds more than any tolerance would tell
    value = x.detach().cpu().float()
    for layer in layers:
        value = evaluate(layer, value)
    expected = expected.detach().cpu().float()
    tolerance = 1e-3 * float(expected.abs().max().nan_to_num(0.0)) if expected.numel() else 0.0
    wrong = (value - expected).abs() > tolerance + 1e-6
    if any(isinstance(layer, ClipFloorShift) for layer in layers):
        # A value on the edge between two levels may fall either way.
        return int(wrong.sum()) <= 0.01 * wrong.numel() + 1
    return not bool(wrong.any())


def _arguments(node: fx.Node, *names: str, default: Any) -> list[Any]:
    """The first arguments of a call, given by position or by name."""
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return [given.get(name, given.get("axis", default) if name == "dim" else default) for name in names]


def check_example(model: nn.Module, example_input: Tensor) -> None:
    """Refuse what cannot be an example, before anything is run. Raises `InputError` or `ConversionError`."""
    if not isinstance(example_input, Tensor):
        raise InputError(f"example_input: expected a float tensor [B, ...], got {type(example_input).__name__}")
    if not example_input.is_floating_point() or example_input.dim() < 2 or example_input.numel() == 0:
        came = f"{example_input.dtype} {list(example_input.shape)}"
        raise InputError(f"example_input: expected a float tensor [B, ...] with a batch dimension, got {came}")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ConversionError("the model has parameters without a shape yet: run it once on an input, and train it")
