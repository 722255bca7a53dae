"""A torch model as it runs at inference: its mode, its device and type, and the shape of its input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def device_and_dtype(model: nn.Module) -> dict[str, Any]:
    """Where the parameters of `model` are, and their type: arguments for ``.to`` of what is to go with them."""
    parameter = next((p for p in model.parameters() if p.is_floating_point() and not is_lazy(p)), None)
    return {} if parameter is None else {"device": parameter.device, "dtype": parameter.dtype}


@contextmanager
def at_inference(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode, and each of its modules back in the mode it was in afterwards."""
    modes = {module: module.training for module in model.modules()}
    with suppress(NotImplementedError):  # torch.export's modules have no modes
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def note_shape(module: nn.Module, inputs: tuple[Tensor]) -> None:
    """A hook before forward that keeps the shape of one image as ``module.input_shape``.

    `bridge.convert` takes it where it is given no example. TorchScript compiles hooks, so this one does no more.
    """
    if not torch.jit.is_scripting():
        _note(module, inputs)


def _note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    if inputs and isinstance(inputs[0], Tensor):
        module.__dict__["input_shape"] = tuple(inputs[0].shape[1:])
