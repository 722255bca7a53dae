"""The agreement as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.jupyter import JupyterMixin
from rich.table import Table

from bridge.report.outcome import COSTS, BackendAgreement, EqualsANN, Outcome

COLUMNS = 8
"""How many time steps a table shows; with more steps, evenly spaced ones, the first and the last among them."""
LISTED = 20
WIDTH = 120
"""Letters of a line, in plain text."""


class Tables(Group, JupyterMixin):
    """Tables below each other, in a terminal (``rich.print``, or ``print`` in plain text) and in a notebook."""

    def __str__(self) -> str:
        console = Console(width=WIDTH, no_color=True, highlight=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def table(agreement: Outcome) -> Tables:
    """What `rich.print` shows of `agreement`: the verdicts, then top-1 and rates by time step, then any divergence.

    Example: docs/agreement.md.
    """
    parts = [_verdicts(agreement), _top1(agreement), _layers(agreement)]
    if agreement.equals_ann is not None:
        parts.insert(1, _equality(agreement.equals_ann))
    if agreement.costs:
        parts.append(costs(agreement.costs))
    if any(backend.divergences for backend in agreement.backends.values()):
        parts.append(_divergences(agreement))
    return Tables(*parts)


def _verdicts(agreement: Outcome) -> Table:
    latency = "" if agreement.schedule is None else f", {agreement.schedule}: latency {agreement.latency}"
    result = _table(f"Agreement over T = {agreement.steps} time steps{latency}", "backend", "version")
    for heading in ("images", "spikes compared", "differing"):
        result.add_column(heading, justify="right", min_width=len(heading) + 1)
    result.add_column(" verdict")
    for name, backend in agreement.backends.items():
        compared = backend.images * agreement.steps * sum(agreement.neurons.values())
        counts = (f"{backend.images}", f"{compared:,}", f"{backend.total_differing}")
        version = next(iter(backend.versions.values()), "")  # the framework's own comes first
        result.add_row(name, version, *counts, _verdict(backend))
    return result


def _verdict(backend: BackendAgreement) -> str:
    if backend.readouts_wrong:
        return f" [red]{backend.readouts_wrong} readout(s) wrong, by up to {backend.readout_error:.1e}"
    if backend.images and backend.total_differing == 0:
        return " [green]equal"
    if backend.agreed:
        return f" [yellow]equal but for {backend.ties} float tie(s)"
    return f" [red]{backend.unexplained} spike(s) wrong by themselves"


def _equality(equality: EqualsANN) -> Table:
    verdict = "equal to its ANN" if equality.equal else "not equal to its ANN"
    if equality.outputs_wrong:
        verdict += f", {equality.outputs_wrong} output(s) wrong"
    result = _table(f"Spike counts against the ANN's activations: {verdict}", "layer")
    for heading in ("fires at steps", "activations", "differing", "not by rounding"):
        result.add_column(heading, justify="right", min_width=len(heading) + 1)
    for layer, compared in equality.compared.items():
        wrong = equality.unexplained[layer]
        shown = f"[red]{wrong}" if wrong else "[green]0"
        first, last = equality.windows[layer]
        result.add_row(layer, f"{first}–{last}", f"{compared:,}", f"{equality.differing[layer]}", shown)
    return result


def costs(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """The prices `found` (`bridge.SpikingNetwork.cost`, as `to_dict` gives them), a schedule a column."""
    result = _table("What it costs", "")
    for schedule in found:
        result.add_column(schedule, justify="right", min_width=len(schedule) + 1)
    for key, what in COSTS.items():
        values = [one[key] for one in found.values()]
        result.add_row(what, *("–" if value is None else f"{value:,.0f}" for value in values))
    return result


def _top1(agreement: Outcome) -> Table:
    ann = "" if agreement.ann_accuracy is None else f" (the ANN's own accuracy is {agreement.ann_accuracy:.2%})"
    result = _table(f"Largest output, % of images{ann}", "backend", "equal to")
    shown = _steps(result, agreement)
    for name, backend in _everyone(agreement).items():
        label = name
        rows = {"ANN": backend.top1_ann, "reference": backend.top1_reference, "label": backend.accuracy}
        for truth, values in rows.items():
            if values is not None and not (name == "reference" and values is backend.top1_reference):
                result.add_row(label, truth, *(f"{100 * values[step - 1]:.1f}" for step in shown))
                label = ""
    return result


def _layers(agreement: Outcome) -> Table:
    result = _table("Spikes differing from the reference; mean |φ(t) − a/λ| from the ANN", "layer", "backend", "differ")
    shown = _steps(result, agreement)
    for layer in agreement.neurons:
        label = layer
        for name, backend in _everyone(agreement).items():
            errors = ["—"] * len(shown)
            if backend.rate_error is not None:
                errors = [f"{backend.rate_error[layer][step - 1]:.3f}" for step in shown]
            result.add_row(label, name, "" if name == "reference" else _counts(backend.differing[layer]), *errors)
            label = ""
    return result


def _counts(counts: list[int]) -> str:
    """How many spikes differ, and at which steps: ``3: t2+1 t5+2``."""
    total = sum(counts)
    return f"{total}" + "".join(f" t{t}+{count}" for t, count in enumerate(counts, 1) if count)


def _divergences(agreement: Outcome) -> Table:
    title = "Spikes that differ although the neuron heard the same"
    result = _table(title, "backend", "layer", "step", "image", "neuron")
    for heading in ("u reference", "u backend", "u exact", "fires at", "rounding", "tie"):
        result.add_column(heading, justify="right")
    for name, backend in agreement.backends.items():
        for d in backend.divergences[:LISTED]:
            where = (name, d.layer, f"{d.step}", f"{d.image}", f"{d.neuron}")
            potentials = (d.reference_membrane, d.backend_membrane, d.exact_membrane, d.level)
            values = ("—" if value is None else f"{value:.9g}" for value in potentials)
            result.add_row(*where, *values, f"{d.rounding:.1e}", "yes" if d.tie else "[red]no")
        more = backend.ties + backend.unexplained - min(LISTED, len(backend.divergences))
        if more > 0:
            result.add_row(name, f"and {more} more")
    return result


def _table(title: str, *headings: str) -> Table:
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for heading in headings:
        result.add_column(f"{heading} ", no_wrap=heading != "neuron")
    return result


def _steps(result: Table, agreement: Outcome) -> list[int]:
    """Add a column for each time step shown, and return these steps."""
    count = min(COLUMNS, agreement.steps)
    shown = sorted({1 + round(i * (agreement.steps - 1) / max(1, count - 1)) for i in range(count)})
    for step in shown:
        result.add_column(f"t={step}", justify="right", min_width=5)
    return shown


def _everyone(agreement: Outcome) -> dict[str, BackendAgreement]:
    return {"reference": agreement.reference, **agreement.backends}
