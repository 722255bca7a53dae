"""Capture a torch model by following its data flow with torch.fx, QCFS and torch's own layers as leaves."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.parameter import is_lazy

from bridge.errors import BridgeError, ConversionError, InputError
from bridge.graph import AvgPool2d, BatchNorm, ClipFloorShift, Conv2d, Flatten, Input, Layer, LayerGraph, Linear, Shape
from bridge.qcfs import QCFS

INPUT = "input"

REMEDIES: dict[str, str] = {
    "MaxPool1d": "use AvgPool2d: the maximum of spike trains is not the spike train of the maximum",
    "MaxPool2d": "use AvgPool2d (and fine-tune): the maximum of spike trains is not the spike train of the maximum",
    "max_pool2d": "use an AvgPool2d module (and fine-tune)",
    "ReLU": "put a bridge.QCFS there with bridge.replace_activations(model, levels=...), then fine-tune",
    "ReLU6": "put a bridge.QCFS there with bridge.replace_activations(model, levels=...), then fine-tune",
    "relu": "use an nn.ReLU module, then bridge.replace_activations(model, levels=...), then fine-tune",
    "GELU": "train with bridge.QCFS instead; only QCFS has an exact spiking twin",
    "SiLU": "train with bridge.QCFS instead; only QCFS has an exact spiking twin",
    "Sigmoid": "train with bridge.QCFS instead; only QCFS has an exact spiking twin",
    "Tanh": "train with bridge.QCFS instead; only QCFS has an exact spiking twin",
    "LeakyReLU": "train with bridge.QCFS instead; only QCFS has an exact spiking twin",
    "LayerNorm": "use BatchNorm1d/2d: its statistics are constants at inference and fold into the weights",
    "GroupNorm": "use BatchNorm2d: its statistics are constants at inference and fold into the weights",
    "InstanceNorm2d": "use BatchNorm2d: its statistics are constants at inference and fold into the weights",
    "Softmax": "leave it out: the largest output is the same without it",
    "LogSoftmax": "leave it out: the largest output is the same without it",
    "AdaptiveAvgPool2d": "use AvgPool2d with the kernel size that gives the same output",
}
SUPPORTED = "Conv2d, Linear, BatchNorm1d/2d, AvgPool2d, Flatten, Dropout, Identity and bridge.QCFS"


def capture(model: nn.Module, example_input: Tensor) -> LayerGraph:
    """The layers of `model` as it runs at inference, with shapes for `example_input` ``[B, ...]``.

    The model is read, not changed; the graph owns copies of its parameters.

    Raises:
        ConversionError: an operation has no exact spiking form, a parameter is not finite, or a λ is not positive.
            The message lists every such layer by name, with what to use instead.
        InputError: `example_input` is not a float tensor that the model accepts.
    """
    traced = _trace(model)
    shapes = _shapes(model, traced, example_input)
    layers: list[Layer] = [Input(name=INPUT, shape=tuple(example_input.shape[1:]))]
    current: dict[fx.Node, str] = {}
    problems: list[str] = []
    taken = {INPUT, "output"}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            if current:
                problems.append(f"{node.name}: a second input; a network takes exactly one")
            current[node] = INPUT
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                problems.append("forward returns several values; return the one output tensor")
        elif not _is_size(node):
            source = _source(node)
            current[node] = current[source] if source else INPUT
            try:
                layer = _layer(node, traced, current[node] if source else None, taken)
            except ConversionError as error:
                problems.append(str(error))
                continue
            if isinstance(layer, ClipFloorShift) and len(layer.threshold) == 1:
                layer = replace(layer, threshold=np.repeat(layer.threshold, shapes[node][0]))
            if layer is not None:
                layers.append(layer)
                current[node] = layer.name
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ConversionError(f"{type(model).__name__} cannot be converted:\n{listed}")
    if not any(isinstance(layer, ClipFloorShift) for layer in layers):
        raise ConversionError(
            f"{type(model).__name__} has no bridge.QCFS activation, so nothing in it would spike: "
            "call bridge.replace_activations(model, levels=...) and train it"
        )
    return LayerGraph(tuple(layers))


def _layer(node: fx.Node, traced: fx.GraphModule, source: str | None, taken: set[str]) -> Layer | None:
    """The layer that `node` is, or None if it does nothing at inference. Raises `ConversionError` naming it."""
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    title = type(module).__name__ if module is not None else str(getattr(node.target, "__name__", node.target))
    where = f"{node.name if module is None else node.target} ({title})"
    if isinstance(module, QCFS):
        rule: Rule | None = _qcfs
    else:
        rule = FUNCTIONS.get(node.target) if module is None else MODULES.get(type(module))
    if rule is None and (source is not None or title in REMEDIES):
        raise ConversionError(f"{where}: {REMEDIES.get(title, f'not supported; supported are {SUPPORTED}')}")
    if rule is None or source is None:
        raise ConversionError(f"{where}: it joins or makes tensors; only sequences of layers are supported")
    try:
        return rule(_name(node, taken), (source,), node if module is None else module)
    except BridgeError as error:
        raise ConversionError(f"{where}: {error}") from error


def _shapes(model: nn.Module, traced: fx.GraphModule, example_input: Tensor) -> dict[fx.Node, Shape]:
    """The shape of every tensor in `traced`, without batch. Runs it once, as it stands at inference.

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
    return {node: tuple(meta.shape[1:]) for node, meta in metas.items() if hasattr(meta, "shape")}


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
        return isinstance(m, QCFS) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.GraphModule:
    root = nn.Sequential(model) if type(model) in MODULES or isinstance(model, QCFS) else model
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


