"""Running sums over batches: what becomes of records once they have been compared. Memory does not grow with images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.graph import LayerGraph, Shape
from bridge.records import SpikeRecord, differing
from bridge.report.outcome import PARTS, BackendAgreement, Divergence, Layers, RateError
from bridge.validation.divergence import SLACK, Replay
from bridge.validation.rate_loop import COLUMNS
from bridge.validation.rates import Fraction, fractions

Sums = dict[str, NDArray[Any]]
"""By layer or by kind: a sum for each time step, ``[T]``."""
RATES = ("error", "error_max", "within", "product", "rate_square", "target_square")
"""The sums that the rates and the ANN's activations alone determine."""
LISTED = 1000
"""How many divergences of one layer a backend's list holds; further ones are only counted."""


@dataclass(frozen=True, eq=False)
class Targets:
    """What one batch is held against: the ANN's activations and its classes, the true classes; None if unknown.

    An activation a/λ is its level k, ``[B, N]``, of the L that its layer has: ``levels`` and ``of``.
    """

    levels: Mapping[str, NDArray[np.integer]] | None
    of: Mapping[str, int]
    ann_top1: NDArray[np.integer] | None
    labels: NDArray[np.integer] | None

    def first(self, count: int) -> Targets:
        """Those of the first `count` images."""
        some = None if self.levels is None else {name: k[:count] for name, k in self.levels.items()}
        ann_top1 = None if self.ann_top1 is None else self.ann_top1[:count]
        return Targets(some, self.of, ann_top1, None if self.labels is None else self.labels[:count])


