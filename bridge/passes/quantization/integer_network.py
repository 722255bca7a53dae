"""A float network and its ANN as integer ones: pixels for input, scales fitted to calibration images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from bridge._util.progress import progress
from bridge._util.shown import brief
from bridge.errors import ConversionError, InputError
from bridge.graph import LayerGraph
from bridge.graph.loihi_registers import WEIGHT_BITS
from bridge.graph.pixel_grid import PixelGrid, fitted, normalised
from bridge.passes.quantization.on_pixels import ann_on_pixels, on_pixels
from bridge.passes.quantization.quantize import quantize
from bridge.passes.to_float32 import to_float32
from bridge.simulate.images import BATCH


def check_arguments(weight_bits: int, scheme: str) -> None:
    """Raise `InputError` unless `integer_network` takes these two."""
    if isinstance(weight_bits, bool) or not isinstance(weight_bits, int | np.integer) or not 4 <= weight_bits <= 16:
        hint = "; images are given as calibration=" if hasattr(weight_bits, "shape") else ""
        raise InputError(f"weight_bits: expected a whole number from 4 to 16, got {brief(weight_bits)}{hint}")
    if scheme not in ("per_channel", "per_layer"):
        raise InputError(f'scheme: expected "per_channel" or "per_layer", got {scheme!r}')


def integer_network(
    graph: LayerGraph,
    ann: LayerGraph | None,
    x: Tensor,
    weight_bits: int,
    scheme: str,
    normalisation: tuple[Sequence[float], Sequence[float]] | None,
    steps: int,
) -> tuple[LayerGraph, LayerGraph | None, PixelGrid]:
    """The spiking `graph` in integers, its `ann` with the same pixels for input, and what the pixels stand for.

    Args:
        graph: with unit thresholds.
        ann: the network it came from; None if it is not known.
        x: calibration images ``[B, *input]`` as the ANN takes them.
        weight_bits: 4 to 16.
        scheme: thresholds "per_channel" or "per_layer".
        normalisation: mean and std, one per channel; None: the pixels are found from `x`.
        steps: T that firing rates are taken over.

    Raises:
        InputError: `normalisation` does not fit.
        ConversionError: a layer cannot meet a bound; the message names it, with the numbers, and up to 8 bits a number
            of bits that works, if one does.
    """
    grid = fitted(x) if normalisation is None else normalised(*normalisation, x.shape[1], vectors=x.dim() == 2)
    batches = [grid.encode(x[at : at + BATCH]) for at in range(0, len(x), BATCH)]

    def in_bits(bits: int, title: str) -> LayerGraph:
        shown = progress(batches, title)
        return quantize(on_pixels(graph, grid), shown, bits, per_channel=scheme == "per_channel", steps=steps)

    try:
        quantized = in_bits(int(weight_bits), "calibrating")
    except ConversionError as error:
        if weight_bits > WEIGHT_BITS:
            raise
        others = [bits for bits in range(WEIGHT_BITS, 3, -1) if bits != weight_bits]
        working = next((bits for bits in others if _works(in_bits, bits)), None)
        remedy = f"weight_bits={working} works" if working else f"no number of bits from 4 to {WEIGHT_BITS} works"
        raise ConversionError(f"{error}. With this network and these images, {remedy}") from error
    return to_float32(quantized), ann_on_pixels(ann, grid) if ann else None, grid


def _works(in_bits: Callable[[int, str], LayerGraph], bits: int) -> bool:
    try:
        in_bits(bits, f"trying {bits} bits")
    except ConversionError:
        return False
    return True