def _source(node: fx.Node) -> fx.Node | None:
    """The one node that `node` reads its tensor from; batch sizes taken from it with ``x.size(0)`` do not count."""
    sources = [source for source in node.all_input_nodes if not _is_size(source)]
    return sources[0] if len(sources) == 1 else None


def _is_size(node: fx.Node) -> bool:
    if node.op == "call_method" and node.target == "size":
        return True
    if node.op == "call_function" and node.target is getattr:
        return node.args[1:] == ("shape",)
    return node.op == "call_function" and node.target is operator.getitem and _is_size(node.all_input_nodes[0])


def _name(node: fx.Node, taken: set[str]) -> str:
    """A name for the layer: the module's path with dots as underscores, unique, a Python identifier."""
    base = node.name if not node.name.startswith("_") else f"layer{node.name}"
    name, count = base, 1
    while name in taken:
        name, count = f"{base}_{count}", count + 1
    taken.add(name)
    return name


def _array(value: Tensor | None, path: str, size: int = 0) -> np.ndarray:
    """A float64 copy of a parameter; zeros of `size` for one that is absent."""
    if value is None:
        return np.zeros(size)
    array = np.array(value.detach().to(device="cpu", dtype=torch.float64).numpy())
    if not np.isfinite(array).all():
        raise ConversionError(f"its {path} holds {int((~np.isfinite(array)).sum())} values that are NaN or infinite")
    return array


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


Inputs = tuple[str, ...]
Rule = Callable[[str, Inputs, Any], Layer | None]


