"""What a NIR graph's nodes say of their shapes, held against what they compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import nir
import numpy as np

from bridge.errors import GraphError
from bridge.graph import Array, AvgPool2d, Conv1d, Conv2d, Shape

ONE_FOR_ALL = (nir.I, nir.IF, nir.LI, nir.LIF, nir.CubaLI, nir.CubaLIF, nir.Threshold, nir.Scale, nir.Delay)
"""Kinds of nodes whose parameters may be one value for all neurons."""
LONGEST = 60
"""Letters of a value that are shown in a message."""


def whole(value: Any, count: int, name: str, what: str) -> Shape:
    """`value`, one whole number or `count` of them, as `count` integers. `what` is its key in the node `name`."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or array.size not in (1, count) or not _are_whole(array):
        expected = "a whole number" if count == 1 else f"a whole number, or {count} of them"
        raise GraphError(f"node {name!r}: {what}: expected {expected}, got {_shown(value)}")
    return tuple(int(one) for one in np.broadcast_to(array.ravel(), (count,)))


def shape_of(value: Any, name: str, what: str) -> Shape:
    """The shape that `value` is. `what` is its key in the node `name`."""
    array = np.asarray(value)
    if array.ndim != 1 or (array.size and (array.dtype.kind not in "iuf" or not _are_whole(array))):
        raise GraphError(f"node {name!r}: {what}: expected a shape of whole numbers, got {_shown(value)}")
    return tuple(int(size) for size in array)


def _are_whole(array: np.ndarray[Any, np.dtype[Any]]) -> bool:
    """Whether all are whole numbers of a size that a shape, a stride or a padding can have."""
    return bool(((array == np.rint(array)) & (np.abs(array.astype(np.float64)) < 2**31)).all())


def real(value: Any, name: str, what: str) -> Array:
    """`value` as an array of float32. `what` is its key in the node `name`."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise GraphError(f"node {name!r}: {what}: expected real numbers, got {array.dtype}")
    with np.errstate(over="ignore"):  # becomes infinite, and is refused as that
        return array.astype(np.float32, copy=False)


def weights(value: Any, rank: int, name: str, what: str) -> Array:
    """`value` as an array of float32 with `rank` dimensions. `what` is its key in the node `name`."""
    array = real(value, name, what)
    if array.ndim != rank:
        raise GraphError(f"node {name!r}: {what}: expected an array of {rank} dimensions, got shape {array.shape}")
    return array


def check(
    nodes: Mapping[str, nir.NIRNode],
    layers: Mapping[str, object],
    sources: Mapping[str, Sequence[str]],
    taken: Mapping[str, Shape],
    given: Mapping[str, Shape],
) -> None:
    """Raise `GraphError`, naming the node, if what it says of its shapes is not so. Nothing said is no contradiction.

    nir 1.0 infers the types of a convolution as if its kernel were square and its groups 1, and from these the types of
    the pools, the Flattens and the Output behind it. What it infers there is no contradiction either.

    Args:
        nodes: in an order in which each comes behind those that feed it, edges that close a loop aside.
        layers: what the nodes were read as.
        sources: by node, the nodes that feed it.
        taken: by node, the shape of what reaches it.
        given: by node, the shape of its output.
    """
    inferred: dict[str, Shape] = {}
    for name, node in nodes.items():
        entering = next((inferred[source] for source in sources[name] if source in inferred), taken[name])
        ins, outs = {taken[name], entering}, {given[name]}
        layer = layers[name]
        if isinstance(node, nir.Conv1d | nir.Conv2d) and isinstance(layer, Conv1d | Conv2d):
            _check_size(node, name, taken[name], entering)
            # From what it infers of the nodes before, and from the node's own input_shape, as where it reads a file.
            for shape in (taken[name], entering):
                alike = _as_nir_infers(node, layer, shape)
                ins.add(shape_of(alike.input_type["input"], name, "input_type"))
                inferred[name] = shape_of(alike.output_type["output"], name, "output_type")
                outs.add(inferred[name])
        else:
            inferred[name] = _inferred(node, layer, entering, given[name])
        _check_type(node, name, "input", ins)
        _check_type(node, name, "output", outs | {inferred[name]})


def _check_size(node: nir.Conv1d | nir.Conv2d, name: str, taken: Shape, entering: Shape) -> None:
    if node.input_shape is None:
        return
    said = shape_of(np.atleast_1d(node.input_shape), name, "input_shape")
    if said not in (taken[1:], entering[1:]):
        raise GraphError(
            f"node {name!r} ({type(node).__name__}): expected an input_shape of {taken[1:]}, the size of what reaches "
            f"it, {taken}; got {said}. Write the one that is right, or None"
        )


def _check_type(node: nir.NIRNode, name: str, end: str, fitting: set[Shape]) -> None:
    """Hold the ``input_type`` or the ``output_type`` of `node` against the shapes that are `fitting`."""
    types = getattr(node, f"{end}_type", None)
    value = types.get(end) if isinstance(types, Mapping) else None
    if value is None:
        return
    is_output = isinstance(node, nir.Output)
    kind = "end of an inner graph" if isinstance(node, nir.NIRGraph) else type(node).__name__
    said = shape_of(value, name, "shape" if is_output else f"{end}_type")
    # A parameter that is one value for all neurons gives its node a type of one element.
    if said in fitting or (math.prod(said) == 1 and isinstance(node, ONE_FOR_ALL)):
        return
    # Rockpool writes one batch and one time step into its Output, on which nothing depends.
    if is_output and any(said == (*[1] * (len(said) - len(shape)), *shape) for shape in fitting):
        return
    right = " or ".join(map(str, sorted(fitting)))
    what = "a shape" if is_output else f"an {end}_type"
    why = "what reaches it" if end == "input" or is_output else "what it computes"
    raise GraphError(
        f"node {name!r} ({kind}): expected {what} of {right}, {why}; got {said}. Write the one that is "
        "right, or mend what feeds it"
    )


def _as_nir_infers(node: nir.Conv1d | nir.Conv2d, layer: Conv1d | Conv2d, entering: Shape) -> Any:
    """The convolution with the types that nir gives it for an input of shape `entering`."""
    return replace(
        node,
        input_shape=entering[1:] if isinstance(node, nir.Conv2d) else entering[1],
        stride=layer.stride,
        padding=node.padding if isinstance(node.padding, str) else layer.padding,
        dilation=layer.dilation,
    )


def _inferred(node: nir.NIRNode, layer: object, entering: Shape, given: Shape) -> Shape:
    """What nir takes for the output's shape of a node that is no convolution, for an input of shape `entering`."""
    if isinstance(node, nir.Output | nir.NIRGraph):
        return entering
    if isinstance(node, nir.Flatten):
        start, end = (int(d) % len(entering) for d in (node.start_dim, node.end_dim))
        return (*entering[:start], math.prod(entering[start : end + 1]), *entering[end + 1 :])
    if isinstance(layer, AvgPool2d):
        with suppress(GraphError):  # too small for the pool, which nir does not see
            return layer.output_shape(entering)
    return given


def _shown(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
