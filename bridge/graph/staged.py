"""The layers that make a spiking network equal to its ANN: each integrates silently, then fires in a window of its own.

A spike of a layer is worth λ / T. Once a neuron's drive is complete, it fires until what it was given is used up, which
takes as many steps as QCFS has levels there: the count is ``L · a / λ`` exactly. So no layer is read before its inputs
are done, and a network takes as many steps as its windows, one behind the other (`LayerGraph.latency`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bridge.graph.layers import Array, IntegrateFire, Layer, Shape


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SpikeCount(IntegrateFire):
    """How often an integrate-and-fire neuron fires in a window of ``steps`` steps, its drive being complete before:

    ``n = clip(floor((d − threshold − level) / threshold) + 1, 0, steps)``. ``level`` is what the potential has to reach
    after its first fall, as in `WindowFire`, one value per channel or the full shape. With ``level = −threshold / 2``
    that is QCFS in units of λ / L; in integers the level is rounded up. It is part of no spiking network, but what both
    schedules are made from.
    """

    steps: int

    def __post_init__(self) -> None:
        channels = self.level.shape[:1]
        self.expect(self.steps >= 1, "at least one step", self.steps)
        fits = self.threshold.shape in ((1,), channels)
        self.expect(fits, f"one threshold for each of the {channels} channels, or one for all", self.threshold.shape)
        object.__setattr__(self, "threshold", np.array(np.broadcast_to(self.threshold, channels)))

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(self.level.shape in (shape[:1], shape), f"levels for {shape[0]} channels", self.level.shape)
        return shape


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Impulse(Layer):
    """The image at the first step, zero after: ``y(1) = x, y(t) = 0``. So drives are sums over the run."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class WindowFire(Layer):
    """Integrate-and-fire in a window: soft reset at every step of it, and spikes inside it alone.

    With u(0) = 0, steps counted from 0 and the window ``opens ≤ t < opens + steps``:
    ``u += I;  u −= threshold if t ≥ opens;  s = [u ≥ level and t in the window]``.
    ``threshold`` has one value per channel, 1 unless the network is in integers. ``level`` holds −threshold/2 − B, of
    the layer's full shape, where B is its drive with a zero image and no spikes: the layers before have no bias. After
    the window u means nothing.
    """

    level: Array
    opens: int
    steps: int
    threshold: Array = field(default_factory=lambda: np.ones(1, np.float32))

    def __post_init__(self) -> None:
        self.expect(bool(np.isfinite(self.level).all()), "finite firing levels", self.level)
        self.expect(bool(np.all(np.isfinite(self.threshold) & (self.threshold > 0))), "thresholds > 0", self.threshold)
        channels = self.level.shape[:1]
        fits = self.threshold.shape in ((1,), channels)
        self.expect(fits, f"one threshold for each of the {channels} channels, or one for all", self.threshold.shape)
        object.__setattr__(self, "threshold", np.array(np.broadcast_to(self.threshold, channels)))
        self.expect(self.opens >= 0 and self.steps >= 1, "a window of at least one step", (self.opens, self.steps))

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(shape == self.level.shape, f"an input of shape {self.level.shape}, one level each", shape)
        return shape


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AtLeast(Layer):
    """``y = [x ≥ level]``; ``level`` has one value for each channel, or the full shape.

    After a sum over windows of n spike trains that are ones and then zeros, it is their maximum with level 1/2, and
    their minimum with level n − 1/2.
    """

    level: Array

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        fits = self.level.shape in (shape[:1], shape)
        self.expect(fits, f"{len(self.level)} channels, or the shape {self.level.shape} (one level each)", shape)
        return shape


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class BiasOnce(Layer):
    """A bias that enters in the first step alone: ``y(1) = x + bias, y(t) = x``; ``bias`` has the full shape."""

    bias: Array

    def output_shape(self, shape: Shape, *more: Shape) -> Shape:
        self.expect(shape == self.bias.shape, f"an input of shape {self.bias.shape}, one bias each", shape)
        return shape
