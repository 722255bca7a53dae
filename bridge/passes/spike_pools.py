"""A maximum pool of spikes: the sum over windows, and the threshold that makes it their maximum, or their minimum.

The spikes of a window's neurons begin together, so one of them fires when any of them does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bridge.graph import AtLeast, Conv1d, Conv2d, Layer, MaxPool, Shape, SumPool2d
from bridge.simulate.ops import evaluate


def spike_pool(pool: MaxPool, before: Shape, name: str, *, whole: bool) -> tuple[Layer, AtLeast]:
    """The sum over the windows of `pool`, called `name`, and the threshold behind it, called as the pool.

    `before` is the shape of what the pool reads. Thresholds are whole numbers, or half of one lower.
    """
    channels, *space = pool.output_shape(before)
    sizes = zip(before[1:], space, pool.kernel, pool.stride, pool.padding, pool.dilation, strict=True)
    longer = [max(0, (o - 1) * s + d * (k - 1) + 1 - n - 2 * p) for n, o, k, s, p, d in sizes]
    summed: Layer
    if len(space) == 2 and set(pool.dilation) == {1} and not any(longer):
        kernel, stride, padding = ((one, two) for one, two in (pool.kernel, pool.stride, pool.padding))
        summed = SumPool2d(name=name, inputs=pool.inputs, kernel=kernel, stride=stride, padding=padding)
    else:  # ones, and as many zeros in front of them as the last window reaches too far
        reach = [d * (k - 1) + 1 for k, d in zip(pool.kernel, pool.dilation, strict=True)]
        weight = np.zeros((channels, 1, *(r + e for r, e in zip(reach, longer, strict=True))), np.float32)
        places = tuple(slice(e, None, d) for e, d in zip(longer, pool.dilation, strict=True))
        weight[(slice(None), slice(None), *places)] = 1.0
        padding = tuple(p + e for p, e in zip(pool.padding, longer, strict=True))
        common: dict[str, Any] = {"name": name, "inputs": pool.inputs, "weight": weight, "groups": channels}
        common["bias"] = np.zeros(channels, np.float32)
        if len(space) == 1:
            summed = Conv1d(**common, stride=pool.stride[0], padding=padding[0])
        else:
            pairs: dict[str, Any] = {"stride": pool.stride, "padding": padding}
            summed = Conv2d(**common, **pairs)
    below = 0.0 if whole else 0.5
    level = np.full(channels, 1 - below, np.float32)
    if pool.minimum is not None:  # all that is really in the window, where the map ends fewer
        real = evaluate(summed, torch.ones(1, *before, dtype=torch.float64))[0].numpy()
        level = np.where(pool.minimum.reshape(-1, *[1] * len(space)), real - below, 1 - below).astype(np.float32)
    return summed, AtLeast(name=pool.name, inputs=(name,), level=level)
