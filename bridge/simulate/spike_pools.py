"""A maximum pool of spikes: the sum over windows, and the threshold that makes it their maximum, or their minimum.

The spikes of a window's neurons begin together, so one of them fires when any of them does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bridge.graph import AtLeast, Conv1d, Conv2d, Layer, MaxPool, Shape, SumPool2d, spread
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


def as_max_pool(summed: Layer, fired: AtLeast, before: Shape) -> MaxPool | None:
    """The pool of what has the shape `before` that `spike_pool` writes as these two layers; None if there is none."""
    levels = spread(fired.level, summed.output_shape(before))
    flat = levels.reshape(len(levels), -1)
    whole = bool((levels == np.rint(levels)).all())
    minimum: NDArray[np.bool_] = np.asarray((flat > 1).any(axis=1))
    sizes = _sizes(summed)
    if sizes is None:
        return None
    pool = MaxPool(name=fired.name, inputs=summed.inputs, **sizes, minimum=minimum if minimum.any() else None)
    again, level = spike_pool(pool, before, summed.name, whole=whole)
    same = type(again) is type(summed) and again.output_shape(before) == summed.output_shape(before)
    if isinstance(again, Conv1d | Conv2d) and isinstance(summed, Conv1d | Conv2d):
        same = same and np.array_equal(again.weight, summed.weight) and again.padding == summed.padding
    return pool if same and np.array_equal(spread(level.level, levels.shape), levels) else None


def _sizes(summed: Layer) -> dict[str, Any] | None:
    """Kernel, stride and so on of the pool whose windows `summed` sums; None if it sums no windows."""
    if isinstance(summed, SumPool2d):
        sizes: dict[str, Any] = {"kernel": summed.kernel, "stride": summed.stride, "padding": summed.padding}
        return {**sizes, "dilation": (1, 1)}
    if not isinstance(summed, Conv1d | Conv2d) or summed.groups != len(summed.weight) or summed.weight.shape[1] != 1:
        return None
    places = np.nonzero(summed.weight[0, 0])
    if not len(places[0]) or summed.bias.any():
        return None
    taken = [np.unique(place) for place in places]
    longer = [int(place[0]) for place in taken]
    ends: tuple[int, ...]
    stride, ends = ((one,) if isinstance(one, int) else tuple(one) for one in (summed.stride, summed.padding))
    return {
        "kernel": tuple(len(place) for place in taken),
        "stride": stride,
        "padding": tuple(end - e for end, e in zip(ends, longer, strict=True)),
        "dilation": tuple(int(place[1] - place[0]) if len(place) > 1 else 1 for place in taken),
        "ceil": any(longer),
    }
