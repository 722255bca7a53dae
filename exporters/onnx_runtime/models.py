"""The two ONNX models of a spiking network: over T time steps, and of one step with the state going in and out.

Both are float32 and take any number of images. The layers are those of the graph, which has `unambiguous` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.converters.onnx_files.writer import IR_VERSION, LARGEST_FILE, OPSET, require_onnx
from bridge.errors import GraphError
from bridge.graph import EachLevel, LayerGraph, Shape
from exporters.onnx_runtime.names import (
    BATCH_SIZE,
    DRIVEN,
    FINAL,
    FIRED,
    GO_ON,
    GOES_ON,
    ITERATION,
    LOOP,
    MEMBRANE,
    MEMBRANES,
    NEXT,
    NEXT_ITERATION,
    ONE_ITERATION,
    OUTPUT,
    OVER_TIME,
    POTENTIAL,
    READOUT,
    READOUT_NOW,
    SIZE,
    SPIKES,
    STEPS,
    TIMES,
    WHOLE,
    X,
    zeros,
)
from exporters.onnx_runtime.rules import RULES, Parts, counts_steps, in_bytes, stateful

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

BATCH, TIME = "batch", "time"


def over_time(graph: LayerGraph, *, spikes: bool = False, membranes: bool = False) -> ModelProto:
    """From images ``x`` ``[B, *input]`` and ``steps``, an int64 scalar T, to what the network says over T steps.

    Outputs are ``output`` ``[B, ...]``, the mean of the readout over all steps or a staged network's sum, and
    ``readout`` ``[T, B, ...]``. With `spikes`, also ``<layer>_spikes``, bool ``[T, B, *shape]``, for each spiking
    layer; with `membranes`, ``<layer>_membranes``, float32, the potential after integration and before reset (in a
    staged network, after the window's).

    One ``Loop`` runs over the steps and carries the potentials, zero at first. What depends on the images alone is
    computed once, before it. (`Scan` is as fast but wants something to scan. Taking all steps layer by layer is faster
    for one image, not for 32, and takes memory that grows with T.) A grouped network has no state: it is computed once
    and repeated T times, without a loop, and ``output`` is that of any step.

    Raises `GraphError`: a layer has no rule, or the weights take more than 2 GB.
    """
    onnx = require_onnx()
    taken = "sum" if graph.staged else "mean"  # of a grouped network's steps, which are all alike
    model = _empty(graph, f"{X} and the number of time steps in; the {taken} of the readout over the steps out")
    parts = _parts(model.graph, graph)
    model.graph.input.append(_float(X, graph.input.shape, f"images, the same at every step: {BATCH} first"))
    model.graph.input.append(onnx.helper.make_tensor_value_info(STEPS, onnx.TensorProto.INT64, [], "T, at least 1"))
    model.graph.output.append(_float(OUTPUT, _out(graph), f"{taken} of {READOUT} over all steps"))
    model.graph.output.append(_float(READOUT, _out(graph), "output of the last layer at each step", over_time=True))
    for name in graph.spiking:
        shape = graph.shapes[name]
        if spikes:
            model.graph.output.append(_described(name + SPIKES, onnx.TensorProto.BOOL, (TIME, BATCH, *shape)))
        if membranes:
            model.graph.output.append(_float(name + MEMBRANES, shape, over_time=True))
    if graph.grouped:
        _repeat(parts, graph, spikes, membranes)
    else:
        _loop(model, parts, graph, spikes, membranes)
    return _checked(model)


def _loop(model: ModelProto, parts: Parts, graph: LayerGraph, spikes: bool, membranes: bool) -> None:
    """Add to `model` the loop over time, what comes before it, and the output of all steps."""
    onnx = require_onnx()
    for layer in graph.layers[1:]:
        if layer.name in graph.constant:
            parts.layer(layer, graph.shapes[layer.name])
    initial = _zeros(parts, [graph.shapes[name] for name in graph.spiking])
    recorded = []
    for name in graph.spiking:
        shape = graph.shapes[name]
        # A loop may change the shape of what it carries, so that nothing could infer this.
        model.graph.value_info.append(_float(name + FINAL, shape))
        if spikes:
            recorded.append((name + SPIKES, _described(name + FIRED, onnx.TensorProto.BOOL, (BATCH, *shape))))
        if membranes:
            recorded.append((name + MEMBRANES, _float(name + MEMBRANE, shape)))
    loop = model.graph.node.add(
        op_type="Loop",
        name=LOOP,
        input=[STEPS, "", *(initial[graph.shapes[name]] for name in graph.spiking)],
        output=[*(name + FINAL for name in graph.spiking), READOUT, *(name for name, _ in recorded)],
    )
    body = loop.attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g
    _fill_body(body, graph)
    body.output.extend(info for _, info in recorded)
    if graph.staged:
        axes = parts.stored(OVER_TIME, np.array([0], np.int64))
        parts.node("ReduceSum", OUTPUT, (READOUT, axes), keepdims=0)
    else:
        parts.node("ReduceMean", OUTPUT, (READOUT,), axes=[0], keepdims=0)


def _repeat(parts: Parts, graph: LayerGraph, spikes: bool, membranes: bool) -> None:
    """Add the layers of a grouped network, its output, and its values at each of T steps: the same."""
    for layer in graph.layers[1:]:
        parts.layer(layer, graph.shapes[layer.name])
    parts.node("Identity", OUTPUT, (graph.output.name,))
    parts.node("Unsqueeze", TIMES, (STEPS, parts.stored(OVER_TIME, np.array([0], np.int64))))

    def repeat(name: str, value: str, shape: Sequence[int]) -> None:
        size = parts.stored(name + SIZE, np.array(shape, np.int64))
        whole = parts.node("Concat", name + WHOLE, (TIMES, size), axis=0)
        parts.node("Expand", name, (value, whole))

    repeat(READOUT, graph.output.name, [1] * (len(_out(graph)) + 1))
    for name in graph.spiking:
        levels, *each = graph.shapes[name]
        ones = [1] * len(each)
        if spikes:
            repeat(name + SPIKES, name + FIRED, (1, 1, *ones))
        if membranes:  # the drive, the same at each level
            repeat(name + MEMBRANES, name + DRIVEN, (1, levels, *ones))


def one_step(graph: LayerGraph) -> ModelProto:
    """One time step, for streaming: state in, state out, zeros at first. The images may differ from step to step.

    Inputs are ``x`` ``[B, *input]`` and, for each spiking layer, ``<layer>_potential`` ``[B, *shape]``; outputs are
    ``readout`` ``[B, ...]`` and ``<layer>_potential_next``, the input of the same layer at the next step. That of a
    staged network also takes ``iteration``, an int64 scalar, the number of the step from 0, and gives
    ``iteration_next``. A grouped network has no state: ``readout`` is its answer to ``x``.

    Raises `GraphError`: a layer has no rule, or the weights take more than 2 GB.
    """
    model = _empty(graph, f"one time step: {X} and the potentials in; the readout and the potentials out")
    parts = _parts(model.graph, graph)
    model.graph.input.append(_float(X, graph.input.shape, "images of this step"))
    model.graph.output.append(_float(READOUT, _out(graph), "output of the last layer at this step"))
    for name in stateful(graph):
        model.graph.input.append(_float(name + POTENTIAL, graph.shapes[name], "zeros at the first step"))
        model.graph.output.append(_float(name + NEXT, graph.shapes[name], f"{name + POTENTIAL} of the next step"))
    if counts_steps(graph):
        kinds = require_onnx().TensorProto
        model.graph.input.append(_described(ITERATION, kinds.INT64, (), "number of the step, 0 at the first"))
        model.graph.output.append(_described(NEXT_ITERATION, kinds.INT64, (), f"{ITERATION} of the next step"))
        one = parts.stored(ONE_ITERATION, np.array(1, np.int64))
        parts.node("Add", NEXT_ITERATION, (ITERATION, one))
    for layer in graph.layers[1:]:
        parts.layer(layer, graph.shapes[layer.name])
    parts.node("Identity", READOUT, (graph.output.name,))
    return _checked(model)


def check(graph: LayerGraph) -> None:
    """Raise `GraphError` unless these models can hold `graph`."""
    layers = [layer.layer if isinstance(layer, EachLevel) else layer for layer in graph.layers[1:]]
    for layer in layers:
        if type(layer) not in RULES:
            raise GraphError(f"layer {layer.name!r}: there is no ONNX operator for a {type(layer).__name__} yet")
    size = 4 * sum(array.size for layer in layers for array in vars(layer).values() if isinstance(array, np.ndarray))
    if size > LARGEST_FILE:
        raise GraphError(f"its weights take {size / 1e9:.1f} GB; an ONNX file holds at most 2 GB")


def _fill_body(body: GraphProto, graph: LayerGraph) -> None:
    """Make `body` one iteration of the loop: the layers that are not the same at every step, their weights within."""
    onnx = require_onnx()
    body.name = "one_time_step"
    parts = _parts(body, graph)
    body.input.append(onnx.helper.make_tensor_value_info(ITERATION, onnx.TensorProto.INT64, []))
    body.input.append(onnx.helper.make_tensor_value_info(GO_ON, onnx.TensorProto.BOOL, []))
    body.output.append(onnx.helper.make_tensor_value_info(GOES_ON, onnx.TensorProto.BOOL, []))
    parts.node("Identity", GOES_ON, (GO_ON,))
    for layer in graph.layers[1:]:
        if layer.name not in graph.constant:
            parts.layer(layer, graph.shapes[layer.name])
    for name in graph.spiking:
        body.input.append(_float(name + POTENTIAL, graph.shapes[name]))
        body.output.append(_float(name + NEXT, graph.shapes[name]))
    parts.node("Identity", READOUT_NOW, (graph.output.name,))
    body.output.append(_float(READOUT_NOW, _out(graph)))


def _zeros(parts: Parts, shapes: Sequence[Shape]) -> dict[Shape, str]:
    """Zeros of each shape, one row an image of ``x``."""
    batch = parts.node("Shape", BATCH_SIZE, (X,), start=0, end=1)
    result = {}
    for shape in dict.fromkeys(shapes):
        name = zeros(shape)
        size = parts.stored(name + SIZE, np.array(shape, np.int64))
        whole = parts.node("Concat", name + WHOLE, (batch, size), axis=0)
        result[shape] = parts.node("ConstantOfShape", name, (whole,))
    return result


def _empty(graph: LayerGraph, says: str) -> ModelProto:
    onnx = require_onnx()
    check(graph)
    kind = "neurons without state, in groups" if graph.grouped else "integrate-and-fire neurons with soft reset"
    model: ModelProto = onnx.helper.make_model(
        onnx.helper.make_graph([], "spiking_network", [], []),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="qcfs-bridge",
        doc_string=f"A spiking network of {graph.neurons} {kind}: {says}.",
    )
    return model


def _parts(target: GraphProto, graph: LayerGraph) -> Parts:
    return Parts(target, whole=graph.integer, in_bytes=in_bytes(graph), shapes=graph.shapes)


def _checked(model: ModelProto) -> ModelProto:
    """`model` with the types and shapes of all its values, as ONNX's own inference finds them."""
    onnx = require_onnx()
    result: ModelProto = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return result


def _out(graph: LayerGraph) -> Shape:
    return graph.shapes[graph.output.name]


def _float(name: str, shape: Shape, says: str = "", *, over_time: bool = False) -> Any:
    """Description of a float32 value ``[B, *shape]``, or ``[T, B, *shape]``."""
    leading = (TIME, BATCH) if over_time else (BATCH,)
    return _described(name, require_onnx().TensorProto.FLOAT, (*leading, *shape), says)


def _described(name: str, kind: int, shape: Sequence[int | str], says: str = "") -> Any:
    return require_onnx().helper.make_tensor_value_info(name, kind, list(shape), says)
