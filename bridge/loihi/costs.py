"""What a whole-number network asks of Loihi: neurons, synapses, memory, cores, and the operations of a real run.

Every number of the report is explained and computed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bridge._util.files import replacing
from bridge._util.neutral import neutral
from bridge._util.shown import Shown
from bridge.errors import ConversionError, InputError, ValidationError
from bridge.graph import Affine, AtLeast, GroupFire, LayerGraph, MaxPool, Scale
from bridge.graph.loihi_registers import LARGEST_WEIGHT, SMALLEST_WEIGHT, WEIGHT_BITS
from bridge.loihi.chips import ACTIVE_UPDATE, CHIPS, ENERGY_NOTE, INACTIVE_UPDATE, SPREAD, SYNAPTIC_OPERATION
from bridge.loihi.cores import ChipCost, Cores, shared, state_bytes, unshared
from bridge.loihi.pipeline import Pipeline, pipeline, sources
from bridge.records import SpikeRecord
from bridge.simulate.connections import Connections, between, connections, fires, multiplications, weights
from bridge.simulate.cost import fired_by
from bridge.simulate.counting_form import counting_form
from bridge.simulate.spike_pools import spike_pool

GRADED = "grouped, graded spikes"


@dataclass(frozen=True)
class Energy:
    """Joules an inference, an estimate with its range: `bridge.loihi.chips.ENERGY_NOTE` says how to read it."""

    low: float
    high: float


@dataclass(frozen=True, repr=False)
class LayerCost(Shown):
    """One spiking layer, or the readout, whose neurons never fire (``fires``); with the connections leading into it.

    ``neurons``; ``synapses``: connections of a weight other than zero from spiking neurons; ``connections``: those of
    weight zero as well; ``weights``: values that are stored if every weight is stored once, zeros as well;
    ``largest_fan_in``: the most synapses into one neuron; ``state_bytes``: potential, synaptic input and bias;
    ``chips``: what it asks of each chip, by name. Means over the recorded images, an inference of T steps each:
    ``spikes`` that the layer fires, ``synaptic_operations`` that spikes cause at its synapses, ``energy``; None
    without a record.
    """

    name: str
    fires: bool
    neurons: int
    synapses: int
    connections: int
    weights: int
    largest_fan_in: int
    state_bytes: int
    chips: dict[str, ChipCost]
    spikes: float | None
    synaptic_operations: float | None
    energy: Energy | None


@dataclass(frozen=True, repr=False)
class LoihiReport(Shown):
    """What `bridge.loihi.report` returns. docs/loihi_report.md says what each number means, and what is not modelled.

    ``layers`` in order, the readout last. ``input_macs``: products of a pixel and a weight other than zero in the
    layers that hear the images alone; the images are constant, so the host computes them once an inference.
    ``input_connections``: the same with weights of zero. ``ann_macs``: products of one inference of the ANN.
    ``connection_sparsity``: share of zeros among the weights of all affine layers. ``footprint_bytes``: all weights,
    each once, and the neurons' state. ``notes`` names what the estimate could not hold to.

    ``schedule``: plain, staged, grouped, or grouped with graded spikes. ``steps``: an image enters every so many time
    steps, in which every neuron is updated; 0 if not known. ``pipeline`` says when images enter and leave, and what
    waits.
    """

    schedule: str
    steps: int
    images: int
    pipeline: Pipeline
    layers: tuple[LayerCost, ...]
    input_macs: int
    input_connections: int
    ann_macs: int
    connection_sparsity: float
    footprint_bytes: int
    notes: tuple[str, ...]

    def _shown_facts(self) -> dict[str, object]:
        """What it costs altogether."""
        facts = {"schedule": self.schedule, "steps": self.steps, "images": self.images, "neurons": self.neurons}
        return {**facts, "synapses": self.synapses, "spikes": self.spikes, "operations": self.synaptic_operations}

    @property
    def neurons(self) -> int:
        return sum(layer.neurons for layer in self.layers)

    @property
    def synapses(self) -> int:
        return sum(layer.synapses for layer in self.layers)

    @property
    def spikes(self) -> float | None:
        return _total([layer.spikes for layer in self.layers])

    @property
    def activation_sparsity(self) -> float | None:
        """Share of the spiking neurons' time steps without a spike."""
        spikes, spiking = self.spikes, sum(layer.neurons for layer in self.layers if layer.fires)
        return None if spikes is None else 1 - spikes / (self.steps * spiking)

    @property
    def synaptic_operations(self) -> float | None:
        """Accumulates an inference: each spike times the synapses it reaches. NeuroBench's effective ACs."""
        return _total([layer.synaptic_operations for layer in self.layers])

    @property
    def dense_operations(self) -> int:
        """NeuroBench's dense operations: every connection, those from the images too, at every step of an inference.

        A staged network gets the image once. Of one step if their number is not known.
        """
        steps = max(1, self.steps)
        images = 1 if self.schedule == "staged" else steps
        return images * self.input_connections + steps * sum(layer.connections for layer in self.layers)

    @property
    def input_macs_every_step(self) -> int:
        """Those of the input, if the chip had them done at every step at which it gets the image: once, if staged."""
        return self.input_macs * (min(1, self.steps) if self.schedule == "staged" else self.steps)

    @property
    def energy(self) -> Energy | None:
        energies = [layer.energy for layer in self.layers]
        known = [energy for energy in energies if energy is not None]
        return Energy(sum(e.low for e in known), sum(e.high for e in known)) if len(known) == len(energies) else None

    def cores(self, chip: str) -> tuple[int, int]:
        """Neurocores of the chip called `chip`, weights shared and unshared; no two layers on one core.

        ```python
        shared, unshared = report.cores("Loihi 2")
        ```
        """
        costs = [layer.chips[chip] for layer in self.layers]
        return sum(cost.shared.cores for cost in costs), sum(cost.unshared.cores for cost in costs)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, as `save` writes them; with the source of every constant.

        ```python
        print(report.to_dict()["constants"])
        ```
        """
        totals = ("neurons", "synapses", "spikes", "activation_sparsity", "synaptic_operations", "dense_operations")
        return {
            **asdict(self),
            **{name: getattr(self, name) for name in totals},
            "input_macs_every_step": self.input_macs_every_step,
            "energy": None if self.energy is None else {**asdict(self.energy), "note": ENERGY_NOTE},
            "cores": {
                chip.name: dict(zip(("shared", "unshared"), self.cores(chip.name), strict=True)) for chip in CHIPS
            },
            "constants": {
                **{chip.name: asdict(chip) for chip in CHIPS},
                "synaptic operation": asdict(SYNAPTIC_OPERATION),
                "active update": asdict(ACTIVE_UPDATE),
                "inactive update": asdict(INACTIVE_UPDATE),
                "spread": asdict(SPREAD),
            },
        }

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, whole or not at all."""
        with replacing(path) as file:
            file.write((json.dumps(self.to_dict(), indent=1) + "\n").encode())


