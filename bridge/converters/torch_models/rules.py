"""What the functions that hold a model's weights, its pools and its activations become, by the function's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from bridge.converters.remedies import DROPS, RUNNING
from bridge.converters.torch_models.arguments import (
    array,
    bound,
    is_traced,
    of_batch_norm,
    of_cat,
    of_dropout,
    of_torch_batch_norm,
)
from bridge.converters.torch_models.contractions import addmm, einsum, linear, matmul
from bridge.converters.torch_models.convolutions import (
    adaptive_avg_pool,
    adaptive_max_pool,
    amax,
    avg_pool,
    conv,
    max_pool,
)
from bridge.converters.torch_models.layer_list import LayerList
from bridge.converters.torch_models.reductions import mean, total
from bridge.converters.torch_models.signals import Signal
from bridge.errors import ConversionError
from bridge.graph import Add, BatchNorm, ClipFloorShift, Concat
from bridge.prepare.qcfs import QCFS, SMALLEST_THRESHOLD

Rule = Callable[[LayerList, str, Sequence[Any], dict[str, Any], Any], "Signal | None"]
"""From the layers so far, a name, the function's arguments and what it returned. None if no layer is needed for it."""

# What is written so often that it is not measured


def add(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    """A sum of two layers; λ of each branch is folded into that branch, or into a `Scale` on it."""
    terms = [each.signal for each in args if is_traced(each)]
    if kwargs or len(args) != len(terms) or any(term.index is not None or not term.plain for term in terms):
        return None
    one, other = terms
    if one.origin == other.origin or one.whole != other.whole:
        return None
    return Signal(layers.add(Add(name=layers.name(title), inputs=(one.origin, other.origin)), value), one.whole)


def cat(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    """1×1 convolutions of zeros and ones, and a sum, since NIR joins signals by adding only."""
    given = bound(of_cat, args, kwargs)
    if not all(map(is_traced, given.tensors)) or len(given.tensors) < 2 or given.dim not in (1, 1 - value.dim()):
        return None
    terms = [each.signal for each in given.tensors]
    if any(term.index is not None or not term.plain for term in terms):
        return None
    layer = Concat(name=layers.name(title), inputs=tuple(term.origin for term in terms))
    return Signal(layers.add(layer, value), tuple(value.shape))


def dropout(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Tensor) -> Signal | None:
    """Nothing, at inference."""
    given = bound(of_dropout, args, kwargs)
    if given.training and given.p > 0:
        raise ConversionError(DROPS)
    signal: Signal = given.input.signal
    return signal


# Normalisation and activations


def batch_norm(layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Any) -> Signal | None:
    """Folded into the affine layer before it; elsewhere a 1×1 depthwise convolution, or factors and offsets."""
    if not isinstance(value, Tensor):  # aten's, which returns statistics, too
        return None
    given = bound(of_batch_norm, args, kwargs)
    if given.training or given.running_mean is None or given.running_var is None:
        raise ConversionError(RUNNING)
    average, variance = array(given.running_mean, "running_mean"), array(given.running_var, "running_var")
    gain = np.ones(len(average)) if given.weight is None else array(given.weight, "weight")
    if not (variance + given.eps > 0).all():
        raise ConversionError(f"its running_var + eps is not positive: {(variance + given.eps).min():g}")
    scale = gain / np.sqrt(variance + given.eps)
    shift = array(given.bias, "bias", len(average)) - scale * average
    try:
        source = layers.settled(given.input.signal, given.input.plain)
    except ConversionError:
        return None  # its channels are no layer's channels: factors and offsets for each element then
    layer = BatchNorm(name=layers.name(title), inputs=(source,), scale=scale, shift=shift)
    return Signal(layers.add(layer, value), tuple(value.shape))


def torch_batch_norm(
    layers: LayerList, title: str, args: Sequence[Any], kwargs: dict[str, Any], value: Any
) -> Signal | None:
    """A `BatchNorm`, as `batch_norm`, of torch.batch_norm's arguments."""
    given = bound(of_torch_batch_norm, args, kwargs)
    order = (given.input, given.running_mean, given.running_var, given.weight, given.bias, given.training)
    return batch_norm(layers, title, (*order, given.momentum, given.eps), {}, value)


def activation(layers: LayerList, title: str, source: Any, qcfs: QCFS, value: Tensor) -> Signal:
    """A QCFS, with one λ or one for each index of dimension 1."""
    if is_lazy(qcfs.threshold):
        raise ConversionError("λ per channel has no channels yet; run the model once on an input")
    values = array(qcfs.threshold, "threshold").reshape(-1)
    if not (values > 0).all():
        raise ConversionError(f"every threshold λ must be positive, got {values.min():g}; retrain or set it")
    values = np.maximum(values, SMALLEST_THRESHOLD)  # as QCFS holds it
    name, index = layers.somewhere(source.signal, source.plain)
    if len(values) > 1 and index is not None:
        shape = tuple(value.shape)
        spread = np.broadcast_to(values.reshape(1, -1, *[1] * (len(shape) - 2)), shape)
        there = np.empty(spread.size)
        there[index.reshape(-1)] = spread.reshape(-1)
        by_channel = there.reshape(layers.batch * layers.shapes[name][0], -1)
        if (by_channel == by_channel[:, :1]).all():
            values = by_channel[: layers.shapes[name][0], 0].copy()
        else:
            name, index = layers.settled(source.signal, source.plain), None
    channels = layers.shapes[name][0]
    threshold = np.repeat(values, channels) if len(values) == 1 else values
    layer = ClipFloorShift(name=layers.name(title), inputs=(name,), levels=qcfs.levels, threshold=threshold)
    there_value = value
    if index is not None:
        moved = torch.empty(value.numel(), dtype=value.dtype)
        moved[torch.from_numpy(index.reshape(-1))] = value.detach().cpu().reshape(-1)
        there_value = moved
    made = layers.add(layer, there_value)
    return Signal(made, layers.whole(made), index, title=source.signal.title)


DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
SHORT_CUTS: dict[str, Rule] = {
    **dict.fromkeys(("add", "__add__"), add),
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    **dict.fromkeys(DROPOUTS, dropout),
}
"""For functions that could be measured as well, but of every larger network has many. None: measure it."""

FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv),
    "linear": linear,
    **dict.fromkeys(("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv"), matmul),
    "addmm": addmm,
    "einsum": einsum,
    "batch_norm": batch_norm,
    "torch.batch_norm": torch_batch_norm,
    "avg_pool1d": partial(avg_pool, rank=1),
    "avg_pool2d": partial(avg_pool, rank=2),
    "adaptive_avg_pool1d": partial(adaptive_avg_pool, rank=1),
    "adaptive_avg_pool2d": partial(adaptive_avg_pool, rank=2),
    "max_pool1d": partial(max_pool, rank=1),
    "max_pool2d": partial(max_pool, rank=2),
    "adaptive_max_pool1d": partial(adaptive_max_pool, rank=1),
    "adaptive_max_pool2d": partial(adaptive_max_pool, rank=2),
    "amax": amax,
    "mean": mean,
    "sum": total,
}
