"""Whether a staged network's spike counts are its ANN's activations, neuron by neuron, and which differ by rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from bridge.graph import ClipFloorShift, LayerGraph, SpikeCount, WindowFire
from bridge.records import SpikeRecord
from bridge.report.outcome import EqualsANN
from bridge.simulate.ann import activations
from bridge.simulate.ops import channels, tensor
from bridge.validation.divergence import SLACK
from bridge.validation.rates import counts


@dataclass(eq=False)
class EqualityTally:
    """Sums over batches: by layer, activations compared, those that differ, and those of them that nothing explains."""

    compared: dict[str, int] = field(default_factory=dict)
    differing: dict[str, int] = field(default_factory=dict)
    unexplained: dict[str, int] = field(default_factory=dict)
    windows: dict[str, list[int]] = field(default_factory=dict)
    outputs_wrong: int = 0

    @staticmethod
    def of(
        graph: LayerGraph, ann: LayerGraph, x: Tensor, record: SpikeRecord, values: Mapping[str, Tensor]
    ) -> EqualityTally:
        """The tally of one batch `x`, of which `record` is the reference's run.

        `values` are the ANN's activations of `x` (`bridge.simulate.ann.activations`).

        Every layer of the ANN is computed anew, in float64, from what the recorded counts of the layers before it
        stand for. An activation that differs from the ANN's is explained if this gives the recorded count, so that the
        layers before it are the reason; or if its input lies within rounding of the edge between two levels, a tie.
        Nothing else is. An output is judged in the same way. In integers there are no ties.
        """
        tally = EqualityTally()
        fired = {name: counts(graph, record, name) for name in graph.spiking}
        levels = {
            layer.name: layer.levels if isinstance(layer, ClipFloorShift) else layer.steps
            for layer in ann
            if isinstance(layer, ClipFloorShift | SpikeCount)
        }
        given = {name: tensor(fired[name]).double() / levels[name] for name in fired}
        expected, drives, output = activations(ann, x.double(), given)
        slack = 0.0 if graph.integer else SLACK
        _, rounded, output32 = activations(ann, x.float(), given) if slack else (expected, drives, output)
        for name, z in drives.items():
            layer, node = ann[name], graph[name]
            wrong = fired[name] != np.rint(values[name].numpy() * levels[name])
            follows = fired[name] == np.rint(expected[name].numpy() * levels[name])
            unexplained = wrong & ~follows
            if isinstance(layer, ClipFloorShift) and slack:
                unit = levels[name] / channels(layer.threshold, z)
                level = (z * unit + 0.5).numpy()
                rounding = slack * _error((rounded[name] - z) * unit, z * unit)
                unexplained &= np.abs(level - np.rint(level)) > rounding
            first = node.opens + 1 if isinstance(node, WindowFire) else 1
            tally.windows[name] = [first, first + (node.steps - 1 if isinstance(node, WindowFire) else 0)]
            tally.compared[name] = wrong.size
            tally.differing[name] = int(wrong.sum())
            tally.unexplained[name] = int(unexplained.sum())
        off = np.abs(record.outputs()[-1] - output.numpy()) > slack * _error(output32 - output, output)
        tally.outputs_wrong = int(off.reshape(len(off), -1).any(1).sum())
        return tally

    def add(self, other: EqualityTally) -> None:
        """Take in the tally of the images that come next."""
        for mine, theirs in (
            (self.compared, other.compared),
            (self.differing, other.differing),
            (self.unexplained, other.unexplained),
        ):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count
        self.outputs_wrong += other.outputs_wrong

    def result(self) -> EqualsANN:
        """What it all comes to."""
        return EqualsANN(self.compared, self.differing, self.unexplained, self.windows, self.outputs_wrong)


def _error(error: Tensor, value: Tensor) -> float:
    """How far float32 is off: its largest `error` here, and at least half a bit of `value`."""
    return max(float(error.abs().max()), float(value.abs().max()) * 2.0**-24)
