"""Records in, agreement out: which spikes differ from the reference, and how far the rates are from the ANN.

No backend is known here. `validate` asks for records through plain callables, batch by batch, and keeps sums only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bridge.errors import ValidationError
from bridge.files import replacing
from bridge.graph import IntegrateFire, LayerGraph
from bridge.records import SpikeRecord, running_mean
from bridge.simulate import activations, simulate

Runner = Callable[[Tensor, bool], SpikeRecord]
"""Runs one batch ``[B, *input]``; the flag asks for membranes as well."""

PerStep = NDArray[np.float64]
LISTED = 1000
"""How many divergences a backend's list holds; further ones are only counted."""
SLACK = 32.0
"""A backend may round this many times worse than the reference does; other orders of summation stay far below it."""


@dataclass(frozen=True)
class Divergence:
    """A spike that is wrong by itself: given what the neuron heard, and fired before, the reference decides otherwise.

    Membranes are the potentials u after integration, before reset, which fire at ``level``; ``exact_membrane`` is the
    same in float64. ``rounding`` is how far float32 can err here: `SLACK` times the reference's own largest error in
    this layer. It is a *tie* if the backend's potential lies that close to the exact one and fired as it says: then
    the two potentials lie on different sides of the level for no other reason than rounding.
    """

    layer: str
    step: int
    image: int
    neuron: tuple[int, ...]
    reference_membrane: float
    backend_membrane: float | None
    exact_membrane: float
    level: float
    rounding: float
    tie: bool


@dataclass(frozen=True, eq=False)
class BackendAgreement:
    """One backend's agreement over ``images`` images. Lists run over the time steps 1..T.

    ``differing``: spikes that differ from the reference, by layer. ``rate_error`` and ``rate_error_max``: mean and
    largest ``|φ(t) − a/λ|`` over a layer's neurons and all images (None without an ANN). ``top1_reference`` and
    ``top1_ann``: share of images whose largest output is the reference's, the ANN's. ``accuracy``: against the labels.
    ``divergences`` lists the spikes that are wrong by themselves (at most `LISTED`), ``ties`` says how many of them
    all are ties, ``unexplained`` how many are not. ``readout_error`` is the largest difference between the readout
    and what the reference makes of the same spikes, ``readouts_wrong`` the number of readouts (images × steps) that
    differ by more than rounding.
    """

    images: int
    versions: Mapping[str, str]
    differing: dict[str, list[int]]
    rate_error: dict[str, list[float]] | None
    rate_error_max: dict[str, list[float]] | None
    top1_reference: list[float]
    top1_ann: list[float] | None
    accuracy: list[float] | None
    divergences: list[Divergence] = field(default_factory=list)
    ties: int = 0
    unexplained: int = 0
    readout_error: float = 0.0
    readouts_wrong: int = 0

    @property
    def total_differing(self) -> int:
        return sum(sum(row) for row in self.differing.values())

    @property
    def agreed(self) -> bool:
        """Every spike is the reference's, but for those that follow from a tie, and so is every readout."""
        return self.images > 0 and self.unexplained == 0 and self.readouts_wrong == 0


