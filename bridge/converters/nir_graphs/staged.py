"""How the layers of a staged network are written in NIR, and found again: primitives alone, each what NIR says it is.

A layer ``a`` that fires at the steps w + 1 … w + T (counted from 1), from its drive ``d``. All nodes have its shape,
and there is no cycle::

    d → one = Threshold(lowest) → clock = I(1)            the number of the step
    clock → open = Threshold(w + 1/2)                     1 from the window's first step on
    clock → shut = Threshold(w + T + 1/2) → not = Scale(−1)   −1 behind it
    open → fall = Scale(−1);   d, fall → membrane = I(1) → raw = Threshold(below the level)
    raw, open, not → a = Threshold(3/2)                   raw in the window

The potential falls by the threshold at every step of the window: soft reset, for with its drive complete a neuron fires
until it stops for good. The image at the first step alone, of the Input x::

    x → once = Scale(1) → shown = I(1) → minus = Scale(−1) → once

And a bias in the first step alone, on the readout e::

    e → one = Threshold(lowest) → clock = I(1) → neg = Scale(−1) → first = Threshold(−3/2) → bias = Scale(B)
    e, bias → y = Scale(1)

In integers fall = Scale(−θ), and all thresholds are whole: one less than what is reached. So w + 1/2 is w there, 3/2
is 1, −3/2 is −2, and the lowest is −2^24.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from bridge.errors import GraphError
from bridge.graph import AtLeast, BiasOnce, Impulse, Layer, LayerGraph, Shape, WindowFire, spread
from bridge.graph.ranges import EXACT

LOWEST = np.float32(-3.4028235e38)
"""A threshold that every float32 value but itself passes: the node says 1 at every step."""

Nodes = dict[str, nir.NIRNode]
Edges = list[tuple[str, str]]
KINDS = WindowFire | Impulse | BiasOnce | AtLeast


def below(level: Any, whole: bool) -> Any:
    """The threshold that is passed where `level` is reached: in integers (`whole`) and in float32."""
    return level - 1 if whole else np.nextafter(level, np.float32(-np.inf))


def above(threshold: Any, whole: bool) -> Any:
    """The level that is reached where `threshold` is passed: the opposite of `below`."""
    return threshold + 1 if whole else np.nextafter(threshold, np.float32(np.inf))


def write(layer: Layer, shape: Shape, free: Callable[[str], str], whole: bool) -> tuple[Nodes, Edges]:
    """The nodes and edges of `layer`, whose output has this `shape`; `free` makes a name unique.

    `whole` is for a network in integers. What `layer` reads is an edge to "": its source is to be put there.
    """
    nodes: Nodes = {}
    edges: Edges = []
    part = {key: free(f"{layer.name}_{key}") for key in PARTS[type(layer)]}
    (source,) = layer.inputs
    half = 0.0 if whole else 0.5
    lowest = -EXACT if whole else LOWEST

    def full(value: float) -> NDArray[np.float32]:
        return np.full(shape, value, np.float32)

    def threshold(name: str, level: Any, *sources: str) -> str:
        return put(name, nir.Threshold(threshold=full(level) if np.ndim(level) == 0 else level), *sources)

    def scale(name: str, factor: Any, *sources: str) -> str:
        return put(name, nir.Scale(scale=full(factor) if np.ndim(factor) == 0 else factor), *sources)

    def integrate(name: str, *sources: str) -> str:
        return put(name, nir.I(r=full(1.0)), *sources)

    def put(name: str, node: nir.NIRNode, *sources: str) -> str:
        nodes[name] = node
        edges.extend((one, name) for one in sources)
        return name

    if isinstance(layer, Impulse):
        scale(layer.name, 1.0, source, part["minus"])
        scale(part["minus"], -1.0, integrate(part["shown"], layer.name))
    elif isinstance(layer, AtLeast):
        threshold(layer.name, spread(below(layer.level, whole), shape), source)
    else:
        clock = integrate(part["clock"], threshold(part["one"], lowest, source))
        if isinstance(layer, BiasOnce):
            first = threshold(part["first"], half - 2, scale(part["neg"], -1.0, clock))
            scale(layer.name, 1.0, source, scale(part["bias"], layer.bias, first))
        elif isinstance(layer, WindowFire):
            opened = threshold(part["open"], layer.opens + half, clock)
            past = scale(part["not"], -1.0, threshold(part["shut"], layer.opens + layer.steps + half, clock))
            fall = scale(part["fall"], -spread(layer.threshold, shape), opened)
            membrane = integrate(part["membrane"], source, fall)
            raw = threshold(part["raw"], below(layer.level, whole), membrane)
            threshold(layer.name, 1 + half, raw, opened, past)
    return nodes, edges


PARTS: dict[type[Layer], tuple[str, ...]] = {
    WindowFire: ("one", "clock", "open", "shut", "not", "fall", "membrane", "raw"),
    Impulse: ("shown", "minus"),
    BiasOnce: ("one", "clock", "neg", "first", "bias"),
    AtLeast: (),
}


class Found:
    """The staged layers in a NIR graph, by name, and the nodes that are parts of them."""

    def __init__(self, nodes: Nodes, before: dict[str, list[str]], after: dict[str, list[str]], *, whole: bool) -> None:
        self.nodes, self.before, self.after, self.whole = nodes, before, after, whole
        self.layers: dict[str, Layer] = {}
        self.inside: set[str] = set()
        for name, node in nodes.items():
            found = (
                self._window(name)
                if isinstance(node, nir.Threshold)
                else self._impulse(name) or self._bias(name)
                if isinstance(node, nir.Scale)
                else None
            )
            if found is not None:
                self.layers[name], inside = found
                self.inside |= inside
        for name, node in nodes.items():  # what is left, after a pool
            if isinstance(node, nir.Threshold) and name not in self.layers and name not in self.inside:
                sources = before[name]
                if len(sources) == 1 and not isinstance(nodes[sources[0]], nir.I):
                    level = above(_reduced(node.threshold), whole)
                    self.layers[name] = AtLeast(name=name, inputs=(sources[0],), level=level)

    def _is(
        self, name: str, kind: type[nir.NIRNode], value: float | np.float32 | None = None, readers: int | None = None
    ) -> bool:
        """Whether the node `name` is of this `kind`, with all its parameters of this `value`, and so many readers."""
        node = self.nodes[name]
        if not isinstance(node, kind) or (readers is not None and len(self.after[name]) != readers):
            return False
        return value is None or bool(np.all(_parameter(node) == np.float32(value)))

    def _passed_by(self, name: str, level: float, readers: int | None = None) -> bool:
        """Whether the node `name` is a Threshold that whole numbers pass from `level` on, with so many readers."""
        if not self._is(name, nir.Threshold, readers=readers):
            return False
        thresholds = _parameter(self.nodes[name])
        return bool(np.all((thresholds >= level - 1) & (thresholds < level)))

    def _always(self, name: str) -> bool:
        """Whether the node `name` is a Threshold that every value passes which can occur, with one reader."""
        return self._is(name, nir.Threshold, -EXACT if self.whole else LOWEST, 1)

    def _only(self, name: str) -> str:
        """What alone feeds the node `name`; "" if that is not one node."""
        sources = self.before[name]
        return sources[0] if len(sources) == 1 else ""

    def _window(self, name: str) -> tuple[Layer, set[str]] | None:
        sources = self.before[name]
        if len(sources) != 3 or not self._passed_by(name, 2):
            return None
        past = [each for each in sources if self._is(each, nir.Scale, -1.0, readers=1)]
        gates = [each for each in sources if self._is(each, nir.Threshold)]
        if len(past) != 1 or len(gates) != 2:
            return None
        shut = self._only(past[0])
        clock = self._only(shut) if shut and self._is(shut, nir.Threshold, readers=1) else ""
        opened = next((each for each in gates if self._only(each) == clock), "")
        raw = next((each for each in gates if each != opened), "")
        one = self._only(clock) if clock and self._is(clock, nir.I, 1.0, readers=2) else ""
        if not (opened and raw and one and self._always(one) and self._is(raw, nir.Threshold, readers=1)):
            return None
        membrane, drive = self._only(raw), self._only(one)
        if not (
            membrane
            and drive
            and self._is(membrane, nir.I, 1.0, readers=1)
            and self._is(opened, nir.Threshold, readers=2)
        ):
            return None
        falls = [each for each in self.before[membrane] if each != drive]
        if len(self.before[membrane]) != 2 or len(falls) != 1:
            return None
        (fall,) = falls
        if not self._is(fall, nir.Scale, readers=1) or self._only(fall) != opened:
            return None
        threshold = -_reduced(self.nodes[fall].scale)
        if threshold.ndim != 1 or not (threshold > 0).all() or not (self.whole or (threshold == 1).all()):
            return None
        opens = self._step(opened)
        steps = self._step(shut) - opens
        if opens < 0 or steps < 1:
            raise GraphError(f"node {name!r}: its window opens at step {opens + 1} and has {steps} steps")
        level = above(_parameter(self.nodes[raw]), self.whole)
        layer = WindowFire(name=name, inputs=(drive,), level=level, threshold=threshold, opens=opens, steps=steps)
        return layer, {past[0], shut, clock, opened, raw, one, membrane, fall}

    def _step(self, name: str) -> int:
        """The last step, counted from 1, whose number does not pass the one threshold of the node `name`."""
        values = np.unique(_parameter(self.nodes[name]))
        if len(values) != 1 or not np.isfinite(values[0]):
            raise GraphError(f"node {name!r} (Threshold): expected one number of a step, got {values[:3]}")
        return math.floor(float(values[0]))

    def _impulse(self, name: str) -> tuple[Layer, set[str]] | None:
        if not self._is(name, nir.Scale, 1.0) or len(self.before[name]) != 2:
            return None
        for minus in self.before[name]:
            shown = self._only(minus)
            loop = self._is(minus, nir.Scale, -1.0, readers=1) and shown and self._only(shown) == name
            if loop and self._is(shown, nir.I, 1.0, readers=1):
                (source,) = [each for each in self.before[name] if each != minus]
                return Impulse(name=name, inputs=(source,)), {minus, shown}
        return None

    def _bias(self, name: str) -> tuple[Layer, set[str]] | None:
        if not self._is(name, nir.Scale, 1.0) or len(self.before[name]) != 2:
            return None
        for bias in self.before[name]:
            (source,) = [each for each in self.before[name] if each != bias]
            first = self._only(bias) if self._is(bias, nir.Scale, readers=1) else ""
            neg = self._only(first) if first and self._passed_by(first, -1, readers=1) else ""
            clock = self._only(neg) if neg and self._is(neg, nir.Scale, -1.0, readers=1) else ""
            one = self._only(clock) if clock and self._is(clock, nir.I, 1.0, readers=1) else ""
            if one and self._always(one) and self._only(one) == source:
                values = _parameter(self.nodes[bias])
                return BiasOnce(name=name, inputs=(source,), bias=values), {bias, first, neg, clock, one}
        return None


def check_windows(graph: LayerGraph) -> None:
    """Raise `GraphError` for a layer that is fed after its window has opened: it would fire on part of its drive."""
    for layer in graph:
        if isinstance(layer, WindowFire):
            last = graph.lasts[layer.inputs[0]]
            layer.expect(
                last <= layer.opens,
                f"its input to be complete when its window opens, at step {layer.opens + 1}",
                f"input until step {last + 1}",
            )


def _parameter(node: nir.NIRNode) -> NDArray[np.float32]:
    value = node.threshold if isinstance(node, nir.Threshold) else node.scale if isinstance(node, nir.Scale) else node.r
    return np.asarray(value, np.float32)


def _reduced(values: Any) -> NDArray[np.float32]:
    """The value of each channel, or all values where a channel holds several."""
    array = np.asarray(values, np.float32)
    flat = array.reshape(len(array), -1)
    return np.ascontiguousarray(flat[:, 0] if (flat == flat[:, :1]).all() else array)
