"""One batch on the reference and all backends: which spikes differ, and how far the rates are from the ANN.

Each batch by itself, and its sums added to those of the batches before: so memory does not grow with the number of
images, and batches can be computed anywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bridge._util.environment import environment
from bridge.agreement import Agreement
from bridge.errors import ValidationError
from bridge.graph import ClipFloorShift, IntegrateFire, LayerGraph, MaxPool
from bridge.passes.plain import plain as plain_network
from bridge.records import SpikeRecord, differing
from bridge.simulate.ann import activations
from bridge.simulate.cost import cost
from bridge.simulate.reference import simulate
from bridge.validation.accumulators import PartsTally, Tally, Targets, largest
from bridge.validation.divergence import Replay, divergences
from bridge.validation.equality import EqualityTally
from bridge.validation.rate_error import error_parts
from bridge.validation.samples import samples

REFERENCE = "reference"
COST_IMAGES = 16
"""Images on which the spikes of the plain network are counted, beside those of a staged or grouped one."""

Runner = Callable[[Tensor, int, bool], SpikeRecord | None]
"""Runs one batch ``[B, *input]`` whose first image has this number; the flag asks for membranes as well, and None says
that it cannot run again."""


@dataclass(frozen=True, eq=False)
class BackendRun:
    """A backend, ready to be run on batches: at most `limit` images in all (None: all of them)."""

    run: Runner
    limit: int | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Images ``[B, *input]``, their true classes ``[B]`` (or None), and the number of the first."""

    start: int
    x: Tensor
    labels: NDArray[np.integer] | None


@dataclass(eq=False)
class Findings:
    """What one batch came to, or several: tallies by name, the reference's among them, and the rest by kind."""

    tallies: dict[str, Tally]
    parts: PartsTally
    equality: EqualityTally | None
    between: dict[str, dict[str, NDArray[np.int64]]]
    ann_right: int | None
    samples: dict[str, Any]
    costs: dict[str, Any] = field(default_factory=dict)

    def add(self, other: Findings) -> None:
        """Take in those of the images that come next."""
        for name, tally in other.tallies.items():
            if name in self.tallies:
                self.tallies[name].add(tally)
            else:
                self.tallies[name] = tally
        self.parts.add(other.parts)
        if self.equality is not None and other.equality is not None:
            self.equality.add(other.equality)
        for pair, layers in other.between.items():
            mine = self.between.get(pair)
            self.between[pair] = layers if mine is None else {n: mine[n] + counts for n, counts in layers.items()}
        if self.ann_right is not None and other.ann_right is not None:
            self.ann_right += other.ann_right


def compare(
    batch: Batch, graph: LayerGraph, ann: LayerGraph | None, steps: int, runs: Mapping[str, BackendRun]
) -> Findings:
    """Run one batch on the reference and on all `runs`, and count."""
    x = batch.x
    reference = simulate(graph, x, steps, membranes=ann is not None and graph.latency is None)
    parts, targets, ann_right = PartsTally(), Targets(None, None, batch.labels), None
    equality = None
    if ann is not None:
        values, drives, output = activations(ann, x)
        if graph.latency is not None:
            equality = EqualityTally.of(graph, ann, x, reference, values)
        targets = Targets({n: v.numpy() for n, v in values.items()}, largest(output.numpy()[None])[0], batch.labels)
        if batch.labels is not None and targets.ann_top1 is not None:
            ann_right = int((targets.ann_top1 == batch.labels).sum())
        for name in graph.spiking:
            layer, activation = graph[name], ann[name]
            if not isinstance(layer, IntegrateFire):
                continue  # a staged or grouped layer has no rate error to take apart
            assert isinstance(activation, ClipFloorShift)
            membrane = reference.membranes[name]
            parts.note(name, error_parts(layer, activation, reference.spikes(name), membrane, drives[name]))
    reference = SpikeRecord(
        REFERENCE, reference.shapes, reference.packed, reference.readout, summed=reference.summed
    )  # membranes may go
    tallies = {REFERENCE: Tally.of(graph, reference, reference, targets)}
    records: dict[str, SpikeRecord] = {}
    for name, run in runs.items():
        take = len(x) if run.limit is None else max(0, min(len(x), run.limit - batch.start))
        if take == 0:
            continue
        # A shorter batch can round differently, so its reference is simulated anew.
        images, expected = (x, reference) if take == len(x) else (x[:take], simulate(graph, x[:take], steps))
        got = run.run(images, batch.start, False)
        assert got is not None  # it can run once
        _check(graph, got, expected)
        records[name] = got
        known = tallies[REFERENCE] if take == len(x) else None
        tally = tallies[name] = Tally.of(graph, got, expected, targets.first(take), known)
        spikes_differ = any(counts.any() for counts in tally.differing.values())
        if spikes_differ or not np.array_equal(got.readout, expected.readout):
            replay = Replay(graph, images, got, membranes=spikes_differ)
            if spikes_differ:
                tally.explain(divergences(replay, run.run(images, batch.start, True)), batch.start)
            if not np.array_equal(got.readout, expected.readout):
                tally.judge_readout(replay)
    between = {f"{a} | {b}": differing(records[a], records[b]) for a, b in itertools.combinations(records, 2)}
    kept = samples(graph, reference, targets.activations) if batch.start == 0 else {}
    costs = _costs(graph, ann, x, reference) if batch.start == 0 and graph.latency is not None else {}
    return Findings(tallies, parts, equality, between, ann_right, kept, costs)