class _Run(NamedTuple):
    fired: Mapping[str, NDArray[np.int64]]
    images: int


class Converted(Protocol):
    """A converted network: its spiking `graph`, and the `ann` that it came from, None if that is not known."""

    graph: LayerGraph
    ann: LayerGraph | None


@neutral()
def report(
    network: Converted, record: SpikeRecord | None = None, *, spikes: Literal["binary", "graded"] = "binary"
) -> LoihiReport:
    """What the whole-number `network` asks of Loihi 1 and 2, and what it did in the run that `record` holds.

    Of a grouped network, each neuron of a group has synapses of its own; with ``spikes="graded"`` a group is one neuron
    that sends how many of it would fire, and `record` is that of the group. Without a record, what has to be measured
    (spikes, operations, energy) is None, ``images`` is 0, and so is ``steps`` of a plain network, which runs for as
    many as are wanted. Example: docs/loihi_report.md.

    Raises:
        InputError: the record is none, or `spikes` is not as above.
        ConversionError: the network is not in whole numbers, or spikes are to be graded and it has no groups.
        ValidationError: the record is of another network, or empty.
    """
    graph = network.graph
    if spikes not in ("binary", "graded"):
        raise InputError(f'spikes: expected "binary" or "graded", got {spikes!r}')
    if not graph.integer:
        raise ConversionError(
            "loihi.report: Loihi computes in whole numbers and this network does not; make it so first: "
            "network.quantize(8, calibration=images)"
        )
    if record is not None:
        _check(graph, record)
    schedule = "staged" if graph.staged else "grouped" if graph.grouped else "plain"
    steps = record.steps if record is not None and schedule == "plain" else 0
    runs = 0 if record is None else record.images * (record.steps if graph.grouped else 1)  # each step is an answer
    if spikes == "graded":
        record = None if record is None else _senders(graph, record)
        graph, schedule, steps = _graded(graph), GRADED, 1
    fired = fired_by(graph, record) if record is not None else {}
    course = pipeline(graph, steps)
    synapses, every = (_of_groups(graph, connections(graph, zeros=zeros)) for zeros in (False, True))
    potentials = {"plain": 1, "staged": 2}.get(schedule, 0)
    separate = {chip.name: unshared(chip, synapses, potentials) for chip in CHIPS}
    layers = tuple(
        _layer(
            name,
            fires(graph[name]),
            synapses[name],
            every[name].total,
            between(graph, name),
            {chip: cores[name] for chip, cores in separate.items()},
            potentials,
            course.interval,
            _Run(fired, runs) if runs else None,
        )
        for name in synapses
    )
    stored = [layer for layer in graph if isinstance(layer, Affine | Scale)]
    on_host = [(layer, graph.shapes[layer.inputs[0]]) for layer in stored if not sources(graph, layer)]
    tensors = [layer.weight for layer in stored if isinstance(layer, Affine)]
    zeros = sum(int((weight == 0).sum()) for weight in tensors)
    return LoihiReport(
        schedule=schedule,
        steps=course.interval,
        pipeline=course,
        images=record.images if record is not None else 0,
        layers=layers,
        input_macs=sum(multiplications(layer, shape, zeros=False) for layer, shape in on_host),
        input_connections=sum(multiplications(layer, shape, zeros=True) for layer, shape in on_host),
        ann_macs=_macs(network.ann or graph),
        connection_sparsity=zeros / max(1, sum(weight.size for weight in tensors)),
        footprint_bytes=sum(weights(layer).size for layer in stored) + sum(layer.state_bytes for layer in layers),
        notes=tuple(_notes(network, graph, layers)),
    )


