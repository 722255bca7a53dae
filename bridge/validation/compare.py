"""One batch on the reference and all backends: which spikes differ, and how far the rates are from the ANN.

Each batch by itself, and its sums added to those of the batches before: so memory does not grow with the number of
images, and batches can be computed anywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bridge._util.environment import environment
from bridge.agreement import Agreement
from bridge.errors import ValidationError
from bridge.graph import ClipFloorShift, Layer, LayerGraph, MaxPool, SpikeCount
from bridge.passes.plain import plain as plain_network
from bridge.records import SpikeRecord, differing
from bridge.simulate.ann import activations
from bridge.simulate.cost import cost
from bridge.simulate.counts import CountSimulator
from bridge.simulate.engine.engine import MEMORY, Engine
from bridge.simulate.images import BATCH
from bridge.simulate.reference import simulate
from bridge.validation.accumulators import PartsTally, Tally, Targets, largest
from bridge.validation.divergence import Replay, divergences
from bridge.validation.equality import EqualityTally
from bridge.validation.rate_error import RateMeter, whole
from bridge.validation.samples import samples

REFERENCE = "reference"
POTENTIALS = 2**29
"""Bytes that the potentials of some images may take when they are held against each other, roughly."""
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


@dataclass(frozen=True, eq=False)
class Subject:
    """What is validated: the spiking network, its ANN if that is known, T, and whether its error is taken apart."""

    graph: LayerGraph
    ann: LayerGraph | None
    steps: int
    error_parts: bool = True


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
    batch: Batch,
    subject: Subject,
    runs: Mapping[str, BackendRun],
    engine: Engine | CountSimulator | None = None,
    ran: Callable[[str], None] = lambda name: None,
) -> Findings:
    """Run one batch on the reference and on all `runs`, and count.

    With an `engine`, which is for integers, it decides in the place of the reference, and the first batch is run on
    both. `ran` is told each time that one of them has run.

    Raises:
        ValidationError: a record does not fit the network, or engine and reference differ.
    """
    x, graph, ann, steps = batch.x, subject.graph, subject.ann, subject.steps
    judged = _judge(batch, subject, engine)
    ran(REFERENCE)
    reference, targets = judged.reference, judged.targets
    tallies = {REFERENCE: judged.tally}
    records: dict[str, SpikeRecord] = {}
    for name, run in runs.items():
        take = len(x) if run.limit is None else max(0, min(len(x), run.limit - batch.start))
        if take == 0:
            ran(name)
            continue
        images, expected = x[:take], reference
        if take < len(x):  # in floats, a shorter batch can round differently, so its reference is simulated anew
            expected = simulate(graph, images, steps) if engine is None else reference.window(0, take, steps)
        got = run.run(images, batch.start, False)
        ran(name)
        assert got is not None  # it can run once
        _check(graph, got, expected)
        records[name] = got
        known = tallies[REFERENCE] if take == len(x) else None
        tally = tallies[name] = Tally.of(graph, got, expected, targets.first(take), known)
        spikes_differ = any(counts.any() for counts in tally.differing.values())
        readouts_differ = not np.array_equal(got.readout, expected.readout)
        size = potentials_at_once(graph, steps) if spikes_differ or readouts_differ else take
        for at in range(0, take, size) if spikes_differ or readouts_differ else ():
            part = images[at : at + size]
            replay = Replay(graph, part, got.window(at, at + len(part), steps), membranes=spikes_differ)
            if spikes_differ:
                probe = partial(run.run, part, batch.start + at, True)
                tally.explain(divergences(replay, probe), batch.start + at)
            if readouts_differ:
                tally.judge_readout(replay)
        if spikes_differ:
            tally.expect_explained()
    between = {f"{a} | {b}": differing(records[a], records[b]) for a, b in itertools.combinations(records, 2)}
    costs = _costs(graph, ann, x, reference) if batch.start == 0 and graph.latency is not None else {}
    ann_right = None
    if batch.labels is not None and targets.ann_top1 is not None:
        ann_right = int((targets.ann_top1 == batch.labels).sum())
    return Findings(tallies, judged.parts, judged.equality, between, ann_right, judged.samples, costs)


def potentials_at_once(graph: LayerGraph, steps: int) -> int:
    """Images whose potentials are held against each other together: at most `BATCH`."""
    return max(1, min(BATCH, POTENTIALS // (8 * steps * graph.neurons)))


@dataclass(frozen=True, eq=False)
class _Judged:
    """The reference's run on a batch, or the engine's in its place, and what it and the ANN come to."""

    reference: SpikeRecord
    targets: Targets
    tally: Tally
    parts: PartsTally
    equality: EqualityTally | None
    samples: dict[str, Any]


def _judge(batch: Batch, subject: Subject, engine: Engine | CountSimulator | None) -> _Judged:
    """Run `batch` on the reference or the `engine`, and hold that against the ANN, whose values are not kept."""
    x, graph, ann, steps = batch.x, subject.graph, subject.ann, subject.steps
    targets, meter, values = Targets(None, {}, None, batch.labels), None, None
    if ann is not None:
        values, drives, output = activations(ann, x)
        of = {name: _levels(ann[name]) for name in graph.spiking}
        levels = {name: whole(values[name] * of[name], of[name]) for name in of}
        flat = {name: k.reshape(len(x), -1).numpy() for name, k in levels.items()}
        targets = Targets(flat, of, largest(output.numpy()[None])[0], batch.labels)
        if graph.latency is None:
            meter = RateMeter(graph, ann, drives, levels, steps, by_position=engine is not None)
    if engine is None:
        reference = simulate(graph, x, steps, watch=meter.potential if meter else None)
    else:
        reference = _by_engine(engine, graph, x, steps, meter)
        if batch.start == 0:
            _expect_same(reference, simulate(graph, x, steps))
    sums = {name: meter.sums(name) for name in graph.spiking} if meter else None
    parts = PartsTally()
    for name, found in (sums or {}).items() if subject.error_parts else ():
        parts.note(name, found, targets.of[name], len(x) * math.prod(graph.shapes[name]))
    return _Judged(
        reference=reference,
        targets=targets,
        tally=Tally.of(graph, reference, reference, targets, sums=sums),
        parts=parts,
        equality=EqualityTally.of(graph, ann, x, reference, values) if ann and values and graph.latency else None,
        samples=_samples(graph, reference, values) if batch.start == 0 else {},
    )


def _samples(graph: LayerGraph, reference: SpikeRecord, values: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """Of as many images as a batch in floats has, so that the arithmetic does not decide which neurons are shown."""
    count = min(reference.images, potentials_at_once(graph, reference.steps))
    first = reference.window(0, count, reference.steps)
    return samples(graph, first, values and {name: value[:count] for name, value in values.items()})


def _levels(activation: Layer) -> int:
    """L of an activation of the ANN."""
    assert isinstance(activation, ClipFloorShift | SpikeCount)
    return activation.levels if isinstance(activation, ClipFloorShift) else activation.steps


def _by_engine(
    engine: Engine | CountSimulator, graph: LayerGraph, x: Tensor, steps: int, meter: RateMeter | None
) -> SpikeRecord:
    """The run of the engine, as a record of the reference, which it stands for."""
    if isinstance(engine, CountSimulator):
        record = engine.run(x, steps, record=True, memory=MEMORY).record
    else:
        record = engine.run(x, steps, record=True, watch=meter.drive if meter else None).record
    assert record is not None  # it was asked for
    return SpikeRecord(REFERENCE, record.shapes, record.packed, record.readout, summed=graph.staged)


def _expect_same(engine: SpikeRecord, reference: SpikeRecord) -> None:
    """Raise `ValidationError` unless the engine, which is to decide, has the reference's spikes and readout."""
    wrong = {name: count for name, counts in differing(engine, reference).items() if (count := int(counts.sum()))}
    if wrong or not np.array_equal(engine.readout, reference.readout):
        first = next(iter(wrong), "the readout")
        raise ValidationError(
            f"the engine, which is to stand for the reference simulator, differs from it, first in {first} "
            f"(spikes by layer: {wrong}). This is a fault of this package: please report it with the network; "
            'with "lava-twin" among the backends, the reference simulator decides'
        )


def agreement_of(
    graph: LayerGraph,
    findings: Iterable[Findings],
    steps: int,
    versions: Mapping[str, Mapping[str, str]],
    engine_checked: int | None = None,
) -> Agreement:
    """The agreement that all `findings`, one a batch, come to.

    Args:
        graph: the spiking network.
        findings: of all batches, in the order of the images; read once.
        steps: T.
        versions: by backend, those to note.
        engine_checked: images on which the engine, which decided, was held against the reference; None: it did not.

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
        simulator="reference" if engine_checked is None else "engine",
        checked_images=reference.images if engine_checked is None else min(engine_checked, reference.images),
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