@dataclass(frozen=True, eq=False)
class Agreement:
    """The outcome of `bridge.SpikingNetwork.validate`.

    ``neurons``: by spiking layer, in order. ``reference`` is the reference simulator held against the ANN;
    ``backends`` are held against the reference and the ANN.
    """

    steps: int
    neurons: dict[str, int]
    ann_accuracy: float | None
    reference: BackendAgreement
    backends: dict[str, BackendAgreement]

    @property
    def agreed(self) -> bool:
        """Whether there is a backend and every one agreed."""
        return bool(self.backends) and all(backend.agreed for backend in self.backends.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, as `save` writes them."""
        backends = {
            name: {**asdict(backend), "total_differing": backend.total_differing, "agreed": backend.agreed}
            for name, backend in {"reference": self.reference, **self.backends}.items()
        }
        return {
            "agreed": self.agreed,
            "steps": self.steps,
            "neurons": self.neurons,
            "ann_accuracy": self.ann_accuracy,
            "reference": backends.pop("reference"),
            "backends": backends,
        }

    def save(self, path: str | Path) -> None:
        """Write the agreement as JSON, whole or not at all."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def validate(
    graph: LayerGraph,
    ann: LayerGraph | None,
    batches: Iterable[tuple[Tensor, NDArray[np.integer] | None]],
    steps: int,
    runners: Mapping[str, tuple[Runner, int | None, Mapping[str, str]]],
) -> Agreement:
    """Hold every runner's records against the reference simulator's, and all of them against the ANN.

    Args:
        graph: the spiking network.
        ann: the ANN it came from, with QCFS layers of the same names; None if it is not known.
        batches: pairs of images ``[B, *input]`` and labels ``[B]`` (or None), read once.
        steps: T.
        runners: by backend, how to run a batch, how many images to run at most (None: all), and versions to note.

    Raises:
        ValidationError: there is no data, or a record does not fit the reference's or holds NaN.
    """
    reference = _Tally(graph, steps, {})
    tallies = {name: _Tally(graph, steps, versions) for name, (_, _, versions) in runners.items()}
    ann_correct: list[NDArray[np.bool_]] = []
    for x, labels in batches:
        record = simulate(graph, x, steps)
        target, ann_top1 = _ann_target(ann, x)
        if labels is not None and ann_top1 is not None:
            ann_correct.append(ann_top1 == labels)
        done = reference.images
        reference.add(record, record, target, ann_top1, labels)
        for name, (run, limit, _) in runners.items():
            take = len(x) if limit is None else max(0, min(len(x), limit - done))
            if take == 0:
                continue
            # A shorter batch can round differently, so its reference is simulated anew.
            images, expected = (x, record) if take == len(x) else (x[:take], simulate(graph, x[:take], steps))
            part = {layer: values[:take] for layer, values in target.items()} if target is not None else None
            got = run(images, False)
            tallies[name].add(got, expected, part, _head(ann_top1, take), _head(labels, take))
            spikes_differ = not same_spikes(got, expected)
            if not spikes_differ and np.array_equal(got.readout, expected.readout):
                continue
            replay = _Replay(graph, images, got, membranes=spikes_differ)
            if spikes_differ:
                tallies[name].explain(divergences(graph, got, run(images, True), replay), done)
            if not np.array_equal(got.readout, expected.readout):
                tallies[name].judge_readout(got, replay)
    if not reference.images:
        raise ValidationError("there is no image to validate on")
    return Agreement(
        steps=steps,
        neurons={name: int(np.prod(graph.shapes[name])) for name in graph.spiking},
        ann_accuracy=float(np.concatenate(ann_correct).mean()) if ann_correct else None,
        reference=reference.result(),
        backends={name: tally.result() for name, tally in tallies.items()},
    )


def same_spikes(one: SpikeRecord, other: SpikeRecord) -> bool:
    """Whether two records hold the same spikes, whatever their readouts."""
    return all(np.array_equal(one.spikes(name), other.spikes(name)) for name in one.packed)


class _Replay:
    """The reference on what `record` says each layer heard and fired, in its own float32 and in float64."""

    def __init__(self, graph: LayerGraph, x: Tensor, record: SpikeRecord, *, membranes: bool) -> None:
        self.expected = simulate(graph, x, record.steps, membranes=membranes, heard=record)
        self.exact = simulate(graph, x.double(), record.steps, membranes=membranes, heard=record)


def divergences(graph: LayerGraph, record: SpikeRecord, probed: SpikeRecord, replay: _Replay) -> list[Divergence]:
    """The spikes of `record` that are wrong by themselves.

    They are those that differ from the `replay`, in which a layer that only passes on an earlier difference has none.
    `probed` is the same run with membranes; where it did not repeat its spikes, the
    membrane is unknown (None) and the divergence counts as no tie.
    """
    expected, exact = replay.expected, replay.exact
    found = []
    for name in graph.spiking:
        layer = graph[name]
        assert isinstance(layer, IntegrateFire)
        got, again = record.spikes(name), probed.spikes(name)
        if name not in probed.membranes or probed.membranes[name].shape != got.shape:
            raise ValidationError(f"{record.backend}: asked for membranes, it gave none that fit layer {name!r}")
        rounding = SLACK * float(np.abs(expected.membranes[name] - exact.membranes[name]).max())
        for index in map(tuple, np.argwhere(got != expected.spikes(name))):
            repeated = bool((got[:, *index[1:]] == again[:, *index[1:]]).all())
            backend, truth = float(probed.membranes[name][index]), float(exact.membranes[name][index])
            level = float(layer.level[index[2]])
            found.append(
                Divergence(
                    layer=name,
                    step=int(index[0]) + 1,
                    image=int(index[1]),
                    neuron=tuple(int(i) for i in index[2:]),
                    reference_membrane=float(expected.membranes[name][index]),
                    backend_membrane=backend if repeated else None,
                    exact_membrane=truth,
                    level=level,
                    rounding=rounding,
                    tie=repeated and abs(backend - truth) <= rounding and (backend >= level) == bool(got[index]),
                )
            )
    return found


