"""Rounding to the precision in which networks are stored and run."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from bridge.errors import ConversionError
from bridge.graph import LayerGraph


def to_float32(graph: LayerGraph) -> LayerGraph:
    """Round every parameter to float32. Raises `ConversionError` for a layer that overflows."""
    layers = []
    for layer in graph:
        arrays = {
            f.name: value
            for f in fields(layer)
            if isinstance(value := getattr(layer, f.name), np.ndarray) and value.dtype != bool
        }
        with np.errstate(over="ignore"):
            rounded: dict[str, Any] = {
                name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()
            }
        for name, array in rounded.items():
            if not np.isfinite(array).all():
                raise ConversionError(
                    f"layer {layer.name!r}: {name} does not fit float32 after folding; check its λ and weights"
                )
        layers.append(replace(layer, **rounded) if rounded else layer)
    return LayerGraph(tuple(layers))