def _graded(graph: LayerGraph) -> LayerGraph:
    """The grouped `graph` with one neuron for each group, and pools of units as those of other networks."""
    form = counting_form(graph)
    if form is None or not graph.grouped:
        raise ConversionError(
            "loihi.report: graded spikes carry how many neurons of a group would fire, and this network has no such "
            "groups: convert with schedule='grouped', or use spikes='binary'"
        )
    pools = [layer for layer in form.graph if isinstance(layer, MaxPool)]
    shapes = form.graph.shapes
    return form.graph.rewrite(
        {
            pool.name: spike_pool(pool, shapes[pool.inputs[0]], form.graph.free(f"{pool.name}_any"), whole=True)
            for pool in pools
        }
    )


def _senders(graph: LayerGraph, record: SpikeRecord) -> SpikeRecord:
    """The record of which neurons send a graded spike: those of whose group at least one fires."""
    shapes = {name: graph.activation_shape(name) for name in graph.spiking}
    first = {name: record.spikes(name)[:, :, 0].reshape(record.steps, record.images, -1) for name in shapes}
    packed = {name: np.packbits(bits, axis=-1) for name, bits in first.items()}
    return replace(record, shapes=shapes, packed=packed, membranes={})


def _of_groups(graph: LayerGraph, found: dict[str, Connections]) -> dict[str, Connections]:
    """The connections `found`, those into groups for each neuron of a group."""
    result = dict(found)
    for name, one in found.items():
        layer = graph[name]
        if isinstance(layer, GroupFire):
            fan_out = {source: counts * layer.levels for source, counts in one.fan_out.items()}
            result[name] = Connections(fan_out, np.broadcast_to(one.fan_in, graph.shapes[name]))
    return result