@dataclass(eq=False)
class Tally:
    """Sums of one backend's agreement over some images. Those of several batches are added in the batches' order."""

    shapes: dict[str, Shape]
    """By layer, of the activation that its rates are held against."""
    images: int = 0
    differing: Sums = field(default_factory=dict)
    error: Sums = field(default_factory=dict)
    error_max: Sums = field(default_factory=dict)
    product: Sums = field(default_factory=dict)
    rate_square: Sums = field(default_factory=dict)
    target_square: Sums = field(default_factory=dict)
    within: Sums = field(default_factory=dict)
    agree: Sums = field(default_factory=dict)
    divergences: list[Divergence] = field(default_factory=list)
    ties: int = 0
    unexplained: int = 0
    readouts_wrong: int = 0
    readout_error: float = 0.0

    @staticmethod
    def of(
        graph: LayerGraph,
        record: SpikeRecord,
        expected: SpikeRecord,
        targets: Targets,
        known: Tally | None = None,
        sums: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> Tally:
        """The tally of one batch: its record, the reference's, and what else it is held against.

        `known` is the reference's own tally, where there is one: layers whose spikes are the same have its rates.
        `sums` are those that were taken while a plain network ran (`bridge.validation.rate_loop`).
        """
        tally = Tally({name: graph.activation_shape(name) for name in graph.spiking}, record.images)
        tally.differing = dict(differing(record, expected))
        for name in tally.shapes if targets.levels is not None else ():
            if known is not None and not tally.differing[name].any():
                for kind in RATES:
                    getattr(tally, kind)[name] = getattr(known, kind)[name]
            elif sums is not None:
                tally._take(name, sums[name], targets.of[name])
            else:
                assert targets.levels is not None
                tally._hold(name, fractions(graph, record, name), targets.levels[name], targets.of[name])
        top1 = largest(record.outputs())
        truths = {"reference": largest(expected.outputs()), "ann": targets.ann_top1, "labels": targets.labels}
        tally.agree = {key: (top1 == truth).sum(axis=1) for key, truth in truths.items() if truth is not None}
        return tally

    def _hold(self, name: str, running: Iterable[Fraction], k: NDArray[np.integer], levels: int) -> None:
        """Hold the rates c / most of layer `name` against the ANN's k / `levels`, a step at a time."""
        sums: dict[str, list[float]] = {kind: [] for kind in RATES}
        k = k.astype(np.int64)
        square = float((k * k).sum()) / levels**2
        for t, rate in enumerate(running, 1):
            unit = rate.most * levels
            if not rate.same:
                c = rate.counts
                sizes = np.bincount(np.abs(c * levels - k * rate.most).ravel())  # how many neurons are off by 0, 1, …
                product, rate_square = float((c * k).sum()) / unit, float((c * c).sum()) / rate.most**2
                error = float(sizes @ np.arange(len(sizes))) / unit
            sums["error"].append(error)
            sums["error_max"].append((len(sizes) - 1) / unit)
            sums["within"].append(float(sizes[: unit // t + 1].sum()))
            sums["product"].append(product)
            sums["rate_square"].append(rate_square)
            sums["target_square"].append(square)
        for kind, values in sums.items():
            getattr(self, kind)[name] = np.array(values)

    def _take(self, name: str, sums: NDArray[np.float64], levels: int) -> None:
        """Take the rates of layer `name` from `sums` that were made while it ran."""
        columns = dict(zip(COLUMNS, sums.T, strict=True))
        t = np.arange(1, len(sums) + 1)
        self.error[name] = columns["error"] / (t * levels)
        self.error_max[name] = columns["worst"] / (t * levels)
        self.within[name] = columns["within"]
        self.product[name] = columns["product"] / (t * levels)
        self.rate_square[name] = columns["square"] / t**2
        self.target_square[name] = columns["level_square"] / levels**2

    def explain(self, found: list[Divergence], offset: int) -> None:
        """Note divergences of some images, whose first has number `offset`."""
        self.ties += sum(divergence.tie for divergence in found)
        self.unexplained += sum(not divergence.tie for divergence in found)
        more = [replace(divergence, image=divergence.image + offset) for divergence in found]
        self.divergences = _listed(self.divergences + more)

    def expect_explained(self) -> None:
        """Count a mismatch of which no divergence was found as unexplained."""
        self.unexplained += not self.ties + self.unexplained

    def judge_readout(self, replay: Replay) -> None:
        """Hold the readout of the batch against what the reference makes of the same spikes."""
        got, expected, exact = replay.record.readout, replay.expected.readout, replay.exact.readout
        error = np.abs(got - expected).reshape(*got.shape[:2], -1).max(axis=-1)
        unit = 0.0 if replay.graph.integer else float(np.abs(exact).max()) * 2.0**-24
        own_error = max(float(np.abs(expected - exact).max()), unit)
        self.readout_error = max(self.readout_error, float(error.max()))
        self.readouts_wrong += int((error > SLACK * own_error).sum())

    def add(self, other: Tally) -> None:
        """Take in the tally of the images that come next."""
        self.images += other.images
        for name in ("differing", "error", "product", "rate_square", "target_square", "within", "agree"):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, {key: mine[key] + value if mine else value for key, value in theirs.items()})
        self.error_max = {
            key: np.maximum(self.error_max[key], value) if self.error_max else value
            for key, value in other.error_max.items()
        }
        self.divergences = _listed(self.divergences + other.divergences)
        self.ties += other.ties
        self.unexplained += other.unexplained
        self.readouts_wrong += other.readouts_wrong
        self.readout_error = max(self.readout_error, other.readout_error)

    def _cosine(self, name: str) -> NDArray[np.float64]:
        """Of all rates and all activations of layer `name`; two vectors of zeros are alike."""
        rate, target = self.rate_square[name], self.target_square[name]
        size = np.sqrt(rate * target)
        return np.where(size > 0, self.product[name] / np.where(size > 0, size, 1), rate == target)

    def result(self, versions: Mapping[str, str]) -> BackendAgreement:
        """What it all comes to."""
        count = {name: self.images * int(np.prod(shape)) for name, shape in self.shapes.items()}
        cosine = {name: self._cosine(name) for name in self.product}
        share = {key: (total / self.images).tolist() for key, total in self.agree.items()}
        return BackendAgreement(
            images=self.images,
            versions=dict(versions),
            differing={name: counts.tolist() for name, counts in self.differing.items()},
            rate_error=_lists({name: total / count[name] for name, total in self.error.items()}),
            rate_error_max=_lists(self.error_max),
            cosine=_lists(cosine),
            within=_lists({name: total / count[name] for name, total in self.within.items()}),
            top1_reference=share.get("reference", []),
            top1_ann=share.get("ann"),
            accuracy=share.get("labels"),
            divergences=self.divergences,
            ties=self.ties,
            unexplained=self.unexplained,
            readout_error=self.readout_error,
            readouts_wrong=self.readouts_wrong,
        )


@dataclass(eq=False)
class PartsTally:
    """Sums of the parts of the reference's rate error: by part, by layer, over some neurons and images."""

    neurons: dict[str, int] = field(default_factory=dict)
    parts: dict[str, Sums] = field(default_factory=dict)
    isolated: Sums = field(default_factory=dict)

    def note(self, layer: str, sums: NDArray[np.float64], levels: int, neurons: int) -> None:
        """Take in one layer's sums over a batch (`bridge.validation.rate_loop`), of so many neurons and images.

        What the parts contribute adds up to the error's size.
        """
        columns = dict(zip(COLUMNS, sums.T, strict=True))
        t = np.arange(1, len(sums) + 1)
        found = {
            "clipping": columns["clipping"],
            "quantisation": columns["quantisation"] / (t * levels),
            "unevenness": columns["unevenness"] / t,
        }
        found["inherited"] = columns["error"] / (t * levels) - sum(found.values())
        for name in PARTS:
            self.parts.setdefault(name, {})[layer] = found[name]
        self.isolated[layer] = columns["isolated"] / (t * levels)
        self.neurons[layer] = neurons

    def add(self, other: PartsTally) -> None:
        """Take in the sums of the images that come next."""
        if not self.neurons:
            self.neurons, self.parts, self.isolated = other.neurons, other.parts, other.isolated
            return
        self.neurons = {layer: count + other.neurons[layer] for layer, count in self.neurons.items()}
        self.parts = {p: {n: s + other.parts[p][n] for n, s in sums.items()} for p, sums in self.parts.items()}
        self.isolated = {layer: total + other.isolated[layer] for layer, total in self.isolated.items()}

    def result(self) -> RateError | None:
        """Means, None if nothing was noted."""
        if not self.neurons:
            return None
        return RateError(
            parts={part: self._means(self.parts[part]) for part in PARTS}, isolated=self._means(self.isolated)
        )

    def _means(self, sums: Sums) -> Layers:
        return {layer: (total / self.neurons[layer]).tolist() for layer, total in sums.items()}


def _listed(found: list[Divergence]) -> list[Divergence]:
    """The first `LISTED` of each layer, so that no layer that is wrong goes unnamed."""
    seen: Counter[str] = Counter()
    kept = []
    for divergence in found:
        seen[divergence.layer] += 1
        if seen[divergence.layer] <= LISTED:
            kept.append(divergence)
    return kept


def largest(outputs: NDArray[np.floating]) -> NDArray[np.integer]:
    """Index of the largest output of each step and image, ``[T, B]``, for ``[T, B, ...]``."""
    return np.asarray(outputs.reshape(*outputs.shape[:2], -1).argmax(axis=-1))


def _lists(values: Sums) -> Layers | None:
    return {name: array.tolist() for name, array in values.items()} or None
