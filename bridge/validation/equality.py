"""Whether a staged network's spike counts are its ANN's activations, neuron by neuron, and which differ by rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from bridge.agreement import EqualsANN
from bridge.graph import ClipFloorShift, LayerGraph, WindowFire
from bridge.records import SpikeRecord
from bridge.simulate.ann import activations
from bridge.simulate.ops import channels, tensor
from bridge.validation.divergence import SLACK


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
        Nothing else is. An output is judged in the same way.
        """
        tally = EqualityTally()
        counts = {name: record.spikes(name).sum(0) for name in graph.spiking}
        levels = {layer.name: layer.levels for layer in ann if isinstance(layer, ClipFloorShift)}
        given = {name: tensor(counts[name]).double() / levels[name] for name in counts}
        _, rounded, output32 = activations(ann, x.float(), given)
        expected, drives, output = activations(ann, x.double(), given)
        for name, z in drives.items():
            layer, node = ann[name], graph[name]
            assert isinstance(layer, ClipFloorShift)
            assert isinstance(node, WindowFire)
            wrong = counts[name] != np.rint(values[name].numpy() * layer.levels)
            unit = layer.levels / channels(layer.threshold, z)
            level = (z * unit + 0.5).numpy()
            tie = np.abs(level - np.rint(level)) <= _rounding((rounded[name] - z) * unit, z * unit)
            follows = counts[name] == np.rint(expected[name].numpy() * layer.levels)
            tally.windows[name] = [node.opens + 1, node.opens + node.steps]
            tally.compared[name] = wrong.size
            tally.differing[name] = int(wrong.sum())
            tally.unexplained[name] = int((wrong & ~tie & ~follows).sum())
        off = np.abs(record.outputs()[-1] - output.numpy()) > _rounding(output32 - output, output)
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


def _rounding(error: Tensor, value: Tensor) -> float:
    """How far float32 may be off: `SLACK` times its largest `error` here, and at least half a bit of `value`."""
    return SLACK * max(float(error.abs().max()), float(value.abs().max()) * 2.0**-24)
