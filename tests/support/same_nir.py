"""Two NIR graphs, compared."""

from __future__ import annotations

import nir
import numpy as np


def same_nir_up_to_names(one: nir.NIRGraph, other: nir.NIRGraph) -> None:
    """Both NIR graphs have the same nodes with the same parameters, joined by the same edges, whatever their names."""

    def signature(node: nir.NIRNode) -> tuple[str, int]:
        values = {key: value for key, value in node.to_dict().items() if key not in ("metadata", "type")}
        arrays = tuple((key, np.asarray(value).tobytes()) for key, value in sorted(values.items()))
        return type(node).__name__, hash(arrays)

    def walk(graph: nir.NIRGraph) -> list[tuple[tuple[str, int], list[tuple[str, int]]]]:
        """Nodes from the input on, breadth first, each with its signature and those of what feeds it."""
        order, seen = ["input"], {"input"}
        for name in order:
            readers = sorted(
                (b for a, b in graph.edges if a == name and b not in seen), key=lambda b: signature(graph.nodes[b])
            )
            seen |= set(readers)
            order += readers
        assert len(order) == len(graph.nodes)
        feeds = {name: sorted(signature(graph.nodes[a]) for a, b in graph.edges if b == name) for name in order}
        return [(signature(graph.nodes[name]), feeds[name]) for name in order]

    assert walk(one) == walk(other)
