"""The agreement as a plot: how the firing rates close in on the ANN's activations."""

from __future__ import annotations

from pathlib import Path

from bridge._util.files import replacing
from bridge.errors import BridgeError, InputError
from bridge.report.outcome import Outcome

MARKERS = "o+x1234"
SUFFIXES = (".png", ".svg", ".pdf")


def plot_rate_error(agreement: Outcome, path: str | Path) -> None:
    """Write the mean rate error ``|φ(t) − a/λ|`` against the time step, a line a layer, as PNG, SVG or PDF.

    Lines are the reference's; the marks on them are the backends' own, so a mark off its line is a disagreement. A
    backend that ran fewer images than the reference has another mean, and no marks.

    Raises:
        InputError: the agreement has no ANN to be held against, or `path` has another suffix.
        BridgeError: matplotlib is not installed.
    """
    if agreement.reference.rate_error is None:
        raise InputError("plot_rate_error: the network came from a file, so its ANN's activations are not known")
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: a plot ends in one of {', '.join(SUFFIXES)}")
    try:
        from matplotlib.figure import Figure  # a figure of its own: no pyplot, no global state, no display
    except ImportError as error:
        raise BridgeError('plots need matplotlib: pip install "matplotlib>=3.8"') from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = range(1, agreement.steps + 1)
    full = {name: each for name, each in agreement.backends.items() if each.images == agreement.reference.images}
    for number, (layer, errors) in enumerate(agreement.reference.rate_error.items()):
        axes.plot(steps, errors, color=f"C{number}", label=layer)
        for marker, backend in zip(MARKERS, full.values(), strict=False):
            own = backend.rate_error or {}
            axes.plot(steps, own[layer], marker, color=f"C{number}", markersize=7, fillstyle="none")
    for marker, name in zip(MARKERS, full, strict=False):
        axes.plot([], [], marker, color="grey", fillstyle="none", label=name)
    axes.set(xlabel="time step t", ylabel="mean |φ(t) − a/λ|", title="Firing rates close in on the ANN's activations")
    axes.set_xticks(list(steps) if agreement.steps <= 16 else [1, *range(8, agreement.steps + 1, 8)])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as file:
        figure.savefig(file, dpi=150, format=Path(path).suffix.lstrip(".") or None)
