"""A network's layers as a table."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from bridge.graph import LayerGraph


def rows(graph: LayerGraph) -> list[dict[str, Any]]:
    """One entry a layer: name, kind, the layers it reads, the shape of its output, and its number of parameters."""
    return [
        {
            "name": layer.name,
            "kind": type(layer).__name__,
            "inputs": list(layer.inputs),
            "shape": list(graph.shapes[layer.name]),
            "parameters": sum(v.size for f in fields(layer) if isinstance(v := getattr(layer, f.name), np.ndarray)),
        }
        for layer in graph
    ]


def table(title: str, found: list[dict[str, Any]]) -> Table:
    """What ``qcfs-bridge inspect`` shows: what `rows` found, under a `title`."""
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("layer", "kind", "reads", "shape"):
        result.add_column(heading)
    result.add_column("parameters", justify="right")
    for row in found:
        shape = " × ".join(map(str, row["shape"]))
        result.add_row(row["name"], row["kind"], ", ".join(row["inputs"]), shape, f"{row['parameters']:,}")
    return result
