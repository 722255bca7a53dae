"""Multiplying weights channel by channel, in float64, without float64 copies of them."""

from __future__ import annotations

import numpy as np

from bridge.graph import Array


def scaled(weight: Array, factor: Array) -> Array:
    """``weight · factor`` in float32, each product computed in float64; `factor` broadcasts against `weight`."""
    result = np.empty(weight.shape, np.float32)
    # numpy casts in small buffers here, so that large layers need no more memory than their result
    np.multiply(weight, factor, out=result, casting="same_kind", dtype=np.float64)
    return result