def _conv(name: str, inputs: Inputs, module: nn.Conv2d) -> Layer:
    if module.padding_mode != "zeros" and module.padding not in (0, (0, 0), "valid"):
        raise ConversionError(f"padding_mode {module.padding_mode!r} is not supported; use 'zeros'")
    kernel, dilation = _pair(module.kernel_size), _pair(module.dilation)
    if module.padding == "same":
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(r % 2 for r in reach):
            raise ConversionError(
                f"padding='same' with kernel {kernel} is lopsided; use an odd kernel or explicit padding"
            )
        padding = (reach[0] // 2, reach[1] // 2)
    else:
        padding = (0, 0) if isinstance(module.padding, str) else _pair(module.padding)
    return Conv2d(
        name=name,
        inputs=inputs,
        weight=_array(module.weight, "weight"),
        bias=_array(module.bias, "bias", module.out_channels),
        stride=_pair(module.stride),
        padding=padding,
        dilation=dilation,
        groups=module.groups,
    )


def _linear(name: str, inputs: Inputs, module: nn.Linear) -> Layer:
    weight = _array(module.weight, "weight")
    return Linear(name=name, inputs=inputs, weight=weight, bias=_array(module.bias, "bias", module.out_features))


def _batch_norm(name: str, inputs: Inputs, module: nn.BatchNorm1d | nn.BatchNorm2d) -> Layer:
    if module.running_mean is None or module.running_var is None:
        raise ConversionError("it keeps no running statistics; train with track_running_stats=True")
    mean, variance = _array(module.running_mean, "running_mean"), _array(module.running_var, "running_var")
    gain = np.ones(module.num_features) if module.weight is None else _array(module.weight, "weight")
    shift = _array(module.bias, "bias", module.num_features)
    scale = gain / np.sqrt(variance + module.eps)
    return BatchNorm(name=name, inputs=inputs, scale=scale, shift=shift - scale * mean)


def _avg_pool(name: str, inputs: Inputs, module: nn.AvgPool2d) -> Layer:
    padding = _pair(module.padding)
    if module.ceil_mode or module.divisor_override is not None or (any(padding) and not module.count_include_pad):
        raise ConversionError(
            "NIR's AvgPool2d has no ceil_mode, divisor_override or count_include_pad=False; use their defaults"
        )
    return AvgPool2d(
        name=name, inputs=inputs, kernel=_pair(module.kernel_size), stride=_pair(module.stride), padding=padding
    )


def _flatten(name: str, inputs: Inputs, module: nn.Flatten) -> Layer:
    if module.start_dim != 1 or module.end_dim != -1:
        raise ConversionError(
            f"flatten from dimension {module.start_dim} to {module.end_dim}; only 1 to -1 is supported"
        )
    return Flatten(name=name, inputs=inputs)


def _flatten_call(name: str, inputs: Inputs, node: fx.Node) -> Layer:
    bounds = {"start_dim": 0, "end_dim": -1, **dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False))}
    bounds |= node.kwargs
    if bounds["start_dim"] != 1 or bounds["end_dim"] != -1:
        raise ConversionError("only flatten(x, 1), which keeps the batch, is supported")
    return Flatten(name=name, inputs=inputs)


def _reshape_call(name: str, inputs: Inputs, node: fx.Node) -> Layer:
    sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
    if len(sizes) != 2 or sizes[1] != -1 or not isinstance(sizes[0], fx.Node):
        raise ConversionError(
            "only a reshape that flattens, x.view(x.size(0), -1), is supported; use torch.flatten(x, 1)"
        )
    return Flatten(name=name, inputs=inputs)


def _qcfs(name: str, inputs: Inputs, module: QCFS) -> Layer:
    if is_lazy(module.threshold):
        raise ConversionError("λ per channel has no channels yet; run the model once on an input")
    values = _array(module.threshold, "threshold").reshape(-1)
    if not (values > 0).all():
        raise ConversionError(f"every threshold λ must be positive, got {values.min():g}; retrain or set it")
    return ClipFloorShift(name=name, inputs=inputs, levels=module.levels, threshold=values)


def _dropout_call(name: str, inputs: Inputs, node: fx.Node) -> None:
    training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
    if training:
        raise ConversionError("it drops at inference too; pass training=self.training")


def _nothing(name: str, inputs: Inputs, module: Any) -> None:
    """Layers that do nothing at inference."""


MODULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.AvgPool2d: _avg_pool,
    nn.Flatten: _flatten,
    nn.Dropout: _nothing,
    nn.Dropout1d: _nothing,
    nn.Dropout2d: _nothing,
    nn.Identity: _nothing,
}
FUNCTIONS: dict[Any, Rule] = {
    torch.flatten: _flatten_call,
    "flatten": _flatten_call,
    "view": _reshape_call,
    "reshape": _reshape_call,
    "contiguous": _nothing,
    F.dropout: _dropout_call,
}
