"""Capture a torch model by following its data flow with torch.fx, activations and torch's own layers as leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.parameter import is_lazy

from bridge.capture import movement, torch_rules
from bridge.capture.movement import Moved
from bridge.errors import ConversionError, InputError
from bridge.graph import Add, ClipFloorShift, Concat, Input, Layer, LayerGraph, Scale, Shape
from bridge.qcfs import QCFS

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
    traced = trace(model)
    shapes = _shapes(model, traced, example_input)
    walk = _Walk(traced, shapes)
    for node in traced.graph.nodes:
        walk.visit(node)
    if walk.problems:
        listed = "\n".join(f"  - {problem}" for problem in walk.problems)
        raise ConversionError(f"{type(model).__name__} cannot be converted:\n{listed}")
    if not any(isinstance(layer, ClipFloorShift) for layer in walk.layers):
        raise ConversionError(
            f"{type(model).__name__} has no bridge.QCFS activation, so nothing in it would spike: "
            "call bridge.replace_activations(model, levels=...) and train it"
        )
    graph = LayerGraph(tuple(walk.layers))
    for node, name in walk.names.items():
        if graph.shapes[name] != shapes[node][1:]:
            raise ConversionError(f"{name}: captured as {graph.shapes[name]}, but the model makes {shapes[node][1:]}")
    return graph


class _Walk:
    """Turns one node of the trace after another into layers.

    ``names`` tells whose output a node's value is, ``moved`` holds the values of nodes that only move data, or that
    are sizes and other plain numbers.
    """

    def __init__(self, traced: fx.GraphModule, shapes: dict[fx.Node, Shape]) -> None:
        self.traced = traced
        self.shapes = shapes
        self.layers: list[Layer] = []
        self.names: dict[fx.Node, str] = {}
        self.moved: dict[fx.Node, Any] = {}
        self.sizes: dict[str, Shape] = {}  # by layer: its output, without batch
        self.problems: list[str] = []
        self.taken = {INPUT, "output"}

    def visit(self, node: fx.Node) -> None:
        """Add what `node` does, or the reason why it cannot be done."""
        module = self.traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        title = type(module).__name__ if module is not None else str(getattr(node.target, "__name__", node.target))
        try:
            if node.op == "placeholder":
                self._input(node)
            elif node.op == "output":
                self._output(node)
            elif node.op == "get_attr":
                self.moved[node] = self._attribute(str(node.target))
            else:
                self._operation(node, module, title)
        except ConversionError as error:
            where = node.name if module is None else node.target
            self.problems.append(f"{where} ({title}): {error}")
            self.names[node] = REFUSED

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

    def _operation(self, node: fx.Node, module: nn.Module | None, title: str) -> None:
        target = node.target
        if node.op == "call_function" and all(self._is_plain(source) for source in node.all_input_nodes):
            self.moved[node] = node.target(*self._plain(node.args), **self._plain(node.kwargs))  # type: ignore[operator]
        elif module is None and target in torch_rules.ADDITIONS:
            self._add(node)
        elif module is None and target in torch_rules.CONCATENATIONS:
            self._concatenate(node)
        elif self._moves(node, module):
            self._move(node, module)
        elif module is None and target in torch_rules.FUNCTIONS:
            signature, rule = torch_rules.FUNCTIONS[target]
            args, kwargs = self._plain(node.args[1:]), self._plain(node.kwargs)
            self._apply(node, rule, torch_rules.bind(signature, (node.args[0], *args), kwargs))
        elif module is not None and (activation := _activation(module)) is not None:
            self._apply(node, torch_rules.qcfs, activation)
        elif module is not None and type(module) in torch_rules.MODULES:
            self._apply(node, torch_rules.MODULES[type(module)], module)
        else:
            unknown = f"not supported; supported are {torch_rules.SUPPORTED}"
            raise ConversionError(torch_rules.REMEDIES.get(title, unknown))

    def _apply(self, node: fx.Node, rule: torch_rules.Rule, options: Any) -> None:
        """Add the layers that `rule` makes of a module or function with one input."""
        (source_node, *_) = node.all_input_nodes
        source = self._signal(source_node)
        self._append(node, rule(self._name(node), source, options, self.shapes[source_node][1:]), source)

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
            return isinstance(module, movement.MODULES)
        return node.target in (movement.METHODS if node.op == "call_method" else movement.FUNCTIONS)

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
        self.moved[node] = movement.move(function, self._data(node.args), self._data(node.kwargs))

    def _signal(self, node: Any) -> str:
        """Name of the layer whose output `node` is, made now if the data has only been moved since the last one."""
        if not isinstance(node, fx.Node):
            raise ConversionError(f"it takes {node!r} where a signal is expected")
        if node not in self.names:
            moved = self.moved[node]
            if not isinstance(moved, Moved):
                raise ConversionError("it takes a constant where a signal is expected")
            try:
                layer = movement.arrive(moved, self._name(node), self.sizes[moved.origin])
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
            return movement.indices(self.names[node], batch, tuple(shape))

        return fx.node.map_arg(value, look_up)

    def _plain(self, value: Any) -> Any:
        """`value` with nodes replaced by the parameters and numbers that they hold."""

        def look_up(node: fx.Node) -> Any:
            if not self._is_plain(node):
                raise ConversionError("an option depends on the data")
            return self.moved[node]

        return fx.node.map_arg(value, look_up)

    def _attribute(self, path: str) -> Any:
        owner, _, name = path.rpartition(".")
        return getattr(self.traced.get_submodule(owner), name)

    def _name(self, node: fx.Node) -> str:
        """A name for the layer: the module's path with dots as underscores, unique, a Python identifier."""
        base = node.name if not node.name.startswith("_") else f"layer{node.name}"
        name, count = base, 1
        while name in self.taken:
            name, count = f"{base}_{count}", count + 1
        self.taken.add(name)
        return name


