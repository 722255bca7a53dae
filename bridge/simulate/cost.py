"""What a network costs on hardware that counts spikes: time, units, delays, spikes and synaptic operations.

Streamed, a staged network takes the next image before it is done with the last. A neuron then has two potentials: it
integrates into one, and when its window opens, it moves what it has to the other and fires from that. What feeds a
layer before its window opens waits until then, so that images do not mix. One image enters every `Cost.interval` steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge._util.shown import Shown
from bridge.errors import ValidationError
from bridge.graph import LayerGraph, WindowFire
from bridge.records import SpikeRecord
from bridge.simulate.connections import connections, fires
from bridge.simulate.ops import evaluate, tensor

Counts = NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class Cost(Shown):
    """The price of a network under its schedule; steps are time steps.

    ``steps``: by spiking layer, how many it may fire in. ``latency``: steps from an image to its answer. ``interval``:
    steps from one image to the next, streamed; ``interval_of_one_potential``: likewise if neurons have one potential
    each. ``images_in_flight``: how many images are on the way at once, streamed. ``delays``: by layer whose spikes have
    to wait for their readers, how many steps. ``neurons``; ``pool_units``: threshold units of maximum pools.
    ``synapses``: connections between units with a weight other than zero.

    Means over the recorded images, None without a record: ``spikes`` an image, those of pools among them, and
    ``synaptic_operations``, the synapses that they reach.
    """

    schedule: str
    steps: dict[str, int]
    latency: int
    interval: int
    interval_of_one_potential: int
    images_in_flight: int
    delays: dict[str, int]
    delayed_steps: int
    neurons: int
    pool_units: int
    synapses: int
    spikes: float | None
    synaptic_operations: float | None

    @property
    def units(self) -> int:
        """All that fire: neurons, members of groups, and pools' units."""
        return self.neurons + self.pool_units

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {**asdict(self), "units": self.units}


def cost(graph: LayerGraph, steps: int, record: SpikeRecord | None = None) -> Cost:
    """The price of the spiking `graph`: of a plain one that runs `steps` steps; and of the run that `record` holds.

    Raises:
        ValidationError: the record is of another network.
    """
    shapes = {name: graph.shapes[name] for name in graph.spiking}
    if record is not None and dict(record.shapes) != shapes:
        raise ValidationError(f"cost: the record is of another network: {dict(record.shapes)}, here {shapes}")
    windows = {name: layer for name in graph.spiking if isinstance(layer := graph[name], WindowFire)}
    latency = graph.latency or steps
    if graph.staged:
        lengths = {name: layer.steps for name, layer in windows.items()}
        interval = max(lengths.values())
        alone = max(layer.opens + layer.steps - _first(graph, layer.inputs[0]) for layer in windows.values())
    else:
        lengths = dict.fromkeys(graph.spiking, 1 if graph.grouped else steps)
        interval = alone = latency
    delays = _delays(graph) if graph.staged else {}
    synapses = connections(graph, zeros=False)
    units = {layer.name: math.prod(graph.shapes[layer.name]) for layer in graph if fires(layer)}
    fired = None if record is None else fired_by(graph, record)
    spikes = operations = None
    if fired is not None and record is not None:
        images = record.images * (record.steps if graph.grouped else 1)
        spikes = sum(int(counts.sum()) for counts in fired.values()) / images
        reached = (counts * fired[name] for one in synapses.values() for name, counts in one.fan_out.items())
        operations = sum(int(product.sum()) for product in reached) / images
    return Cost(
        schedule="staged" if graph.staged else "grouped" if graph.grouped else "plain",
        steps=lengths,
        latency=latency,
        interval=interval,
        interval_of_one_potential=alone,
        images_in_flight=-(-latency // interval),
        delays=delays,
        delayed_steps=sum(math.prod(graph.shapes[name]) * waits for name, waits in delays.items()),
        neurons=sum(units[name] for name in graph.spiking),
        pool_units=sum(count for name, count in units.items() if name not in graph.spiking),
        synapses=sum(one.total for one in synapses.values()),
        spikes=spikes,
        synaptic_operations=operations,
    )


def _first(graph: LayerGraph, name: str) -> int:
    """The first step, counted from 0, at which something reaches the layer `name` and goes on from it."""
    layer = graph[name]
    if isinstance(layer, WindowFire):
        return layer.opens
    return min((_first(graph, source) for source in layer.inputs), default=0)


def _sources(graph: LayerGraph, name: str) -> set[str]:
    """The neurons, and the image, whose output reaches the layer `name` with no neurons between."""
    if isinstance(graph[name], WindowFire) or not graph[name].inputs:
        return {name}
    return set().union(*(_sources(graph, source) for source in graph[name].inputs))


def _delays(graph: LayerGraph) -> dict[str, int]:
    """By layer whose output has to wait until a reader's window opens, or the last one's output: the most steps."""
    result: dict[str, int] = {}
    ends = [(layer.inputs[0], layer.opens) for layer in graph if isinstance(layer, WindowFire)]
    ends.append((graph.output.name, graph.lasts[graph.output.name]))
    for reads, opens in ends:
        for source in _sources(graph, reads):
            waits = opens - graph.lasts[source]
            if waits > 0:
                result[source] = max(result.get(source, 0), waits)
    return {layer.name: result[layer.name] for layer in graph if layer.name in result}


@torch.inference_mode()
def fired_by(graph: LayerGraph, record: SpikeRecord) -> Mapping[str, Counts]:
    """By layer that fires: how often each of its units did, over all recorded images and steps."""
    pools = [layer for layer in graph if fires(layer) and layer.name not in graph.spiking]
    total = {layer.name: np.zeros(graph.shapes[layer.name], np.int64) for layer in graph if fires(layer)}
    for t in range(record.steps):
        values = {}
        for name in graph.spiking:
            shape = graph.shapes[name]
            packed = record.packed[name][t]
            if not pools and not packed.any():
                continue
            bits = np.unpackbits(packed, axis=-1, count=math.prod(shape)).reshape(-1, *shape)
            total[name] += bits.sum(axis=0, dtype=np.int64)
            values[name] = bits
        trains = {name: tensor(bits) for name, bits in values.items()} if pools else {}
        for layer in pools:
            trains[layer.name] = evaluate(layer, _value(graph, layer.inputs[0], trains))
            total[layer.name] += trains[layer.name].sum(dim=0).numpy().astype(np.int64)
    return total


def _value(graph: LayerGraph, name: str, trains: Mapping[str, Tensor]) -> Tensor:
    """What the layer `name` makes of the spikes `trains` of one step."""
    if name in trains:
        return trains[name]
    return evaluate(graph[name], *(_value(graph, source, trains) for source in graph[name].inputs))
