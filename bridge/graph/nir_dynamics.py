"""What the nodes of any NIR graph compute in one time step: the equations, as plain data.

NIR gives its neurons as differential equations and leaves the discretisation to whoever runs them (Pedersen et al.,
Nature Communications 2024, "Neuromorphic intermediate representation"). Here it is forward Euler with the step ``dt``,
as `Neurons` says: the same as snnTorch 1.0, SpikingJelly 2.0 and Norse 1.1 give a neuron that came from NIR.

Everything is synchronous: a spike of step t is heard in step t, except over an edge that closes a loop into a neuron,
which delivers one step later. At first every state is zero, and so is what a Delay holds; such an edge delivers what
its source makes of no input and no spikes, which for an affine layer is its bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bridge.graph.layers import Array, Layer, Shape


@dataclass(frozen=True, eq=False)
class Neurons:
    """NIR's I, IF, LI, LIF, CubaLI and CubaLIF, whose input x of step t is what reaches them in that step::

        i += synapse · (w_in · x − i)             synapse = dt / τ_syn;  in those without a synapse i = x
        v += leak · (v_leak − v) + gain · i       leak = dt / τ_mem, gain = r · dt / τ_mem;  in I, IF: 0 and r · dt
        z = [v > threshold];  v = reset where z

    The output is z, or v where there is no threshold. The membrane hears the new current, as NIR's table of primitives
    composes them (LI, Linear, LIF), and fires on the new potential. Arrays hold one value, or one for every neuron.
    """

    leak: Array
    v_leak: Array
    gain: Array
    synapse: Array | None = None
    w_in: Array | None = None
    threshold: Array | None = None
    reset: Array | None = None

    @property
    def parameters(self) -> dict[str, Array]:
        return {name: array for name, array in vars(self).items() if array is not None}


@dataclass(frozen=True, eq=False)
class Threshold:
    """NIR's Threshold, on level: ``z = [x > threshold]``."""

    threshold: Array


@dataclass(frozen=True, eq=False)
class Scale:
    """NIR's Scale, with a factor for every element: ``y = scale · x``."""

    scale: Array


@dataclass(frozen=True, eq=False)
class Delay:
    """NIR's Delay in whole steps, for every element: ``y(t) = x(t − steps)``."""

    steps: Array

    @property
    def immediate(self) -> bool:
        """Whether some element is not delayed at all."""
        return bool((self.steps == 0).any())


@dataclass(frozen=True, eq=False)
class Flatten:
    """NIR's Flatten of the dimensions `start` to `end`, not counting a batch."""

    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Passage:
    """``y = x``: the Output, and the ends of a graph within the graph."""


Node = Neurons | Threshold | Scale | Delay | Flatten | Passage | Layer


@dataclass(frozen=True, eq=False)
class ForeignGraph:
    """The nodes of a NIR graph in an order in which each can be computed from those before it.

    ``sources`` names what feeds a node, whose sum is its input; ``late`` are the edges that deliver one step later;
    ``shapes`` are output shapes, without batch. ``dt`` is the time step, in the unit of the graph's time constants.
    """

    nodes: Mapping[str, Node]
    sources: Mapping[str, tuple[str, ...]]
    late: frozenset[tuple[str, str]]
    shapes: Mapping[str, Shape]
    input: str
    output: str
    dt: float

    @property
    def spiking(self) -> tuple[str, ...]:
        """Names of the nodes that give spikes, in order."""
        return tuple(name for name, node in self.nodes.items() if getattr(node, "threshold", None) is not None)
