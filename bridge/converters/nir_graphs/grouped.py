"""How the layers of a grouped network are written in NIR, and found again: thresholds side by side, and no state.

A layer ``a`` with L levels, from its drive ``d``; the first of its nodes has the layer's name. All nodes of a group
have its shape::

    d → a, a_2, … a_L = Threshold(below the k-th level)        a, a_2, … a_L → a_sum = Scale(1)

A maximum pool ``p`` of them is one for each level, and their sum is its own::

    a → p_any = SumPool2d → p = Threshold(1/2)      a_2 → p_any_2 → p_2 …      p, p_2, … p_L → p_sum = Scale(1)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields

import nir
import numpy as np

from bridge.converters.nir_graphs.staged import Edges, Nodes, above, below
from bridge.errors import GraphError
from bridge.graph import Array, AtLeast, EachLevel, GroupFire, GroupSum, Layer, LayerGraph, Shape, spread

KINDS = GroupFire | EachLevel | GroupSum
POOLS = nir.SumPool2d | nir.Conv1d | nir.Conv2d

Members = dict[str, list[str]]
"""By layer whose output is the spikes of groups: its nodes, one for each level."""


def write(
    graph: LayerGraph,
    layer: Layer,
    members: Members,
    node_of: Callable[[Layer, Shape], nir.NIRNode],
    free: Callable[[str], str],
) -> tuple[Nodes, Edges]:
    """The nodes and edges of the `layer` of `graph`; its nodes are added to `members`.

    `node_of` writes a layer without state whose input has that shape, `free` makes a name unique. What a layer reads
    that is no group is an edge from its name.
    """
    (source,) = layer.inputs
    shape = graph.shapes[layer.name]
    if isinstance(layer, GroupSum):
        return {layer.name: nir.Scale(scale=np.ones(shape, np.float32))}, [(one, layer.name) for one in members[source]]
    nodes: Nodes = {}
    edges: Edges = []
    members[layer.name] = []
    levels, *each = shape
    for number in range(levels):
        name = layer.name if number == 0 else free(f"{layer.name}_{number + 1}")
        if isinstance(layer, GroupFire):
            nodes[name] = _threshold(layer.level[number], tuple(each), graph.integer)
            edges.append((source, name))
        elif isinstance(layer, EachLevel):
            inner, before = layer.layer, graph.shapes[source][1:]
            if isinstance(inner, AtLeast):
                nodes[name] = _threshold(inner.level, tuple(each), graph.integer)
            else:
                nodes[name] = node_of(inner, before)
                nodes[name].input_type = {"input": np.array(before)}
                nodes[name].output_type = {"output": np.array(each)}
            edges.append((members[source][number], name))
        members[layer.name].append(name)
    return nodes, edges


def _threshold(level: Array, shape: Shape, whole: bool) -> nir.Threshold:
    return nir.Threshold(threshold=np.array(spread(below(level, whole), shape), np.float32))


class Found:
    """The grouped layers in a NIR graph without state, by name, and the nodes that are parts of them."""

    def __init__(
        self,
        nodes: Nodes,
        before: dict[str, list[str]],
        after: dict[str, list[str]],
        layer_of: Callable[[nir.NIRNode, str, tuple[str, ...]], Layer],
        *,
        whole: bool,
    ) -> None:
        self.nodes, self.before, self.after, self.layer_of, self.whole = nodes, before, after, layer_of, whole
        self.layers: dict[str, Layer] = {}
        self.inside: set[str] = set()
        if any(isinstance(node, nir.I) for node in nodes.values()):
            return
        groups: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
        for name, node in nodes.items():
            if isinstance(node, nir.Threshold) and len(before[name]) == 1 and not self._in_pool(name):
                groups[before[name][0], self._sums(name)].append(name)
        for (source, _), names in groups.items():
            self._group(source, names)

    def _in_pool(self, name: str) -> bool:
        """Whether the Threshold `name` is behind a sum over windows of what another one fires."""
        (source,) = self.before[name]
        return isinstance(self.nodes[source], POOLS) and self._of_spikes(source)

    def _of_spikes(self, name: str) -> bool:
        sources = self.before[name]
        return len(sources) == 1 and isinstance(self.nodes[sources[0]], nir.Threshold)

    def _sums(self, name: str) -> tuple[str, ...]:
        """The nodes in which the spikes of `name` are summed at last, in whatever pools they go through."""
        found: set[str] = set()
        for reader in self.after[name]:
            part = isinstance(self.nodes[reader], POOLS | nir.Threshold) and len(self.before[reader]) == 1
            found.update(self._sums(reader) if part else (reader,))
        return tuple(sorted(found))

    def _group(self, source: str, names: list[str]) -> None:
        names = sorted(names, key=lambda name: float(np.sum(self._threshold(name), dtype=np.float64)))
        level = np.stack([above(self._threshold(name), self.whole) for name in names])
        flat = level.reshape(*level.shape[:2], -1)
        if (flat == flat[:, :, :1]).all():
            level = np.ascontiguousarray(flat[:, :, 0])
        if not (np.diff(level, axis=0) >= 0).all():
            raise GraphError(f"nodes {names}: a group of thresholds of {source!r} whose order differs between neurons")
        self._keep(GroupFire(name=names[0], inputs=(source,), level=level), names)
        self._readers(names)

    def _keep(self, layer: Layer, names: list[str]) -> None:
        self.layers[layer.name] = layer
        self.inside.update(names)

    def _readers(self, names: list[str]) -> None:
        """Find what reads the group of nodes `names`: its sum, and pools of each level."""
        for reader in self.after[names[0]]:
            node = self.nodes[reader]
            if isinstance(node, nir.Scale) and (np.asarray(node.scale) == 1).all():
                if sorted(self.before[reader]) != sorted(names):
                    raise GraphError(f"node {reader!r} (Scale): expected the sum of the group {names}, and of it alone")
                self._keep(GroupSum(name=reader, inputs=(names[0],)), [reader])
            elif isinstance(node, POOLS | nir.Threshold) and self.before[reader] == [names[0]]:
                self._each(reader, names)
            else:
                raise GraphError(
                    f"node {reader!r} ({type(node).__name__}) reads spikes of the group {names}: expected their sum, a "
                    "Scale(1) that reads all of them, or a pool of each"
                )

    def _each(self, first: str, names: list[str]) -> None:
        """The nodes that do to each of `names` what `first` does to the first of them."""
        wanted = self._sums(first)
        same = [first]
        for name in names[1:]:
            fitting = [
                reader
                for reader in self.after[name]
                if reader not in same and self._sums(reader) == wanted and _alike(self.nodes[reader], self.nodes[first])
            ]
            if not fitting:
                raise GraphError(f"node {first!r} reads {names[0]!r}; nothing does the same to {name!r}, of its group")
            same.append(fitting[0])
        node = self.nodes[first]
        if isinstance(node, nir.Threshold):
            inner: Layer = AtLeast(name=first, inputs=(names[0],), level=above(self._threshold(first), self.whole))
        else:
            inner = self.layer_of(node, first, (names[0],))
        self._keep(EachLevel(name=first, inputs=(names[0],), layer=inner), same)
        self._readers(same)

    def _threshold(self, name: str) -> Array:
        values = np.asarray(self.nodes[name].threshold, np.float32)
        if values.ndim == 0 or not np.isfinite(values).all():
            raise GraphError(f"node {name!r} (Threshold): expected finite numbers of the full neuron shape")
        return values


def _alike(one: nir.NIRNode, other: nir.NIRNode) -> bool:
    """Whether two nodes are of one kind and have equal parameters."""
    if type(one) is not type(other):
        return False
    names = [f.name for f in fields(one) if f.name not in ("input_type", "output_type", "metadata")]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
