"""The ANN of a conversion as a plain ONNX file: standard operators, float32, any batch size.

Each layer is one node that carries its name, except the activation, whose seven nodes are the terms of its equation
in the order in which `bridge.simulate` evaluates them: ``λ · clip(floor(z·L/λ + 1/2) / L, 0, 1)``. The last of them has
the layer's name, the others have it as a prefix. `bridge.converters.onnx_files.capture` reads such a file back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge._util.files import replacing
from bridge.converters.onnx_files.library import require_onnx as require_onnx  # for exporters, too
from bridge.errors import ConversionError
from bridge.graph import (
    Add,
    AvgPool2d,
    BatchNorm,
    ClipFloorShift,
    Concat,
    Conv1d,
    Conv2d,
    Flatten,
    Layer,
    LayerGraph,
    Linear,
    MaxPool,
    Scale,
    Shape,
    SpikeCount,
    SumPool2d,
    aligned,
)

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

OPSET = 17
IR_VERSION = 8  # the one that came with opset 17; newer ones shut out older runtimes for nothing
LARGEST_FILE = 2**31 - 2**20
"""Bytes that fit into one protobuf message, with room for all that is not weights."""


def write(graph: LayerGraph, path: str | Path) -> None:
    """Write the ANN `graph` to an ONNX file (opset 17), whole or not at all.

    The input and the output tensor are called as the first and the last layer; their batch dimension is ``batch``.

    Raises:
        ConversionError: `graph` holds a spiking layer (only the ANN can be written), or more than 2 GB of weights.
        BridgeError: onnx is not installed.
    """
    model = _model(graph)
    with replacing(path) as file:
        file.write(model.SerializeToString())


def _model(graph: LayerGraph) -> ModelProto:
    onnx = require_onnx()
    unsupported = [layer for layer in graph.layers[1:] if type(layer) not in RULES]
    if unsupported:
        first = unsupported[0]
        raise ConversionError(
            f"layer {first.name!r} ({type(first).__name__}) has no ONNX operator: only the ANN can be written"
        )
    size = 4 * sum(array.size for layer in graph for array in vars(layer).values() if isinstance(array, np.ndarray))
    if size > LARGEST_FILE:
        raise ConversionError(f"its weights take {size / 1e9:.1f} GB; an ONNX file holds at most 2 GB")
    model: ModelProto = onnx.helper.make_model(
        onnx.helper.make_graph([], "ann", [], []),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="qcfs-bridge",
    )

    def described(layer: Layer) -> Any:
        shape = ["batch", *graph.shapes[layer.name]]
        return onnx.helper.make_tensor_value_info(layer.name, onnx.TensorProto.FLOAT, shape)

    model.graph.input.append(described(graph.input))
    model.graph.output.append(described(graph.output))
    model.graph.value_info.extend(described(layer) for layer in graph.layers[1:-1])
    parts = Parts(model.graph)
    for layer in graph.layers[1:]:
        RULES[type(layer)](parts, layer, graph.shapes[layer.name])
    return model


@dataclass(frozen=True)
class Parts:
    """Adds nodes and initializers to `graph`, in place: helpers that copy would hold the weights several times."""

    graph: GraphProto

    def node(self, op: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node whose name is also that of its output tensor."""
        self.graph.node.append(require_onnx().helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def tensor(self, name: str, values: Any) -> str:
        array = np.asarray(values, dtype="<f4")
        self.graph.initializer.add(
            name=name, data_type=require_onnx().TensorProto.FLOAT, dims=array.shape, raw_data=array.tobytes()
        )
        return name


def _linear(parts: Parts, layer: Linear, shape: Shape) -> None:
    weight, bias = parts.tensor(f"{layer.name}.weight", layer.weight), parts.tensor(f"{layer.name}.bias", layer.bias)
    parts.node("Gemm", layer.name, (*layer.inputs, weight, bias), transB=1)


def _conv(parts: Parts, layer: Conv1d | Conv2d, shape: Shape) -> None:
    weight, bias = parts.tensor(f"{layer.name}.weight", layer.weight), parts.tensor(f"{layer.name}.bias", layer.bias)
    padding = _sizes(layer.padding)
    parts.node(
        "Conv",
        layer.name,
        (*layer.inputs, weight, bias),
        kernel_shape=layer.weight.shape[2:],
        strides=_sizes(layer.stride),
        pads=padding + padding,
        dilations=_sizes(layer.dilation),
        group=layer.groups,
    )


def _batch_norm(parts: Parts, layer: BatchNorm, shape: Shape) -> None:
    channels = len(layer.scale)
    values = {"scale": layer.scale, "shift": layer.shift, "mean": np.zeros(channels), "variance": np.ones(channels)}
    tensors = [parts.tensor(f"{layer.name}.{what}", array) for what, array in values.items()]
    parts.node("BatchNormalization", layer.name, (*layer.inputs, *tensors), epsilon=0.0)


def _scale(parts: Parts, layer: Scale, shape: Shape) -> None:
    scale = parts.tensor(f"{layer.name}.scale", aligned(layer.scale, len(shape)))
    parts.node("Mul", layer.name, (*layer.inputs, scale))


def _avg_pool(parts: Parts, layer: AvgPool2d, shape: Shape) -> None:
    parts.node(
        "AveragePool",
        layer.name,
        layer.inputs,
        kernel_shape=layer.kernel,
        strides=layer.stride,
        pads=layer.padding * 2,
        count_include_pad=1,
    )


def _sum_pool(parts: Parts, layer: SumPool2d, shape: Shape) -> None:
    """A convolution of each channel with ones: an average times the window's size would not be whole, once rounded."""
    ones = parts.tensor(f"{layer.name}.weight", np.ones((shape[0], 1, *layer.kernel)))
    parts.node(
        "Conv",
        layer.name,
        (*layer.inputs, ones),
        kernel_shape=layer.kernel,
        strides=layer.stride,
        pads=layer.padding * 2,
        group=shape[0],
    )


def _max_pool(parts: Parts, layer: MaxPool, shape: Shape) -> None:
    """MaxPool; a minimum is the maximum of what is times −1, times −1."""
    sizes = {"kernel_shape": layer.kernel, "strides": layer.stride, "dilations": layer.dilation}
    options = {**sizes, "pads": (*layer.padding, *layer.padding), "ceil_mode": int(layer.ceil)}
    if layer.minimum is None:
        parts.node("MaxPool", layer.name, layer.inputs, **options)
        return
    sign = parts.tensor(f"{layer.name}.sign", aligned(np.where(layer.minimum, -1.0, 1.0), len(shape)))
    turned = parts.node("Mul", f"{layer.name}/turned", (*layer.inputs, sign))
    largest = parts.node("MaxPool", f"{layer.name}/largest", (turned,), **options)
    parts.node("Mul", layer.name, (largest, sign))


def _flatten(parts: Parts, layer: Flatten, shape: Shape) -> None:
    parts.node("Flatten", layer.name, layer.inputs, axis=1)


def _add(parts: Parts, layer: Add, shape: Shape) -> None:
    parts.node("Add", layer.name, layer.inputs)


def _concat(parts: Parts, layer: Concat, shape: Shape) -> None:
    parts.node("Concat", layer.name, layer.inputs, axis=1)


def _activation(parts: Parts, layer: ClipFloorShift, shape: Shape) -> None:
    name = layer.name
    threshold = parts.tensor(f"{name}.threshold", aligned(layer.threshold, len(shape)))
    levels = parts.tensor(f"{name}.levels", layer.levels)
    half, zero, one = (parts.tensor(f"{name}.{what}", value) for what, value in CONSTANTS.items())
    scaled = parts.node("Mul", f"{name}/times_levels", (*layer.inputs, levels))
    level = parts.node("Div", f"{name}/over_threshold", (scaled, threshold))
    shifted = parts.node("Add", f"{name}/shift", (level, half))
    floored = parts.node("Floor", f"{name}/floor", (shifted,))
    share = parts.node("Div", f"{name}/over_levels", (floored, levels))
    clipped = parts.node("Clip", f"{name}/clip", (share, zero, one))
    parts.node("Mul", name, (threshold, clipped))


def _spike_count(parts: Parts, layer: SpikeCount, shape: Shape) -> None:
    """``clip(floor((d − θ − level) / θ) + 1, 0, steps)``: a true division, exact for whole numbers below 2^24."""
    name = layer.name
    threshold = aligned(layer.threshold, len(shape))
    first = parts.tensor(f"{name}.first", threshold + aligned(layer.level, len(shape)))
    above = parts.node("Sub", f"{name}/above", (*layer.inputs, first))
    times = parts.node("Div", f"{name}/over_threshold", (above, parts.tensor(f"{name}.threshold", threshold)))
    floored = parts.node("Floor", f"{name}/floor", (times,))
    more = parts.node("Add", f"{name}/more", (floored, parts.tensor(f"{name}.one", 1.0)))
    ends = (parts.tensor(f"{name}.zero", 0.0), parts.tensor(f"{name}.steps", layer.steps))
    parts.node("Clip", name, (more, *ends))


CONSTANTS = {"half": 0.5, "zero": 0.0, "one": 1.0}


def _sizes(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else value


RULES: dict[type[Layer], Callable[[Parts, Any, Shape], None]] = {
    Linear: _linear,
    Conv1d: _conv,
    Conv2d: _conv,
    BatchNorm: _batch_norm,
    Scale: _scale,
    AvgPool2d: _avg_pool,
    SumPool2d: _sum_pool,
    MaxPool: _max_pool,
    Flatten: _flatten,
    Add: _add,
    Concat: _concat,
    ClipFloorShift: _activation,
    SpikeCount: _spike_count,
}
