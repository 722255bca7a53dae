"""What every simulation returns: the spikes of each layer at each time step, bit-packed, and the readout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bridge.errors import ValidationError
from bridge.graph import Shape

Spikes = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class SpikeRecord:
    """The spikes of one run: T time steps, B images, by the names of the spiking layers.

    ``packed[layer]`` is uint8 ``[T, B, ceil(N / 8)]`` (`numpy.packbits` of the layer's N neurons in C order);
    ``readout`` is the last layer's output at each step, float32 ``[T, B, ...]``; ``membranes[layer]``, where recorded,
    is the potential u after integration and before reset, float ``[T, B, *shape]``.
    """

    backend: str
    shapes: Mapping[str, Shape]
    packed: Mapping[str, NDArray[np.uint8]]
    readout: NDArray[np.float32]
    membranes: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return len(self.readout)

    @property
    def images(self) -> int:
        return int(self.readout.shape[1])

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.packed)

    def spikes(self, layer: str) -> Spikes:
        """Spikes of `layer`, bool ``[T, B, *shape]``."""
        shape = self.shapes[layer]
        bits = np.unpackbits(self.packed[layer], axis=-1, count=int(np.prod(shape)))
        return bits.reshape(*bits.shape[:2], *shape).astype(bool)

    def rates(self, layer: str) -> NDArray[np.float32]:
        """Running firing rate ``φ(t) = Σ_{i≤t} s(i) / t`` of `layer`, float32 ``[T, B, *shape]``."""
        return running_mean(self.spikes(layer))

    def outputs(self) -> NDArray[np.float32]:
        """The network's output after each step: the mean of the readout over steps 1..t, ``[T, B, ...]``."""
        return running_mean(self.readout)

    @staticmethod
    def concatenate(records: Sequence[SpikeRecord]) -> SpikeRecord:
        """One record of all images of `records`, which must be of one network, backend and number of steps."""
        first = records[0]
        for record in records[1:]:
            if (record.backend, record.shapes, record.steps) != (first.backend, first.shapes, first.steps):
                raise ValidationError("only records of one network, backend and number of steps can be joined")
        return SpikeRecord(
            backend=first.backend,
            shapes=first.shapes,
            packed={name: np.concatenate([r.packed[name] for r in records], axis=1) for name in first.packed},
            readout=np.concatenate([r.readout for r in records], axis=1),
            membranes={name: np.concatenate([r.membranes[name] for r in records], axis=1) for name in first.membranes},
        )


class Recorder:
    """Collects a `SpikeRecord` step by step: one `spikes` call a layer and step, one `readout` call a step."""

    def __init__(self, backend: str, shapes: Mapping[str, Shape]) -> None:
        self.backend = backend
        self.shapes = dict(shapes)
        self._packed: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in shapes}
        self._membranes: dict[str, list[NDArray[np.floating]]] = {}
        self._readout: list[NDArray[np.float32]] = []

    def spikes(self, layer: str, spikes: NDArray[np.generic], membrane: NDArray[np.floating] | None = None) -> None:
        """Add one step of `layer`: spikes 0/1 ``[B, *shape]``, and the potential before reset if it is to be kept."""
        fired = spikes != 0
        self._packed[layer].append(np.packbits(fired.reshape(len(fired), -1), axis=-1))
        if membrane is not None:
            self._membranes.setdefault(layer, []).append(membrane)

    def readout(self, values: NDArray[np.floating]) -> None:
        """Add one step of the last layer's output, ``[B, ...]``."""
        self._readout.append(np.asarray(values, dtype=np.float32))

    def finish(self) -> SpikeRecord:
        """The record. Raises `ValidationError` if a layer lacks a step."""
        short = {name: len(rows) for name, rows in self._packed.items() if len(rows) != len(self._readout)}
        if short or not self._readout:
            raise ValidationError(f"{self.backend}: {len(self._readout)} steps of readout, but spikes for {short}")
        return SpikeRecord(
            backend=self.backend,
            shapes=self.shapes,
            packed={name: np.stack(rows) for name, rows in self._packed.items()},
            readout=np.stack(self._readout),
            membranes={name: np.stack(rows) for name, rows in self._membranes.items()},
        )


def running_mean(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """Mean over steps 1..t for every t, along the first axis, summed in float64."""
    steps = np.arange(1, len(values) + 1, dtype=np.float64).reshape(-1, *[1] * (values.ndim - 1))
    return (np.cumsum(values, axis=0, dtype=np.float64) / steps).astype(np.float32)
