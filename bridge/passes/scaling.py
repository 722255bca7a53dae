"""Multiplying weights channel by channel, in float64, without float64 copies of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bridge.graph import Affine, Array, Conv1d, Conv2d


def scaled(weight: Array, factor: Array) -> Array:
    """``weight · factor`` in float32, each product computed in float64; `factor` broadcasts against `weight`."""
    result = np.empty(weight.shape, np.float32)
    # numpy casts in small buffers here, so that large layers need no more memory than their result
    np.multiply(weight, factor, out=result, casting="same_kind", dtype=np.float64)
    return result


def scale_inputs(layer: Affine, factor: Array) -> Affine:
    """`layer` with the weights on input channel c multiplied by ``factor[c]``."""
    if isinstance(layer, Conv1d | Conv2d):  # within its group, an output channel sees a slice of the input channels
        grouped = layer.weight.reshape(layer.groups, -1, *layer.weight.shape[1:])
        per_group = factor.reshape(layer.groups, 1, -1, *[1] * (layer.weight.ndim - 2))
        return replace(layer, weight=scaled(grouped, per_group).reshape(layer.weight.shape))
    return replace(layer, weight=scaled(layer.weight, factor))