def _arguments(node: fx.Node, *names: str, default: Any) -> list[Any]:
    """The first arguments of a call, given by position or by name."""
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return [given.get(name, given.get("axis", default) if name == "dim" else default) for name in names]


def _activation(module: nn.Module) -> QCFS | None:
    """The QCFS that `module` is, ours or somebody else's."""
    return module if isinstance(module, QCFS) else None


def _shapes(model: nn.Module, traced: fx.GraphModule, example_input: Tensor) -> dict[fx.Node, Shape]:
    """The shape of every tensor in `traced`, batch included. Runs it once, as it stands at inference.

    Raises `InputError` for an `example_input` that the model does not accept.
    """
    if not isinstance(example_input, Tensor):
        raise InputError(f"example_input: expected a float tensor [B, ...], got {type(example_input).__name__}")
    came = f"{example_input.dtype} {list(example_input.shape)}"
    if not example_input.is_floating_point() or example_input.dim() < 2:
        raise InputError(f"example_input: expected a float tensor [B, ...] with a batch dimension, got {came}")
    parameters = list(model.parameters())
    if any(is_lazy(parameter) for parameter in parameters):
        raise ConversionError("the model has parameters without a shape yet: run it once on an input, and train it")
    if parameters:
        example_input = example_input.to(device=parameters[0].device, dtype=parameters[0].dtype)
    try:
        with at_inference(model), torch.no_grad():
            ShapeProp(traced).propagate(example_input)
    except Exception as error:
        raise InputError(f"example_input: the model does not accept {came}: {error}") from error
    metas = {node: node.meta.get("tensor_meta") for node in traced.graph.nodes}
    return {node: tuple(meta.shape) for node, meta in metas.items() if hasattr(meta, "shape")}


@contextmanager
def at_inference(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode, and each of its modules back in the mode it was in afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _activation(m) is not None or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """The operations of `model` as it stands at inference. Raises `ConversionError` if they depend on the data."""
    root = nn.Sequential(model) if type(model) in torch_rules.MODULES or _activation(model) else model
    tracer = _Tracer()
    try:
        with at_inference(model):
            graph = tracer.trace(root)
    except Exception as error:
        raise ConversionError(
            f"{type(model).__name__}: its forward cannot be followed by torch.fx, because it depends on the data "
            f"or calls something that is not torch ({error}). Rewrite it as a fixed sequence of modules."
        ) from error
    traced = fx.GraphModule(tracer.root, graph)
    traced.graph.eliminate_dead_code()
    return traced
