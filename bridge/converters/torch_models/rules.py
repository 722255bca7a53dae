"""What each torch module and function becomes in a layer graph. One rule an operation."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bridge.converters.remedies import BATCH_NORM, BY_AVERAGE, BY_QCFS, LEAVE_OUT, ONLY_QCFS, PRODUCT
from bridge.errors import ConversionError
from bridge.graph import (
    BatchNorm,
    ClipFloorShift,
    Conv1d,
    Conv2d,
    Flatten,
    Layer,
    Linear,
    Shape,
    average_pool,
    same_padding,
)
from bridge.prepare.qcfs import QCFS

Rule = Callable[[str, str, Any, Shape], list[Layer]]
"""From a layer's name, its source's name, the module (or a function's arguments by name) and the source's shape."""

REMEDIES: dict[str, str] = {
    **dict.fromkeys(("ReLU", "ReLU6", "relu", "relu_", "relu6"), BY_QCFS),
    **dict.fromkeys(("MaxPool1d", "MaxPool2d", "max_pool1d", "max_pool2d", "AdaptiveMaxPool2d"), BY_AVERAGE),
    **dict.fromkeys(("GELU", "SiLU", "Sigmoid", "Tanh", "LeakyReLU", "ELU", "Mish", "PReLU", "Softplus"), ONLY_QCFS),
    **dict.fromkeys(
        ("Hardswish", "Hardsigmoid", "Hardtanh", "gelu", "silu", "sigmoid", "tanh", "leaky_relu"), ONLY_QCFS
    ),
    **dict.fromkeys(
        ("LayerNorm", "GroupNorm", "InstanceNorm2d", "LayerNorm2d", "layer_norm", "group_norm"), BATCH_NORM
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "softmax", "log_softmax"), LEAVE_OUT),
    **dict.fromkeys(("mul", "mul_", "imul"), PRODUCT),
    **dict.fromkeys(("matmul", "bmm", "einsum", "MultiheadAttention", "scaled_dot_product_attention"), PRODUCT),
    **dict.fromkeys(("ConvTranspose1d", "ConvTranspose2d"), "NIR has no transposed convolution; use a Conv2d"),
    **dict.fromkeys(("Upsample", "interpolate", "pad"), "NIR has nothing like it; use padding of a convolution"),
    "LocalResponseNorm": BATCH_NORM,
}
SUPPORTED = (
    "Conv1d/2d, Linear, BatchNorm1d/2d, average pooling (also adaptive, or a mean over space), flattening, channel "
    "splits and shuffles, addition, concatenation along the channels, Dropout, Identity and bridge.QCFS"
)


def array(value: Tensor | None, what: str, size: int = 0, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """A copy of a parameter, zeros of `size` for one that is absent. Weights, the bulk, are float32 all the way."""
    if value is None:
        return np.zeros(size)
    result: np.ndarray = value.detach().to(device="cpu", dtype=dtype, copy=True).contiguous().numpy()
    if not np.isfinite(result).all():
        raise ConversionError(f"its {what} holds {int((~np.isfinite(result)).sum())} values that are NaN or infinite")
    return result


def conv(name: str, source: str, options: Any, shape: Shape) -> list[Layer]:
    if options.padding_mode != "zeros" and np.any(options.padding not in (0, (0,), (0, 0), "valid")):
        raise ConversionError(f"padding_mode {options.padding_mode!r} is not supported; use 'zeros'")
    weight = array(options.weight, "weight", dtype=torch.float32)
    bias = array(options.bias, "bias", len(weight))
    rank = len(shape) - 1
    stride, dilation = numbers(options.stride, rank), numbers(options.dilation, rank)
    if options.padding == "same":
        even = same_padding(weight.shape[2:], dilation)
        if even is None:
            raise ConversionError(
                f"padding='same' is lopsided with kernel {weight.shape[2:]}; use an odd one or explicit padding"
            )
        padding = even
    else:
        padding = numbers(0 if options.padding == "valid" else options.padding, rank)
    common = {"name": name, "inputs": (source,), "weight": weight, "bias": bias, "groups": options.groups}
    if rank == 1:
        return [Conv1d(**common, stride=stride[0], padding=padding[0], dilation=dilation[0])]
    return [
        Conv2d(
            **common,
            stride=(stride[0], stride[1]),
            padding=(padding[0], padding[1]),
            dilation=(dilation[0], dilation[1]),
        )
    ]


def linear(name: str, source: str, options: Any, shape: Shape) -> list[Layer]:
    weight = array(options.weight, "weight", dtype=torch.float32)
    if len(shape) != 1:
        raise ConversionError(f"it is applied to [B, {', '.join(map(str, shape))}]; flatten first")
    return [Linear(name=name, inputs=(source,), weight=weight, bias=array(options.bias, "bias", len(weight)))]


def batch_norm(name: str, source: str, options: Any, shape: Shape) -> list[Layer]:
    if options.running_mean is None or options.running_var is None:
        raise ConversionError("it keeps no running statistics; train with track_running_stats=True")
    mean, variance = array(options.running_mean, "running_mean"), array(options.running_var, "running_var")
    gain = np.ones(len(mean)) if options.weight is None else array(options.weight, "weight")
    if not (variance + options.eps > 0).all():
        raise ConversionError(f"its running_var + eps is not positive: {(variance + options.eps).min():g}")
    scale = gain / np.sqrt(variance + options.eps)
    shift = array(options.bias, "bias", len(mean)) - scale * mean
    return [BatchNorm(name=name, inputs=(source,), scale=scale, shift=shift)]


def avg_pool(name: str, source: str, options: Any, shape: Shape) -> list[Layer]:
    rank = len(shape) - 1
    kernel = numbers(options.kernel_size, rank)
    stride = kernel if options.stride in (None, [], ()) else numbers(options.stride, rank)
    padding = numbers(options.padding, rank)
    covered = [size + 2 * p - k for size, p, k in zip(shape[1:], padding, kernel, strict=True)]
    uneven = any(left % s for left, s in zip(covered, stride, strict=True))
    if options.ceil_mode and uneven:
        raise ConversionError("NIR's average pooling has no ceil_mode, and here it would matter; leave it out")
    if getattr(options, "divisor_override", None) is not None or (any(padding) and not options.count_include_pad):
        raise ConversionError(
            "NIR's average pooling has no divisor_override or count_include_pad=False; leave them out"
        )
    return [average_pool(name, source, shape[0], kernel, stride, padding)]


def adaptive_avg_pool(name: str, source: str, options: Any, shape: Shape) -> list[Layer]:
    rank = len(shape) - 1
    wanted = options.output_size if isinstance(options.output_size, tuple | list) else [options.output_size] * rank
    sizes = [size if out is None else out for size, out in zip(shape[1:], wanted, strict=True)]
    if any(size % out for size, out in zip(shape[1:], sizes, strict=True)):
        raise ConversionError(f"it pools {shape[1:]} to {tuple(sizes)} with windows of several sizes; use a multiple")
    kernel = tuple(size // out for size, out in zip(shape[1:], sizes, strict=True))
    return [] if set(kernel) == {1} else [average_pool(name, source, shape[0], kernel, kernel, (0,) * rank)]


def mean_over_space(name: str, source: str, options: Any, shape: Shape) -> list[Layer]:
    rank = len(shape)
    dims = options.dim if isinstance(options.dim, tuple | list) else [options.dim]
    if None in dims or sorted(d % (rank + 1) for d in dims) != list(range(2, rank + 1)):
        raise ConversionError(f"a mean over dimensions {options.dim}; only the mean over all of space is supported")
    kernel = shape[1:]
    if options.keepdim:
        return [average_pool(name, source, shape[0], kernel, kernel, (0,) * len(kernel))]
    pool = average_pool(f"{name}_pool", source, shape[0], kernel, kernel, (0,) * len(kernel))
    return [pool, Flatten(name=name, inputs=(pool.name,))]


def qcfs(name: str, source: str, module: QCFS, shape: Shape) -> list[Layer]:
    if is_lazy(module.threshold):
        raise ConversionError("λ per channel has no channels yet; run the model once on an input")
    values = array(module.threshold, "threshold").reshape(-1)
    if not (values > 0).all():
        raise ConversionError(f"every threshold λ must be positive, got {values.min():g}; retrain or set it")
    threshold = np.repeat(values, shape[0]) if len(values) == 1 else values
    return [ClipFloorShift(name=name, inputs=(source,), levels=module.levels, threshold=threshold)]


def dropout(name: str, source: str, options: Any, shape: Shape) -> list[Layer]:
    if options.training:
        raise ConversionError("it drops at inference too; pass training=self.training")
    return []


def nothing(name: str, source: str, options: Any, shape: Shape) -> list[Layer]:
    """For modules that do nothing at inference."""
    return []


def numbers(value: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    """One number for each of `count` dimensions."""
    return tuple(int(each) for each in np.broadcast_to(value, (count,)))


MODULES: dict[type[nn.Module], Rule] = {
    nn.Conv1d: conv,
    nn.Conv2d: conv,
    nn.Linear: linear,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.AvgPool1d: avg_pool,
    nn.AvgPool2d: avg_pool,
    nn.AdaptiveAvgPool1d: adaptive_avg_pool,
    nn.AdaptiveAvgPool2d: adaptive_avg_pool,
    nn.Dropout: nothing,
    nn.Dropout1d: nothing,
    nn.Dropout2d: nothing,
    nn.Identity: nothing,
}

ADDITIONS: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_", "__add__", "__iadd__"}
CONCATENATIONS: set[Any] = {torch.cat, torch.concat, torch.concatenate}


def _of_conv(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # type: ignore[no-untyped-def]
    """Signature of F.conv1d and F.conv2d."""


def _of_linear(x, weight, bias=None):  # type: ignore[no-untyped-def]
    """Signature of F.linear."""


def _of_batch_norm(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):  # type: ignore[no-untyped-def]
    """Signature of F.batch_norm."""


def _of_pool(x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):  # type: ignore[no-untyped-def]
    """Signature of F.avg_pool1d and F.avg_pool2d."""


def _of_adaptive(x, output_size):  # type: ignore[no-untyped-def]
    """Signature of F.adaptive_avg_pool1d and F.adaptive_avg_pool2d."""


def _of_mean(x, dim=None, keepdim=False):  # type: ignore[no-untyped-def]
    """Signature of torch.mean and Tensor.mean."""


def _of_dropout(x, p=0.5, training=True, inplace=False):  # type: ignore[no-untyped-def]
    """Signature of F.dropout and its relatives."""


FUNCTIONS: dict[Any, tuple[Callable[..., Any], Rule]] = {
    **dict.fromkeys((F.conv1d, F.conv2d, torch.conv1d, torch.conv2d), (_of_conv, conv)),
    F.linear: (_of_linear, linear),
    F.batch_norm: (_of_batch_norm, batch_norm),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d), (_of_pool, avg_pool)),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d), (_of_adaptive, adaptive_avg_pool)),
    **dict.fromkeys((torch.mean, "mean"), (_of_mean, mean_over_space)),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d), (_of_dropout, dropout)),
}


def bind(signature: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> SimpleNamespace:
    """A function call's arguments by name, defaults filled in, like the attributes of the module of its kind."""
    renamed = {"x" if key in ("input", "self") else key: value for key, value in kwargs.items()}
    bound = inspect.signature(signature).bind(*args, **renamed)
    bound.apply_defaults()
    return SimpleNamespace(padding_mode="zeros", **bound.arguments)
