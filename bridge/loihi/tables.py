"""The report on Loihi as a table in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bridge.loihi.chips import CHIPS, ENERGY_NOTE
from bridge.loihi.costs import LoihiReport


def table(report: LoihiReport) -> Group:
    """What `rich.print` shows of `report`: what each layer does, the cores it needs, and the network as a whole.

    Example: docs/loihi_report.md.
    """
    return Group(_layers(report), _cores(report), _network(report), *(map(Text, (ENERGY_NOTE, *report.notes))))


def _layers(report: LoihiReport) -> Table:
    images = f"{report.images} image" + "s" * (report.images != 1)
    measured = (
        f"an inference of T = {report.steps} time steps, mean of {images}" if report.images else "no run recorded"
    )
    result = _table(f"Loihi: {measured}", "layer")
    for heading in ("neurons", "synapses", "weights", "spikes", "synaptic ops"):
        result.add_column(heading, justify="right")
    for layer in report.layers:
        counts = (f"{count:,}" for count in (layer.neurons, layer.synapses, layer.weights))
        result.add_row(
            layer.name, *counts, _mean(layer.spikes if layer.fires else None), _mean(layer.synaptic_operations)
        )
    result.add_section()
    weights = sum(layer.weights for layer in report.layers)
    counts = (f"{count:,}" for count in (report.neurons, report.synapses, weights))
    result.add_row("all", *counts, _mean(report.spikes), _mean(report.synaptic_operations))
    return result


def _cores(report: LoihiReport) -> Table:
    result = _table("Neurocores needed at least, and the limit met first", "layer")
    for chip in CHIPS:
        result.add_column(f"{chip.name}, shared")
        result.add_column("unshared", min_width=14)
    for layer in report.layers:
        costs = [layer.chips[chip.name] for chip in CHIPS]
        result.add_row(layer.name, *(f"{c.cores} {c.limit}" for cost in costs for c in (cost.shared, cost.unshared)))
    result.add_section()
    result.add_row("all", *(f"{count}" for chip in CHIPS for count in report.cores(chip.name)))
    return result


def _network(report: LoihiReport) -> Table:
    result = _table("The network as a whole, an inference", "what", "value")
    energy = report.energy
    state = sum(layer.state_bytes for layer in report.layers)
    rows = {
        "synaptic operations (accumulates)": _mean(report.synaptic_operations),
        "dense: every connection, every step": f"{report.dense_operations:,}",
        "MACs of the input, once on the host": f"{report.input_macs:,}",
        "MACs of the input, if at every step": f"{report.steps * report.input_macs:,}",
        "MACs of the ANN": f"{report.ann_macs:,}",
        "activation sparsity": "—" if report.activation_sparsity is None else f"{report.activation_sparsity:.1%}",
        "connection sparsity": f"{report.connection_sparsity:.1%}",
        "state of the neurons": f"{state:,} bytes",
        "footprint: weights once, and state": f"{report.footprint_bytes:,} bytes",
        "energy, by Loihi 1's figures": f"{_joules(energy.low)} to {_joules(energy.high)} (see below)"
        if energy
        else "—",
    }
    for chip in CHIPS:
        shared, unshared = (-(-count // int(chip.cores.value)) for count in report.cores(chip.name))
        rows[f"{chip.name} chips, weights shared | unshared"] = f"{shared} | {unshared}"
    for what, value in rows.items():
        result.add_row(what, value)
    return result


def _mean(value: float | None) -> str:
    return "—" if value is None else f"{value:,.1f}"


def _joules(energy: float) -> str:
    """Two digits, the most that an estimate bears, in the unit that fits."""
    unit, name = next(((u, n) for u, n in ((1, "J"), (1e-3, "mJ"), (1e-6, "µJ")) if energy >= u), (1e-9, "nJ"))
    return f"{float(f'{energy / unit:.2g}'):g} {name}"


def _table(title: str, *headings: str) -> Table:
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in headings:
        result.add_column(heading)
    return result
