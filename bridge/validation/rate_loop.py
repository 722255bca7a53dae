"""The sums of `bridge.validation.rate_error` over neurons, in one pass: as machine code with numba, else by numpy.

With c, e, m, k, L, t as there, and a sign s of ``c·L − k·t``, which is the error times t·L:

* ``error`` Σ|c·L − k·t|, ``worst`` the largest of these, ``within`` how many are at most L;
* ``product`` Σc·k, ``square`` Σc², ``level_square`` Σk²;
* ``isolated`` Σ|m·L − k·t|, ``quantisation`` Σs·(m·L − k·t), ``unevenness`` Σs·(c − e);
* ``clipping`` Σs·((clip(ẑ) − ẑ) − (clip(z) − z)), the only one that is not whole.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = (
    "error", "worst", "within", "product", "square", "level_square", "isolated", "quantisation", "unevenness",
    "clipping",
)  # fmt: skip
BLOCK = 2048
"""Neurons that are taken through all steps at once: their state stays in the first cache."""
COUNTS = 2**20
"""What T · max(T, L) stays below where float32 holds all terms."""

Array = NDArray[Any]


def add_sums(
    run: tuple[Array, Array | None, Array | None, Array],
    neurons: tuple[Array, Array],
    ann: tuple[Array, Array, Array],
    levels: int,
    done: int,
    state: tuple[Array, Array],
    sums: Array,
    *,
    integrates: bool,
) -> None:
    """Add what B images' neurons do in S steps to `sums`.

    Args:
        run: drive or potential ``[B, S, N]`` (or ``[B, 1, N]``: the same at every step); gain ``[N]`` and skipped
            spikes ``[B, S, N]``, which it lacks, or None; spikes ``[B, S, N]``.
        neurons: level and threshold, ``[N]``.
        ann: drive, float32 ``[B, N]``; λ, float32 ``[N]``; level out of 0…L, whole ``[B, N]``.
        levels: L.
        done: steps before these.
        state: the potential and the spikes so far, float32 ``[B, N]``; changed in place.
        sums: float64 ``[S, columns]``, changed in place.
        integrates: the first array is what is added to the potential, and not the potential itself.
    """
    drive, gain, skip, spikes = run
    loop = compiled() if (done + len(sums)) * max(done + len(sums), levels) < COUNTS else None
    if loop is None:
        _add_sums(run, neurons, ann, levels, done, state, sums, integrates)
        return
    gains, skipped = (neurons[0], spikes) if gain is None or skip is None else (gain, skip)
    loop(
        drive, gains, skipped.view(np.uint8), spikes.view(np.uint8), *neurons, *ann, np.float32(levels), done, *state,
        sums, skip is not None, integrates,
    )  # fmt: skip


def _add_sums(
    run: tuple[Array, Array | None, Array | None, Array],
    neurons: tuple[Array, Array],
    ann: tuple[Array, Array, Array],
    levels: int,
    done: int,
    state: tuple[Array, Array],
    sums: Array,
    integrates: bool,
) -> None:
    """The specification of `_loop`, in float64."""
    drive, gain, skip, spikes = run
    level, threshold = (values.astype(np.float64) for values in neurons)
    z, k = ann[0].astype(np.float64) / ann[1], ann[2].astype(np.float64)
    potential, before = state
    for step in range(len(sums)):
        t = done + step + 1
        u = drive[:, min(step, drive.shape[1] - 1)]
        if gain is not None and skip is not None:
            u = u + gain * skip[:, step]
        if integrates:
            u = potential + u
        fired = spikes[:, step].astype(np.float32)
        even = np.clip(np.floor((u - level) / threshold) + 1 + before, 0, t)
        alone = np.clip(np.floor(z * t + 0.5), 0, t) if t != levels else k
        heard = (u / threshold + before) / t
        clipping = (np.clip(heard, 0, 1) - heard) - (np.clip(z, 0, 1) - z)
        count = before.astype(np.float64) + fired
        error, isolated = count * levels - k * t, alone * levels - k * t
        sign = np.sign(error)
        row = (
            np.abs(error).sum(), np.abs(error).max(), np.count_nonzero(np.abs(error) <= levels), (count * k).sum(),
            (count * count).sum(), (k * k).sum(), np.abs(isolated).sum(), (sign * isolated).sum(),
            (sign * (count - even)).sum(), (sign * clipping).sum(),
        )  # fmt: skip
        worst = max(sums[step, 1], row[1])
        sums[step] += row
        sums[step, 1] = worst
        potential[:] = u - neurons[1] * fired
        before += fired


@cache
def compiled() -> Any:
    """The loop as machine code; None without numba."""
    try:
        from bridge.simulate.engine.machine_code import outer
    except ImportError:
        return None
    return outer(_loop, any_order=True)


def _loop(  # type: ignore[no-untyped-def]
    drive, gain, skip, spikes, level, threshold, z, height, k, levels, done, potential, before, sums, skips, integrates
):
    images, steps, neurons = spikes.shape
    none, one, half = np.float32(0), np.float32(1), np.float32(0.5)
    held = drive.shape[1] == 1
    for b in range(images):
        for start in range(0, neurons, BLOCK):
            stop = min(neurons, start + BLOCK)
            v, c = potential[b, start:stop], before[b, start:stop]
            lev, theta, g = level[start:stop], threshold[start:stop], gain[start:stop]
            zs, heights, ks = z[b, start:stop], height[start:stop], k[b, start:stop]
            for step in range(steps):
                n = np.float32(done + step + 1)
                share, same = one / n, n == levels
                d, s = drive[b, 0 if held else step, start:stop], spikes[b, step, start:stop]
                other = skip[b, step, start:stop]
                error, worst, within, product, square, level_square = none, np.int32(0), none, none, none, none
                isolated, quantisation, unevenness, clipping = none, none, none, none
                for i in range(stop - start):  # no branch in it, so that it is done for many neurons at once
                    u = d[i]
                    if skips:
                        u = u + g[i] * np.float32(other[i])
                    if integrates:
                        u = v[i] + u
                    h, so_far, fired, target = theta[i], c[i], np.float32(s[i]), np.float32(ks[i])
                    unit = one / h
                    above = u - lev[i]
                    fits = np.floor(above * unit)
                    fits = fits - (one if fits * h > above else none)  # the quotient may have been rounded
                    fits = fits + (one if (fits + one) * h <= above else none)
                    even = fits + one + so_far
                    even = even if even > none else none
                    even = even if even < n else n
                    heard, given = (u * unit + so_far) * share, zs[i] / heights[i]
                    low, given_low = (heard if heard > none else none), (given if given > none else none)
                    clip = (low if low < one else one) - heard - ((given_low if given_low < one else one) - given)
                    alone = np.floor(given * n + half)
                    alone = alone if alone > none else none
                    alone = target if same else (alone if alone < n else n)
                    count = so_far + fired
                    off, off_alone = count * levels - target * n, alone * levels - target * n
                    size = abs(off)
                    sign = (one if off > none else none) - (one if off < none else none)
                    error += size
                    worst = max(worst, np.int32(size))
                    within += one if size <= levels else none
                    product += count * target
                    square += count * count
                    level_square += target * target
                    isolated += abs(off_alone)
                    quantisation += sign * off_alone
                    unevenness += sign * (count - even)
                    clipping += sign * clip
                    v[i] = u - h * fired
                    c[i] = count
                row = sums[step]
                row[0] += error
                row[1] = max(row[1], np.float64(worst))
                row[2] += within
                row[3] += product
                row[4] += square
                row[5] += level_square
                row[6] += isolated
                row[7] += quantisation
                row[8] += unevenness
                row[9] += clipping
