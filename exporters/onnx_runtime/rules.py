"""How each kind of layer is written in ONNX: what one time step adds to a graph of standard operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.converters.onnx_files.writer import RULES as ANN_RULES
from bridge.converters.onnx_files.writer import Parts as AnnParts
from bridge.converters.onnx_files.writer import require_onnx
from bridge.graph import (
    Add,
    AtLeast,
    AvgPool2d,
    BiasOnce,
    Conv1d,
    Conv2d,
    EachLevel,
    Flatten,
    GroupFire,
    GroupSum,
    Impulse,
    IntegrateFire,
    Layer,
    LayerGraph,
    Linear,
    Scale,
    Shape,
    SumPool2d,
    WindowFire,
    aligned,
)
from bridge.graph.ranges import exact_in_int8, ranges, small
from exporters.onnx_runtime.names import (
    ABOVE,
    BEFORE_END,
    BYTES,
    DRIVEN,
    EACH,
    FIRED,
    FIRST,
    FIRST_BIAS,
    IN_WINDOW,
    INPUT_BYTES,
    ITERATION,
    MEMBRANE,
    MERGED,
    NEXT,
    OPEN,
    POTENTIAL,
    SUMS,
    SUMS_INT32,
    TAKEN,
)

MANY = 1024
"""Whole-number parameters from which on a file holds them as int8: a quarter of the bytes, for one more node."""
LARGE = 2**18
"""Weights of a `Linear` from which on `MatMulInteger` gains more than its three further nodes cost.

Measured with ONNX Runtime 1.32 on two cores with AVX-512 VNNI, against float32 and exact like it: as fast for 64 × 512
weights, 2 to 12 times as fast for 512 × 512, 2 to 3 times as fast for 4096 × 4096. Convolutions stay in float32:
`ConvInteger` takes 3 to 14 times as long, and `QLinearConv`, which is faster, keeps only 8 bits of each sum.
"""


@dataclass(frozen=True)
class Parts(AnnParts):
    """Adds nodes and initializers to a graph in place.

    `in_bytes` are the layers whose sums are done in integers, `shapes` those of all layers, without batch.
    """

    whole: bool
    in_bytes: frozenset[str]
    shapes: Mapping[str, Shape]

    def tensor(self, name: str, values: Any) -> str:
        """Add float32 `values`; many of them that fit are stored as int8, which every runtime widens as it loads."""
        array = np.asarray(values)
        if not self.whole or array.size < MANY or not _fits_int8(array):
            return super().tensor(name, array)
        stored = self.stored(name + BYTES, array.astype(np.int8))
        return self.node("Cast", name, (stored,), to=require_onnx().TensorProto.FLOAT)

    def stored(self, name: str, array: NDArray[Any]) -> str:
        """Add `array` in its own type."""
        self.graph.initializer.append(require_onnx().numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def layer(self, layer: Layer, shape: Shape) -> None:
        """Add one step of `layer`, whose output has `shape`."""
        RULES[type(layer)](self, layer, shape)


def counts_steps(graph: LayerGraph) -> bool:
    """Whether a layer of `graph` needs the number of the step."""
    return any(isinstance(layer, WindowFire | Impulse | BiasOnce) for layer in graph)


def stateful(graph: LayerGraph) -> tuple[str, ...]:
    """The spiking layers that have potentials: all but groups."""
    return tuple(name for name in graph.spiking if not isinstance(graph[name], GroupFire))


def in_bytes(graph: LayerGraph) -> frozenset[str]:
    """The layers of a whole-number network that are exact in integer arithmetic, and faster so."""
    if not graph.integer:
        return frozenset()
    bounds = ranges(graph)
    counts: dict[str, bool] = {}
    for layer in graph:
        heard = bool(layer.inputs) and all(counts[source] for source in layer.inputs)
        counts[layer.name] = small(layer, heard, bounds[layer.name])
    return frozenset(
        layer.name
        for layer in graph
        if isinstance(layer, Linear)
        and layer.weight.size >= LARGE
        and counts[layer.inputs[0]]
        and exact_in_int8(layer, bounds[layer.inputs[0]], bounds[layer.name])
    )


def _fits_int8(array: NDArray[Any]) -> bool:
    return bool((array >= -128).all() and (array <= 127).all() and (array == np.rint(array)).all())


def _linear(parts: Parts, layer: Linear, shape: Shape) -> None:
    if layer.name not in parts.in_bytes:
        ANN_RULES[Linear](parts, layer, shape)
        return
    kinds, name = require_onnx().TensorProto, layer.name
    heard = parts.node("Cast", name + INPUT_BYTES, layer.inputs, to=kinds.UINT8)
    weight = parts.stored(f"{name}.weight", layer.weight.T.astype(np.int8))
    sums = parts.node("MatMulInteger", name + SUMS_INT32, (heard, weight))
    real = parts.node("Cast", name + SUMS, (sums,), to=kinds.FLOAT)
    parts.node("Add", name, (real, parts.tensor(f"{name}.bias", layer.bias)))


def _integrate_fire(parts: Parts, layer: IntegrateFire, shape: Shape) -> None:
    """``u = v + I;  s = [u ≥ level];  v' = u − threshold · s``. What is ``v`` and ``v'`` the graph around it says."""
    name = layer.name
    level = parts.tensor(f"{name}.level", _one_or_all(layer.level, shape))
    membrane = parts.node("Add", name + MEMBRANE, (*layer.inputs, name + POTENTIAL))
    fired = parts.node("GreaterOrEqual", name + FIRED, (membrane, level))
    spikes = taken = parts.node("Cast", name, (fired,), to=require_onnx().TensorProto.FLOAT)
    if (layer.threshold != 1).any():
        threshold = parts.tensor(f"{name}.threshold", _one_or_all(layer.threshold, shape))
        taken = parts.node("Mul", name + TAKEN, (spikes, threshold))
    parts.node("Sub", name + NEXT, (membrane, taken))


def _window_fire(parts: Parts, layer: WindowFire, shape: Shape) -> None:
    """``u = v + I;  u −= threshold if step ≥ opens;  s = [u ≥ level] in the window;  v' = u``."""
    name, kinds = layer.name, require_onnx().TensorProto
    opens = parts.stored(f"{name}.opens", np.array(layer.opens, np.int64))
    end = parts.stored(f"{name}.end", np.array(layer.opens + layer.steps, np.int64))
    level = parts.tensor(f"{name}.level", layer.level)
    opened = parts.node("GreaterOrEqual", name + OPEN, (ITERATION, opens))
    threshold = parts.tensor(f"{name}.threshold", _one_or_all(layer.threshold, shape))
    zero = parts.tensor(f"{name}.zero", 0.0)
    taken = parts.node("Where", name + TAKEN, (opened, threshold, zero))
    driven = parts.node("Add", name + DRIVEN, (name + POTENTIAL, *layer.inputs))
    membrane = parts.node("Sub", name + MEMBRANE, (driven, taken))
    parts.node("Identity", name + NEXT, (membrane,))
    above = parts.node("GreaterOrEqual", name + ABOVE, (membrane, level))
    before_end = parts.node("Less", name + BEFORE_END, (ITERATION, end))
    in_window = parts.node("And", name + IN_WINDOW, (opened, before_end))
    fired = parts.node("And", name + FIRED, (above, in_window))
    parts.node("Cast", name, (fired,), to=kinds.FLOAT)


