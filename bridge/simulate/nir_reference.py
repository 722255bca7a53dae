"""The reference simulator of any NIR graph: float64, one time step after another, the equations as they stand."""

from __future__ import annotations

from functools import singledispatch

import numpy as np
import torch
from torch import Tensor

from bridge.graph import Layer, Shape
from bridge.graph.nir_dynamics import (
    Delay,
    Flatten,
    ForeignGraph,
    Neurons,
    Node,
    Passage,
    Scale,
    Threshold,
)
from bridge.records import Recorder, SpikeRecord
from bridge.simulate.images import BATCH
from bridge.simulate.ops import evaluate

NAME = "nir-reference"


def run(graph: ForeignGraph, x: Tensor) -> SpikeRecord:
    """As `simulate_nir`, for any number of inputs: `BATCH` of them at a time."""
    return SpikeRecord.concatenate([simulate_nir(graph, x[:, at : at + BATCH]) for at in range(0, x.shape[1], BATCH)])


@torch.inference_mode()
def simulate_nir(graph: ForeignGraph, x: Tensor) -> SpikeRecord:
    """Run `graph` from rest on its input at every time step, `x` ``[T, B, *input]``.

    ``readout`` is what the Output gets at each step.
    """
    rest: dict[str, Tensor] = {graph.input: torch.zeros(1, *graph.shapes[graph.input], dtype=torch.float64)}
    for name, node in graph.nodes.items():
        if name != graph.input:
            stateless = not isinstance(node, Neurons | Delay)
            rest[name] = _stateless(node, _sum(graph, name, rest)) if stateless else _zeros(graph.shapes[name])
    neurons = {name: _Membrane(node) for name, node in graph.nodes.items() if isinstance(node, Neurons)}
    delays = {name: _Line(node, rest[name]) for name, node in graph.nodes.items() if isinstance(node, Delay)}
    recorder = Recorder(NAME, {name: graph.shapes[name] for name in graph.spiking})
    previous = rest
    for now in x.double():
        values = {graph.input: now}
        for name, node in graph.nodes.items():
            if name == graph.input:
                continue
            if isinstance(node, Delay):
                values[name] = delays[name].read(_sum(graph, name, values) if node.immediate else None)
            elif isinstance(node, Neurons):
                values[name] = neurons[name].step(_sum(graph, name, values, previous))
            else:
                values[name] = _stateless(node, _sum(graph, name, values))
        for name, line in delays.items():
            line.write(_sum(graph, name, values))
        for name in graph.spiking:
            recorder.spikes(name, values[name].expand(len(now), *graph.shapes[name]).numpy())
        recorder.readout(values[graph.output].expand(len(now), *graph.shapes[graph.output]).numpy())
        previous = values
    return recorder.finish()


def _sum(
    graph: ForeignGraph, name: str, values: dict[str, Tensor], previous: dict[str, Tensor] | None = None
) -> Tensor:
    """What reaches the node `name`: the sum of its sources' values, `previous` ones over edges that are late."""
    late = {a for a in graph.sources[name] if (a, name) in graph.late}
    first, *others = ((previous or values)[a] if a in late else values[a] for a in graph.sources[name])
    return sum(others, first)


def _zeros(shape: Shape) -> Tensor:
    return torch.zeros(1, *shape, dtype=torch.float64)


def _double(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, np.float64))


class _Membrane:
    """The states of some `Neurons`."""

    def __init__(self, node: Neurons) -> None:
        self.parameters = {name: _double(array) for name, array in node.parameters.items()}
        self.v = self.i = torch.zeros((), dtype=torch.float64)

    def step(self, x: Tensor) -> Tensor:
        p = self.parameters
        self.i = self.i + p["synapse"] * (p["w_in"] * x - self.i) if "synapse" in p else x
        self.v = self.v + p["leak"] * (p["v_leak"] - self.v) + p["gain"] * self.i
        if "threshold" not in p:
            return self.v
        fired = self.v > p["threshold"]
        self.v = torch.where(fired, p["reset"], self.v)
        return fired.double()


class _Line:
    """The past inputs of a `Delay`, the newest last."""

    def __init__(self, node: Delay, zeros: Tensor) -> None:
        self.steps = torch.from_numpy(node.steps)
        self.longest = int(node.steps.max())
        self.zeros = zeros
        self.past: list[Tensor] = []

    def read(self, x: Tensor | None) -> Tensor:
        """The output, for an input `x`, which must be there if some element is not delayed."""
        values = self.past if x is None else [*self.past, x]
        out = self.zeros
        for steps in self.steps.unique().tolist():
            if steps <= len(self.past):
                out = torch.where(self.steps == steps, values[len(self.past) - steps], out)
        return out

    def write(self, x: Tensor) -> None:
        self.past = [*self.past, x][-self.longest :] if self.longest else []


@singledispatch
def _stateless(node: Node, x: Tensor) -> Tensor:
    raise NotImplementedError(f"no rule to evaluate a {type(node).__name__}")


@_stateless.register
def _(node: Layer, x: Tensor) -> Tensor:
    return evaluate(node, x)


@_stateless.register
def _(node: Passage, x: Tensor) -> Tensor:
    return x


@_stateless.register
def _(node: Flatten, x: Tensor) -> Tensor:
    return x.flatten(*(d + 1 if d >= 0 else d for d in (node.start, node.end)))


@_stateless.register
def _(node: Scale, x: Tensor) -> Tensor:
    return x * _double(node.scale)


@_stateless.register
def _(node: Threshold, x: Tensor) -> Tensor:
    return (x > _double(node.threshold)).double()
