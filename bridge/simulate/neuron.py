"""The neuron: integrate, fire, soft reset, one time step after another, as its equations stand."""

from __future__ import annotations

import torch
from torch import Tensor


def integrate_fire(
    drive: Tensor,
    skip: Tensor | None,
    potential: Tensor,
    vectors: tuple[Tensor, Tensor, Tensor],
    spikes: Tensor,
    counts: Tensor,
    limit: float,
) -> int:
    """Take B images through S time steps, and count the potentials u whose size passed `limit`.

    ``u = v + drive + gain · skip``; it fires, ``s = (u ≥ level)``; ``v = u − threshold · s`` (soft reset: Bu et al.,
    ICLR 2022).

    Args:
        drive: float32 ``[B, S, N]``, or ``[B, 1, N]`` if it is the same at every step.
        skip: spikes 0/1 that reach the neurons past a layer with weights, uint8 ``[B, S, N]``; None: there are none.
        potential: v, float32 ``[B, N]``, changed in place.
        vectors: gain (what a spike of `skip` adds), level and threshold, float32 ``[N]`` each.
        spikes: uint8 ``[B, S, N]``, overwritten.
        counts: int64 ``[B, S]``, overwritten: spikes of each image and step.
        limit: see above.
    """
    gain, level, threshold = vectors
    beyond = 0
    fired = spikes.view(torch.bool)
    for t in range(spikes.shape[1]):
        now = drive[:, min(t, drive.shape[1] - 1)]
        potential += now if skip is None else now + gain * skip[:, t]
        beyond += int((potential.abs() > limit).sum())
        torch.ge(potential, level, out=fired[:, t])
        potential -= threshold * spikes[:, t]
    torch.sum(spikes, dim=2, dtype=torch.int64, out=counts)
    return beyond


def count_spikes(
    drive: Tensor, skip: Tensor | None, vectors: tuple[Tensor, Tensor, Tensor], most: int, counts: Tensor, above: Tensor
) -> None:
    """How often B images' neurons fire in a window of `most` steps, their drive being complete: `SpikeCount`.

    Args:
        drive: float32 ``[B, 1, N]``.
        skip: counts that reach the neurons past a layer with weights, ``[B, 1, N]``; None: there are none.
        vectors: gain (what a spike of `skip` adds), level and threshold, float32 ``[N]`` each.
        most: steps of the window.
        counts: whole numbers ``[B, 1, N]``, overwritten.
        above: int64 ``[B, M]``, overwritten: how many neurons of each image fire more than 0, 1, … times.
    """
    gain, level, threshold = vectors
    u = drive if skip is None else drive + gain * skip
    times = ((u - threshold - level) / threshold).floor_().add_(1).clamp_(0, most)
    times -= ((u - times * threshold < level) & (times > 0)).to(u.dtype)  # the quotient may have been rounded up
    times += ((u - (times + 1) * threshold >= level) & (times < most)).to(u.dtype)
    counts.copy_(times)
    above.zero_()
    for k in range(most):
        torch.sum(counts[:, 0] > k, dim=1, dtype=torch.int64, out=above[:, k])
