"""A run that was made elsewhere, on another machine or on hardware, held against the reference like any backend."""

from __future__ import annotations

from pathlib import Path

import nir
import numpy as np
from numpy.typing import NDArray

from bridge.backends.protocol import Availability
from bridge.converters.nir_graphs.ours import from_nir
from bridge.errors import InputError, ValidationError
from bridge.records import SpikeRecord

OF_THE_ENGINE = ("engine", "lava-twin")
"""Whose records are the engine's: `bridge.SpikingNetwork.simulate` and the emulator of Lava."""


class Recorded:
    """A backend that hands out a record instead of running anything.

    Image i of the record must be image i of those that are validated; it may hold more images and time steps than are
    asked for. With membranes in it, its float ties can be told from mistakes; without, every difference is a mistake.
    """

    def __init__(self, record: SpikeRecord | str | Path, name: str | None = None) -> None:
        """Take `record`, or the one that `SpikeRecord.save` wrote to that path, and call it `name`.

        The name is by default the recorded backend's with " (recorded)" after it. Raises `InputError` as
        `SpikeRecord.load` does.
        """
        self.record = record if isinstance(record, SpikeRecord) else SpikeRecord.load(record)
        self.name = f"{self.record.backend} (recorded)" if name is None else name

    def available(self) -> Availability:
        """Always usable."""
        return Availability(usable=True, engine=self.record.backend in OF_THE_ENGINE)

    def export(self, graph: nir.NIRGraph) -> SpikeRecord:
        """The record, if it is of the network in `graph`. Raises `ValidationError` if its layers are others."""
        network = from_nir(graph)
        shapes = {name: network.shapes[name] for name in network.spiking}
        if dict(self.record.shapes) != shapes:
            raise ValidationError(
                f"{self.name}: recorded layers {dict(self.record.shapes)} are not the network's {shapes}; "
                "was another network recorded?"
            )
        return self.record

    def run(self, native: SpikeRecord, x: NDArray[np.float32], steps: int, *, membranes: bool = False) -> SpikeRecord:
        """The record's images, which must be as many as those in `x`: for a part of them, see `run_from`.

        Raises `InputError` if they are not, or if time steps or membranes are missing.
        """
        if len(x) != native.images:
            raise InputError(f"{self.name}: {len(x)} images were given, and {native.images} are recorded")
        record = self.run_from(native, 0, len(x), steps, membranes=membranes)
        if record is None:
            raise InputError(f"{self.name}: no membranes were recorded for some of the layers")
        return record

    def run_from(
        self, native: SpikeRecord, start: int, images: int, steps: int, *, membranes: bool
    ) -> SpikeRecord | None:
        """What was recorded for that many images from number `start` on, at time steps 1 to `steps`.

        None if `membranes` are asked for and not those of all layers were recorded. Raises `InputError` if images or
        time steps are missing.
        """
        if membranes and set(native.membranes) != set(native.shapes):
            return None
        return native.window(start, start + images, steps)
