"""Spiking layer graph ⇄ `nir.NIRGraph`. The only file that knows how the neuron is written in NIR.

NIR has no soft-reset integrate-and-fire neuron, and its ``IF`` resets to a value ("hard"). The neuron is therefore
three primitives in a loop, each exactly what NIR says it is::

    → I(r = 1) ──→ Threshold(θ') ──→          u += I;  s = [u > θ']
        ↑               │                     θ' = the largest float32 below the level, so u > θ'  ⟺  u ≥ level
        └── Scale(−θ) ←─┘                     u −= θ·s  (one step later, before anything reads u again: the same sums)

θ is the threshold that a spike takes off, 1 unless the network is in whole numbers. Among those, u > level − 1 says the
same as u ≥ level, and θ' = level − 1 keeps the whole graph in them.

Time is discrete with dt = 1. What a reader needs is in this structure; the graph's metadata only repeats it.
"""

from __future__ import annotations

import graphlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial, singledispatch
from typing import Any

import nir
import numpy as np

from bridge.converters.nir_graphs import grouped, staged
from bridge.converters.nir_graphs.declared import check, real, shape_of, weights, whole
from bridge.converters.nir_graphs.wiring import Wiring
from bridge.errors import GraphError
from bridge.graph import (
    Add,
    Affine,
    Array,
    AvgPool2d,
    Conv1d,
    Conv2d,
    EachLevel,
    Flatten,
    GroupFire,
    Input,
    IntegrateFire,
    Layer,
    LayerGraph,
    Linear,
    Scale,
    Shape,
    SumPool2d,
    pointwise,
    same_padding,
    spread,
)
from bridge.graph.ranges import EXACT, potentials, ranges

METADATA = {
    "dt": 1.0,
    "neuron": "I -> Threshold -> Scale(-theta) -> I: integrate-and-fire, soft reset; fires on level, not on crossing",
    "time": "layers are synchronous; the input is constant; the output is the mean over time steps",
}

STAGED = {
    "neuron": "integrates, then fires in a window of its own, soft reset: see the nodes around each Threshold(3/2)",
    "time": "layers are synchronous; the input counts at the first step; the output is the sum over all steps",
}

GROUPED = {
    "neuron": "a group of thresholds that fire at once, one for each level of the activation; no state",
    "time": "one step is enough: every step's output is the answer",
}

HARD_RESET = (
    "resets to v_reset when it fires, which is not the soft reset that QCFS converts to; "
    "write the network with SpikingNetwork.to_nir()"
)


class RuleError(GraphError):
    """A graph is made of this package's neurons, and breaks one of their rules: it is no other tool's."""


