"""Draws docs/exact.svg: the spikes of one small network under the plain, the staged and the grouped schedule.

    python docs/draw_exact.py

The network has three layers of four neurons, L = 4, and a join: the third layer reads the second and the first. All its
numbers are eighths, so that nothing rounds. The spikes are those of the reference simulator.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import bridge
from bridge.graph import WindowFire
from bridge.simulate.ann import activations

PICTURE = Path(__file__).resolve().parent / "exact.svg"
LEVELS = 4
IMAGE = (1, 4, 4)
WEIGHTS = {
    "one": ((5, 0, 7), (1, 0, 12), (-5, 8, -1), (-6, -2, 11)),
    "two": ((-2, 10, 11, 3), (-2, 3, 11, 0), (-1, 0, 8, 2), (9, 0, -4, 1)),
    "three": ((7, -5, 10, 9), (1, 11, 6, 6), (2, 3, 4, -5), (4, 1, -7, -7)),
    "last": ((-1, 0, 3, -3), (1, 7, 9, 4)),
}
BIASES = {"one": (0, 2, 2, -2), "two": (1, 1, -1, -1), "three": (2, -3, -2, -2), "last": (4, -3)}
"""In eighths, as `IMAGE` and `WEIGHTS`."""
TITLES = {"act1": "layer 1", "act2": "layer 2", "act3": "layer 3"}
READS = {"act1": (), "act2": ("act1",), "act3": ("act1", "act2")}
"""By spiking layer, the spiking layers that it reads."""

LEFT, ANN, STEP, MEMBER, COUNT, GAP = 92, 44, 30, 17, 40, 26
"""Widths: of the layers' names, the ANN's column, a step, a member of a group, the counts, and between two panels."""
TOP, ROW, BETWEEN = 62, 22, 16
"""Heights: above the first neuron, of a neuron, and between two layers."""
STYLE = """
  text { font: 13px sans-serif; fill: #1f2937; } .head { font-weight: 600; } .faint { fill: #6b7280; font-size: 12px; }
  .wrong { fill: #c2261f; font-weight: 600; } .page { fill: #ffffff; }
  .window { fill: #dbe4ff; } .waits { fill: #f1f2f5; } .spike { fill: #3b4cc0; } .silent { fill: #b9c3e6; }
  path { fill: none; stroke: #8a8fa3; stroke-width: 1.2; }
"""


class Joined(nn.Module):
    """The network of the picture."""

    one: nn.Linear
    two: nn.Linear
    three: nn.Linear
    last: nn.Linear
    act1: bridge.QCFS
    act2: bridge.QCFS
    act3: bridge.QCFS

    def __init__(self) -> None:
        super().__init__()
        for name, rows in WEIGHTS.items():
            layer = nn.Linear(len(rows[0]), len(rows))
            layer.weight.data = torch.tensor(rows) / 8
            layer.bias.data = torch.tensor(BIASES[name]) / 8
            self.add_module(name, layer)
        for name in TITLES:
            self.add_module(name, bridge.QCFS(LEVELS))

    def forward(self, x: Tensor) -> Tensor:
        first = self.act1(self.one(x))
        output: Tensor = self.last(self.act3(self.three(self.act2(self.two(first))) + first))
        return output


class Panel:
    """One schedule: ``trains``, by layer bool ``[columns, neurons]``, and where its columns begin and end, from 0."""

    def __init__(self, schedule: str, x: Tensor) -> None:
        network = bridge.convert(Joined().eval(), x, schedule=schedule)
        record = network.run(x, LEVELS if network.latency is None else None)
        self.schedule, self.steps = schedule, record.steps
        self.grouped = network.graph.grouped
        self.step = MEMBER * LEVELS if self.grouped else STEP
        self.width = self.step * self.steps
        self.trains: dict[str, NDArray[np.bool_]] = {}
        self.windows: dict[str, tuple[int, int]] = {}
        for name in network.layers:
            layer, spikes = network.graph[name], record.spikes(name)[:, 0]
            self.trains[name] = spikes[0] if self.grouped else spikes
            self.windows[name] = (0, self.steps)
            if isinstance(layer, WindowFire):
                self.windows[name] = (layer.opens, layer.opens + layer.steps)
        self.begins = {name: min((self.windows[one][0] for one in READS[name]), default=0) for name in network.layers}
        """By layer, the first step at which it receives spikes, or the image."""


def ann_counts(x: Tensor) -> dict[str, NDArray[np.int64]]:
    """By layer, the ANN's activations in spikes, L · a / λ."""
    ann = bridge.convert(Joined().eval(), x).ann
    assert ann is not None
    shares = activations(ann, x)[0]
    return {name: np.rint(LEVELS * values[0].numpy()).astype(np.int64) for name, values in shares.items()}


def _rows(counts: dict[str, NDArray[np.int64]]) -> dict[str, float]:
    """By layer, the height at which it begins."""
    heights, y = {}, float(TOP)
    for name, values in counts.items():
        heights[name] = y
        y += ROW * len(values) + BETWEEN
    return heights


def _text(x: float, y: float, text: object, kind: str = "", anchor: str = "middle") -> str:
    said = f' class="{kind}"' if kind else ""
    return f'<text{said} text-anchor="{anchor}" x="{x:g}" y="{y:g}">{text}</text>'


def _box(kind: str, x: float, y: float, width: float, height: float, rounded: float = 0) -> str:
    corner = f' rx="{rounded:g}"' if rounded else ""
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"{corner}/>'


def _panel(panel: Panel, x: float, rows: dict[str, float], counts: dict[str, NDArray[np.int64]]) -> Iterator[str]:
    """The parts of one panel whose left edge is at `x`."""
    yield _text(x + panel.width / 2, 20, panel.schedule, "head")
    for step in range(panel.steps):
        yield _text(x + panel.step * (step + 0.5), 44, step + 1, "faint")
    for name, y in rows.items():
        wanted = counts[name]
        height = ROW * len(wanted)
        opens, shuts = panel.windows[name]
        waits = panel.begins[name]
        if waits < opens:
            width = panel.step * (opens - waits)
            yield _box("waits", x + panel.step * waits, y, width, height)
            yield _text(x + panel.step * waits + width / 2, y + height / 2 + 4, "integrates", "faint")
        yield _box("window", x + panel.step * opens, y, panel.step * (shuts - opens), height)
        train = panel.trains[name]
        column = MEMBER if panel.grouped else STEP
        for number, fired in enumerate(train):
            for neuron, spike in enumerate(fired):
                if spike or panel.grouped:
                    at = x + column * (number + 0.5) - 3
                    yield _box("spike" if spike else "silent", at, y + ROW * neuron + 4, 6, ROW - 8, 2)
        for neuron, (count, right) in enumerate(zip(train.sum(axis=0), wanted, strict=True)):
            kind = "" if count == right else "wrong"
            yield _text(x + panel.width + COUNT / 2, y + ROW * (neuron + 0.5) + 5, int(count), kind)
    yield _text(x + panel.width + COUNT / 2, 44, "spikes", "faint")


def _wiring(rows: dict[str, float], height: float) -> Iterator[str]:
    """Arrows from each layer to those that read it, in front of the names."""
    for name, sources in READS.items():
        for source in sources:
            start, end = rows[source] + height / 2, rows[name] + height / 2
            line = f"M56 {start + 12:g} V{end - 16:g}"
            if [*rows].index(name) - [*rows].index(source) > 1:
                line = f"M28 {start - 4:g} C2 {start + 30:g} 2 {end - 30:g} 27 {end - 4:g}"
            yield f'<path marker-end="url(#tip)" d="{line}"/>'


def picture() -> str:
    """The picture, SVG."""
    x = torch.tensor([IMAGE]) / 8
    counts = ann_counts(x)
    rows = _rows(counts)
    panels = [Panel(schedule, x) for schedule in ("plain", "staged", "grouped")]
    height = ROW * len(counts["act1"])
    body = [_text(LEFT + ANN / 2, 20, "ANN", "head"), _text(LEFT + ANN / 2, 44, "L·a/λ", "faint")]
    body.append(_text(LEFT - 8, 44, "time step", "faint", "end"))
    body += _wiring(rows, height)
    for name, y in rows.items():
        body.append(_text(56, y + height / 2 + 4, TITLES[name]))
        body += [_text(LEFT + ANN / 2, y + ROW * (i + 0.5) + 5, int(count)) for i, count in enumerate(counts[name])]
    bottom = max(rows.values()) + height
    at = float(LEFT + ANN + GAP)
    for panel in panels:
        body += _panel(panel, at, rows, counts)
        steps = f"{panel.steps} step{'s' if panel.steps > 1 else ''}"
        body.append(_text(at + panel.width / 2, bottom + 24, f"output after {steps}", "faint"))
        at += panel.width + COUNT + GAP
    width, tall = at - GAP + 8, bottom + 40
    drawn = "\n  ".join(body)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {tall:g}" role="img">
  <title>One image in a network of three layers with a join, under three schedules</title>
  <style>{STYLE}  </style>
  <defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
    <path d="M0 0 8 4 0 8z" style="fill:#8a8fa3;stroke:none"/></marker></defs>
  {_box("page", 0, 0, width, tall, 6)}
  {drawn}
</svg>
"""


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
