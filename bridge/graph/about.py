"""How a network came about, beside what it computes: for those who use it. A NIR file holds it as a courtesy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge._util.shown import Shown
from bridge.errors import GraphError
from bridge.graph.pixel_grid import PixelGrid
from bridge.graph.ranges import LARGEST_PIXEL

LEVELS, STEPS, BITS = "qcfs_levels", "calibrated_steps", "weight_bits"
LOW, STEP, LARGEST, ON_GRID = "pixel_low", "pixel_step", "largest_pixel", "pixels_exact"
"""Names in the metadata of a NIR graph."""


@dataclass(frozen=True, eq=False, repr=False)
class About(Shown):
    """What is known of how a network was made.

    ``levels``: the L of the ANN's layers, each once; ``calibrated_steps``: T that it was calibrated for, or None;
    ``weight_bits``, of one in integers; ``grid``: what its pixels stand for, or None.
    """

    levels: tuple[int, ...] = ()
    calibrated_steps: int | None = None
    weight_bits: int | None = None
    grid: PixelGrid | None = None

    def metadata(self) -> dict[str, Any]:
        """For a NIR graph. No reader needs it."""
        found: dict[str, Any] = {}
        if self.levels:
            found[LEVELS] = np.array(self.levels)
        if self.calibrated_steps is not None:
            found[STEPS] = self.calibrated_steps
        if self.weight_bits is not None:
            found[BITS] = self.weight_bits
        if self.grid is not None:
            found |= {LOW: self.grid.low, STEP: self.grid.step, LARGEST: self.grid.largest, ON_GRID: self.grid.exact}
        return found

    @staticmethod
    def of(metadata: Mapping[str, Any], channels: int, *, integer: bool) -> About:
        """What `metadata` says of a network whose input has so many channels.

        Raises `GraphError` if it says what cannot be.
        """
        grid = None
        if integer and any(name in metadata for name in (LOW, STEP, LARGEST)):
            low, step = (_numbers(metadata, name, channels) for name in (LOW, STEP))
            if not (step > 0).all():
                raise GraphError(f"metadata {STEP!r}: expected values above 0, got {step.min()}")
            largest = _whole(metadata, LARGEST, most=LARGEST_PIXEL) or LARGEST_PIXEL
            grid = PixelGrid(low, step, bool(np.all(metadata.get(ON_GRID, True))), largest)
        levels = np.atleast_1d(metadata.get(LEVELS, np.zeros(0, np.int64)))
        if levels.dtype.kind not in "iu" or levels.ndim != 1 or (levels < 1).any():
            raise GraphError(f"metadata {LEVELS!r}: expected whole numbers of at least 1, got {levels!r}")
        bits = _whole(metadata, BITS) if integer else None
        return About(tuple(map(int, levels)), _whole(metadata, STEPS), bits, grid)


def _numbers(metadata: Mapping[str, Any], name: str, channels: int) -> NDArray[np.float64]:
    values = np.atleast_1d(metadata.get(name, np.zeros(0)))
    if values.dtype.kind not in "iuf" or values.shape != (channels,) or not np.isfinite(values).all():
        raise GraphError(f"metadata {name!r}: expected {channels} finite numbers, one a channel, got {values!r}")
    return values.astype(np.float64)


def _whole(metadata: Mapping[str, Any], name: str, most: int = 2**24) -> int | None:
    if name not in metadata:
        return None
    value = np.asarray(metadata[name])
    if value.dtype.kind not in "iu" or value.ndim or not 1 <= value <= most:
        raise GraphError(f"metadata {name!r}: expected a whole number from 1 to {most}, got {value!r}")
    return int(value)
