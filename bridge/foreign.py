"""A spiking network that another tool wrote as NIR: run as its equations say, to hold that tool's own runs against."""

from __future__ import annotations

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge._util.checks import time_steps
from bridge._util.neutral import neutral
from bridge.converters.nir_graphs.third_party import parse
from bridge.errors import InputError
from bridge.graph import Shape
from bridge.records import SpikeRecord
from bridge.simulate import nir_reference


class ForeignNetwork:
    """Any NIR graph whose meaning is unambiguous, discretised by forward Euler (docs/foreign_graphs.md).

    ``nir`` is the graph, ``dt`` its time step, in the unit of its time constants, which are seconds in most files.
    """

    @neutral()
    def __init__(self, graph: nir.NIRGraph, dt: float | None = None) -> None:
        """Take `graph` with a time step of `dt`, which may be left out where the graph leaves no doubt about it.

        Raises `GraphError`, naming the node, if something is unknown, does not fit or is ambiguous.
        """
        self.nir = graph
        self._graph = parse(graph, dt)
        self.dt = self._graph.dt

    def __repr__(self) -> str:
        shapes = self._graph.shapes
        return (
            f"ForeignNetwork({list(shapes[self._graph.input])} -> {list(shapes[self._graph.output])}, "
            f"{len(self.layers)} spiking layers, dt = {self.dt:g})"
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the nodes that spike, in order; the keys of every `bridge.SpikeRecord` of this network."""
        return self._graph.spiking

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every spiking layer, as in its records."""
        return {name: self._graph.shapes[name] for name in self.layers}

    @neutral()
    def run(self, x: Tensor | NDArray[np.generic], steps: int | None = None) -> SpikeRecord:
        """Run from rest on `x`: ``[B, *input]`` held constant for `steps` steps, or ``[T, B, *input]``, one a step.

        All arithmetic is float64. The record's ``readout`` is what reaches the graph's Output at each step.

        Raises:
            InputError: `x` is empty, of another shape or not finite; or `steps` is not given for a constant input, or
                differs from the T of one that changes.
        """
        if not isinstance(x, Tensor | np.ndarray) or (isinstance(x, np.ndarray) and x.dtype.kind not in "biuf"):
            raise InputError(f"x: expected a torch tensor or a numpy array of real numbers, got {type(x).__name__}")
        x = torch.as_tensor(x).detach().cpu()
        shape = self._graph.shapes[self._graph.input]
        named = ", ".join(map(str, shape))
        if tuple(x.shape[1:]) == shape:
            x = x.expand(time_steps(steps), *x.shape)
        elif tuple(x.shape[2:]) != shape or (steps is not None and time_steps(steps) != len(x)):
            raise InputError(
                f"x: expected [B, {named}] with steps, or [T, B, {named}] of T = steps, got {list(x.shape)} and "
                f"steps = {steps!r}"
            )
        if not x.numel() or x.is_complex() or not bool(x.isfinite().all()):
            raise InputError("x: expected at least one input of finite real numbers")
        return nir_reference.run(self._graph, x)
