"""The integrate-and-fire neuron with soft reset as a subclass of Spyx's ``IF``."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import spyx
from jax import Array
from numpy.typing import NDArray

from bridge.graph import Shape


def _fires(distance: Array) -> Array:
    """1 where the potential is at or above its level, else 0. Spyx's own ``heaviside`` is 0 at the level itself."""
    return jnp.where(distance >= 0, 1, 0).astype(distance.dtype)


def _surrogate(distance: Array) -> Array:
    """The derivative of Spyx's default activation, ``spyx.axn.superspike``: ``1 / (1 + 25 |u|)²``."""
    return 1 / (1 + 25 * jnp.abs(distance)) ** 2


_FIRES = spyx.axn.custom(bwd=_surrogate, fwd=_fires)


def fires(distance: Array) -> Array:
    """1 where `distance`, the potential less its level, is not negative. A function, since JAX's cannot be copied."""
    spikes: Array = _FIRES(distance)
    return spikes


class SoftResetIF(spyx.nn.IF):  # type: ignore[misc]
    """``u += I;  s = [u ≥ level];  u −= threshold · s``, u(0) = 0, one of each for a channel of ``[B, ..., C]``.

    ``initial_state(batch_size)`` and ``(x, V) -> (spikes, V)`` are those of every neuron in Spyx
    (``spyx.nn.StatefulLayer``), so it goes wherever they go. Spyx's own ``IF`` is not this neuron: it fires by the
    potential that the step before left and integrates after that, so that its spikes come a step later in each layer
    (``spyx.nn.IF.__call__``); and it fires on ``>``, at the same level that it subtracts.
    """

    def __init__(self, hidden_shape: Shape, level: NDArray[np.float32], threshold: NDArray[np.float32]) -> None:
        super().__init__(hidden_shape, threshold=jnp.asarray(threshold), activation=fires)
        self.level = jnp.asarray(level)

    def __call__(self, x: Array, V: Array) -> tuple[Array, Array]:  # noqa: N803 (Spyx's name for the potential)
        V = V + x  # noqa: N806
        spikes: Array = self.spike(V - self.level)
        return spikes, V - spikes * self.threshold

    def membrane(self, x: Array, spikes: Array, after: Array) -> Array:
        """The potential before reset, from the `spikes` and what their reset left.

        Adding the threshold back is exact where it matters: so is the subtraction of 1 between 1/2 and 2, and of whole
        numbers.
        """
        return after + spikes * self.threshold
