"""Any NIR graph → the nodes of `bridge.graph.nir_dynamics`: what other tools' files mean here, or why not."""

from __future__ import annotations

import graphlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import singledispatch
from typing import Any

import nir
import numpy as np

from bridge._util.checks import is_real
from bridge.converters.nir_graphs.declared import check, whole
from bridge.converters.nir_graphs.ours import layer_of
from bridge.converters.nir_graphs.wiring import Wiring
from bridge.errors import GraphError
from bridge.graph import Affine, Array, Input, Layer, Shape
from bridge.graph.nir_dynamics import Delay, Flatten, ForeignGraph, Neurons, Node, Passage, Scale, Threshold

TIME_STEP = 1e-4
"""Seconds: what the NIR paper's experiments run with, snnTorch writes for and SpikingJelly reads with by default."""

NEURONS = (nir.I, nir.IF, nir.LI, nir.LIF, nir.CubaLI, nir.CubaLIF)
Sources = Mapping[str, tuple[str, ...]]
"""By node, the nodes that feed it."""

FOREIGN = (nir.IF, nir.LI, nir.LIF, nir.CubaLI, nir.CubaLIF, nir.Delay, nir.NIRGraph)
"""Kinds of nodes that this package writes in no exact network."""


def parse(graph: nir.NIRGraph, dt: float | None = None) -> ForeignGraph:
    """The NIR `graph` discretised with the time step `dt`.

    Left out, `dt` is what the graph itself leaves no doubt about (docs/foreign_graphs.md): 1 if the only parameters of
    time are r = 1, else `TIME_STEP`.

    Raises:
        GraphError: a node is unknown, its parameters do not fit or are ambiguous; shapes do not fit; a loop has no
            defined order; or `dt` is needed, or does not suit a node. The message names the node.
    """
    graph = nir.NIRGraph(*_flat(graph), type_check=False)
    wiring = Wiring(graph)
    dt = _time_step(graph.nodes, dt)
    nodes: dict[str, Node] = {}
    for name, node in graph.nodes.items():
        if not wiring.before[name] and not isinstance(node, nir.Input):
            raise GraphError(f"node {name!r} ({type(node).__name__}): no edge leads into it")
        try:
            nodes[name] = _node(node, name, dt)
        except (AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
            if isinstance(error, GraphError):
                raise
            raise GraphError(f"node {name!r} ({type(node).__name__}): malformed parameters ({error})") from error
    (source,) = (name for name, node in nodes.items() if isinstance(node, Input))
    late = _late(nodes, wiring)
    sources = {name: tuple(sorted(wiring.before[name])) for name in nodes}
    ordered = {name: nodes[name] for name in _order(nodes, sources, late)}
    shapes = _checked_shapes(graph, ordered, sources, source)
    result = ForeignGraph(ordered, sources, late, shapes, source, wiring.output, dt)
    if not result.spiking:
        raise GraphError("no neuron in it, so nothing spikes")
    return result


def _flat(graph: nir.NIRGraph, prefix: str = "") -> tuple[dict[str, nir.NIRNode], list[tuple[str, str]]]:
    """Nodes and edges of `graph` with the graphs in it dissolved: node b of graph a is called "a.b"."""
    nodes: dict[str, nir.NIRNode] = {}
    edges: list[tuple[str, str]] = []
    ends: dict[str, tuple[str, str]] = {}
    for name, node in graph.nodes.items():
        full = prefix + name
        if not isinstance(node, nir.NIRGraph):
            nodes[full], ends[name] = node, (full, full)
            continue
        inner, inner_edges = _flat(node, f"{full}.")
        entries, exits = (
            [child for child in node.nodes if isinstance(node.nodes[child], kind)] for kind in (nir.Input, nir.Output)
        )
        if len(entries) != 1 or len(exits) != 1:
            raise GraphError(f"graph {full!r}: expected one Input and one Output, got {entries} and {exits}")
        ends[name] = f"{full}.{entries[0]}", f"{full}.{exits[0]}"
        nodes |= inner | {end: _passage(inner[end]) for end in ends[name]}
        edges += inner_edges
    for a, b in graph.edges:
        for end in (a, b):
            if end not in ends:
                raise GraphError(f"edge {prefix + a!r} → {prefix + b!r}: there is no node {prefix + end!r}")
        edges.append((ends[a][1], ends[b][0]))
    return nodes, edges


def _passage(end: nir.NIRNode) -> nir.NIRGraph:
    """An empty graph, which `_node` reads as what passes its input on, with the types of an inner Input or Output."""
    passage = nir.NIRGraph({}, [], type_check=False)
    passage.input_type, passage.output_type = end.input_type, end.output_type
    return passage


def _time_step(nodes: Mapping[str, nir.NIRNode], dt: float | None) -> float:
    """`dt`, or what the nodes leave no doubt about, checked against every time constant."""
    constants = [
        (name, _finite(getattr(node, key), name, key))
        for name, node in nodes.items()
        for key in ("tau_syn", "tau_mem", "tau", "delay")
        if hasattr(node, key)
    ]
    rates = {name: _finite(node.r, name, "r") for name, node in nodes.items() if isinstance(node, nir.I | nir.IF)}
    if dt is None:
        dt = 1.0 if rates and not constants and all((r == 1).all() for r in rates.values()) else TIME_STEP
        long = [name for name, tau in constants if (tau >= 1).any()]
        odd = [name for name, r in rates.items() if dt != 1 and not np.allclose(r * dt, 1)]
        for name in long[:1]:
            raise GraphError(
                f"node {name!r}: a time constant or delay of 1 or more may count seconds, milliseconds or time steps: "
                "say how long a time step is in its unit, with dt (1 if it counts steps)"
            )
        for name in odd[:1]:
            raise GraphError(
                f"node {name!r} ({type(nodes[name]).__name__}): r = {rates[name].flat[0]:g} adds r · dt times its "
                f"input at each step, and nothing says whether dt is {TIME_STEP:g} or another: give the time step with "
                "dt (1 / r, if the neuron is to add its input)"
            )
    if not is_real(dt) or not (math.isfinite(dt) and dt > 0):
        raise GraphError(f"dt: expected a time step above 0, in the unit of the graph's time constants, got {dt!r}")
    for name, tau in constants:
        if not isinstance(nodes[name], nir.Delay) and (tau < dt).any():
            raise GraphError(
                f"node {name!r}: a step of dt = {dt:g} is longer than its time constant {tau.min():g}, which forward "
                "Euler cannot follow: give a dt that is not"
            )
    return float(dt)


def _late(nodes: Mapping[str, Node], wiring: Wiring) -> frozenset[tuple[str, str]]:
    """The edges into a neuron that close a loop. A loop that a Delay of a step or more is part of needs none."""
    after = {
        name: [b for b in wiring.after[name] if not isinstance(d := nodes[b], Delay) or d.immediate] for name in nodes
    }
    late: set[tuple[str, str]] = set()
    below = {name: _reached(after, name) for name, node in nodes.items() if isinstance(node, Neurons)}
    for name, reached in below.items():
        others = [other for other in below if other != name and other in reached and name in below[other]]
        if others:
            raise GraphError(
                f"nodes {sorted([name, *others])}: neurons in one loop, and nothing says which hears which a step "
                "later; put a Delay of one time step on the edge that does"
            )
        late |= {(a, name) for a in wiring.before[name] if a in reached or a == name}
    return frozenset(late)


def _reached(after: Mapping[str, Iterable[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [*after[start]]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += after[name]
    return found


def _order(nodes: Mapping[str, Node], sources: Sources, late: frozenset[tuple[str, str]]) -> list[str]:
    """Names in topological order, by name where several are possible."""
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for name, node in nodes.items():
        waits = not isinstance(node, Delay) or node.immediate
        sorter.add(name, *(a for a in sources[name] if waits and (a, name) not in late))
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        raise GraphError(f"a loop without a neuron or a Delay in it: {' → '.join(error.args[1])}") from error
    order: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order += ready
        sorter.done(*ready)
    return order


def _checked_shapes(graph: nir.NIRGraph, nodes: Mapping[str, Node], sources: Sources, source: str) -> dict[str, Shape]:
    """Output shapes of `nodes`, in their order. Raises `GraphError` at the first of them in `graph` that is wrong.

    If something does not fit, but would without a batch, it is the batch that is refused.
    """
    taken: dict[str, Shape] = {}
    shapes: dict[str, Shape] = {}
    try:
        _find_shapes(nodes, sources, taken, shapes)
    except GraphError as error:
        for unbatched, blame in _without_batch(nodes, source):
            if _fit({**nodes, **unbatched}, sources):
                raise GraphError(blame) from error
        check({name: graph.nodes[name] for name in shapes}, nodes, sources, taken, shapes)
        raise
    check({name: graph.nodes[name] for name in nodes}, nodes, sources, taken, shapes)
    return shapes


def _without_batch(nodes: Mapping[str, Node], source: str) -> Iterator[tuple[dict[str, Node], str]]:
    """What may have a batch in it, as it would be without: the Input, the Flattens, both; and what to say then."""
    enters = nodes[source]
    starts = {name: node for name, node in nodes.items() if isinstance(node, Flatten) and node.start > 0}
    flattens: dict[str, Node] = {
        name: Flatten(node.start - 1, node.end if node.end < 0 else node.end - 1) for name, node in starts.items()
    }
    inputs: list[tuple[dict[str, Node], str]] = []
    if isinstance(enters, Input):
        for shape in (enters.shape[1:], enters.shape[2:]):
            blame = (
                f"node {source!r} (Input): expected a shape without batch and time, which NIR does not count, got "
                f"{enters.shape}; what it feeds takes {shape}: write that"
            )
            inputs.append(({source: replace(enters, shape=shape)}, blame))
    yield from inputs
    for name, node in [*starts.items()][:1]:
        blame = (
            f"node {name!r} (Flatten): expected dimensions without a batch, which NIR does not count, got start_dim = "
            f"{node.start}; what it feeds takes one dimension more flattened: write start_dim = {node.start - 1}"
        )
        yield flattens, blame
        for unbatched, more in inputs:
            yield {**unbatched, **flattens}, f"{more}, and start_dim = {node.start - 1} in node {name!r} (Flatten)"


def _fit(nodes: Mapping[str, Node], sources: Sources) -> bool:
    try:
        _find_shapes(nodes, sources, {}, {})
    except GraphError:
        return False
    return True


def _find_shapes(
    nodes: Mapping[str, Node], sources: Sources, taken: dict[str, Shape], shapes: dict[str, Shape]
) -> None:
    """Put the shapes of what reaches `nodes`, in their order, into `taken`, and those of their outputs into `shapes`.

    Raises `GraphError` if what feeds one of them does not fit it.
    """
    for name, node in nodes.items():
        known = [shapes[a] for a in sources[name] if a in shapes]
        own = [np.shape(array) for array in getattr(node, "parameters", vars(node)).values()]
        if isinstance(node, Input):
            taken[name] = shapes[name] = node.shape
            continue
        taken[name] = shape = known[0] if known and not isinstance(node, Delay) else max(own, key=len)
        if isinstance(node, Layer):
            shapes[name] = node.output_shape(shape)
        elif isinstance(node, Flatten):
            shapes[name] = _flattened(shape, node, name)
        else:
            unfit = [one for one in own if one != shape and math.prod(one) != 1]
            if unfit:
                raise GraphError(f"node {name!r}: parameters of shape {unfit[0]} do not fit its input of shape {shape}")
            shapes[name] = shape
    for name, wanted in taken.items():
        came = {a: shapes[a] for a in sources[name]}
        if set(came.values()) - {wanted}:
            raise GraphError(f"node {name!r}: expected every input of shape {wanted}, got {came}")
    if not all(math.prod(shapes[name]) for name in shapes) or () in shapes.values():
        raise GraphError(
            "expected shapes without a 0 in them, and at least one dimension; write the Input's whole shape"
        )


def _flattened(shape: Shape, node: Flatten, name: str) -> Shape:
    start, end = (d + len(shape) if d < 0 else d for d in (node.start, node.end))
    if not 0 <= start <= end < len(shape):
        raise GraphError(
            f"node {name!r} (Flatten): dimensions {node.start} to {node.end} are not in its input of shape {shape} "
            "(NIR counts no batch)"
        )
    return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])


@singledispatch
def _node(node: nir.NIRNode, name: str, dt: float) -> Node:
    """The discretised `node`; those without time are layers that `bridge.nir_graph` reads."""
    layer = layer_of(node, name, ())
    if isinstance(layer, Affine):
        finite = bool(np.isfinite(layer.weight).all() and np.isfinite(layer.bias).all())
        layer.expect(finite, "finite weights and biases", "NaN or infinity among them")
    return layer


@_node.register
def _(node: nir.Output | nir.NIRGraph, name: str, dt: float) -> Node:
    return Passage()


@_node.register
def _(node: nir.Flatten, name: str, dt: float) -> Node:
    return Flatten(whole(node.start_dim, 1, name, "start_dim")[0], whole(node.end_dim, 1, name, "end_dim")[0])


@_node.register
def _(node: nir.Scale, name: str, dt: float) -> Node:
    return Scale(_finite(node.scale, name, "scale"))


@_node.register
def _(node: nir.Threshold, name: str, dt: float) -> Node:
    return Threshold(_finite(node.threshold, name, "threshold"))


@_node.register
def _(node: nir.Delay, name: str, dt: float) -> Node:
    steps = _finite(node.delay, name, "delay") / dt
    whole = np.rint(steps)
    if (whole < 0).any() or (whole > 2**31).any() or not np.allclose(steps, whole, rtol=1e-6, atol=1e-6):
        raise GraphError(
            f"node {name!r} (Delay): expected delays of whole time steps, got {steps.max():g} of dt = {dt:g}"
        )
    return Delay(whole.astype(np.int64))


@_node.register
def _(node: nir.I | nir.IF, name: str, dt: float) -> Node:
    zero = np.zeros(())
    return Neurons(leak=zero, v_leak=zero, gain=dt * _finite(node.r, name, "r"), **_spiking(node, name))


@_node.register
def _(node: nir.LI | nir.LIF, name: str, dt: float) -> Node:
    return Neurons(**_leaky(node, "tau", name, dt), **_spiking(node, name))


@_node.register
def _(node: nir.CubaLI | nir.CubaLIF, name: str, dt: float) -> Node:
    synapse = dt / _positive(node.tau_syn, name, "tau_syn")
    w_in = _finite(node.w_in, name, "w_in")
    return Neurons(**_leaky(node, "tau_mem", name, dt), synapse=synapse, w_in=w_in, **_spiking(node, name))


def _leaky(node: nir.NIRNode, key: str, name: str, dt: float) -> dict[str, Array]:
    leak = dt / _positive(getattr(node, key), name, key)  # in the file's own precision, which wrote tau = dt / leak
    return {"leak": leak, "v_leak": _finite(node.v_leak, name, "v_leak"), "gain": leak * _finite(node.r, name, "r")}


def _spiking(node: nir.NIRNode, name: str) -> dict[str, Array]:
    if not hasattr(node, "v_threshold"):
        return {}
    return {key: _finite(getattr(node, f"v_{key}"), name, f"v_{key}") for key in ("threshold", "reset")}


def _finite(values: Any, name: str, what: str) -> Array:
    array = np.asarray(values)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise GraphError(f"node {name!r}: expected {what} of finite numbers, got {array.dtype}, or NaN or infinity")
    return array


def _positive(values: Any, name: str, what: str) -> Array:
    array = _finite(values, name, what)
    if not (array > 0).all():
        raise GraphError(f"node {name!r}: expected {what} > 0, got {array.min():g}")
    return array
