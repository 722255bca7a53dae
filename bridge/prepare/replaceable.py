"""Which modules, and which calls in a trace, are ReLU or maximum pooling; what takes the place of the latter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from bridge.errors import ConversionError


def _relu(input: Any, inplace: bool = False) -> bool:
    return True


def _clamp(input: Any, min: Any = None, max: Any = None) -> bool:
    return _is(min, 0) and (max is None or _is(max, 6))


def _threshold(input: Any, threshold: Any, value: Any, inplace: bool = False) -> bool:
    return _is(threshold, 0) and _is(value, 0)


def _hardtanh(input: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> bool:
    return _is(min_val, 0) and _is(max_val, 6)


def _is(option: Any, value: float) -> bool:
    return isinstance(option, int | float) and option == value


RELU_CALLS: dict[Any, Callable[..., bool]] = {
    **dict.fromkeys((F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, "relu", "relu_"), _relu),
    **dict.fromkeys((torch.clamp, torch.clamp_, torch.clip, torch.clip_, "clamp", "clamp_", "clip", "clip_"), _clamp),
    **dict.fromkeys((torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_"), _clamp),
    **dict.fromkeys((F.threshold, F.threshold_, torch.threshold), _threshold),  # type: ignore[attr-defined]  # threshold_
    **dict.fromkeys((F.hardtanh, F.hardtanh_), _hardtanh),
}
"""Whether a call of these functions, or of these methods, is ReLU or ReLU6; takes its arguments."""


MAX_POOL_CALLS: dict[Any, type[nn.Module]] = {
    F.max_pool1d: nn.MaxPool1d,
    torch.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
    torch.max_pool2d: nn.MaxPool2d,
    F.adaptive_max_pool1d: nn.AdaptiveMaxPool1d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
}
"""The kind of module that does what a call of these functions does."""

WITH_INDICES: dict[Any, type[nn.Module]] = {
    F.max_pool1d_with_indices: nn.MaxPool1d,
    torch.max_pool1d_with_indices: nn.MaxPool1d,
    F.max_pool2d_with_indices: nn.MaxPool2d,
    F.adaptive_max_pool1d_with_indices: nn.AdaptiveMaxPool1d,
    torch.adaptive_max_pool1d: nn.AdaptiveMaxPool1d,
    F.adaptive_max_pool2d_with_indices: nn.AdaptiveMaxPool2d,
}
"""The same for those that return the indices of the maxima too."""

POOL_ARGUMENTS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
ADAPTIVE_ARGUMENTS = ("input", "output_size", "return_indices")

RELU_NAMES = {str(getattr(target, "__name__", target)).lstrip("_") for target in RELU_CALLS}
POOL_NAMES = {target.__name__ for target in (*MAX_POOL_CALLS, *WITH_INDICES)}
"""What these calls are called in code."""

MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)


def is_relu(module: nn.Module) -> bool:
    """Whether `module` computes ReLU or ReLU6. One with a forward of its own may do anything."""
    kinds = (nn.ReLU, nn.Hardtanh, nn.Threshold)
    if not isinstance(module, kinds) or not any(type(module).forward is kind.forward for kind in kinds):
        return False
    if isinstance(module, nn.Hardtanh):  # nn.ReLU6 is one
        return _hardtanh(None, module.min_val, module.max_val)
    return isinstance(module, nn.ReLU) or _threshold(None, module.threshold, module.value)


def average(pool: Any, where: str) -> nn.Module:
    """Average pooling in the place of `pool`, one of the `MAX_POOLS`, which is found at `where`."""
    if not any(type(pool).forward is kind.forward for kind in MAX_POOLS):
        raise ConversionError(
            f"replace_activations: {where}: {type(pool).__name__} has a forward of its own, of which no average is "
            "known; put an average pooling there that does the same otherwise"
        )
    if pool.return_indices:
        raise ConversionError(
            f"replace_activations: {where}: it returns the indices of the maxima, which an average has not; "
            "unpool with nn.Upsample, and call the pooling without return_indices"
        )
    if isinstance(pool, nn.AdaptiveMaxPool1d):
        return nn.AdaptiveAvgPool1d(pool.output_size)
    if isinstance(pool, nn.AdaptiveMaxPool2d):
        return nn.AdaptiveAvgPool2d(pool.output_size)
    if any(d != 1 for d in (pool.dilation if isinstance(pool.dilation, tuple | list) else [pool.dilation])):
        raise ConversionError(
            f"replace_activations: {where}: {pool} is dilated, which average pooling cannot be; "
            "set dilation=1 and fine-tune"
        )
    kind = nn.AvgPool1d if isinstance(pool, nn.MaxPool1d) else nn.AvgPool2d
    return kind(pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode)


def relu_call(node: fx.Node) -> bool:
    """Whether `node` is a call that computes ReLU or ReLU6."""
    is_one = RELU_CALLS.get(node.target) if node.op in ("call_function", "call_method") else None
    return is_one is not None and "out" not in node.kwargs and is_one(*node.args, **node.kwargs)


def pool_call(node: fx.Node) -> nn.Module | None:
    """The maximum pooling that `node` calls as a function; None if it is something else."""
    kind = (MAX_POOL_CALLS | WITH_INDICES).get(node.target) if node.op == "call_function" else None
    if kind is None:
        return None
    if len(node.all_input_nodes) > 1:
        raise ConversionError(
            f"replace_activations: {node.name}: its size depends on the data; write a number, or "
            "nn.AdaptiveMaxPool2d(1) for the maximum of an image"
        )
    names = ADAPTIVE_ARGUMENTS if kind in (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d) else POOL_ARGUMENTS
    options = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    options["return_indices"] = node.target in WITH_INDICES
    options.pop("input", None)
    return kind(**options)


def in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether `node`, a call of a ReLU or of the ReLU `module`, changes its input."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if str(getattr(node.target, "__name__", node.target)).endswith("_"):
        return True
    names = inspect.signature(RELU_CALLS[node.target]).parameters
    return bool({**dict(zip(names, node.args, strict=False)), **node.kwargs}.get("inplace", False))
