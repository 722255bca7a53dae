"""The parts of staged networks that know the first time step, and their neurons, which fire in windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nengo
import numpy as np
from nengo.dists import Choice

from exporters.nengo.neuron import Float64


class WindowIF(nengo.SpikingRectifiedLinear):  # type: ignore[misc]
    """``u += J·dt;  u −= threshold if step ≥ opens;  s = [u ≥ level and opens ≤ step < shuts]``, u(0) = 0.

    The output is ``s / dt``, as spikes are in Nengo. The number of the ``step``, counted from 0, is part of the state,
    and so is what each neuron has of its own, as in `exporters.nengo.neuron.SoftResetIF`.
    """

    state = {  # noqa: RUF012 (as in Nengo)
        "voltage": Choice([0]),
        "step": Choice([0]),
        "level": Choice([0.5]),
        "threshold": Choice([1]),
        "opens": Choice([0]),
        "shuts": Choice([1]),
    }
    potential = "voltage"

    def step(
        self,
        dt: float,
        J: Float64,  # noqa: N803 (Nengo's name for the current)
        output: Float64,
        voltage: Float64,
        step: Float64,
        level: Float64,
        threshold: Float64,
        opens: Float64,
        shuts: Float64,
    ) -> None:
        """One time step, in place: all arrays are ``[neurons]``."""
        opened = step >= opens
        voltage += J * dt
        voltage -= threshold * opened
        output[...] = ((voltage >= level) & opened & (step < shuts)) / dt
        step += 1

    def before_reset(self, voltage: Float64, fired: Float64) -> Float64:
        """The potential that the spikes `fired` are due to: none of them takes anything off."""
        return voltage


class Impulse(nengo.Process):  # type: ignore[misc]
    """What its node receives, at the first time step alone; zero after."""

    def make_step(
        self, shape_in: tuple[int], shape_out: tuple[int], dt: float, rng: Any, state: Any
    ) -> Callable[[float, Float64], Float64]:
        """The function of one time step; Nengo's clock shows `dt` at the first."""

        def step(t: float, x: Float64) -> Float64:
            return x if t < 1.5 * dt else np.zeros_like(x)

        return step
