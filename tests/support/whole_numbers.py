"""An independent oracle for networks in whole numbers: a NIR graph in int64, primitive by primitive, by definition.

It shares nothing with the package and knows no layer of it, only what NIR says of each node. Time steps and edges: an
``I`` adds up what reaches it; what comes from a Scale behind a Threshold that the same ``I`` feeds was said one step
before.
"""

from __future__ import annotations

import graphlib
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Pair = tuple[int, int]


def spikes_of(graph: nir.NIRGraph, pixels: NDArray[Any], steps: int) -> tuple[dict[str, Ints], Ints]:
    """Spikes ``[T, B, ...]`` of every Threshold by its node's name, and the output of each step, int64 ``[T, B, ...]``.

    Fails on the first value in the graph or the images that is not whole.
    """
    images = whole(pixels)
    before: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        before[target].append(source)
    late = {
        (s, t)
        for t in graph.nodes
        if isinstance(graph.nodes[t], nir.I)
        for s in before[t]
        if resets(graph, before, s, t)
    }
    order = list(
        graphlib.TopologicalSorter(
            {t: [s for s in before[t] if (s, t) not in late] for t in graph.nodes}
        ).static_order()
    )
    membranes: dict[str, Any] = dict.fromkeys(graph.nodes, 0)
    last: dict[str, Ints] = {}
    spikes: dict[str, list[Ints]] = {n: [] for n, node in graph.nodes.items() if isinstance(node, nir.Threshold)}
    readout = []
    for _ in range(steps):
        values: dict[str, Ints] = {}
        for name in order:
            node = graph.nodes[name]
            given = [values[s] if (s, name) not in late else last.get(s, np.int64(0)) for s in before[name]]
            total: Any = sum(given) if given else images
            if isinstance(node, nir.I):
                assert (whole(node.r) == 1).all()
                membranes[name] = membranes[name] + total
                values[name] = membranes[name]
            elif isinstance(node, nir.Threshold):
                values[name] = (total > whole(node.threshold)).astype(np.int64)
                spikes[name].append(values[name])
            else:
                values[name] = compute(node, total)
        last = values
        readout.append(next(values[name] for name, node in graph.nodes.items() if isinstance(node, nir.Output)))
    return {name: np.stack(rows) for name, rows in spikes.items()}, np.stack(readout)


def resets(graph: nir.NIRGraph, before: dict[str, list[str]], scale: str, membrane: str) -> bool:
    """Whether `scale` leads back to `membrane` what a Threshold behind it says."""
    return isinstance(graph.nodes[scale], nir.Scale) and any(
        isinstance(graph.nodes[source], nir.Threshold) and before[source] == [membrane] for source in before[scale]
    )


def compute(node: nir.NIRNode, x: Ints) -> Ints:
    """What a node without state makes of ``[B, ...]``."""
    if isinstance(node, nir.Input | nir.Output):
        return x
    if isinstance(node, nir.Scale):
        return whole(node.scale) * x
    if isinstance(node, nir.Flatten):
        return x.reshape(len(x), -1)
    if isinstance(node, nir.Affine):
        products: Ints = np.einsum("oi,bi->bo", whole(node.weight), x)
        return products + whole(node.bias)
    if isinstance(node, nir.SumPool2d):
        kernel = np.ones((x.shape[1], 1, *pair(node.kernel_size)), np.int64)
        return correlate(x, kernel, pair(node.stride), pair(node.padding), (1, 1), x.shape[1])
    if isinstance(node, nir.Conv2d):
        stride, padding, dilation = pair(node.stride), pair(node.padding), pair(node.dilation)
        sums = correlate(x, whole(node.weight), stride, padding, dilation, int(node.groups))
        return sums + whole(node.bias)[:, None, None]
    if isinstance(node, nir.Conv1d):
        along = [int(np.squeeze(value)) for value in (node.stride, node.padding, node.dilation)]
        stride, padding, dilation = ((across, size) for across, size in zip((1, 0, 1), along, strict=True))
        wide = correlate(x[:, :, None], whole(node.weight)[:, :, None], stride, padding, dilation, int(node.groups))
        return wide[:, :, 0] + whole(node.bias)[:, None]
    raise NotImplementedError(type(node).__name__)


def correlate(x: Ints, kernel: Ints, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Ints:
    """Every output is the sum of its window times the kernel; one product of a kernel's place at a time."""
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    out_channels, per_group, kh, kw = kernel.shape
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    height = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((len(x), out_channels, height, width), np.int64)
    of_group = out_channels // groups
    for g in range(groups):
        inputs, outputs = slice(g * per_group, (g + 1) * per_group), slice(g * of_group, (g + 1) * of_group)
        for a in range(kh):
            for b in range(kw):
                seen = padded[
                    :, inputs, a * dh : a * dh + (height - 1) * sh + 1 : sh, b * dw : b * dw + (width - 1) * sw + 1 : sw
                ]
                y[:, outputs] += np.einsum("oi,bihw->bohw", kernel[outputs, :, a, b], seen, optimize=True)
    return y


def pair(values: Any) -> Pair:
    """One whole number for both directions, or one for each."""
    first, second = np.broadcast_to(whole(values), (2,)).tolist()
    return first, second


def whole(values: Any) -> Ints:
    """The values as int64. Fails if one is not whole."""
    array = np.asarray(values)
    rounded: Ints = np.rint(array).astype(np.int64)
    assert (rounded == array).all(), "not in whole numbers"
    return rounded
