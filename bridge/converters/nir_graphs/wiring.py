"""Who feeds whom in a NIR graph, and the search for the plain neuron's motif in it."""

from __future__ import annotations

from collections import defaultdict

import nir
import numpy as np

from bridge.errors import GraphError


class Wiring:
    """The nodes of a graph that has one Input and one Output, and by node those before and behind it."""

    def __init__(self, graph: nir.NIRGraph) -> None:
        if not isinstance(graph, nir.NIRGraph):
            raise GraphError(f"expected a NIR graph, such as network.to_nir() returns, got {type(graph).__name__}")
        self.nodes: dict[str, nir.NIRNode] = graph.nodes
        self.before: dict[str, list[str]] = defaultdict(list)
        self.after: dict[str, list[str]] = defaultdict(list)
        for source, target in graph.edges:
            for end in (source, target):
                if end not in self.nodes:
                    raise GraphError(f"edge {source!r} → {target!r}: there is no node {end!r}")
            if target in self.after[source]:
                raise GraphError(f"edge {source!r} → {target!r} is there twice")
            self.before[target].append(source)
            self.after[source].append(target)
        outputs = [name for name, node in self.nodes.items() if isinstance(node, nir.Output)]
        inputs = [name for name, node in self.nodes.items() if isinstance(node, nir.Input)]
        if len(inputs) != 1 or len(outputs) != 1 or not self.before[outputs[0]]:
            raise GraphError(f"expected one Input, and one Output that something feeds, got {inputs} and {outputs}")
        self.output = outputs[0]

    def neuron(self, threshold: str) -> tuple[str, str, list[str]]:
        """Names of the I and the Scale(−θ) of the neuron that fires at `threshold`, and of what drives it."""
        wanted = f"node {threshold!r} (Threshold): expected the neuron I(r = 1) → Threshold → Scale(−θ) → I; "
        before = self.before[threshold]
        if len(before) != 1 or not isinstance(self.nodes[before[0]], nir.I):
            raise GraphError(f"{wanted}it is fed by {before}, not by one I")
        membrane = before[0]
        if self.after[membrane] != [threshold] or not np.all(np.asarray(self.nodes[membrane].r) == 1):
            raise GraphError(f"{wanted}{membrane!r} has another reader or an r other than 1")
        r, level = np.shape(self.nodes[membrane].r), np.shape(self.nodes[threshold].threshold)
        if r != level and np.size(self.nodes[membrane].r) > 1 and np.size(self.nodes[threshold].threshold) > 1:
            raise GraphError(f"{wanted}the r of {membrane!r} has shape {r}, its threshold {level}")
        resets = [name for name in self.before[membrane] if threshold in self.before[name]]
        drives = [name for name in self.before[membrane] if name not in resets]
        if len(resets) != 1 or not drives:
            raise GraphError(f"{wanted}{membrane!r} is fed by {self.before[membrane]}, not by a source and one reset")
        reset = self.nodes[resets[0]]
        private = self.before[resets[0]] == [threshold] and self.after[resets[0]] == [membrane]
        if not private or not isinstance(reset, nir.Scale) or not np.all(np.asarray(reset.scale) < 0):
            raise GraphError(f"{wanted}{resets[0]!r} is not a Scale by −θ < 0 between them alone")
        return membrane, resets[0], drives
