"""How far a plain network's firing rates are from the ANN's activations, and where each layer's error comes from.

At step t, with φ the layer's firing rate and a/λ the ANN's activation, the error is ``φ(t) − a/λ``. Let z be the ANN's
drive of the neuron and ẑ(t) the mean drive that it really got in steps 1..t, both in thresholds; let ``q_t(x)`` be the
rate after t steps of a neuron whose drive x arrives evenly: as many spikes as fit. Then, neuron by neuron,

* **unevenness** ``φ(t) − q_t(ẑ)``: the drive came in spikes, at other times than an even one;
* **quantisation** ``q_t(z) − a/λ``: t steps have other rates than the ANN's L levels; nothing at t = L;
* **clipping** ``(clip(ẑ) − ẑ) − (clip(z) − z)``: what the rate's range 0…1 takes off a drive that is not the ANN's;
* **inherited** ``(q_t(ẑ) − q_t(z)) − clipping``: the drive was not the ANN's, since the layers before err.

They add up to the error. Quantisation is also the error of the layer *in isolation*, driven by the ANN's own
activations (teacher-forced). The first layer, with its constant input, inherits nothing and is never uneven.

Rates are counts: with c spikes, e and m the counts that an even ẑ and an even z give, and k of L levels in the ANN, all
is a matter of whole numbers but for the clipping. So only sums are kept, and these are taken while the network runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.graph import ClipFloorShift, IntegrateFire, LayerGraph, spread
from bridge.validation.rate_loop import COLUMNS, add_sums

Key = tuple[str, int]
"""A layer and its first image."""


def whole(values: Tensor, largest: int) -> Tensor:
    """The nearest whole numbers 0…`largest`, a byte each if that holds them."""
    return values.round().to(torch.uint8 if largest < 256 else torch.int32)


@dataclass(eq=False)
class RateMeter:
    """Watches a plain network run on a batch, and sums over its neurons what `bridge.validation.rate_loop` says.

    ``drives`` are the inputs z of the ANN's activations, ``[B, *shape]``, ``levels`` what these emit, of 0…L.
    ``by_position``: the run's neurons stand in the order (H, W, C), as the engine keeps them, not (C, H, W).
    """

    graph: LayerGraph
    ann: LayerGraph
    drives: dict[str, Tensor]
    levels: dict[str, Tensor]
    steps: int
    by_position: bool
    _sums: dict[Key, NDArray[np.float64]] = field(default_factory=dict)
    _states: dict[Key, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)
    _vectors: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def drive(self, name: str, first: int, done: int, drive: Any, gain: Any, skip: Any, spikes: Any) -> None:
        """Take in some images and steps of the layer `name`, of which the engine has the drive.

        Args:
            name: of the layer.
            first: number of the first image in the batch.
            done: steps that came before.
            drive: float32 ``[B, S, N]``, or ``[B, 1, N]`` if it is the same at every step.
            gain: what a spike of `skip` adds, ``[N]``.
            skip: spikes that reach the neurons past a layer with weights, ``[B, S, N]``; or None.
            spikes: what they fired, ``[B, S, N]``.
        """
        self._add(name, first, done, drive, (gain, skip), spikes, integrates=True)

    def potential(self, name: str, done: int, potential: Tensor, spikes: Tensor) -> None:
        """Take in a step of the layer `name` on the whole batch: u after integration and spikes, ``[B, *shape]``."""
        u, fired = potential.numpy(), spikes.numpy()
        self._add(name, 0, done, u.reshape(len(u), 1, -1), (None, None), fired.reshape(len(u), 1, -1), integrates=False)

    def _add(
        self, name: str, first: int, done: int, drive: Any, skips: tuple[Any, Any], spikes: Any, *, integrates: bool
    ) -> None:
        activation = self.ann[name]
        assert isinstance(activation, ClipFloorShift)
        if name not in self._vectors:
            self._vectors[name] = self._per_neuron(name)
        level, threshold, height = self._vectors[name]
        images, steps, neurons = spikes.shape
        part = slice(first, first + images)
        key = name, first
        if key not in self._sums:
            self._sums[key] = np.zeros((self.steps, len(COLUMNS)))
            self._states[key] = np.zeros((images, neurons), np.float32), np.zeros((images, neurons), np.float32)
        state = self._states[key]
        add_sums(
            (np.asarray(drive), *skips, np.asarray(spikes)),
            (level, threshold),
            (self._stored(self.drives[name][part]), height, self._stored(self.levels[name][part])),
            activation.levels, done, state, self._sums[key][done : done + steps], integrates=integrates,
        )  # fmt: skip
        if done + steps == self.steps:
            del self._states[key]

    def _per_neuron(self, name: str) -> tuple[Any, ...]:
        """Level, threshold and λ of each neuron, in the order in which the run has them."""
        layer, activation, shape = self.graph[name], self.ann[name], self.graph.shapes[name]
        assert isinstance(layer, IntegrateFire)
        assert isinstance(activation, ClipFloorShift)
        full = (spread(values, shape) for values in (layer.level, layer.threshold, activation.threshold))
        return tuple(self._stored(torch.tensor(values).unsqueeze(0).float())[0] for values in full)

    def _stored(self, values: Tensor) -> NDArray[Any]:
        """``[B, *shape]`` as ``[B, N]``."""
        if self.by_position and values.dim() == 4:
            values = values.permute(0, 2, 3, 1)
        return values.reshape(len(values), -1).contiguous().numpy()

    def sums(self, name: str) -> NDArray[np.float64]:
        """Over all images and neurons of the layer `name`, one row a step: the columns of `rate_loop`."""
        found = [self._sums[key] for key in sorted(self._sums) if key[0] == name]
        total = np.sum(found, axis=0)
        worst = COLUMNS.index("worst")
        total[:, worst] = np.max([one[:, worst] for one in found], axis=0)
        return np.asarray(total)
