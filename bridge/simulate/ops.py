"""What each stateless layer computes, in torch. One function a layer kind."""

from __future__ import annotations

from functools import singledispatch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bridge.graph import (
    Add,
    Affine,
    AtLeast,
    AvgPool2d,
    BatchNorm,
    ClipFloorShift,
    Concat,
    Conv1d,
    Conv2d,
    EachLevel,
    Flatten,
    GroupFire,
    GroupSum,
    Input,
    Layer,
    MaxPool,
    Scale,
    SpikeCount,
    SumPool2d,
    aligned,
)


@singledispatch
def evaluate(layer: Layer, *inputs: Tensor) -> Tensor:
    """Output ``[B, ...]`` of `layer` for its inputs ``[B, ...]``."""
    raise NotImplementedError(f"no rule to evaluate a {type(layer).__name__}")


@evaluate.register
def _(layer: Input, x: Tensor) -> Tensor:
    return x


@evaluate.register
def _(layer: Affine, x: Tensor) -> Tensor:
    return affine(layer, x, parameter(layer.weight, x), parameter(layer.bias, x))


@evaluate.register
def _(layer: Add, x: Tensor, other: Tensor) -> Tensor:
    return x + other


@evaluate.register
def _(layer: Concat, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=1)


@evaluate.register
def _(layer: BatchNorm, x: Tensor) -> Tensor:
    return x * channels(layer.scale, x) + channels(layer.shift, x)


@evaluate.register
def _(layer: Scale, x: Tensor) -> Tensor:
    return x * channels(layer.scale, x)


@evaluate.register
def _(layer: AvgPool2d, x: Tensor) -> Tensor:
    return F.avg_pool2d(x, layer.kernel, layer.stride, layer.padding)


@evaluate.register
def _(layer: SumPool2d, x: Tensor) -> Tensor:
    return F.avg_pool2d(x, layer.kernel, layer.stride, layer.padding, divisor_override=1)


@evaluate.register
def _(layer: MaxPool, x: Tensor) -> Tensor:
    sign = torch.ones(1, dtype=x.dtype, device=x.device)
    if layer.minimum is not None:
        sign = channels(np.where(layer.minimum, -1.0, 1.0), x)
    pool = F.max_pool1d if len(layer.kernel) == 1 else F.max_pool2d
    return sign * pool(sign * x, layer.kernel, layer.stride, layer.padding, layer.dilation, layer.ceil)


@evaluate.register
def _(layer: Flatten, x: Tensor) -> Tensor:
    return x.flatten(1)


@evaluate.register
def _(layer: ClipFloorShift, x: Tensor) -> Tensor:
    threshold = channels(layer.threshold, x)
    return threshold * ((x * layer.levels / threshold + 0.5).floor() / layer.levels).clamp(0, 1)


@evaluate.register
def _(layer: AtLeast, x: Tensor) -> Tensor:
    return (x >= parameter(aligned(layer.level, x.dim() - 1), x)).to(x.dtype)


@evaluate.register
def _(layer: SpikeCount, x: Tensor) -> Tensor:
    threshold = channels(layer.threshold, x)
    return ((x - threshold - channels(layer.level, x)) / threshold).floor().add(1).clamp(0, layer.steps)


@evaluate.register
def _(layer: GroupFire, x: Tensor) -> Tensor:
    levels = [parameter(aligned(level, x.dim() - 1), x) for level in layer.level]
    return torch.stack([x >= level for level in levels], dim=1).to(x.dtype)


@evaluate.register
def _(layer: EachLevel, x: Tensor) -> Tensor:
    each = evaluate(layer.layer, x.flatten(0, 1))
    return each.reshape(*x.shape[:2], *each.shape[1:])


@evaluate.register
def _(layer: GroupSum, x: Tensor) -> Tensor:
    return x.sum(1)


def affine(layer: Affine, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What `layer` would give for `x` ``[B, ...]`` if these were its weight and bias."""
    if isinstance(layer, Conv2d):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    if isinstance(layer, Conv1d):
        return F.conv1d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.linear(x, weight, bias)


def tensor(array: np.ndarray) -> Tensor:
    """The array as a float32 tensor, without a copy where torch can take it as it is."""
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))


def parameter(array: np.ndarray, like: Tensor) -> Tensor:
    """The array in the type of `like`, and where that is: a layer computes in the precision of its input."""
    return tensor(array).to(like)


def channels(values: np.ndarray, like: Tensor) -> Tensor:
    """One value per channel, or one per position, shaped to broadcast over `like` ``[B, C, ...]``."""
    return parameter(aligned(values, like.dim() - 1), like).unsqueeze(0)
