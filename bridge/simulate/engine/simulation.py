"""What the engine returns: the output after every step, sums over the spikes, and the spikes themselves if wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bridge._util.checks import true_classes
from bridge._util.shown import Shown
from bridge.errors import InputError
from bridge.records import SpikeRecord


@dataclass(frozen=True, eq=False, repr=False)
class Simulation(Shown):
    """One run of B images over T time steps.

    ``outputs`` is the network's output after each step, the mean of the readout over steps 1..t, float32
    ``[T, B, ...]``; ``spikes[layer]`` counts the layer's spikes at each step of each image, int64
    ``[T, B]``; ``steps`` is how many
    steps each image took, ``[B]``: T, but for those that ended early, whose output stays what it was. ``record`` holds
    every spike, if that was asked for.
    """

    outputs: NDArray[np.float32]
    spikes: Mapping[str, NDArray[np.int64]]
    steps: NDArray[np.int64]
    record: SpikeRecord | None = None

    @property
    def top1(self) -> NDArray[np.int64]:
        """Index of the largest output after each step, ``[T, B]``."""
        return np.asarray(self.outputs.reshape(*self.outputs.shape[:2], -1).argmax(axis=-1))

    def accuracy(self, labels: Tensor | NDArray[Any] | Sequence[int]) -> NDArray[np.float64]:
        """Share of images ``[T]`` whose largest output after t steps is their label ``[B]``.

        Raises `InputError` unless there is a label for each image, and an output for each label.
        """
        truth = true_classes(labels, len(self.steps), math.prod(self.outputs.shape[2:]))
        if truth is None:
            raise InputError("labels: needs the true classes, one an image")
        return np.asarray((self.top1 == truth).mean(axis=1))
