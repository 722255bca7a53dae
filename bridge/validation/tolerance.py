"""How much a backend may differ, as a contract: what fails it, and the least tolerance that would pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from bridge._util.checks import is_real
from bridge.agreement import Agreement
from bridge.errors import InputError, ValidationError
from bridge.report.outcome import BackendAgreement, Divergence

OUTPUT = "*"
"""The pattern that also stands for the network's output, and so may limit ``readouts`` and ``top1``."""


@dataclass(frozen=True)
class Tolerance:
    """Limits, each a number from 0 to 1. ``Tolerance()`` passes exactly the backends that `agreed` (docs/agreement.md).

    * ``spikes``: the largest share of a layer's spikes (neurons × images) that may differ from the reference's at any
      one time step. If every spike that differs follows from a float tie (``unexplained == 0``), none counts.
    * ``readouts``: the largest share of readouts (images × steps) that may be wrong by more than rounding.
    * ``rate``: the largest mean ``|φ(T) − a/λ|`` of a layer, against the ANN; None: any.
    * ``top1``: the least share of images with the ANN's largest output at T, the reference's where the ANN is not
      known; None: any.

    Raises `InputError` if a limit is not such a number.
    """

    spikes: float = 0.0
    readouts: float = 0.0
    rate: float | None = None
    top1: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None and name in ("rate", "top1"):
                continue
            if not is_real(value) or not 0 <= value <= 1:
                raise InputError(f"Tolerance: {name}: expected a share from 0 to 1, got {value!r}")


EXACT = Tolerance()
Tolerances = Tolerance | Mapping[str, Tolerance]
"""One for all layers and the output; or by pattern of layer names (`fnmatch`), where the last that matches a layer
decides, wholly. ``"*"`` decides for the output too; without one, all that no pattern matches is held to
``Tolerance()``."""


@dataclass(frozen=True)
class Failure:
    """A limit that is not kept: ``what`` is its name in `Tolerance`, ``value`` what came instead.

    ``layer`` is None for the output, ``step`` is None for what is counted over all of them.
    """

    backend: str
    what: str
    layer: str | None
    step: int | None
    limit: float
    value: float

    def __str__(self) -> str:
        where = "" if self.layer is None else f" in layer {self.layer!r}"
        when = "" if self.step is None else f" at time step {self.step}"
        bound = "at least" if self.what == "top1" else "at most"
        return f"{self.backend}: {self.what}{where}{when} is {self.value:.6g}, expected {bound} {self.limit:.6g}"


@dataclass(frozen=True)
class Verdict:
    """The outcome of `check`.

    ``failures``: by backend; its spikes first, by time step, then by layer. ``least_passing_tolerance``: in the form
    of the tolerance that was given and with the same limits in use, the smallest ones (the largest top1) that pass.
    """

    failures: tuple[Failure, ...]
    least_passing_tolerance: Tolerances

    @property
    def passed(self) -> bool:
        return not self.failures


def check(agreement: Agreement, tolerance: Tolerances = EXACT) -> Verdict:
    """Hold every backend of `agreement` to `tolerance`.

    Raises:
        InputError: `tolerance` is neither a `Tolerance` nor a mapping of some.
        ValidationError: there is no backend, image, layer or time step to judge, a number is NaN, a limit asks for
            what was not measured, or a pattern decides nothing: it matches no layer, later ones take all that it
            matches, or it limits the output and is not ``"*"``.
    """
    patterns = _patterns(tolerance)
    _refuse_unusable(agreement)
    deciding = {layer: _deciding(patterns, layer) for layer in agreement.neurons}
    _refuse_idle(patterns, deciding)
    failures: list[Failure] = []
    least = {
        pattern: Tolerance(rate=None if given.rate is None else 0.0, top1=None if given.top1 is None else 1.0)
        for pattern, given in patterns.items()
    }
    for name, backend in agreement.backends.items():
        for what, layer, step, value in _measured(agreement, backend):
            pattern = OUTPUT if layer is None else deciding[layer]
            limit = getattr(patterns[pattern], what)
            if limit is None:
                continue
            if value is None:
                raise ValidationError(f"{pattern!r} limits {what}, but there is no ANN to hold {name} against")
            if value < limit if what == "top1" else value > limit:
                failures.append(Failure(name, what, layer, step, limit, value))
            worst = (min if what == "top1" else max)(getattr(least[pattern], what), value)
            least[pattern] = replace(least[pattern], **{what: worst})
    return Verdict(tuple(failures), least[OUTPUT] if isinstance(tolerance, Tolerance) else least)


def assert_agreement(agreement: Agreement, tolerance: Tolerances = EXACT) -> None:
    """Raise `AssertionError` unless `check` passes, and its errors.

    The message gives, by backend, the first limit that is not kept, how many more there are, the first spike that is
    wrong by itself with both potentials, and the least tolerance that would pass. Example: docs/agreement.md.
    """
    verdict = check(agreement, tolerance)
    if verdict.passed:
        return
    lines = []
    for name, backend in agreement.backends.items():
        failures = [failure for failure in verdict.failures if failure.backend == name]
        if not failures:
            continue
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        lines.append(f"{failures[0]}{more}")
        if failures[0].what == "spikes" and backend.divergences:
            lines.append(f"  {_told(_first(backend, [*agreement.neurons]))}")
    lines.append(f"The least tolerance that would pass: {verdict.least_passing_tolerance!r}")
    raise AssertionError("\n".join(lines))


