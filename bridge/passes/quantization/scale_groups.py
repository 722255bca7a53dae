"""Which layers of a spiking network must share the scale of their whole numbers, and by which factors they differ."""

from __future__ import annotations

import graphlib
import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from bridge.errors import ConversionError
from bridge.graph import Add, Affine, AvgPool2d, Flatten, Input, IntegrateFire, Layer, LayerGraph, MaxPool, Scale

Known = dict[str, Fraction]
"""By layer whose scale is given: what a value of 1 is in whole numbers, such as 4 after a pool over 2×2 spikes."""


@dataclass(eq=False)
class ScaleGroup:
    """Layers whose values are added up or read by the same neurons. With one scale σ a channel, y is ``σ · gain · y``.

    ``gains`` are whole numbers, by layer: where windows of k² are summed instead of averaged, the sum is k² as large.
    ``channels`` is the number of σs; a member with more channels, flattened, repeats each of them.
    """

    gains: dict[str, int]
    channels: int
    weighted: list[Affine | Scale] = field(default_factory=list)
    neurons: list[IntegrateFire] = field(default_factory=list)


def tied(graph: LayerGraph) -> tuple[LayerGraph, Known, list[ScaleGroup]]:
    """The `graph`, with a `Scale` by 1 on each edge that would fix a scale, what scales are known, and the groups.

    Groups come in an order in which each reads only layers of groups before it. The output is a group with one σ.

    Raises:
        ConversionError: two scales of one layer contradict each other, or a group feeds itself without a neuron.
    """
    graph, known = _with_free_edges(graph)
    ratios: dict[str, dict[str, Fraction]] = defaultdict(dict)
    for layer in graph:
        if layer.name in known or isinstance(layer, IntegrateFire):
            continue
        ratios[layer.name]  # so that it is there, if alone
        if not isinstance(layer, Affine | Scale):
            for source in layer.inputs:
                ratio = _gain(layer)
                ratios[source][layer.name], ratios[layer.name][source] = ratio, 1 / ratio
    groups: list[ScaleGroup] = []
    home: dict[str, int] = {}
    for name in ratios:
        if name not in home:
            gains = _spread(name, ratios)
            home |= dict.fromkeys(gains, len(groups))
            groups.append(_group(graph, gains))
    order: dict[int, set[int]] = {}
    for number, group in enumerate(groups):
        order[number] = {home[source] for layer in group.weighted for source in layer.inputs if source in home}
        if number in order[number]:
            names = ", ".join(repr(layer.name) for layer in group.weighted)
            raise ConversionError(f"layers {names}: affine layers feed each other and a sum without a neuron between")
    return graph, known, [groups[number] for number in graphlib.TopologicalSorter(order).static_order()]


def _with_free_edges(graph: LayerGraph) -> tuple[LayerGraph, Known]:
    """The scales that are known, once a `Scale` by 1 stands on every edge from one of them to a sum or a neuron."""
    known: Known = {}
    layers: list[Layer] = []
    for layer in graph:
        if isinstance(layer, Add | IntegrateFire):
            sources = []
            for source in layer.inputs:
                name = source
                if source in known:
                    name = graph.free(f"{source}_to_{layer.name}")
                    while any(other.name == name for other in layers):  # an Add of a layer to itself
                        name += "_"
                    ones = np.ones(graph.shapes[source][0])
                    layers.append(Scale(name=name, inputs=(source,), scale=ones))
                sources.append(name)
            layer = replace(layer, inputs=tuple(sources))
        if isinstance(layer, Input | IntegrateFire) or _counts(layer, known):
            known[layer.name] = Fraction(1)
        elif isinstance(layer, AvgPool2d | Flatten | MaxPool) and layer.inputs[0] in known:
            known[layer.name] = known[layer.inputs[0]] * _gain(layer)
        layers.append(layer)
    return LayerGraph(tuple(layers)), known


def _counts(layer: Layer, known: Known) -> bool:
    """Whether `layer` only counts pixels from another zero: whole numbers already."""
    return (
        isinstance(layer, Affine)
        and known.get(layer.inputs[0]) == 1
        and getattr(layer, "groups", 1) == len(layer.weight)
        and layer.weight.size == len(layer.weight)
        and bool((layer.weight == 1).all() and (layer.bias == np.rint(layer.bias)).all())
    )


def _gain(layer: Layer) -> Fraction:
    """How much larger the values of `layer` become, beside those it reads: an average turns into a sum."""
    return Fraction(math.prod(layer.kernel)) if type(layer) is AvgPool2d else Fraction(1)


def _spread(start: str, ratios: dict[str, dict[str, Fraction]]) -> dict[str, Fraction]:
    """By layer that is tied to `start`: how much larger its whole numbers are."""
    gains = {start: Fraction(1)}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        for other, ratio in ratios[name].items():
            gain = gains[name] * ratio
            if other not in gains:
                gains[other] = gain
                waiting.append(other)
            elif gains[other] != gain:
                raise ConversionError(
                    f"layer {other!r}: a sum adds what was averaged over {gain / gains[other]} times as many values; "
                    "put an affine layer between the average and the sum"
                )
    return gains


def _group(graph: LayerGraph, gains: dict[str, Fraction]) -> ScaleGroup:
    least = Fraction(
        math.gcd(*(g.numerator for g in gains.values())), math.lcm(*(g.denominator for g in gains.values()))
    )
    members = [layer for layer in graph if layer.name in gains]
    readers = [reader for name in gains for reader in graph.consumers(name) if isinstance(reader, IntegrateFire)]
    channels = 1 if graph.output.name in gains else min(graph.shapes[layer.name][0] for layer in members)
    return ScaleGroup(
        gains={name: int(gain / least) for name, gain in gains.items()},
        channels=channels,
        weighted=[layer for layer in members if isinstance(layer, Affine | Scale)],
        neurons=readers,
    )