def to_nir(graph: LayerGraph, neuron: str = "exact") -> nir.NIRGraph:
    """The spiking `graph` in NIR. Layer names become node names; parameters are float32.

    `neuron` is "exact", the loop above, or "if": one ``nir.IF`` a layer, with r = 1 and the layer's threshold, which
    starts at 0 and resets to 0. That is another network, for tools that know no other neuron. They know no ``Scale``
    either: there a sum is several edges into one node, as NIR has it, and a factor a convolution or an affine layer.
    """
    if neuron == "if":
        graph = graph.rewrite({layer.name: [_mixed(graph, layer)] for layer in graph if isinstance(layer, Scale)})
    nodes: dict[str, nir.NIRNode] = {}
    edges: list[tuple[str, str]] = []
    summed: dict[str, list[str]] = {}  # by the Add that has no node, what it adds
    members: grouped.Members = {}

    def feed(source: str, target: str) -> None:
        edges.extend((one, target) for one in summed.get(source, [source]))

    for layer in graph:
        shape = graph.shapes[layer.name]
        if neuron == "if" and isinstance(layer, Add):
            parts = [one for source in layer.inputs for one in summed.get(source, [source])]
            if len(set(parts)) == len(parts):  # an edge can be there only once
                summed[layer.name] = parts
                continue
        if neuron == "if" and isinstance(layer, staged.KINDS | grouped.KINDS):
            raise GraphError(f"layer {layer.name!r}: nir.IF fires at any step; write neuron='exact'")
        if isinstance(layer, grouped.KINDS):
            added, found = grouped.write(graph, layer, members, _write, partial(_free, graph, nodes))
            nodes |= added
            for source, target in found:
                feed(source, target)
            continue
        if isinstance(layer, staged.KINDS):
            written, inner = staged.write(layer, shape, partial(_free, graph, nodes), graph.integer)
            nodes |= written
            for source, target in inner:
                feed(source, target)
        elif not isinstance(layer, IntegrateFire):
            nodes[layer.name] = _write(layer, graph.shapes[layer.inputs[0]] if layer.inputs else shape)
            for source in layer.inputs:
                feed(source, layer.name)
        elif neuron == "if":
            threshold = _spread(layer.threshold, shape)
            nodes[layer.name] = nir.IF(r=np.ones(shape, np.float32), v_threshold=threshold, v_reset=0 * threshold)
            feed(layer.inputs[0], layer.name)
        else:
            membrane, reset = graph.free(f"{layer.name}_membrane"), graph.free(f"{layer.name}_reset")
            nodes[membrane] = nir.I(r=np.ones(shape, np.float32))
            below = layer.level - 1 if graph.integer else np.nextafter(layer.level, np.float32(-np.inf))
            nodes[layer.name] = nir.Threshold(threshold=_spread(below, shape))
            nodes[reset] = nir.Scale(scale=_spread(-layer.threshold, shape))
            feed(layer.inputs[0], membrane)
            edges += [(membrane, layer.name), (layer.name, reset), (reset, membrane)]
    output = graph.free("output")
    nodes[output] = nir.Output(output_type={"output": np.array(graph.shapes[graph.output.name])})
    feed(graph.output.name, output)
    # nir's own type inference takes kernels for square and groups for 1, so the types are set here and then checked.
    # Files with other kernels or groups need nir.read(path, type_check=False), as `bridge.nir_graph.read` does.
    metadata = METADATA | (STAGED if graph.staged else GROUPED if graph.grouped else {})
    if neuron == "if":
        metadata |= {"neuron": "IF: integrate-and-fire, hard reset"}
    result = nir.NIRGraph(nodes, edges, metadata=metadata, type_check=False)
    for layer in graph:
        node = nodes.get(layer.name)
        if node is not None and layer.inputs and not isinstance(layer, IntegrateFire | staged.KINDS | grouped.KINDS):
            node.input_type = {"input": np.array(graph.shapes[layer.inputs[0]])}
            node.output_type = {"output": np.array(graph.shapes[layer.name])}
    result.check_types()
    return result


def _free(graph: LayerGraph, nodes: Mapping[str, nir.NIRNode], name: str) -> str:
    """`name`, or `name` with as many underscores as it takes to be no layer's and no node's."""
    while name in graph.shapes or name in nodes:
        name += "_"
    return name


def _mixed(graph: LayerGraph, layer: Scale) -> Layer:
    """The `layer` of `graph` as an affine one, whose matrix is diagonal."""
    if layer.per_position:
        raise GraphError(
            f"layer {layer.name!r}: its factors differ within a channel, and the convolution that neuron='if' has in "
            "its place cannot do so; write neuron='exact', or use average pools that count their padding "
            "(count_include_pad=True, ceil_mode=False), which need no such factors"
        )
    scale = np.asarray(layer.scale, np.float32)
    mixed = pointwise(layer.name, layer.inputs[0], np.diag(scale), len(graph.shapes[layer.name]))
    return replace(mixed, bias=np.zeros_like(scale))


