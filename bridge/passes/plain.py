"""An ANN becomes a plain spiking network: unit thresholds, and neurons that fire at any step."""

from __future__ import annotations

from bridge.graph import LayerGraph
from bridge.passes.fold_batch_norm import fold_batch_norm
from bridge.passes.fold_thresholds import fold_thresholds
from bridge.passes.lower_concat import lower_concat
from bridge.passes.to_float32 import to_float32


def plain(ann: LayerGraph) -> LayerGraph:
    """The plain spiking network of `ann`. Raises `ConversionError` for a layer that overflows float32."""
    return to_float32(fold_thresholds(lower_concat(fold_batch_norm(ann))))