def _impulse(parts: Parts, layer: Impulse, shape: Shape) -> None:
    first, zero = _first(parts, layer), parts.tensor(f"{layer.name}.zero", 0.0)
    parts.node("Where", layer.name, (first, *layer.inputs, zero))


def _bias_once(parts: Parts, layer: BiasOnce, shape: Shape) -> None:
    first, zero = _first(parts, layer), parts.tensor(f"{layer.name}.zero", 0.0)
    bias = parts.node("Where", layer.name + FIRST_BIAS, (first, parts.tensor(f"{layer.name}.bias", layer.bias), zero))
    parts.node("Add", layer.name, (*layer.inputs, bias))


def _first(parts: Parts, layer: Layer) -> str:
    first = parts.stored(f"{layer.name}.first", np.array(0, np.int64))
    return parts.node("Equal", layer.name + FIRST, (ITERATION, first))


def _at_least(parts: Parts, layer: AtLeast, shape: Shape) -> None:
    level = parts.tensor(f"{layer.name}.level", _one_or_all(layer.level, shape))
    fired = parts.node("GreaterOrEqual", layer.name + FIRED, (*layer.inputs, level))
    parts.node("Cast", layer.name, (fired,), to=require_onnx().TensorProto.FLOAT)


def _group_fire(parts: Parts, layer: GroupFire, shape: Shape) -> None:
    """``s_k = [d ≥ level_k]``, all at once: levels are a dimension before the channels."""
    name, level = layer.name, layer.level
    if level.ndim == 2 and bool((level == level[:, :1]).all()):
        level = level[:, :1]
    axes = parts.stored(f"{name}.axes", np.array([1], np.int64))
    driven = parts.node("Unsqueeze", name + DRIVEN, (*layer.inputs, axes))
    levels = parts.tensor(f"{name}.level", aligned(level, len(shape)))
    fired = parts.node("GreaterOrEqual", name + FIRED, (driven, levels))
    parts.node("Cast", name, (fired,), to=require_onnx().TensorProto.FLOAT)


def _each_level(parts: Parts, layer: EachLevel, shape: Shape) -> None:
    """The levels of all images are so many images to the layer. A threshold takes them as they are."""
    name, inner = layer.name, layer.layer
    if isinstance(inner, AtLeast):
        _at_least(parts, replace(inner, name=name, inputs=layer.inputs), shape[1:])
        return
    (source,) = layer.inputs
    before = parts.stored(f"{name}.before", np.array((-1, *parts.shapes[source][1:]), np.int64))
    after = parts.stored(f"{name}.after", np.array((-1, *shape), np.int64))
    merged = parts.node("Reshape", name + MERGED, (source, before))
    parts.layer(replace(inner, name=name + EACH, inputs=(merged,)), shape[1:])
    parts.node("Reshape", name, (name + EACH, after))


def _group_sum(parts: Parts, layer: GroupSum, shape: Shape) -> None:
    axes = parts.stored(f"{layer.name}.axes", np.array([1], np.int64))
    parts.node("ReduceSum", layer.name, (*layer.inputs, axes), keepdims=0)


def _one_or_all(values: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """A scalar where all channels share one value, which is faster; else one a channel."""
    return values[0] if bool((values == values[0]).all()) else aligned(values, len(shape))


RULES: dict[type[Layer], Callable[[Parts, Any, Shape], None]] = {
    **{kind: ANN_RULES[kind] for kind in (Conv1d, Conv2d, Scale, AvgPool2d, SumPool2d, Flatten, Add)},
    Linear: _linear,
    IntegrateFire: _integrate_fire,
    WindowFire: _window_fire,
    Impulse: _impulse,
    BiasOnce: _bias_once,
    AtLeast: _at_least,
    GroupFire: _group_fire,
    EachLevel: _each_level,
    GroupSum: _group_sum,
}