def from_nir(graph: nir.NIRGraph) -> LayerGraph:
    """The layers of a NIR `graph`, its neurons recognised by their structure alone, whatever the nodes are called.

    Raises:
        GraphError: a node is unknown or out of place, an edge leads nowhere, shapes do not fit, a cycle is not a
            neuron, or a network in whole numbers can reach sums beyond 2^24. The message names the node.
    """
    wiring = Wiring(graph)
    integer = _in_integers(graph)
    groups = grouped.Found(wiring.nodes, wiring.before, wiring.after, layer_of, whole=integer)
    found = groups if groups.layers else staged.Found(wiring.nodes, wiring.before, wiring.after, whole=integer)
    layers: dict[str, Layer] = dict(found.layers)
    inside: set[str] = set(found.inside)
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Threshold) and name not in layers and name not in inside:
            membrane, reset, drives = wiring.neuron(name)
            inside |= {membrane, reset}
            layers[name] = IntegrateFire(
                name=name,
                inputs=(_sum(name, drives, layers),),
                level=_per_channel(node.threshold, name, "threshold").astype(np.float64) + 1,
                threshold=-_per_channel(wiring.nodes[reset].scale, reset, "scale"),
            )
    for name, node in graph.nodes.items():
        if name in inside or name in layers or isinstance(node, nir.Output):
            continue
        inputs = wiring.before[name]
        if not inputs and not isinstance(node, nir.Input):
            raise GraphError(f"node {name!r} ({type(node).__name__}): no edge leads into it")
        try:
            if len(inputs) == 2 and isinstance(node, nir.Scale) and (np.asarray(node.scale) == 1).all():
                layers[name] = Add(name=name, inputs=(inputs[0], inputs[1]))
            else:
                layers[name] = layer_of(node, name, (_sum(name, inputs, layers),) if inputs else ())
        except (AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
            if isinstance(error, GraphError):
                raise
            raise GraphError(f"node {name!r} ({type(node).__name__}): malformed parameters ({error})") from error
    for layer in layers.values():
        if isinstance(layer, Affine):
            finite = bool(np.isfinite(layer.weight).all() and np.isfinite(layer.bias).all())
            layer.expect(finite, "finite weights and biases", "NaN or infinity among them")
    output = _sum(wiring.output, wiring.before[wiring.output], layers)
    order = _ordered({name: layer.inputs for name, layer in layers.items()}, output)
    result = LayerGraph(tuple(layers[name] for name in order))
    try:
        staged.check_windows(result)
        _check_declared(graph, result, wiring.output)
        _check_bounds(result)
    except GraphError as error:
        raise RuleError(str(error)) from error
    plain = [name for name in result.spiking if name not in found.layers]
    if plain and len(plain) < len(result.spiking):
        other = next(name for name in result.spiking if name not in plain)
        raise GraphError(
            f"node {plain[0]!r} fires at any time step, {other!r} in a window or a group: one or the other"
        )
    return result.rewrite({name: [_with_level(result, name, graph.nodes[name])] for name in plain})


def _check_bounds(graph: LayerGraph) -> None:
    """Raise `GraphError`, naming the layer, if a network in integers can reach sums that float32 does not hold."""
    if not graph.integer:
        return
    for name, bounds in ranges(graph).items():
        largest = float(bounds.partial.max())
        graph[name].expect(largest <= EXACT, "whole numbers with sums up to 2^24, exact in float32", largest)
    for name, reach in potentials(graph).items():
        most = float(reach.max())
        graph[name].expect(most <= EXACT, "a potential up to 2^24, exact in float32", most)


def _in_integers(graph: nir.NIRGraph) -> bool:
    """Whether `graph` computes whole numbers only: all its parameters are some, and nothing is averaged."""
    if any(isinstance(node, nir.AvgPool2d) for node in graph.nodes.values()):
        return False
    for key in ("threshold", "scale", "bias", "weight"):
        for node in graph.nodes.values():
            value = np.asarray(getattr(node, key, 0.0))
            if value.dtype.kind not in "biuf" or not (value == np.rint(value)).all():
                return False
    return True


def _check_declared(graph: nir.NIRGraph, layers: LayerGraph, output: str) -> None:
    """Hold what the nodes of `graph` say of their shapes against the `layers` read from them."""
    nodes = {layer.name: graph.nodes[layer.name] for layer in layers if layer.name in graph.nodes}
    nodes[output] = graph.nodes[output]
    sources = {name: layers[name].inputs if name != output else (layers.output.name,) for name in nodes}
    given = {**layers.shapes, output: layers.shapes[layers.output.name]}
    for layer in layers:
        if isinstance(layer, GroupFire | EachLevel):  # each of its nodes is one level
            given[layer.name] = given[layer.name][1:]
    taken = {name: given[sources[name][0]] if sources[name] else given[name] for name in nodes}
    kinds = {layer.name: layer.layer if isinstance(layer, EachLevel) else layer for layer in layers}
    check(nodes, kinds | {output: None}, sources, taken, given)


def _with_level(graph: LayerGraph, name: str, node: nir.Threshold) -> Layer:
    """The neurons `name` of `graph` with the smallest potential above the threshold of `node` as their level."""
    above = _per_channel(node.threshold, name, "threshold")
    return replace(graph[name], level=above + 1 if graph.integer else np.nextafter(above, np.float32(np.inf)))  # type: ignore[call-arg]


def _sum(name: str, sources: Sequence[str], layers: dict[str, Layer]) -> str:
    """What feeds the node `name`: its one source, or the sum of several, as `Add` layers put into `layers`."""
    total = sources[0]
    for number, source in enumerate(sources[1:], start=1):
        joined = f"{name}_sum{number}"
        while joined in layers:
            joined += "_"
        layers[joined] = Add(name=joined, inputs=(total, source))
        total = joined
    return total


def _ordered(sources: Mapping[str, Sequence[str]], output: str) -> list[str]:
    """Names in topological order, by name where several are possible, so that files and objects read alike."""
    sorter = graphlib.TopologicalSorter(sources)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        raise GraphError(f"a cycle that is not a neuron: {' → '.join(error.args[1])}") from error
    order: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        missing = [name for name in ready if name not in sources]
        if missing:
            raise GraphError(f"{missing} feed layers but compute nothing that can be read")
        order += ready
        sorter.done(*ready)
    if order[-1] != output:
        raise GraphError(f"the Output reads {output!r}, but {order[-1]!r} comes last: some node's output goes nowhere")
    return order


def _spread(values: Array, shape: Shape) -> Array:
    """`values` in float32, repeated over `shape` ``[C, ...]``; NIR wants one for every neuron."""
    return np.array(spread(values, shape), dtype=np.float32)


def _per_channel(values: Any, name: str, what: str) -> Array:
    """The value of each channel of an array ``[C, ...]``. Raises `GraphError` if a channel holds several."""
    array = _reduced(values, name, what)
    if array.ndim > 1:
        raise GraphError(f"node {name!r}: its values differ within a channel; one value a channel is supported")
    return array


def _reduced(values: Any, name: str, what: str) -> Array:
    """The value of each channel of an array ``[C, ...]``, or all of its values if a channel holds several."""
    array = real(values, name, what)
    if array.ndim == 0:
        raise GraphError(f"node {name!r}: expected an array of the full neuron shape, got a scalar")
    flat = array.reshape(len(array), -1)
    return np.ascontiguousarray(flat[:, 0] if (flat == flat[:, :1]).all() else array)


@singledispatch
def _write(layer: Layer, shape: Shape) -> nir.NIRNode:
    """The NIR node of a stateless layer; `shape` is that of its input."""
    raise GraphError(f"layer {layer.name!r} ({type(layer).__name__}) has no form in NIR; convert the model first")


@_write.register
def _(layer: Input, shape: Shape) -> nir.NIRNode:
    return nir.Input(input_type={"input": np.array(shape)})


@_write.register
def _(layer: Linear, shape: Shape) -> nir.NIRNode:
    return nir.Affine(weight=layer.weight, bias=layer.bias)


@_write.register(Conv1d)  # two, not Conv1d | Conv2d, for Python 3.10
@_write.register(Conv2d)
def _(layer: Conv1d | Conv2d, shape: Shape) -> nir.NIRNode:
    kind, size = (nir.Conv2d, (shape[1], shape[2])) if isinstance(layer, Conv2d) else (nir.Conv1d, shape[1])
    return kind(
        input_shape=size,
        weight=layer.weight,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias,
    )


@_write.register
def _(layer: Add, shape: Shape) -> nir.NIRNode:
    return nir.Scale(scale=np.ones(shape, np.float32))  # a node for the sum: NIR adds up the edges that lead into it


@_write.register
def _(layer: AvgPool2d, shape: Shape) -> nir.NIRNode:
    return nir.AvgPool2d(
        kernel_size=np.array(layer.kernel), stride=np.array(layer.stride), padding=np.array(layer.padding)
    )


@_write.register
def _(layer: SumPool2d, shape: Shape) -> nir.NIRNode:
    return nir.SumPool2d(
        kernel_size=np.array(layer.kernel), stride=np.array(layer.stride), padding=np.array(layer.padding)
    )


@_write.register
def _(layer: Flatten, shape: Shape) -> nir.NIRNode:
    return nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1)


