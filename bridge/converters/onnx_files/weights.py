"""What ONNX operators that hold weights become: convolutions, matrices, batch norms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bridge.converters.onnx_files.layer_list import Source, expect_size, placeholder
from bridge.converters.onnx_files.reader import Reader
from bridge.converters.onnx_files.values import Constant, Data, Gain, Node, Shift, Value
from bridge.converters.remedies import PRODUCT
from bridge.converters.torch_models.rules import FUNCTIONS
from bridge.errors import ConversionError, GraphError
from bridge.graph import Array, BatchNorm, Linear, Shape


def conv(reader: Reader, node: Node) -> Value:
    source = reader.source(node)
    shape = source.signal.shape[1:]
    weight = reader.numbers(node, 1, np.float32)
    kernel = weight.shape[2:]
    if len(kernel) not in (1, 2):
        raise ConversionError(f"a convolution over {max(len(kernel), 0)} dimensions; 1 and 2 are supported")
    if tuple(node.get("kernel_shape", kernel)) != kernel:
        raise GraphError(f"its kernel_shape {node.get('kernel_shape', [])} is not that of its weight {weight.shape}")
    groups = node.get("group", 1)
    if groups < 1 or weight.shape[0] % groups:
        raise GraphError(f"{weight.shape[0]} output channels do not divide into {groups} groups")
    count = len(weight)
    bias = reader.vector(node, 2, count, "bias") if node.has(2) else np.zeros(count)
    stride, dilation, before, after = window(node, kernel, shape)
    return convolved(reader, node, weight, bias, stride, dilation, before, after, groups)


def convolved(
    reader: Reader,
    node: Node,
    weight: Array,
    bias: Array,
    stride: Shape,
    dilation: Shape,
    before: Shape,
    after: Shape,
    groups: int,
) -> Data:
    """The convolution of the node's first input, padded by so much."""
    source = reader.source(node)
    reach = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    sizes = zip(source.signal.shape[2:], reach, stride, before, after, strict=True)
    out = [(n + b + a - r) // s + 1 for n, r, s, b, a in sizes]
    expect_size((len(weight), *out))
    if before != after:
        more = [b - a for b, a in zip(before, after, strict=True)]
        longer = [r + abs(m) for r, m in zip(reach, more, strict=True)]
        reader.tensors.spend(weight.shape[0] * weight.shape[1] * math.prod(longer))
        weight = _longer(weight, dilation, longer, more)
        dilation, before = (1,) * len(dilation), tuple(map(max, before, after))
    result = placeholder((reader.batch, len(weight), *(max(size, 1) for size in out)))
    options = {"stride": stride, "padding": before, "dilation": dilation, "groups": groups}
    arguments = (source, torch.from_numpy(weight), torch.from_numpy(bias))
    signal = FUNCTIONS[f"conv{len(stride)}d"](reader.layers, node.title, arguments, options, result)
    assert signal is not None
    return reader.made_of(node, signal)[0]


def _longer(weight: Array, dilation: Shape, longer: list[int], more: list[int]) -> Array:
    """The kernel written out, with zeros where padding is the same on both sides, but should be `more` in front."""
    result = np.zeros((*weight.shape[:2], *longer), weight.dtype)
    taps = zip(weight.shape[2:], dilation, more, strict=True)
    places = [slice(max(-m, 0), max(-m, 0) + d * (k - 1) + 1, d) for k, d, m in taps]
    result[(slice(None), slice(None), *places)] = weight
    return result


def window(node: Node, kernel: Shape, shape: Shape) -> tuple[Shape, Shape, Shape, Shape]:
    """Strides, dilations and paddings, before and after, of a window of `kernel` that slides over ``[C, ...]``."""
    space = len(kernel)
    if len(shape) != space + 1 or min(kernel) < 1:
        raise GraphError(
            f"a {list(kernel)} window does not slide over an input of shape [B, {', '.join(map(str, shape))}]"
        )
    stride, dilation = tuple(node.get("strides", [1] * space)), tuple(node.get("dilations", [1] * space))
    if len(stride) != space or len(dilation) != space or min(stride + dilation) < 1:
        raise GraphError(f"its strides {list(stride)} or dilations {list(dilation)} do not fit {space} dimensions")
    automatic = node.get("auto_pad", "NOTSET")
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        sizes = zip(shape[1:], reach, stride, strict=True)
        total = [max((-(-n // s) - 1) * s + r - n, 0) for n, r, s in sizes]
        less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        before, after = (less, more) if automatic == "SAME_UPPER" else (more, less)
    elif automatic == "VALID":
        before = after = (0,) * space
    else:
        pads = tuple(node.get("pads", [0] * 2 * space))
        if automatic != "NOTSET" or len(pads) != 2 * space or min(pads) < 0:
            raise GraphError(f"its padding {automatic} {list(pads)} does not fit {space} dimensions")
        before, after = pads[:space], pads[space:]
    return stride, dilation, before, after


def gemm(reader: Reader, node: Node) -> Value:
    source = reader.source(node)
    if node.get("transA", 0):
        raise ConversionError("it transposes the data (transA)")
    weight = reader.numbers(node, 1, np.float32)
    if weight.ndim != 2:
        raise GraphError(f"its weight has shape {list(weight.shape)}, expected two dimensions")
    if not node.get("transB", 0):
        weight = np.ascontiguousarray(weight.T)
    if (alpha := node.get("alpha", 1.0)) != 1:
        weight = weight * np.float32(alpha)
        check_finite(weight)
    bias: Array = np.zeros(len(weight))
    if node.has(2):
        given = reader.numbers(node, 2)
        if given.shape not in {(), (1,), (len(weight),), (1, 1), (1, len(weight))}:
            raise GraphError(f"its bias has shape {list(given.shape)}, expected [{len(weight)}]")
        bias = bias + node.get("beta", 1.0) * given.reshape(-1)
        check_finite(bias)
    Linear(name=node.title, inputs=(), weight=weight, bias=bias).output_shape(source.signal.shape[1:])
    result = placeholder((*source.signal.shape[:-1], len(weight)))
    _expect_matrix(reader, source, len(weight))
    arguments = (source, torch.from_numpy(weight), torch.from_numpy(bias))
    signal = FUNCTIONS["linear"](reader.layers, node.title, arguments, {}, result)
    assert signal is not None
    return reader.made_of(node, signal)[0]


def _expect_matrix(reader: Reader, source: Source, out: int) -> None:
    """Account for a matrix that gives `out` values of all of a layer's output, as one may be made."""
    reader.tensors.spend(out * reader.layers.size(source.signal.origin))


def mat_mul(reader: Reader, node: Node) -> Value | None:
    """A matrix along the last dimension, or the one before it. None if it is anything else."""
    at = 1 if isinstance(reader.value(node, 0), Constant) else 0
    source = reader.source(node, at)
    if not isinstance(reader.value(node, 1 - at), Constant):
        reader.source(node, 1 - at)
        raise ConversionError(PRODUCT)
    weight = reader.numbers(node, 1 - at, np.float32)
    operands = (source, torch.from_numpy(weight)) if at == 0 else (torch.from_numpy(weight), source)
    result = _result(torch.matmul, *(each.plain if isinstance(each, Source) else each for each in operands))
    if weight.ndim != 2:
        return None
    _expect_matrix(reader, source, weight.shape[1] if at == 0 else len(weight))
    signal = FUNCTIONS["matmul"](reader.layers, node.title, operands, {}, result)
    if signal is None:
        return None
    if reader.readers[node.outputs[0]] == 1:
        reader.bias_free.add(node.outputs[0])
    return reader.made_of(node, signal)[0]


def einsum(reader: Reader, node: Node) -> Value | None:
    """A matrix along one dimension, however the equation writes it. None if it is anything else."""
    equation = node.get("equation", "")
    values = [reader.value(node, at) for at in range(len(node.inputs))]
    if len(values) != 2 or "." in equation:
        return None
    if not any(isinstance(value, Constant) for value in values):
        raise ConversionError(PRODUCT)
    operands = [
        torch.from_numpy(reader.numbers(node, at, np.float32))
        if isinstance(value, Constant)
        else reader.source(node, at)
        for at, value in enumerate(values)
    ]
    plain = [each.plain if isinstance(each, Source) else each for each in operands]
    result = _result(lambda *each: torch.einsum(equation, *each), *plain)
    for one, other in (operands, operands[::-1]):
        if isinstance(one, Source) and isinstance(other, Tensor):
            _expect_matrix(reader, one, other.numel())
    signal = FUNCTIONS["einsum"](reader.layers, node.title, (equation, *operands), {}, result)
    return None if signal is None else reader.made_of(node, signal)[0]


def _result(function: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """A tensor of the shape that `function` gives. Nothing is computed."""
    try:
        shape = tuple(function(*(each.to("meta") for each in operands)).shape)
    except (RuntimeError, ValueError, IndexError) as error:
        raise GraphError(f"its operands do not fit ({error})") from error
    expect_size(shape[1:])
    return placeholder(shape)


def batch_norm(reader: Reader, node: Node) -> Value:
    source = reader.source(node)
    if node.get("training_mode", 0) or not node.get("spatial", 1):
        raise ConversionError("only batch normalisation at inference, per channel, is supported; export in eval mode")
    shape = source.signal.shape
    if len(shape) < 2:
        raise GraphError(f"it normalises {list(shape)}, expected [B, C, ...]")
    gain, shift, mean, variance = (
        reader.vector(node, at, shape[1], what)
        for at, what in enumerate(("scale", "bias", "mean", "variance"), start=1)
    )
    variance = variance + node.get("epsilon", 1e-5)
    if not (variance > 0).all():
        raise ConversionError(f"its variance and epsilon must be positive together, got {variance.min():g}")
    scale = gain / np.sqrt(variance)
    shift = shift - scale * mean
    check_finite(scale, shift)
    try:
        name = reader.layer(source.signal)
    except ConversionError:  # its channels are no layer's channels
        spread = (-1, *[1] * (len(shape) - 2))
        steps = Gain(node, scale.reshape(spread)), Shift(node, shift.reshape(spread))
        return reader.step(Data(source.signal), *steps)
    return reader.put(node, BatchNorm(name=reader.layers.name(node.title), inputs=(name,), scale=scale, shift=shift))


def check_finite(*arrays: Array) -> None:
    """Raise `ConversionError` if a number is not finite."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise ConversionError("its constants multiply to NaN or infinity")
