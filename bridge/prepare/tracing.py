"""The operations that a torch model is made of, traced by torch.fx as the model stands at inference."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.parameter import is_lazy

from bridge.errors import ConversionError
from bridge.prepare.adapters import is_activation

IN_PLACE: set[Any] = {operator.iadd, "add_", "__iadd__"}
CHANGES_INPUT: set[Any] = {torch.relu_, F.relu_, operator.setitem, *IN_PLACE}


def device_and_dtype(model: nn.Module) -> dict[str, Any]:
    """Where the parameters of `model` are, and their type: arguments for ``.to`` of what is to go with them."""
    parameter = next((p for p in model.parameters() if p.is_floating_point() and not is_lazy(p)), None)
    return {} if parameter is None else {"device": parameter.device, "dtype": parameter.dtype}


@contextmanager
def at_inference(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode, and each of its modules back in the mode it was in afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
    except NotImplementedError:  # torch.export's modules have no modes
        pass
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_activation(m) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, kinds: Container[type[nn.Module]] = ()) -> tuple[nn.Module, fx.Graph]:
    """The operations of `model` as it stands at inference, and the module in which their targets are found.

    A `model` that is itself of one of the `kinds`, or an activation, is one operation: its forward is not looked into.

    Raises `ConversionError` if they depend on the data, or change it in place without using the result.
    """
    root = nn.Sequential(model) if type(model) in kinds or is_activation(model) else model
    tracer = _Tracer()
    try:
        with at_inference(model):
            graph = tracer.trace(root)
    except Exception as error:
        raise ConversionError(
            f"{type(model).__name__}: its forward cannot be followed by torch.fx, because it depends on the data "
            f"or calls something that is not torch ({error}). Rewrite it as a fixed sequence of modules; of a "
            "compiled or DataParallel model, pass the model inside."
        ) from error
    for node in reversed(graph.nodes):
        if node.users or node.op in ("output", "placeholder"):
            continue
        module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        by_name = node.op == "call_method" and str(node.target).endswith("_")
        if by_name or node.kwargs.get("inplace") or getattr(module, "inplace", False) or node.target in CHANGES_INPUT:
            title = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
            raise ConversionError(f"{node.name} ({title}): it changes data in place; use its result: x = f(x)")
        graph.erase_node(node)
    return root, graph