def agreement_of(
    graph: LayerGraph,
    findings: Iterable[Findings],
    steps: int,
    versions: Mapping[str, Mapping[str, str]],
) -> Agreement:
    """The agreement that all `findings`, one a batch, come to.

    Args:
        graph: the spiking network.
        findings: of all batches, in the order of the images; read once.
        steps: T.
        versions: by backend, those to note.

    Raises:
        ValidationError: there is no data.
    """
    total: Findings | None = None
    for found in findings:
        if total is None:
            total = found
        else:
            total.add(found)
    if total is None:
        raise ValidationError("there is no image to validate on")
    tallies = dict(total.tallies)
    reference = tallies.pop(REFERENCE)
    return Agreement(
        steps=steps,
        neurons={name: int(np.prod(graph.shapes[name])) for name in graph.spiking},
        ann_accuracy=None if total.ann_right is None else total.ann_right / reference.images,
        reference=reference.result({}),
        backends={name: tallies[name].result(noted) for name, noted in versions.items() if name in tallies},
        between={pair: {n: c.tolist() for n, c in layers.items()} for pair, layers in total.between.items()},
        rate_error=total.parts.result(),
        equals_ann=None if total.equality is None else total.equality.result(),
        samples=total.samples,
        costs=total.costs,
        environment=environment(),
    )


def _costs(graph: LayerGraph, ann: LayerGraph | None, x: Tensor, record: SpikeRecord) -> dict[str, Any]:
    """The price of a staged or grouped network on a batch, and of the plain one that its ANN would convert to.

    The plain network takes as many steps as the largest L. There is none where the ANN is not known, has maximum pools
    or is in integers.
    """
    own = cost(graph, record.steps, record)
    result = {own.schedule: own.to_dict()}
    levels = [layer.levels for layer in ann or () if isinstance(layer, ClipFloorShift)]
    if ann is not None and levels and not any(isinstance(layer, MaxPool) for layer in ann):
        plain = plain_network(ann)
        beside = simulate(plain, x[:COST_IMAGES], max(levels))
        result["plain"] = cost(plain, max(levels), beside).to_dict()
    return result


def _check(graph: LayerGraph, record: SpikeRecord, expected: SpikeRecord) -> None:
    """Refuse a record that cannot be compared, rather than compare what little fits."""
    shapes = {name: graph.shapes[name] for name in graph.spiking}
    if dict(record.shapes) != shapes or set(record.packed) != set(shapes):
        raise ValidationError(
            f"{record.backend}: layers {dict(record.shapes)} are not the network's {shapes}; "
            "was another network exported?"
        )
    for name, bits in record.packed.items():
        if bits.shape != expected.packed[name].shape:
            raise ValidationError(
                f"{record.backend}: layer {name!r} has packed spikes [T, B, bytes] of shape {bits.shape}, "
                f"expected {expected.packed[name].shape}"
            )
    if record.summed != expected.summed:
        kinds = {True: "the sum over the steps, as of a staged network", False: "their mean, as of a plain one"}
        raise ValidationError(
            f"{record.backend}: the record says that its output is {kinds[record.summed]}; the network's is "
            f"{kinds[expected.summed]}. Make it with bridge.records.Recorder(..., summed={expected.summed})"
        )
    if record.readout.shape != expected.readout.shape:
        raise ValidationError(
            f"{record.backend}: a readout [T, B, ...] of shape {record.readout.shape}, "
            f"expected {expected.readout.shape}"
        )
    if not np.isfinite(record.readout).all():
        raise ValidationError(f"{record.backend}: the readout holds NaN or infinity")
