"""Integrate, fire, reset over all time steps in one pass: the loop that no library of tensors has fused.

With numba (the extra ``fast``) it is compiled once, in about three seconds, and kept on disk; without, torch does the
same with one operation after another (`bridge.simulate.neuron`, the specification of this loop). Both give the same
bits: a sum, a comparison and a difference of float32 a step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bridge.errors import InputError
from bridge.simulate import neuron

BLOCK = 2048
"""Neurons that are taken through all steps at once: their potentials, levels and thresholds stay in the first cache."""


def native(device: torch.device) -> Callable[[Tensor], Any]:
    """What makes of a tensor what `integrate_fire` takes: numpy's array of the same memory, or the tensor itself."""
    return Tensor.numpy if device.type == "cpu" and compiled() is not None else lambda x: x


def too_large(layer: str, count: int, limit: float, step: int) -> InputError:
    """What is to be said when `count` potentials of a layer have passed `limit`."""
    return InputError(
        f"layer {layer!r}: {count} potentials pass ±{limit:.0f} by step {step}, beyond which the arithmetic is not "
        "exact. Run fewer steps, or quantize with fewer weight bits"
    )


def integrate_fire(
    drive: Any,
    skip: Any,
    potential: Any,
    vectors: tuple[Any, Any, Any],
    spikes: Any,
    counts: Any,
    limit: float,
) -> int:
    """Take B images through S time steps, and count the potentials u whose size passed `limit`.

    The equations are those of `bridge.simulate.neuron.integrate_fire`; all arrays are what `native` made of tensors.

    Args:
        drive: float32 ``[B, S, N]``, or ``[B, 1, N]`` if it is the same at every step.
        skip: spikes 0/1 that reach the neurons past a layer with weights, uint8 ``[B, S, N]``; None: there are none.
        potential: v, float32 ``[B, N]``, changed in place.
        vectors: gain (what a spike of `skip` adds), level and threshold, float32 ``[N]`` each.
        spikes: uint8 ``[B, S, N]``, overwritten.
        counts: int64 ``[B, S]``, overwritten: spikes of each image and step.
        limit: see above.
    """
    if isinstance(drive, Tensor):
        return neuron.integrate_fire(drive, skip, potential, vectors, spikes, counts, limit)
    skips = skip is not None
    return int(
        compiled()(drive, skip if skips else spikes, potential, *vectors, spikes, counts, skips, np.float32(limit))
    )


def count_spikes(drive: Any, skip: Any, vectors: tuple[Any, Any, Any], most: int, counts: Any, above: Any) -> None:
    """As `bridge.simulate.neuron.count_spikes`; all arrays are what `native` made of tensors."""
    if isinstance(drive, Tensor):
        neuron.count_spikes(drive, skip, vectors, most, counts, above)
        return
    skips = skip is not None
    compiled_counting()(drive, skip if skips else counts, *vectors, counts, above, skips, most)


@cache
def compiled() -> Any:
    """The loop as machine code; None without numba."""
    try:
        from bridge.simulate.engine.machine_code import outer
    except ImportError:
        return None
    return outer(_loop)


@cache
def compiled_counting() -> Any:
    """The loop of `count_spikes` as machine code; None without numba."""
    try:
        from bridge.simulate.engine.machine_code import outer
    except ImportError:
        return None
    return outer(_counting_loop)


def _loop(drive, skip, potential, gain, level, threshold, spikes, counts, skips, limit):  # type: ignore[no-untyped-def]
    beyond = 0
    images, steps, neurons = spikes.shape
    held = drive.shape[1] == 1
    for b in range(images):
        counts[b] = 0
        for start in range(0, neurons, BLOCK):
            stop = min(neurons, start + BLOCK)
            v, lev, height, g = potential[b, start:stop], level[start:stop], threshold[start:stop], gain[start:stop]
            for t in range(steps):
                d, s = drive[b, 0 if held else t, start:stop], spikes[b, t, start:stop]
                count = 0
                if skips:
                    other = skip[b, t, start:stop]
                    for i in range(stop - start):
                        u = v[i] + (d[i] + g[i] * np.float32(other[i]))
                        fired = u >= lev[i]
                        s[i] = fired
                        count += fired
                        beyond += abs(u) > limit
                        v[i] = u - (height[i] if fired else np.float32(0))
                else:
                    for i in range(stop - start):
                        u = v[i] + d[i]
                        fired = u >= lev[i]
                        s[i] = fired
                        count += fired
                        beyond += abs(u) > limit
                        v[i] = u - (height[i] if fired else np.float32(0))
                counts[b, t] += count
    return beyond


def _counting_loop(drive, skip, gain, level, threshold, counts, above, skips, most):  # type: ignore[no-untyped-def]
    images, _, neurons = counts.shape
    none, one, highest = np.float32(0), np.float32(1), np.float32(most)
    added = np.empty(BLOCK, np.float32)
    for b in range(images):
        above[b] = 0
        for start in range(0, neurons, BLOCK):
            stop = min(neurons, start + BLOCK)
            d, n = drive[b, 0, start:stop], counts[b, 0, start:stop]
            lev, height = level[start:stop], threshold[start:stop]
            if skips:
                other, g = skip[b, 0, start:stop], gain[start:stop]
                for i in range(stop - start):
                    added[i] = d[i] + g[i] * np.float32(other[i])
                d = added[: stop - start]
            for i in range(stop - start):  # no branch in it, so that it is done for many neurons at once
                u, h, low = d[i], height[i], lev[i]
                times = min(max(np.floor((u - h - low) / h) + one, none), highest)
                times -= np.float32((times > none) & (u - times * h < low))  # the quotient may have been rounded up
                times += np.float32((times < highest) & (u - (times + one) * h >= low))
                n[i] = np.int32(times)
            for k in range(most):
                count = 0
                for i in range(stop - start):
                    count += n[i] > k
                above[b, k] += count
