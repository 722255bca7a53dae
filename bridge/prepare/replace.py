"""Putting QCFS where a model has ReLU, and average pooling where it has maximum pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

from bridge.errors import ConversionError
from bridge.prepare.qcfs import QCFS
from bridge.prepare.tracing import device_and_dtype, trace

RELU_MODULES = (nn.ReLU, nn.ReLU6)
RELU_CALLS: set[Any] = {F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, "relu", "relu_"}
MAX_POOL_CALLS: set[Any] = {F.max_pool2d, torch.max_pool2d}

Maker = Callable[[Any], nn.Module]
"""Makes the module that takes the place of another, or of a call with these arguments."""


def replace_activations(
    model: nn.Module,
    levels: int,
    threshold: float = 2.0,
    per_channel: bool = False,
    max_pool: Literal["avg"] | None = None,
) -> nn.Module:
    """Put a `QCFS` of its own where each ``ReLU`` or ``ReLU6`` was. Changes `model` in place; returns the model to use.

    That is `model` itself, unless its forward *calls* a ReLU (or a pooling that is to be replaced) as a function: then
    it is a `torch.fx.GraphModule` that shares the model's modules and has modules in place of these calls, traced as
    the model stands at inference. Rebuild the optimiser: λ are new parameters. A ReLU module that the model calls in
    several places stays one shared module, so these places share one λ. Example: docs/thresholds.md.

    Args:
        model: any module; a bare ``nn.ReLU`` comes back as a `QCFS`.
        levels: L of every activation.
        threshold: λ at the start. Small ones (2) train better at low latency than the 8 of the authors' code.
        per_channel: one λ per channel.
        max_pool: "avg" also replaces maximum by average pooling with the same kernel, stride and padding, as QCFS's
            authors do, since a maximum has no exact spiking form. ``ceil_mode`` is dropped: NIR has none.

    Raises:
        ConversionError: there is no ReLU to replace, or a pooling to be replaced is dilated.
    """

    def activation(_: Any) -> nn.Module:
        return QCFS(levels, threshold, per_channel)

    makers: list[tuple[tuple[type[nn.Module], ...], set[Any], Maker]] = [(RELU_MODULES, RELU_CALLS, activation)]
    if max_pool is not None:
        if max_pool != "avg":
            raise ConversionError(f'max_pool: expected "avg" or None, got {max_pool!r}')
        makers.append(((nn.MaxPool2d,), MAX_POOL_CALLS, _average))
    if not isinstance(model, nn.Module):
        raise ConversionError(f"replace_activations: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, RELU_MODULES):
        return activation(model).train(model.training)
    made = 0
    for kinds, calls, make in makers:
        replaced = _replace_modules(model, kinds, make)
        model, rewritten = _replace_calls(model, calls, make)
        made += replaced + rewritten if make is activation else 0
    if not made:
        has = "has QCFS already" if any(isinstance(m, QCFS) for m in model.modules()) else "has no ReLU or ReLU6"
        raise ConversionError(f"replace_activations: {type(model).__name__} {has}, so there is nothing to replace")
    return model


def _average(pool: Any) -> nn.Module:
    """Average pooling in the place of `pool`, a MaxPool2d or the arguments of F.max_pool2d."""
    if pool.dilation not in (1, (1, 1), [1, 1]):
        raise ConversionError(f"replace_activations: {pool} is dilated, which average pooling cannot be")
    return nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding)


def _replace_modules(model: nn.Module, kinds: tuple[type[nn.Module], ...], make: Maker) -> int:
    """Replace every module of these `kinds` inside `model`, in place; one used under several names stays one."""
    everywhere = list(model.named_modules(remove_duplicate=False))
    like = device_and_dtype(model)
    made: dict[nn.Module, nn.Module] = {}
    for path, module in everywhere:
        if isinstance(module, kinds):
            new = made.setdefault(module, make(module).to(**like).train(module.training))
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new)
    return len(made)


def _replace_calls(model: nn.Module, calls: set[Any], make: Maker) -> tuple[nn.Module, int]:
    """The model with a module in the place of every call of these functions, and how many there were."""
    try:
        root, graph = trace(model)
    except ConversionError:
        return model, 0  # it cannot be converted either; that will be said in its own time
    found = [node for node in graph.nodes if node.op != "call_module" and node.target in calls]
    if not found:
        return model, 0
    traced = fx.GraphModule(root, graph)
    like = device_and_dtype(model)
    for node in found:
        options = _of_max_pool(*node.args[1:], **node.kwargs) if node.target in MAX_POOL_CALLS else None
        name = f"{node.name}_replaced"
        traced.add_submodule(name, make(options).to(**like))
        with traced.graph.inserting_before(node):
            new = traced.graph.call_module(name, (node.all_input_nodes[0],))
        node.replace_all_uses_with(new)
        traced.graph.erase_node(node)
    traced.recompile()
    return traced.train(model.training), len(found)


def _of_max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.MaxPool2d:
    """The module that does what F.max_pool2d does with these arguments."""
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