@_write.register
def _(layer: Scale, shape: Shape) -> nir.NIRNode:
    return nir.Scale(scale=_spread(layer.scale, shape))


@singledispatch
def layer_of(node: nir.NIRNode, name: str, inputs: tuple[str, ...]) -> Layer:
    """The layer of a NIR node that is no part of a neuron."""
    kind = type(node).__name__
    reason = HARD_RESET if isinstance(node, nir.IF | nir.LIF | nir.CubaLIF) else "is not supported here"
    raise GraphError(f"node {name!r}: NIR's {kind} {reason}")


@layer_of.register
def _(node: nir.Input, name: str, inputs: tuple[str, ...]) -> Layer:
    shape = shape_of(node.input_type["input"], name, "shape")
    if not shape or min(shape) < 1:
        raise GraphError(f"node {name!r} (Input): expected at least one dimension, and none below 1, got {shape}")
    return Input(name=name, shape=shape)


@layer_of.register
def _(node: nir.Affine, name: str, inputs: tuple[str, ...]) -> Layer:
    weight, bias = weights(node.weight, 2, name, "weight"), weights(node.bias, 1, name, "bias")
    return Linear(name=name, inputs=inputs, weight=weight, bias=bias)


@layer_of.register
def _(node: nir.Linear, name: str, inputs: tuple[str, ...]) -> Layer:
    weight = weights(node.weight, 2, name, "weight")
    return Linear(name=name, inputs=inputs, weight=weight, bias=np.zeros(len(weight), np.float32))


