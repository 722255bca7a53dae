"""Operations that only move data: reshaping, flattening, permuting, splitting. They are followed by moving indices.

Instead of one rule for each way to write a flattening or a channel shuffle, the operations themselves are applied to
a tensor of indices; where a layer reads the result, the indices tell what has happened to the data.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bridge.errors import ConversionError
from bridge.graph import Flatten, Layer, Shape, pointwise

FUNCTIONS: set[Any] = {
    getattr,
    operator.getitem,
    torch.chunk,
    torch.flatten,
    torch.permute,
    torch.reshape,
    torch.split,
    torch.squeeze,
    torch.swapaxes,
    torch.transpose,
    torch.unflatten,
    torch.unsqueeze,
}
METHODS = {
    *("chunk", "contiguous", "dim", "flatten", "narrow", "permute", "reshape", "size", "split", "squeeze"),
    *("swapaxes", "transpose", "unflatten", "unsqueeze", "view"),
}
MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle)


@dataclass(frozen=True)
class Moved:
    """A value that is a layer's output with its elements moved, or a part of it.

    ``value`` holds indices into that layer's output ``[B, *shape]``, in C order: a tensor, or several.
    """

    origin: str
    value: Any


def indices(origin: str, batch: int, shape: Shape) -> Moved:
    """The output of the layer `origin`, nothing moved yet."""
    return Moved(origin, torch.arange(batch * math.prod(shape)).reshape(batch, *shape))


def move(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply `function` to arguments in which data is given as `Moved`; the result is `Moved` if any of it was data.

    Raises `ConversionError` if it would mix the outputs of two layers.
    """
    origins: set[str] = set()

    def strip(value: Any) -> Any:
        if isinstance(value, Moved):
            origins.add(value.origin)
            return value.value
        if isinstance(value, tuple | list):
            return type(value)(strip(each) for each in value)
        return value

    plain_args, plain_kwargs = strip(args), {key: strip(value) for key, value in kwargs.items()}
    if len(origins) > 1:
        raise ConversionError(f"it rearranges {sorted(origins)} together; concatenate along the channels instead")
    result = function(*plain_args, **plain_kwargs)
    return Moved(origins.pop(), result) if origins and _holds_data(result) else result


def arrive(moved: Moved, name: str, shape: Shape) -> Layer | None:
    """The layer `name` that does what `moved` says with its origin's output, of `shape`; None if that is nothing.

    Raises `ConversionError` for a rearrangement that is neither a flattening nor a choice of channels.
    """
    if not isinstance(moved.value, Tensor):
        raise ConversionError("several tensors are used as one; pick one of them first")
    found = moved.value.numpy()
    size = math.prod(shape)
    first = found[0] if found.ndim > 1 else np.zeros(0, np.int64)
    together = found.ndim > 1 and (found == first + size * np.arange(len(found)).reshape(-1, *[1] * first.ndim)).all()
    if together and first.shape == shape and (first.reshape(-1) == np.arange(size)).all():
        return None
    if together and first.ndim == 1 and first.size == size and (first == np.arange(size)).all():
        return Flatten(name=name, inputs=(moved.origin,))
    if together and first.shape[1:] == shape[1:]:
        positions = math.prod(shape[1:])
        channels = first.reshape(len(first), positions) // positions
        here = first.reshape(len(first), positions) % positions == np.arange(positions)
        if here.all() and (channels == channels[:, :1]).all():
            return pointwise(name, moved.origin, np.eye(shape[0])[channels[:, 0]], len(shape))
    raise ConversionError(
        f"[B, {', '.join(map(str, shape))}] became {list(found.shape)} by more than flattening or choosing "
        "channels, which no spiking layer does; keep the batch first and the channels second"
    )


def _holds_data(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple | list) and any(isinstance(each, Tensor) for each in value)
    )