def _patterns(tolerance: Tolerances) -> dict[str, Tolerance]:
    """The tolerances by pattern, `OUTPUT` among them."""
    if isinstance(tolerance, Tolerance):
        return {OUTPUT: tolerance}
    if not isinstance(tolerance, Mapping) or not all(
        isinstance(pattern, str) and isinstance(given, Tolerance) for pattern, given in tolerance.items()
    ):
        raise InputError(f"expected a Tolerance, or a mapping of layer names to some, got {tolerance!r}")
    return dict(tolerance) if OUTPUT in tolerance else {OUTPUT: EXACT, **tolerance}


def _deciding(patterns: Mapping[str, Tolerance], layer: str) -> str:
    """The last pattern that matches `layer`; a name always matches itself, whatever characters are in it."""
    return [pattern for pattern in patterns if pattern == layer or fnmatchcase(layer, pattern)][-1]


def _refuse_idle(patterns: Mapping[str, Tolerance], deciding: Mapping[str, str]) -> None:
    for pattern, given in patterns.items():
        if pattern == OUTPUT:
            continue
        if pattern not in deciding.values():
            raise ValidationError(
                f"pattern {pattern!r} decides nothing: it matches none of the layers {[*deciding]}, or only ones that "
                "later patterns match as well"
            )
        if given.readouts or given.top1 is not None:
            raise ValidationError(
                f'pattern {pattern!r}: readouts and top1 are of the network\'s output, which only "*" decides for'
            )


def _refuse_unusable(agreement: Agreement) -> None:
    """An agreement in which nothing, or not a number, was measured must not pass."""
    if not agreement.backends or not agreement.neurons or agreement.steps < 1:
        raise ValidationError(
            f"nothing to judge: {len(agreement.backends)} backends, {len(agreement.neurons)} spiking layers, "
            f"{agreement.steps} time steps"
        )
    for name, backend in agreement.backends.items():
        if backend.images < 1:
            raise ValidationError(f"{name}: nothing to judge: it ran no image")
        layered = {
            "differing": backend.differing,
            "rate_error": backend.rate_error,
            "rate_error_max": backend.rate_error_max,
            "cosine": backend.cosine,
            "within": backend.within,
        }
        for what, layers in layered.items():
            if layers is not None and set(layers) != set(agreement.neurons):
                raise ValidationError(f"{name}: {what} is of the layers {[*layers]}, not of {[*agreement.neurons]}")
        rows = {f"{what} of {layer!r}": row for what, found in layered.items() for layer, row in (found or {}).items()}
        overall = {"top1_ann": backend.top1_ann, "accuracy": backend.accuracy}
        rows |= {"top1_reference": backend.top1_reference, **{k: v for k, v in overall.items() if v is not None}}
        for what, row in rows.items():
            if len(row) != agreement.steps:
                raise ValidationError(f"{name}: {what} has {len(row)} time steps instead of {agreement.steps}")
            if not all(map(math.isfinite, row)):
                raise ValidationError(f"{name}: {what} holds NaN or infinity: {row}")
        if not math.isfinite(backend.readout_error):
            raise ValidationError(f"{name}: readout_error is {backend.readout_error}")
        if backend.unexplained and not backend.total_differing:
            raise ValidationError(f"{name}: {backend.unexplained} spikes are wrong by themselves, yet none differs")


def _measured(
    agreement: Agreement, backend: BackendAgreement
) -> Iterator[tuple[str, str | None, int | None, float | None]]:
    """What the limits are held against: which of them, layer, time step, and the value, None if it is not known."""
    steps = agreement.steps
    for step in range(1, steps + 1):
        for layer, neurons in agreement.neurons.items():
            wrong = backend.differing[layer][step - 1] if backend.unexplained else 0
            yield "spikes", layer, step, wrong / (neurons * backend.images)
    yield "readouts", None, None, backend.readouts_wrong / (steps * backend.images)
    for layer in agreement.neurons:
        yield "rate", layer, steps, None if backend.rate_error is None else backend.rate_error[layer][-1]
    yield "top1", None, steps, (backend.top1_reference if backend.top1_ann is None else backend.top1_ann)[-1]


def _first(backend: BackendAgreement, layers: list[str]) -> Divergence:
    """The first divergence that is no tie, by time step, then by layer; if only ties are listed, the first of them."""
    return min(backend.divergences, key=lambda found: (found.tie, found.step, layers.index(found.layer), found.image))


def _told(found: Divergence) -> str:
    potential = "unknown" if found.backend_membrane is None else f"{found.backend_membrane:.9g}"
    return (
        f"the first spike wrong by itself: time step {found.step}, layer {found.layer!r}, image {found.image}, "
        f"neuron {found.neuron}: u = {potential}, the reference's is {found.reference_membrane:.9g}, "
        f"and it fires at {found.level:.9g}"
    )
