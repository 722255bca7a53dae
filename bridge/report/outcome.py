"""The outcome of a validation, as plain data: what is in ``agreement.json`` and in the reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bridge._util.files import replacing
from bridge._util.shown import Shown, Words

FORMAT = 3
"""Of ``agreement.json``; it changes when a reader of an older one would misunderstand it."""

PARTS = ("inherited", "clipping", "quantisation", "unevenness")
"""The parts of the rate error (`bridge.validation.rate_error`), in the order in which they are stacked."""

COSTS = {
    "latency": "latency, steps",
    "interval": "steps between images",
    "interval_of_one_potential": "… with one potential a neuron",
    "images_in_flight": "images in flight",
    "delayed_steps": "delays, neurons × steps",
    "neurons": "neurons",
    "pool_units": "units of maximum pools",
    "synapses": "synapses",
    "spikes": "spikes an image",
    "synaptic_operations": "synaptic operations an image",
}
"""What a network costs (`bridge.SpikingNetwork.cost`), in words, in the order in which it is shown."""

Layers = dict[str, list[float]]
"""By layer: a number for each of the time steps 1..T."""


@dataclass(frozen=True)
class Divergence:
    """A spike that is wrong by itself: given what the neuron heard, and fired before, the reference decides otherwise.

    Membranes are the potentials u after integration, before reset, which fire at ``level``; ``exact_membrane`` is the
    same in float64. ``rounding`` is how far float32 can err here (`bridge.validation.divergence.SLACK` times the
    reference's own largest error in this layer). It is a *tie* if the backend's potential lies that close to the exact
    one and fired as it says: then the two potentials lie on different sides of the level for no other reason than
    rounding.
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


@dataclass(frozen=True, eq=False, repr=False)
class BackendAgreement(Shown):
    """One backend's agreement over ``images`` images. Lists run over the time steps 1..T.

    Against the reference: ``differing``, spikes that differ, by layer; ``top1_reference``, share of images whose
    largest output is the reference's; ``first``, the first step and the first layer in it where a spike differs, with
    the divergence that began it where there is one; ``divergences``, the spikes that are wrong by themselves (of
    each layer at most `bridge.validation.accumulators.LISTED`), ``ties`` of them all, and ``unexplained``, those that
    are not ties;
    ``readout_error``, the largest difference between the readout and what the reference makes of the same spikes, and
    ``readouts_wrong``, the readouts (images × steps) that differ by more than rounding.

    Against the ANN, None if it is not known, over a layer's neurons and all images: ``rate_error`` and
    ``rate_error_max``, mean and largest ``|φ(t) − a/λ|``; ``cosine`` of all φ(t) and all a/λ; ``within``, the share of
    neurons with ``|φ(t) − a/λ| ≤ 1/t``; ``top1_ann``. ``accuracy``: against the labels, None without.
    """

    images: int
    versions: Mapping[str, str]
    differing: dict[str, list[int]]
    rate_error: Layers | None
    rate_error_max: Layers | None
    cosine: Layers | None
    within: Layers | None
    top1_reference: list[float]
    top1_ann: list[float] | None
    accuracy: list[float] | None
    divergences: list[Divergence] = field(default_factory=list)
    ties: int = 0
    unexplained: int = 0
    readout_error: float = 0.0
    readouts_wrong: int = 0

    def _shown_facts(self) -> dict[str, object]:
        """Whether it agreed, and how many spikes did not."""
        facts = {"agreed": self.agreed, "images": self.images, "differing": self.total_differing, "ties": self.ties}
        return {**facts, "unexplained": self.unexplained, "readouts_wrong": self.readouts_wrong}

    @property
    def total_differing(self) -> int:
        return sum(sum(row) for row in self.differing.values())

    @property
    def first(self) -> tuple[int, str] | None:
        """The first step at which a spike differs from the reference, and the first layer that does in it."""
        found = [
            (step, place, layer)
            for place, (layer, counts) in enumerate(self.differing.items())
            for step, count in enumerate(counts, start=1)
            if count
        ]
        step, _, layer = min(found, default=(0, 0, ""))
        return (step, layer) if found else None

    @property
    def agreed(self) -> bool:
        """Every spike is the reference's, but for those that follow from a tie, and so is every readout."""
        return self.images > 0 and self.unexplained == 0 and self.readouts_wrong == 0


@dataclass(frozen=True, eq=False, repr=False)
class RateError(Shown):
    """Where the reference's rate error comes from, by layer and time step (`bridge.validation.rate_error`).

    ``parts``: by name of `PARTS`, what each contributes to the mean ``|φ(t) − a/λ|``; they add up to it. ``isolated``:
    that mean for the layer by itself, driven by the ANN's own activations: what it causes. The rest it inherits.
    """

    parts: dict[str, Layers]
    isolated: Layers


@dataclass(frozen=True, eq=False, repr=False)
class EqualsANN(Shown):
    """Whether a staged network's spike counts are its ANN's activations, by layer, over all images and neurons.

    ``compared``: how many; ``differing``: those that are not equal; ``unexplained``: those of them that neither lie
    within rounding of an edge between two levels (a tie) nor are what the ANN's layer makes of the counts before it.
    ``windows``: the first and the last step at which each layer may fire, counted from 1. ``outputs_wrong``: images
    whose output is, by more than rounding, not what the ANN makes of the counts.
    """

    compared: dict[str, int]
    differing: dict[str, int]
    unexplained: dict[str, int]
    windows: dict[str, list[int]]
    outputs_wrong: int

    @property
    def equal(self) -> bool:
        """Every activation and every output is the ANN's, but for ties and rounding."""
        return not any(self.unexplained.values()) and not self.outputs_wrong


@dataclass(frozen=True, eq=False, repr=False)
class Outcome(Shown):
    """What `bridge.SpikingNetwork.validate` found: the data of a `bridge.Agreement`.

    ``neurons``: by spiking layer, in order. ``reference`` is the reference simulator held against the ANN;
    ``backends`` are held against the reference and the ANN, and ``between`` against each other: by pair ``"a | b"``,
    by layer, spikes that differ at each step, over the images that both ran. ``rate_error`` is None without an ANN,
    where it was not asked for, and for a staged network, which has ``equals_ann`` instead: whether its counts are the
    ANN's activations. ``simulator`` is what decided: the "reference" simulator, or in integers the "engine", of which
    every spike on the first ``checked_images`` images was found to be the reference's, in this very run. ``costs``: of
    a staged or grouped network, its price by the name of its schedule, and the plain one's beside it
    (`bridge.SpikingNetwork.cost`); else empty. ``samples`` holds some neurons and images for the report's pictures
    (`bridge.validation.samples`), ``environment`` what it was run on. Example: docs/agreement_schema.md.
    """

    steps: int
    neurons: dict[str, int]
    ann_accuracy: float | None
    reference: BackendAgreement
    backends: dict[str, BackendAgreement]
    between: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    rate_error: RateError | None = None
    simulator: str = "reference"
    checked_images: int = 0
    equals_ann: EqualsANN | None = None
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def _shown_facts(self) -> dict[str, object]:
        """The verdict, and of each backend how many of its spikes differ."""
        found = {name: backend.total_differing for name, backend in self.backends.items()}
        wrong = ", ".join(f"{name} {count:,}" for name, count in found.items()) or "no backend"
        images = max([self.reference.images, *(backend.images for backend in self.backends.values())])
        return {"agreed": self.agreed, "steps": self.steps, "images": images, "differing": Words(wrong)}

    @property
    def agreed(self) -> bool:
        """Whether there is a backend and every one agreed."""
        return bool(self.backends) and all(backend.agreed for backend in self.backends.values())

    @property
    def schedule(self) -> str | None:
        """Staged or grouped, in lower case; None of a plain network."""
        return next((name for name in self.costs if name != "plain"), None)

    @property
    def latency(self) -> int | None:
        """Steps after which a staged or grouped network's output is complete; None of a plain network."""
        return None if self.schedule is None else int(self.costs[self.schedule]["latency"])

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, as `save` writes them."""
        backends = {
            name: {
                **asdict(backend),
                "total_differing": backend.total_differing,
                "first": backend.first,
                "agreed": backend.agreed,
            }
            for name, backend in {"reference": self.reference, **self.backends}.items()
        }
        return {
            "format": FORMAT,
            "agreed": self.agreed,
            "steps": self.steps,
            "neurons": self.neurons,
            "ann_accuracy": self.ann_accuracy,
            "reference": backends.pop("reference"),
            "backends": backends,
            "between": self.between,
            "rate_error": None if self.rate_error is None else asdict(self.rate_error),
            "simulator": self.simulator,
            "checked_images": self.checked_images,
            "equals_ann": None if self.equals_ann is None else asdict(self.equals_ann),
            "costs": self.costs,
            "samples": self.samples,
            "environment": self.environment,
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        with replacing(path) as file:
            file.write((json.dumps(self.to_dict(), indent=1) + "\n").encode())

    def _expect_steps(self) -> None:
        """Raise `ValueError` unless every list that runs over the time steps does."""
        for name, run in {"reference": self.reference, **self.backends}.items():
            rows = {f"{name}.differing.{layer}": row for layer, row in run.differing.items()}
            for kind in ("rate_error", "rate_error_max", "cosine", "within"):
                rows |= {f"{name}.{kind}.{layer}": row for layer, row in (getattr(run, kind) or {}).items()}
            for kind in ("top1_reference", "top1_ann", "accuracy"):
                rows |= {} if getattr(run, kind) is None else {f"{name}.{kind}": getattr(run, kind)}
            for place, row in rows.items():
                if len(row) != self.steps:
                    raise ValueError(f"{place}: expected a number for each of {self.steps} steps, got {len(row)}")
            if set(run.differing) != set(self.neurons):
                raise ValueError(f"{name}.differing: expected the layers {[*self.neurons]}, got {[*run.differing]}")
