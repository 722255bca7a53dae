"""The engine of a counting network: each layer once, and counts in the place of spikes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.graph import LayerGraph, SpikeCount
from bridge.simulate.engine.engine import Engine, Run, no_tf32, workers_of
from bridge.simulate.images import parts_of


class CountEngine(Engine):
    """The engine of a counting network: one pass, whose spikes are counts."""

    def count(self, x: Tensor, wanted: frozenset[str], memory: int) -> Counts:
        """Run images `x` ``[B, *input]``, and keep the counts of the layers `wanted`."""
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        parts = parts_of(x, max(1, memory // threads // self._bytes(1, None)), threads)
        workers = workers_of(threads, os.getpid()) if threads > 1 and len(parts) > 1 else None
        found = [*(workers.map if workers else map)(lambda part: self._count(part, wanted), parts)]
        return Counts(
            np.concatenate([one.output for one in found]),
            {name: np.concatenate([one.above[name] for one in found], axis=1) for name in self.graph.spiking},
            {name: np.concatenate([one.of_layer[name] for one in found]) for name in wanted},
        )

    @torch.inference_mode()
    def _count(self, x: Tensor, wanted: frozenset[str]) -> Counts:
        values: dict[str, Tensor] = {self.graph.input.name: x.to(self.device)}
        with no_tf32(self.device):
            for stage in self._once:
                values[stage.end.name] = self._drive(stage, values, {}, 0, len(x), 1)
            run = _CountRun(self.graph, len(x), values, wanted)
            buffers = self._take(len(x), 1, kept=False)
            self._advance(run, buffers, 1)
            self._give(buffers)
        return run.counts()


@dataclass(frozen=True, eq=False)
class Counts:
    """What a counting network makes of B images.

    ``output`` ``[B, ...]``; by layer, ``above``: how many neurons of each image fire more than 0, 1, … times,
    ``[levels, B]``; and ``of_layer``, the counts ``[B, *shape]`` of the layers that were wanted.
    """

    output: NDArray[np.float32]
    above: Mapping[str, NDArray[np.int64]]
    of_layer: Mapping[str, NDArray[np.integer]]


class _CountRun(Run):
    """One pass of a counting network."""

    def __init__(self, graph: LayerGraph, images: int, constant: dict[str, Tensor], wanted: frozenset[str]) -> None:
        super().__init__(graph, images, 1, False, constant)
        self.packed = {}
        self._wanted = wanted
        self._kept: dict[str, NDArray[np.integer]] = {}

    def keep(self, name: str, rows: Tensor, steps: int) -> None:
        if name in self._wanted:
            self._kept[name] = rows.cpu().contiguous().numpy().copy()

    def step(self, readout: Tensor, fired: Tensor, steps: int) -> None:
        self._output = readout.float().cpu().numpy().copy()
        self._above = fired.cpu().numpy()

    def counts(self) -> Counts:
        """What came of it."""
        above = {
            name: self._above[number, :, : layer.steps].T.copy()
            for number, name in enumerate(self.graph.spiking)
            if isinstance(layer := self.graph[name], SpikeCount)
        }
        return Counts(self._output, above, self._kept)
