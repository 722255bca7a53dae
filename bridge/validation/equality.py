"""Whether a staged network's spike counts are its ANN's activations, neuron by neuron, and which differ by rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bridge.agreement import EqualsANN
from bridge.graph import ClipFloorShift, LayerGraph, WindowFire
from bridge.records import SpikeRecord
from bridge.simulate.ann import activations
from bridge.simulate.ops import channels
from bridge.validation.divergence import SLACK


@dataclass(eq=False)
class EqualityTally:
    """Sums over batches: by layer, activations compared, those that differ, and those of them that no tie explains."""

    compared: dict[str, int] = field(default_factory=dict)
    differing: dict[str, int] = field(default_factory=dict)
    unexplained: dict[str, int] = field(default_factory=dict)
    windows: dict[str, list[int]] = field(default_factory=dict)

    @staticmethod
    def of(
        graph: LayerGraph,
        ann: LayerGraph,
        x: Tensor,
        record: SpikeRecord,
        values: Mapping[str, Tensor],
        drives: Mapping[str, Tensor],
    ) -> EqualityTally:
        """The tally of one batch `x`, of which `record` is the reference's run.

        `values` and `drives` are the ANN's activations of `x` and their inputs (`bridge.simulate.ann.activations`).

        An activation that differs is a tie if the ANN's own input to it lies within rounding of the edge between two
        levels; one that depends on another that differs follows from that. Both are explained, and nothing else is.
        """
        _, exact, _ = activations(ann, x.double())
        tally = EqualityTally()
        unlike: dict[str, NDArray[np.bool_]] = {}  # by layer of the ANN: images in which something before it differs
        for layer in ann:
            before = np.zeros(len(x), bool)
            for source in layer.inputs:
                before |= unlike[source]
            unlike[layer.name] = before
            if not isinstance(layer, ClipFloorShift):
                continue
            node = graph[layer.name]
            assert isinstance(node, WindowFire)
            counts = record.spikes(layer.name).sum(0)
            wrong = counts != np.rint(values[layer.name].numpy() * layer.levels)
            z, z_exact = drives[layer.name].double(), exact[layer.name]
            level = (z * layer.levels / channels(layer.threshold, z) + 0.5).numpy()
            error = float(np.abs((z - z_exact).numpy())[~before].max(initial=0.0))
            unit = layer.levels / float(layer.threshold.min())
            rounding = SLACK * max(error * unit, float(np.abs(level).max(initial=0.0)) * 2.0**-24)
            tie = np.abs(level - np.rint(level)) <= rounding
            follows = before.reshape(-1, *[1] * (wrong.ndim - 1))
            tally.windows[layer.name] = [node.opens + 1, node.opens + node.steps]
            tally.compared[layer.name] = wrong.size
            tally.differing[layer.name] = int(wrong.sum())
            tally.unexplained[layer.name] = int((wrong & ~tie & ~follows).sum())
            unlike[layer.name] = before | wrong.reshape(len(wrong), -1).any(1)
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

    def result(self) -> EqualsANN:
        """What it all comes to."""
        return EqualsANN(self.compared, self.differing, self.unexplained, self.windows)
