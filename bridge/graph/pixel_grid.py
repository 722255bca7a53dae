"""8-bit images for networks in whole numbers: which pixel 0…255 stands for which value of the ANN's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge._util.shown import Shown
from bridge.errors import InputError
from bridge.graph.ranges import LARGEST_PIXEL

SHARPNESS = 0.02
"""Values this close to a grid, in its steps, lie on it: rounding to float32 moves them far less."""


@dataclass(frozen=True, eq=False, repr=False)
class PixelGrid(Shown):
    """The ANN's input ``x = low + step · p`` for a pixel p in 0…255; both float64, one a channel ``[C]``.

    ``exact`` says that the images it was fitted to lie on it, so that nothing was lost. ``largest`` is the largest
    pixel that images of this kind have: 255, or less, as of images with 17 shades of grey, 0…16.
    """

    low: NDArray[np.float64]
    step: NDArray[np.float64]
    exact: bool = True
    largest: int = LARGEST_PIXEL

    def encode(self, x: Tensor) -> Tensor:
        """The pixels, whole numbers 0…255 in float32, nearest to the ANN's input `x` ``[B, C, ...]``."""
        return self._places(x).round().clamp(0, LARGEST_PIXEL).float()

    def decode(self, pixels: Tensor) -> Tensor:
        """The ANN's input, float32, that `pixels` ``[B, C, ...]`` stand for."""
        low, step = self._shaped(pixels)
        return (low + step * pixels.double()).float()

    def range(self) -> tuple[float, float]:
        """The least and the largest value of the ANN's input that pixels of such images stand for."""
        return float(self.low.min()), float((self.low + self.step * self.largest).max())

    def outside(self, x: Tensor) -> float:
        """Share of the ANN's input `x` ``[B, C, ...]`` that lies beyond all pixels, by more than half a step."""
        places = self._places(x)
        return float(((places < -0.5) | (places > self.largest + 0.5)).double().mean())

    def _places(self, x: Tensor) -> Tensor:
        low, step = self._shaped(x)
        return (x.double() - low) / step

    def _shaped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`low` and `step`, as `x` ``[B, C, ...]`` needs them."""
        shape = (1, -1, *[1] * (x.dim() - 2))
        low, step = (torch.from_numpy(values).reshape(shape) for values in (self.low, self.step))
        return low, step


def normalised(mean: Sequence[float], std: Sequence[float], channels: int, *, vectors: bool = False) -> PixelGrid:
    """The grid of images made by ``x = (p / 255 − mean) / std``, torchvision's ``Normalize`` after ``ToTensor``.

    Raises `InputError` unless there are a mean and a std > 0 for each of the `channels`; of `vectors`, whose features
    come from one channel, one for all will do.
    """
    try:
        centre, spread = (np.asarray(values, np.float64).ravel() for values in (mean, std))
    except (TypeError, ValueError) as error:
        raise InputError(f"normalisation: expected means and stds as numbers, got {mean}, {std}") from error
    if vectors and len(centre) == len(spread) == 1:
        centre, spread = centre.repeat(channels), spread.repeat(channels)
    if not len(centre) == len(spread) == channels:
        raise InputError(f"normalisation: expected means and stds for {channels} channels, one each, got {mean}, {std}")
    if not (np.isfinite(centre).all() and np.isfinite(spread).all() and (spread > 0).all()):
        raise InputError(f"normalisation: expected finite means and stds > 0, got {mean}, {std}")
    return PixelGrid(low=-centre / spread, step=1 / (LARGEST_PIXEL * spread))


def fitted(x: Tensor) -> PixelGrid:
    """The grid of the images `x`, the ANN's input ``[B, C, ...]``: one a channel, one for all features of vectors.

    If the values lie evenly spaced, as those of 8-bit images do however they were normalised, it is their own grid;
    else 255 even steps from the least to the largest.
    """
    channels = [x.flatten()] * x.shape[1] if x.dim() == 2 else list(x.transpose(0, 1).flatten(1))
    found = [_spacing(channel.double().unique().numpy()) for channel in (channels[:1] if x.dim() == 2 else channels)]
    low, step, counts, exact = zip(*(found * (x.shape[1] if x.dim() == 2 else 1)), strict=True)
    return PixelGrid(low=np.array(low), step=np.array(step), exact=all(exact), largest=max(counts))


def _spacing(values: NDArray[np.float64]) -> tuple[float, float, int, bool]:
    """Of the grid of the sorted `values`: its least value, its step, how many steps it has, and if they lie on it."""
    low, high = float(values[0]), float(values[-1])
    if high == low:
        return low, 1.0, LARGEST_PIXEL, True
    gaps = np.diff(values)
    gaps = gaps[gaps > (high - low) / (4 * LARGEST_PIXEL)]  # smaller ones are rounding
    count = round((high - low) / float(gaps.min())) if len(gaps) else LARGEST_PIXEL
    step = (high - low) / count
    places = (values - low) / step
    if count <= LARGEST_PIXEL and np.abs(places - np.rint(places)).max() < SHARPNESS:
        return low, step, count, True
    return low, (high - low) / LARGEST_PIXEL, LARGEST_PIXEL, False
