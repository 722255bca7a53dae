"""Which spikes of a backend are wrong by themselves, and which only follow from others or from rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from bridge.errors import ValidationError
from bridge.graph import NEURONS, LayerGraph, WindowFire
from bridge.records import SpikeRecord
from bridge.report.outcome import Divergence
from bridge.simulate.reference import simulate

SLACK = 32.0
"""A backend may round this many times worse than the reference does; other orders of summation stay far below it."""


@dataclass(frozen=True, eq=False)
class Replay:
    """The reference on what `record` says each layer received and fired, in its own float32 and in float64.

    With `membranes`, those of the layers of which a spike is `wrong`.
    """

    graph: LayerGraph
    x: Tensor
    record: SpikeRecord
    membranes: bool

    @cached_property
    def _every(self) -> SpikeRecord:
        return simulate(self.graph, self.x, self.record.steps, heard=self.record)

    @cached_property
    def wrong(self) -> tuple[str, ...]:
        """Layers that fire otherwise than the reference on the same input."""
        if not self.membranes:
            return ()
        packed = self.record.packed
        return tuple(n for n in self.graph.spiking if not np.array_equal(packed[n], self._every.packed[n]))

    @cached_property
    def expected(self) -> SpikeRecord:
        if not self.wrong:
            return self._every
        steps, heard = self.record.steps, self.record
        return simulate(self.graph, self.x, steps, membranes=True, heard=heard, only=self.wrong)

    @cached_property
    def exact(self) -> SpikeRecord:
        steps, heard = self.record.steps, self.record
        return simulate(self.graph, self.x.double(), steps, membranes=True, heard=heard, only=self.wrong)


def divergences(replay: Replay, probe: Callable[[], SpikeRecord | None]) -> list[Divergence]:
    """The spikes of the replayed record that are wrong by themselves.

    They are those that differ from the `replay`, in which a layer that only passes on an earlier difference has none.
    `probe` makes the same run with membranes, or None if it cannot be run again; where it is missing or did not repeat
    its spikes, the membrane is unknown (None) and the divergence counts as no tie.
    """
    if not replay.wrong:
        return []
    probed = probe()
    graph, record, expected, exact = replay.graph, replay.record, replay.expected, replay.exact
    found = []
    for name in replay.wrong:
        layer = graph[name]
        assert isinstance(layer, NEURONS)
        got = record.spikes(name)
        if probed is not None and (name not in probed.membranes or probed.membranes[name].shape != got.shape):
            raise ValidationError(f"{record.backend}: asked for membranes, it gave none that fit layer {name!r}")
        again = None if probed is None else probed.spikes(name)
        rounding = SLACK * float(np.abs(expected.membranes[name] - exact.membranes[name]).max())
        for index in map(tuple, np.argwhere(got != expected.spikes(name))):
            repeated = again is not None and bool((got[:, *index[1:]] == again[:, *index[1:]]).all())
            backend = float(probed.membranes[name][index]) if probed is not None and repeated else None
            truth, level = float(exact.membranes[name][index]), float(layer.level[index[2 : 2 + layer.level.ndim]])
            close = backend is not None and abs(backend - truth) <= rounding
            if isinstance(layer, WindowFire):  # outside its window no potential makes it fire
                close = close and layer.opens <= index[0] < layer.opens + layer.steps
            found.append(
                Divergence(
                    layer=name,
                    step=int(index[0]) + 1,
                    image=int(index[1]),
                    neuron=tuple(int(i) for i in index[2:]),
                    reference_membrane=float(expected.membranes[name][index]),
                    backend_membrane=backend,
                    exact_membrane=truth,
                    level=level,
                    rounding=rounding,
                    tie=backend is not None and close and (backend >= level) == bool(got[index]),
                )
            )
    return found
