"""Records in, agreement out: which spikes differ from the reference, and how far the rates are from the ANN.

A batch at a time, each by itself, and its sums added to those of the batches before: so memory does not grow with the
number of images, and batches can be computed anywhere.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bridge._util.environment import environment
from bridge.agreement import Agreement
from bridge.errors import BridgeError, ValidationError
from bridge.graph import ClipFloorShift, IntegrateFire, LayerGraph
from bridge.records import SpikeRecord, differing
from bridge.simulate.ann import activations
from bridge.simulate.reference import simulate
from bridge.validation.accumulators import PartsTally, Tally, Targets, largest
from bridge.validation.divergence import Replay, divergences
from bridge.validation.rate_error import error_parts
from bridge.validation.samples import samples

logger = logging.getLogger(__name__)

Runner = Callable[[Tensor, int, bool], SpikeRecord | None]
"""Runs one batch ``[B, *input]`` whose first image has this number; the flag asks for membranes as well, and None says
that it cannot run again."""

WAITING = 16
"""Batches that an executor is given before the first must be done: what bounds memory there."""
TRIES = 3
"""How often a batch is given to an executor whose worker died."""


@dataclass(frozen=True, eq=False)
class Contestant:
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
    between: dict[str, dict[str, NDArray[np.int64]]]
    ann_right: int | None
    samples: dict[str, Any]

    def add(self, other: Findings) -> None:
        """Take in those of the images that come next."""
        for name, tally in other.tallies.items():
            if name in self.tallies:
                self.tallies[name].add(tally)
            else:
                self.tallies[name] = tally
        self.parts.add(other.parts)
        for pair, layers in other.between.items():
            mine = self.between.get(pair)
            self.between[pair] = layers if mine is None else {n: mine[n] + counts for n, counts in layers.items()}
        if self.ann_right is not None and other.ann_right is not None:
            self.ann_right += other.ann_right


REFERENCE = "reference"


def validate(
    graph: LayerGraph,
    ann: LayerGraph | None,
    batches: Iterable[Batch],
    steps: int,
    measure: Callable[[Batch], Findings],
    versions: Mapping[str, Mapping[str, str]],
    executor: Executor | None = None,
) -> Agreement:
    """Hold every backend's records against the reference simulator's, and all of them against the ANN.

    Args:
        graph: the spiking network.
        ann: the ANN it came from; None if it is not known.
        batches: the images, read once.
        steps: T.
        measure: what makes findings of a batch, such as `compare` with its other arguments bound; picklable if there
            is an executor of other processes.
        versions: by backend, those to note.
        executor: where batches are measured; None: here. A batch whose worker died is measured again, and each is
            counted once, in order, so that the result is the same to the last bit.

    Raises:
        ValidationError: there is no data, or a record does not fit the reference's or holds NaN.
    """
    total: Findings | None = None
    for found in map(measure, batches) if executor is None else _elsewhere(executor, measure, batches):
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
        rate_error=total.parts.result() if ann is not None else None,
        samples=total.samples,
        environment=environment(),
    )


def compare(
    batch: Batch, graph: LayerGraph, ann: LayerGraph | None, steps: int, contestants: Mapping[str, Contestant]
) -> Findings:
    """Run one batch on the reference and on all `contestants`, and count."""
    x = batch.x
    reference = simulate(graph, x, steps, membranes=ann is not None)
    parts, targets, ann_right = PartsTally(), Targets(None, None, batch.labels), None
    if ann is not None:
        values, drives, output = activations(ann, x)
        targets = Targets({n: v.numpy() for n, v in values.items()}, largest(output.numpy()[None])[0], batch.labels)
        if batch.labels is not None and targets.ann_top1 is not None:
            ann_right = int((targets.ann_top1 == batch.labels).sum())
        for name in graph.spiking:
            layer, activation = graph[name], ann[name]
            assert isinstance(layer, IntegrateFire)
            assert isinstance(activation, ClipFloorShift)
            membrane = reference.membranes[name]
            parts.note(name, error_parts(layer, activation, reference.spikes(name), membrane, drives[name]))
    reference = SpikeRecord(REFERENCE, reference.shapes, reference.packed, reference.readout)  # membranes may go
    tallies = {REFERENCE: Tally.of(graph, reference, reference, targets)}
    records: dict[str, SpikeRecord] = {}
    for name, contestant in contestants.items():
        take = len(x) if contestant.limit is None else max(0, min(len(x), contestant.limit - batch.start))
        if take == 0:
            continue
        # A shorter batch can round differently, so its reference is simulated anew.
        images, expected = (x, reference) if take == len(x) else (x[:take], simulate(graph, x[:take], steps))
        got = contestant.run(images, batch.start, False)
        assert got is not None  # it can run once
        _check(graph, got, expected)
        records[name] = got
        known = tallies[REFERENCE] if take == len(x) else None
        tally = tallies[name] = Tally.of(graph, got, expected, targets.first(take), known)
        spikes_differ = any(counts.any() for counts in tally.differing.values())
        if spikes_differ or not np.array_equal(got.readout, expected.readout):
            replay = Replay(graph, images, got, membranes=spikes_differ)
            if spikes_differ:
                tally.explain(divergences(replay, contestant.run(images, batch.start, True)), batch.start)
            if not np.array_equal(got.readout, expected.readout):
                tally.judge_readout(replay)
    between = {f"{a} | {b}": differing(records[a], records[b]) for a, b in itertools.combinations(records, 2)}
    kept = samples(reference, targets.activations) if batch.start == 0 else {}
    return Findings(tallies, parts, between, ann_right, kept)


def _elsewhere(
    executor: Executor, measure: Callable[[Batch], Findings], batches: Iterable[Batch]
) -> Iterator[Findings]:
    """The findings of all `batches`, in their order, measured by `executor`."""
    waiting: deque[tuple[Batch, Future[Findings] | None]] = deque()
    for batch in batches:
        waiting.append((batch, _submit(executor, measure, batch)))
        if len(waiting) >= WAITING:
            yield _result(executor, measure, *waiting.popleft())
    while waiting:
        yield _result(executor, measure, *waiting.popleft())


def _submit(executor: Executor, measure: Callable[[Batch], Findings], batch: Batch) -> Future[Findings] | None:
    """The batch's future; None if the executor is broken for good."""
    try:
        return executor.submit(measure, batch)
    except (BrokenExecutor, RuntimeError):
        return None


def _result(
    executor: Executor, measure: Callable[[Batch], Findings], batch: Batch, future: Future[Findings] | None
) -> Findings:
    """What `future` gives; if its worker died, what another does; if there is none left, what is measured here."""
    for _ in range(TRIES):
        if future is None:
            break
        try:
            return future.result()
        except BridgeError:
            raise
        except Exception as error:  # the executor's own: a worker died, or a result was lost on its way
            logger.warning("images from %d on: measured again, since %s: %s", batch.start, type(error).__name__, error)
            future = _submit(executor, measure, batch)
    return measure(batch)


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
    if record.readout.shape != expected.readout.shape:
        raise ValidationError(
            f"{record.backend}: a readout [T, B, ...] of shape {record.readout.shape}, "
            f"expected {expected.readout.shape}"
        )
    if not np.isfinite(record.readout).all():
        raise ValidationError(f"{record.backend}: the readout holds NaN or infinity")
