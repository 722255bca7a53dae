"""The layers that make a spiking network equal to its ANN in one time step: each neuron is a group of thresholds.

A neuron that would fire n times in a window is a group of as many neurons as the window has steps, of which n fire at
once: the k-th fires if the drive would reach its level k times. There is no state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bridge.graph.layers import Array, Layer, Shape


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class GroupFire(Layer):
    """``s_k = [d ≥ level_k]`` for the levels k = 1…L; the output ``[L, *shape]`` has L times as many values.

    ``level`` is ``[L, C]``, one for each level and channel, or ``[L, *shape]``; it does not fall with k.
    """

    level: Array

    def __post_init__(self) -> None:
        self.expect(bool(np.isfinite(self.level).all()), "finite firing levels", self.level)
        rising = self.level.ndim >= 2 and bool((np.diff(self.level, axis=0) >= 0).all())
        self.expect(rising, "levels [L, C] that do not fall", self.level.shape)

    @property
    def levels(self) -> int:
        """L, neurons in a group."""
        return len(self.level)

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        fits = self.level.shape[1:] in (shape[:1], shape)
        self.expect(
            fits, f"{self.level.shape[1]} channels, or the shape {self.level.shape[1:]} (one level each)", shape
        )
        return (self.levels, *shape)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class EachLevel(Layer):
    """What ``layer`` does, done to the spikes ``[L, C, ...]`` of groups, each level by itself: part of a pool."""

    layer: Layer

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        return (shape[0], *self.layer.output_shape(shape[1:]))


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class GroupSum(Layer):
    """How many neurons of each group fire: ``[L, *shape]`` to ``[*shape]``."""

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(len(shape) >= 2, "the spikes of groups [L, C, ...]", shape)
        return shape[1:]
