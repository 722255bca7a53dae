"""Neurons without state, as modules of NNX: groups of thresholds, what is done to each of a group, and pools.

The signals of groups are ``[B, L, ..., C]``: as all signals with their channels last, and for each of the L levels.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from exporters.spyx.neuron import fires


class Threshold(nnx.Module):  # type: ignore[misc]
    """``y = [x ≥ level]`` with the neurons' surrogate gradient; `level` is ``[C]`` or ``[..., C]``, as a signal."""

    def __init__(self, level: NDArray[np.floating]) -> None:
        self.level = jnp.asarray(level)

    def __call__(self, x: Array) -> Array:
        return fires(x - self.level)


class ThresholdGroup(nnx.Module):  # type: ignore[misc]
    """``s_k = [x ≥ level_k]``: the spikes of groups for drives ``[B, ..., C]``; `level` is ``[L, ..., C]``.

    Where one level holds for all positions, sizes of 1 stand for them.
    """

    def __init__(self, level: NDArray[np.floating]) -> None:
        self.level = jnp.asarray(level)

    def __call__(self, x: Array) -> Array:
        return fires(x[:, None] - self.level)

    def membrane(self, x: Array, spikes: Array, after: None) -> Array:
        """The drive that the `spikes` are due to, once for each level."""
        return jnp.broadcast_to(x[:, None], spikes.shape)


class EachLevel(nnx.Module):  # type: ignore[misc]
    """What `layer` does, done to each level of groups."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Array) -> Array:
        y = self.layer(x.reshape(-1, *x.shape[2:]))
        return y.reshape(*x.shape[:2], *y.shape[1:])


def group_sum(x: Array) -> Array:
    """How many neurons of each group fire: ``[B, L, ...]`` to ``[B, ...]``."""
    return x.sum(axis=1)
