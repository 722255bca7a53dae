"""The layers of a staged network that count time steps, as layers of Spyx with state: the number of the step is in it.

It is ``step``, counted from 0, for each image: int32 ``[B, 1, ...]``, to broadcast over a signal. In a signal and in
what belongs to it, channels come last.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import spyx
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from bridge.graph import Shape
from exporters.spyx.neuron import fires


def clock(batch_size: int, rank: int) -> Array:
    """The number of the first time step, 0, for images whose signals have `rank` dimensions without batch."""
    return jnp.zeros((batch_size, *[1] * rank), jnp.int32)


class WindowIF(spyx.nn.IF):  # type: ignore[misc]
    """``u += I;  u −= threshold if step ≥ opens;  s = [u ≥ level and opens ≤ step < opens + steps]``, u(0) = 0.

    `level` has the signal's `hidden_shape`, `threshold` one value for a channel. The state is ``(u, step)``.
    """

    def __init__(
        self,
        hidden_shape: Shape,
        level: NDArray[np.floating],
        threshold: NDArray[np.floating],
        opens: int,
        steps: int,
    ) -> None:
        super().__init__(hidden_shape, threshold=jnp.asarray(threshold), activation=fires)
        self.level = jnp.asarray(level)
        self.opens, self.steps = opens, steps

    def initial_state(self, batch_size: int) -> tuple[Array, Array]:
        """Potentials of 0, and the first step to come."""
        return super().initial_state(batch_size), clock(batch_size, len(self.hidden_shape))

    def __call__(self, x: Array, state: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        potential, step = state
        opened = step >= self.opens
        potential = potential + x - opened * self.threshold
        spikes = self.spike(potential - self.level) * (opened & (step < self.opens + self.steps))
        return spikes, (potential, step + 1)

    def membrane(self, x: Array, spikes: Array, after: tuple[Array, Array]) -> Array:
        """The potential that the `spikes` are due to: no spike takes anything off."""
        return after[0]


class Impulse(nnx.Module):  # type: ignore[misc]
    """``y = x`` at the first time step, 0 after; signals have `rank` dimensions without batch."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def initial_state(self, batch_size: int) -> Array:
        """The first step is to come."""
        return clock(batch_size, self.rank)

    def __call__(self, x: Array, step: Array) -> tuple[Array, Array]:
        return x * (step == 0), step + 1


class BiasOnce(nnx.Module):  # type: ignore[misc]
    """``y = x + bias`` at the first time step, x after; `bias` has the signal's shape."""

    def __init__(self, bias: NDArray[np.floating]) -> None:
        self.bias = jnp.asarray(bias)

    def initial_state(self, batch_size: int) -> Array:
        """The first step is to come."""
        return clock(batch_size, self.bias.ndim)

    def __call__(self, x: Array, step: Array) -> tuple[Array, Array]:
        return x + self.bias * (step == 0), step + 1