def _check(graph: LayerGraph, record: SpikeRecord) -> None:
    if not isinstance(record, SpikeRecord):
        raise InputError(
            f"record: expected a SpikeRecord, as network.run returns, or simulate(..., record=True).record, got "
            f"{type(record).__name__}"
        )
    own = {name: graph.shapes[name] for name in graph.spiking}
    if dict(record.shapes) != own:
        raise ValidationError(f"the record is of another network: its layers are {dict(record.shapes)}, here {own}")
    if record.readout.shape[2:] != graph.shapes[graph.output.name]:
        raise ValidationError(
            f"the record is of another network: its readout is {record.readout.shape[2:]} an image, that of layer "
            f"{graph.output.name!r} is {graph.shapes[graph.output.name]}"
        )
    if record.images == 0 or record.steps == 0:
        raise ValidationError(f"the record is empty: {record.steps} time steps of {record.images} images")


def _total(values: list[float | None]) -> float | None:
    """The sum, None if any is."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _layer(
    name: str,
    fires: bool,
    synapses: Connections,
    every: int,
    layers: list[Affine | Scale],
    separate: Mapping[str, Cores],
    potentials: int,
    interval: int,
    run: _Run | None,
) -> LayerCost:
    neurons, stored = synapses.fan_in.size, sum(weights(layer).size for layer in layers)
    spikes = operations = energy = None
    if run is not None:
        spikes = int(run.fired[name].sum()) / run.images if fires else 0.0
        reached = sum(int((counts * run.fired[source]).sum()) for source, counts in synapses.fan_out.items())
        operations = reached / run.images
        energy = _energy(operations, neurons * interval)
    return LayerCost(
        name=name,
        fires=fires,
        neurons=neurons,
        synapses=synapses.total,
        connections=every,
        weights=stored,
        largest_fan_in=int(synapses.fan_in.max()),
        state_bytes=state_bytes(neurons, potentials),
        chips={chip.name: ChipCost(shared(chip, neurons, stored, potentials), separate[chip.name]) for chip in CHIPS},
        spikes=spikes,
        synaptic_operations=operations,
        energy=energy,
    )


def _energy(operations: float, updates: int) -> Energy:
    """Joules of `operations` synaptic operations and `updates` neuron updates."""
    synaptic = operations * SYNAPTIC_OPERATION.value
    return Energy(
        low=synaptic + updates * INACTIVE_UPDATE.value,
        high=SPREAD.value * (synaptic + updates * ACTIVE_UPDATE.value),
    )


def _macs(graph: LayerGraph) -> int:
    """Products that one evaluation of the affine layers of `graph` sums up, those with weights of zero as well."""
    layers = [layer for layer in graph if isinstance(layer, Affine)]
    return sum(multiplications(layer, graph.shapes[layer.inputs[0]], zeros=True) for layer in layers)


def _notes(network: Converted, graph: LayerGraph, costs: tuple[LayerCost, ...]) -> Iterator[str]:
    if network.ann is None:
        yield "The ANN is not known: its MACs are those of the spiking network's affine layers, run once."
    pools = [layer.name for layer in graph if isinstance(layer, AtLeast)]
    if pools and graph is not network.graph:
        yield (
            f"Maximum pools of graded spikes ({', '.join(pools)}) are no synapses, which add: they take the chip's "
            "embedded processors, and are counted as one unit for each output."
        )
    for cost in costs:
        for layer in between(graph, cost.name):
            values = weights(layer).astype(np.int64)
            if isinstance(layer, Scale):
                values = values // np.maximum(values & -values, 1)  # powers of two go into the synapses' exponent
            beyond = int(((values < SMALLEST_WEIGHT) | (values > LARGEST_WEIGHT)).sum())
            if beyond:
                yield (
                    f"Layer {layer.name!r}: {beyond} of {values.size} weights need more than {WEIGHT_BITS} bits, and "
                    "so several synapses each; they are counted as one."
                )
        for chip in CHIPS:
            if chip.input_axons is not None and cost.largest_fan_in > chip.input_axons.value:
                yield (
                    f"A neuron of layer {cost.name!r} hears {cost.largest_fan_in} connections; a core of {chip.name} "
                    f"has {chip.input_axons.value} input axons: it fits only if they are shared."
                )
