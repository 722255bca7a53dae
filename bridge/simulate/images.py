"""Images as every simulator takes them: checked against the network's input, float32, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.errors import InputError
from bridge.graph import LayerGraph
from bridge.graph.ranges import LARGEST_PIXEL
from bridge.simulate.ops import tensor

BATCH = 64
"""Images simulated together. Float results can depend on it in the last bit, so every backend gets the same batches."""


def checked(graph: LayerGraph, x: Tensor | NDArray[Any], what: str = "x", *, as_pixels: bool = True) -> Tensor:
    """`x` as a float32 CPU tensor ``[B, *input]``; pixels, if `graph` is in whole numbers and `as_pixels` is on.

    Raises `InputError`, which calls the images `what`, if they are none, of another shape, or not finite.
    """
    if not isinstance(x, Tensor | np.ndarray):
        raise InputError(f"{what}: expected a torch tensor or numpy array of images, got {type(x).__name__}")
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "biuf":
            raise InputError(f"{what}: expected an array of real numbers, got {x.dtype}")
        x = tensor(x)
    elif x.is_complex():
        raise InputError(f"{what}: expected real numbers, got {x.dtype}")
    elif x.layout != torch.strided or x.is_quantized or x.is_nested or x.is_meta:
        kind = "a quantized" if x.is_quantized else "a nested" if x.is_nested else "a meta" if x.is_meta else "a sparse"
        raise InputError(
            f"{what}: expected a dense tensor, got {kind} one; x.to_dense() and x.dequantize() make one, and a meta "
            "tensor holds no images"
        )
    x = x.detach().to(device="cpu", dtype=torch.float32).contiguous()
    expected = graph.shapes[graph.input.name]
    if tuple(x.shape[1:]) != expected or len(x) == 0:
        raise InputError(
            f"{what}: expected at least one image, [B, {', '.join(map(str, expected))}], got {list(x.shape)}"
        )
    values = x.numpy()  # on one image, numpy's checks take a tenth of the time that torch's take
    if not (finite := np.isfinite(values)).all():
        raise InputError(f"{what}: holds {np.count_nonzero(~finite)} values that are NaN or infinite")
    if graph.integer and as_pixels:
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= LARGEST_PIXEL and (values == np.rint(values)).all()):
            raise InputError(
                f"{what}: this network is in whole numbers and takes pixels, whole from 0 to {LARGEST_PIXEL}; got "
                f"values from {low:.6g} to {high:.6g}. network.pixels(x) makes pixels of the ANN's input"
            )
    return x


def parts_of(x: Tensor, size: int, threads: int) -> list[Tensor]:
    """`x` in parts of at most `size` images, one at least for each thread where there are as many images."""
    if len(x) >= threads:
        size = min(size, -(-len(x) // threads))
    return [x[at : at + size] for at in range(0, len(x), size)] if size < len(x) else [x]