@layer_of.register
def _(node: nir.Conv2d, name: str, inputs: tuple[str, ...]) -> Layer:
    weight = weights(node.weight, 4, name, "weight")
    stride, dilation = _pair(node.stride, name, "stride"), _pair(node.dilation, name, "dilation")
    return _grouped(
        Conv2d(
            name=name,
            inputs=inputs,
            weight=weight,
            bias=weights(node.bias, 1, name, "bias"),
            stride=stride,
            padding=_pair(_padding(node.padding, weight.shape[2:], stride, dilation, name), name, "padding"),
            dilation=dilation,
            groups=whole(node.groups, 1, name, "groups")[0],
        )
    )


@layer_of.register
def _(node: nir.Conv1d, name: str, inputs: tuple[str, ...]) -> Layer:
    weight = weights(node.weight, 3, name, "weight")
    stride, dilation = whole(node.stride, 1, name, "stride"), whole(node.dilation, 1, name, "dilation")
    return _grouped(
        Conv1d(
            name=name,
            inputs=inputs,
            weight=weight,
            bias=weights(node.bias, 1, name, "bias"),
            stride=stride[0],
            padding=whole(_padding(node.padding, weight.shape[2:], stride, dilation, name), 1, name, "padding")[0],
            dilation=dilation[0],
            groups=whole(node.groups, 1, name, "groups")[0],
        )
    )


def _grouped(layer: Conv1d | Conv2d) -> Layer:
    """The `layer`, whose channels make so many groups."""
    channels = len(layer.weight)
    fits = layer.groups >= 1 and channels % layer.groups == 0
    layer.expect(fits, f"groups of equal size of its {channels} output channels", f"groups = {layer.groups}")
    return layer


def _pair(value: Any, name: str, what: str) -> tuple[int, int]:
    first, second = whole(value, 2, name, what)
    return first, second


def _padding(padding: Any, kernel: Shape, stride: Shape, dilation: Shape, name: str) -> Any:
    """NIR's padding in numbers: "valid" is none, "same" is what keeps the size."""
    if not isinstance(padding, str):
        return padding
    if padding == "valid":
        return 0
    even = same_padding(kernel, dilation)
    if padding != "same" or even is None or set(stride) != {1}:
        raise GraphError(f"node {name!r}: padding {padding!r} needs odd kernels and stride 1; write numbers")
    return even


@layer_of.register(nir.AvgPool2d)  # two, not nir.AvgPool2d | nir.SumPool2d, for Python 3.10
@layer_of.register(nir.SumPool2d)
def _(node: nir.AvgPool2d | nir.SumPool2d, name: str, inputs: tuple[str, ...]) -> Layer:
    kind = SumPool2d if isinstance(node, nir.SumPool2d) else AvgPool2d
    kernel, stride, padding = (_pair(getattr(node, key), name, key) for key in ("kernel_size", "stride", "padding"))
    return kind(name=name, inputs=inputs, kernel=kernel, stride=stride, padding=padding)


@layer_of.register
def _(node: nir.Flatten, name: str, inputs: tuple[str, ...]) -> Layer:
    rank = len(node.input_type["input"]) if node.input_type["input"] is not None else 3
    ends = [whole(getattr(node, key), 1, name, key)[0] for key in ("start_dim", "end_dim")]
    if ends not in ([0, -1], [0, rank - 1]):
        raise GraphError(f"node {name!r} (Flatten): expected all dimensions flattened, 0 to -1 (NIR has no batch)")
    return Flatten(name=name, inputs=inputs)


@layer_of.register
def _(node: nir.Scale, name: str, inputs: tuple[str, ...]) -> Layer:
    return Scale(name=name, inputs=inputs, scale=_reduced(node.scale, name, "scale"))
