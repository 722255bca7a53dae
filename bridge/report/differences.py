"""What differs between two recorded runs, as a table."""

from __future__ import annotations

from rich import box
from rich.table import Table


def table(counts: dict[str, list[int]], readout: float) -> Table:
    """What ``qcfs-bridge compare`` shows: by layer, spikes that differ and at which steps; and the readouts."""
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    result.add_column("layer")
    result.add_column("spikes that differ", justify="right")
    result.add_column("at steps (spikes)")
    for layer, found in counts.items():
        steps = " ".join(f"{t} ({count})" for t, count in enumerate(found, start=1) if count)
        result.add_row(layer, f"{sum(found):,}", steps)
    result.add_section()
    result.add_row("readout", "equal" if readout == 0 else f"differs by up to {readout:.3g}", "")
    return result
