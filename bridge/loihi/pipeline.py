"""When images enter and leave a chip on which every connection takes a step, and what has to wait on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bridge.graph import Layer, LayerGraph, WindowFire
from bridge.simulate.connections import fires


@dataclass(frozen=True)
class Pipeline:
    """Images one behind the other on the chip; steps are time steps.

    ``interval``: from one image to the next. ``latency``: from an image to its whole answer, one step a connection
    included. ``images_in_flight``: on the way at once. ``delays``: by layer whose spikes wait for a reader, how many
    steps at most: for longer branches, and in staged networks for windows to open. ``delayed_steps``: the same times
    neurons, the spikes that delay lines have to hold.
    """

    interval: int
    latency: int
    images_in_flight: int
    delays: dict[str, int]
    delayed_steps: int


def pipeline(graph: LayerGraph, steps: int) -> Pipeline:
    """Of the spiking `graph`, with `steps` steps an image if its schedule does not say how many. 0: not known."""
    senders = {layer.name: sources(graph, layer) for layer in graph if fires(layer) or layer is graph.output}
    depths: dict[str, int] = {}
    for name, read in senders.items():
        depths[name] = max((depths[sender] + 1 for sender in read), default=0)
    due = _due(graph, senders)
    delays: dict[str, int] = {}
    for name, read in senders.items():
        for sender in read:
            layer = graph[sender]
            end = graph.lasts[sender] if isinstance(layer, WindowFire) else due[sender]
            waits = depths[name] - 1 - depths[sender] + due[name] - end
            if waits:
                delays[sender] = max(delays.get(sender, 0), waits)
    windows = [layer.steps for layer in graph if isinstance(layer, WindowFire)]
    interval = max(windows, default=1 if graph.grouped else steps)
    latency = (graph.latency or steps) + depths[graph.output.name]
    return Pipeline(
        interval=interval,
        latency=latency if interval else 0,
        images_in_flight=-(-latency // interval) if interval else 0,
        delays=delays,
        delayed_steps=sum(math.prod(graph.shapes[name]) * waits for name, waits in delays.items()),
    )


def sources(graph: LayerGraph, layer: Layer) -> set[str]:
    """The layers that fire whose spikes reach `layer` with none between."""
    found: set[str] = set()
    waiting = list(layer.inputs)
    while waiting:
        source = graph[waiting.pop()]
        if fires(source):
            found.add(source.name)
        else:
            waiting += source.inputs
    return found


def _due(graph: LayerGraph, senders: dict[str, set[str]]) -> dict[str, int]:
    """By layer that reads, the step at which the last that it reads is there: of pools, when their readers need it."""
    due = dict.fromkeys(senders, graph.lasts[graph.output.name])
    for name in reversed(senders):
        layer = graph[name]
        if isinstance(layer, WindowFire):
            due[name] = layer.opens
        for sender in senders[name]:
            due[sender] = min(due[sender], due[name])
    return due
