"""The arguments of torch functions, by name, and as arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.converters.remedies import NO_BATCH, PRODUCT
from bridge.errors import ConversionError, InputError


def is_traced(value: Any) -> bool:
    """Whether `value` depends on the model's input."""
    return hasattr(value, "signal")


def array(value: Tensor | None, what: str, size: int = 0, dtype: torch.dtype = torch.float64) -> NDArray[Any]:
    """A copy of a parameter, zeros of `size` for one that is absent. Weights, the bulk, are float32 all the way."""
    if value is None:
        return np.zeros(size)
    if is_traced(value):
        raise ConversionError(f"its {what} depends on the input: {PRODUCT}")
    result: NDArray[Any] = value.detach().to(device="cpu", dtype=dtype, copy=True).contiguous().numpy()
    if not np.isfinite(result).all():
        raise ConversionError(f"its {what} holds {int((~np.isfinite(result)).sum())} values that are NaN or infinite")
    return result


def numbers(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """One number for each of `count` dimensions."""
    return tuple(int(each) for each in np.broadcast_to(value, (count,)))


def expect_batch(source: Any, dimensions: int) -> None:
    """Raise `InputError` if torch took `source` for one image without a batch."""
    if not is_traced(source):
        raise ConversionError("its weight depends on the input: " + PRODUCT)
    if source.plain.dim() != dimensions:
        raise InputError(f"example_input: it reaches a layer as {list(source.plain.shape)}, {NO_BATCH}")


def bound(signature: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> SimpleNamespace:
    """A function call's arguments by name, with their defaults."""
    other = {"self": "input", "axis": "dim", "keepdims": "keepdim", "train": "training"}
    renamed = {other.get(key, key): value for key, value in kwargs.items()}
    bound = inspect.signature(signature).bind(*args, **renamed)
    bound.apply_defaults()
    return SimpleNamespace(**bound.arguments)


def of_conv(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # type: ignore[no-untyped-def]
    """Signature of F.conv1d and F.conv2d."""


def of_linear(input, weight, bias=None):  # type: ignore[no-untyped-def]
    """Signature of F.linear."""


def of_batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):  # type: ignore[no-untyped-def]
    """Signature of F.batch_norm."""


def of_torch_batch_norm(  # type: ignore[no-untyped-def]
    input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=False
):
    """Signature of torch.batch_norm."""


def of_pool(  # type: ignore[no-untyped-def]
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """Signature of F.avg_pool1d and F.avg_pool2d."""


def of_max_pool(  # type: ignore[no-untyped-def]
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    """Signature of F.max_pool1d and F.max_pool2d."""


def of_adaptive(input, output_size):  # type: ignore[no-untyped-def]
    """Signature of F.adaptive_avg_pool1d and F.adaptive_avg_pool2d."""


def of_mean(input, dim=None, keepdim=False):  # type: ignore[no-untyped-def]
    """Signature of torch.mean and torch.sum."""


def of_cat(tensors, dim=0):  # type: ignore[no-untyped-def]
    """Signature of torch.cat."""


def of_dropout(input, p=0.5, training=True, inplace=False):  # type: ignore[no-untyped-def]
    """Signature of F.dropout and its relatives."""
