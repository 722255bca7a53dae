"""Rewrites from one `bridge.graph.LayerGraph` to the next; each is one file and leaves its argument unchanged."""

from bridge.passes.calibrate import calibrate
from bridge.passes.fold_batch_norm import fold_batch_norm
from bridge.passes.fold_pooling import fold_pooling
from bridge.passes.fold_thresholds import fold_thresholds
from bridge.passes.lower_concat import lower_concat
from bridge.passes.on_pixels import ann_on_pixels, on_pixels
from bridge.passes.quantize import quantize
from bridge.passes.refine import refine
from bridge.passes.to_float32 import to_float32

__all__ = [
    "ann_on_pixels",
    "calibrate",
    "fold_batch_norm",
    "fold_pooling",
    "fold_thresholds",
    "lower_concat",
    "on_pixels",
    "quantize",
    "refine",
    "to_float32",
]