class _Tally:
    """Running sums of one backend's agreement."""

    def __init__(self, graph: LayerGraph, steps: int, versions: Mapping[str, str]) -> None:
        self.shapes = {name: graph.shapes[name] for name in graph.spiking}
        self.integer = graph.integer
        self.steps = steps
        self.versions = versions
        self.images = 0
        self.differing = {name: np.zeros(steps, np.int64) for name in self.shapes}
        self.error_sum: dict[str, PerStep] = {}
        self.error_max: dict[str, PerStep] = {}
        self.agree: dict[str, NDArray[np.int64]] = {}
        self.divergences: list[Divergence] = []
        self.ties = self.unexplained = self.readouts_wrong = 0
        self.readout_error = 0.0

    def add(
        self,
        record: SpikeRecord,
        expected: SpikeRecord,
        target: dict[str, NDArray[np.float32]] | None,
        ann_top1: NDArray[np.integer] | None,
        labels: NDArray[np.integer] | None,
    ) -> None:
        """Count in one batch: a record, the reference's, the ANN's a/λ and classes, and the true classes."""
        self._check(record, expected)
        self.images += record.images
        for name in self.shapes:
            spikes = record.spikes(name)
            axes = tuple(range(1, spikes.ndim))
            self.differing[name] += (spikes != expected.spikes(name)).sum(axis=axes)
            if target is not None:
                error = np.abs(running_mean(spikes) - target[name])
                self.error_sum[name] = self.error_sum.get(name, 0) + error.sum(axis=axes, dtype=np.float64)
                self.error_max[name] = np.maximum(self.error_max.get(name, 0), error.max(axis=axes))
        top1 = _top1(record.outputs())
        for key, truth in {"reference": _top1(expected.outputs()), "ann": ann_top1, "labels": labels}.items():
            if truth is not None:
                self.agree[key] = self.agree.get(key, 0) + (top1 == truth).sum(axis=1)

    def explain(self, found: list[Divergence], offset: int) -> None:
        """Note divergences of a batch whose first image is number `offset`. None at all is a mismatch unexplained."""
        self.ties += sum(divergence.tie for divergence in found)
        self.unexplained += sum(not divergence.tie for divergence in found) or (0 if found else 1)
        room = LISTED - len(self.divergences)
        self.divergences += [Divergence(**{**asdict(d), "image": d.image + offset}) for d in found[:room]]

    def judge_readout(self, record: SpikeRecord, replay: _Replay) -> None:
        """Hold the readout of a batch against what the reference makes of the same spikes."""
        expected, exact = replay.expected.readout, replay.exact.readout  # in whole numbers, these are one
        error = np.abs(record.readout - expected).reshape(*record.readout.shape[:2], -1).max(axis=-1)
        unit = 0.0 if self.integer else float(np.abs(exact).max()) * 2.0**-24
        own_error = max(float(np.abs(expected - exact).max()), unit)
        self.readout_error = max(self.readout_error, float(error.max()))
        self.readouts_wrong += int((error > SLACK * own_error).sum())

    def result(self) -> BackendAgreement:
        share = {key: (count / self.images).tolist() for key, count in self.agree.items()}
        mean = {
            name: (total / (self.images * np.prod(self.shapes[name]))).tolist()
            for name, total in self.error_sum.items()
        }
        return BackendAgreement(
            images=self.images,
            versions=dict(self.versions),
            differing={name: counts.tolist() for name, counts in self.differing.items()},
            rate_error=mean or None,
            rate_error_max={name: values.tolist() for name, values in self.error_max.items()} or None,
            top1_reference=share.get("reference", []),
            top1_ann=share.get("ann"),
            accuracy=share.get("labels"),
            divergences=self.divergences,
            ties=self.ties,
            unexplained=self.unexplained,
            readout_error=self.readout_error,
            readouts_wrong=self.readouts_wrong,
        )

    def _check(self, record: SpikeRecord, expected: SpikeRecord) -> None:
        """Refuse a record that cannot be compared, rather than compare what little fits."""
        if dict(record.shapes) != self.shapes or set(record.packed) != set(self.shapes):
            raise ValidationError(
                f"{record.backend}: layers {dict(record.shapes)} are not the network's {self.shapes}; "
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


def _ann_target(
    ann: LayerGraph | None, x: Tensor
) -> tuple[dict[str, NDArray[np.float32]] | None, NDArray[np.integer] | None]:
    if ann is None:
        return None, None
    normalised, output = activations(ann, x)
    return {name: values.numpy() for name, values in normalised.items()}, _top1(output.numpy()[None])[0]


def _top1(outputs: NDArray[np.floating]) -> NDArray[np.integer]:
    """Index of the largest output of each step and image, ``[T, B]``, for ``[T, B, ...]``."""
    return np.asarray(outputs.reshape(*outputs.shape[:2], -1).argmax(axis=-1))


def _head(values: NDArray[np.integer] | None, count: int) -> NDArray[np.integer] | None:
    return None if values is None else values[:count]
