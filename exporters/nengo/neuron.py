"""The integrate-and-fire neuron with soft reset as a subclass of Nengo's, and one without state."""

from __future__ import annotations

import nengo
import numpy as np
from nengo.dists import Choice
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


class SoftResetIF(nengo.SpikingRectifiedLinear):  # type: ignore[misc]
    """``u += J·dt;  s = [u ≥ level];  u −= threshold · s``, u(0) = 0; the output is ``s / dt``, as spikes are in Nengo.

    A network in which a time step is the unit of time is simulated with ``dt=1``: then a spike is 1, and it takes
    exactly the threshold off.

    Nengo's own integrate-and-fire neuron, ``SpikingRectifiedLinear``, is not this one: it takes no negative current,
    can fire several times in a step, fires at the threshold and not at half of it, and starts at a random potential.

    A level and a threshold for each neuron are part of the state, which stays as ``initial_state`` says. As parameters
    they would be lost: Nengo's optimizer joins populations of equal neuron types into one and keeps the first's.
    """

    state = {"voltage": Choice([0]), "level": Choice([0.5]), "threshold": Choice([1])}  # noqa: RUF012 (as in Nengo)

    potential = "voltage"
    """What to probe for the potential; `before_reset` makes it of that."""

    def step(
        self,
        dt: float,
        J: Float64,  # noqa: N803 (Nengo's name for the current)
        output: Float64,
        voltage: Float64,
        level: Float64,
        threshold: Float64,
    ) -> None:
        """One time step, in place: all arrays are ``[neurons]``."""
        voltage += J * dt
        fired = voltage >= level
        output[...] = fired / dt
        voltage -= threshold * fired

    def before_reset(self, voltage: Float64, fired: Float64) -> Float64:
        """The potential before the reset of the spikes `fired`, from the `voltage` that it left.

        Adding the threshold back is exact where it matters: so is the subtraction of 1 between 1/2 and 2, and of whole
        numbers.
        """
        before: Float64 = voltage + self.initial_state["threshold"] * fired
        return before


class Threshold(nengo.SpikingRectifiedLinear):  # type: ignore[misc]
    """``s = [J·dt ≥ level]``, with nothing kept from one step to the next; the output is ``s / dt``.

    The levels are part of the state for the same reason as those of `SoftResetIF`.
    """

    state = {"level": Choice([0.5])}  # noqa: RUF012 (as in Nengo)
    potential = "input"

    def step(self, dt: float, J: Float64, output: Float64, level: Float64) -> None:  # noqa: N803 (as in Nengo)
        """One time step, in place: all arrays are ``[neurons]``."""
        output[...] = (J * dt >= level) / dt

    def before_reset(self, drive: Float64, fired: Float64) -> Float64:
        """What the spikes `fired` are due to: the drive."""
        return drive
