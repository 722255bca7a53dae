"""Sum pooling becomes part of the affine layer that reads it: on the chip no synapse follows another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bridge.graph import Affine, Array, Conv2d, Flatten, Layer, LayerGraph, Linear, Shape, SumPool2d


def fold_pooling(graph: LayerGraph, largest: float = np.inf) -> LayerGraph:
    """Fold every `SumPool2d` whose readers are all affine into those: a weight on a sum is one on each of its terms.

    Windows that overlap add up weights: a pool stays where that would make one larger than `largest`.

    A `Linear`, read through a `Flatten`, takes any pool in. A `Conv2d` takes one in if its own zero padding then still
    stands for zeros only; the kernel grows to all that the windows under it cover. Every other pool stays.
    """
    for pool in reversed(graph.layers):  # the last of several in a row first
        if isinstance(pool, SumPool2d):
            graph = _folded(graph, pool, largest)
    return graph


def _folded(graph: LayerGraph, pool: SumPool2d, largest: float) -> LayerGraph:
    """`graph` without `pool`, or as it is if one of the readers cannot take it in with weights up to `largest`."""
    shape = graph.shapes[pool.inputs[0]]
    readers = [
        further
        for reader in graph.consumers(pool.name)
        for further in (graph.consumers(reader.name) if isinstance(reader, Flatten) else [reader])
    ]
    changed: dict[str, list[Layer]] = {pool.name: []}
    for reader in readers:
        taken = _take_in(reader, pool, shape)
        if taken is None or np.abs(taken.weight).max() > largest:
            return graph
        changed[reader.name] = [taken]
    return graph.rewrite(changed) if readers else graph


def _take_in(reader: Layer, pool: SumPool2d, shape: Shape) -> Affine | None:
    """What `reader` becomes when it reads the input of `pool`, of `shape` ``[C, H, W]``; None if it cannot."""
    if isinstance(reader, Linear):
        weight = reader.weight.reshape(-1, *pool.output_shape(shape))
        return replace(reader, weight=_spread(weight, pool, shape).reshape(len(weight), -1))
    if isinstance(reader, Conv2d):
        return _merged(reader, pool, shape)
    return None


def _spread(weight: Array, pool: SumPool2d, shape: Shape) -> Array:
    """Weights ``[F, C, h, w]`` on the sums as weights ``[F, C, H, W]`` on their terms."""
    (pad_h, pad_w), (step_h, step_w) = pool.padding, pool.stride
    (height, width), (rows, columns) = shape[1:], weight.shape[2:]
    spread = np.zeros((*weight.shape[:2], height + 2 * pad_h, width + 2 * pad_w), weight.dtype)
    for i in range(pool.kernel[0]):
        for j in range(pool.kernel[1]):
            spread[:, :, i : i + step_h * rows : step_h, j : j + step_w * columns : step_w] += weight
    return spread[:, :, pad_h : pad_h + height, pad_w : pad_w + width]


def _merged(conv: Conv2d, pool: SumPool2d, shape: Shape) -> Conv2d | None:
    """`conv` after `pool` as one convolution, or None if there is no such one.

    The sum at position a covers the inputs from ``a·stride − padding`` on, so the next tap of the kernel begins
    ``dilation · stride`` inputs later.
    """
    pooled = pool.output_shape(shape)
    for size, sums, kernel, step, pad, margin in zip(
        shape[1:], pooled[1:], pool.kernel, pool.stride, pool.padding, conv.padding, strict=True
    ):
        # `conv` sees zeros in its margin; there no window may reach an input: neither the last one before the first
        # sum nor the first one after the last.
        if margin and (kernel - step - pad > 0 or sums * step - pad < size):
            return None
    gaps = [d * s for d, s in zip(conv.dilation, pool.stride, strict=True)]
    rows, columns = conv.weight.shape[2:]
    sizes = [g * (n - 1) + k for g, n, k in zip(gaps, (rows, columns), pool.kernel, strict=True)]
    weight = np.zeros((*conv.weight.shape[:2], *sizes), conv.weight.dtype)
    for i in range(pool.kernel[0]):
        for j in range(pool.kernel[1]):
            weight[:, :, i : i + gaps[0] * rows : gaps[0], j : j + gaps[1] * columns : gaps[1]] += conv.weight
    (step_h, step_w), (pad_h, pad_w) = pool.stride, pool.padding
    merged = replace(
        conv,
        weight=weight,
        stride=(conv.stride[0] * step_h, conv.stride[1] * step_w),
        padding=(conv.padding[0] * step_h + pad_h, conv.padding[1] * step_w + pad_w),
        dilation=(1, 1),
    )
    return merged if merged.output_shape(shape) == conv.output_shape(pooled) else None
