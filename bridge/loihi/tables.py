"""The report on Loihi as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping

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


def side_by_side(reports: Mapping[str, LoihiReport]) -> Table:
    """What `rich.print` shows of several `reports`, by name: one network under its schedules, plain at several T.

    ```python
    rich.print(loihi.side_by_side({"plain, T = 8": loihi.report(plain, record), "staged": loihi.report(staged)}))
    ```
    """
    chips = [chip.name for chip in CHIPS]
    result = _table("On Loihi, an image", "network")
    for heading in (
        *("steps", "latency", "in flight", "neurons", "delays", *(f"cores, {chip}" for chip in chips)),
        *("spikes", "synaptic ops", "energy"),
    ):
        result.add_column(heading, justify="right")
    for name, report in reports.items():
        course, energy = report.pipeline, report.energy
        result.add_row(
            name,
            *(_known(count) for count in (course.interval, course.latency, course.images_in_flight)),
            *(f"{report.neurons:,}", f"{course.delayed_steps:,}"),
            *(" | ".join(map(str, report.cores(chip))) for chip in chips),
            *(_mean(report.spikes), _mean(report.synaptic_operations)),
            f"{_joules(energy.low)} to {_joules(energy.high)}" if energy else "—",
        )
    result.caption = (
        "Steps from one image to the next; latency in steps, one a connection included; delays in neurons × steps; "
        "cores with weights shared | unshared; energy by Loihi 1's figures, an estimate."
    )
    result.caption_justify = "left"
    return result


def _layers(report: LoihiReport) -> Table:
    images = f"{report.images} image" + "s" * (report.images != 1)
    measured = (
        f"{report.schedule}, an inference of T = {report.steps} time steps, mean of {images}"
        if report.images
        else f"{report.schedule}, no run recorded"
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
    course = report.pipeline
    rows = {
        "steps from one image to the next": _known(course.interval),
        "latency in steps, one a connection included": _known(course.latency),
        "images in flight": _known(course.images_in_flight),
        "delays: neurons × steps": f"{course.delayed_steps:,}",
        "synaptic operations (accumulates)": _mean(report.synaptic_operations),
        "dense: every connection, every step": f"{report.dense_operations:,}",
        "MACs of the input, once on the host": f"{report.input_macs:,}",
        "MACs of the input, if at every step": f"{report.input_macs_every_step:,}",
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


def _known(count: int) -> str:
    return f"{count:,}" if count else "—"


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
