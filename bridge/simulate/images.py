"""Images as every simulator takes them. One rule: integers are pixels, floats are the ANN's input."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.errors import InputError, RangeWarning
from bridge.graph import LayerGraph, Shape
from bridge.graph.pixel_grid import PixelGrid
from bridge.graph.ranges import LARGEST_PIXEL

BATCH = 64
"""Images simulated together. Float results can depend on it in the last bit, so every backend gets the same batches."""
OUTSIDE = 0.01
"""Share of values outside the range that a network in integers was made for, beyond which a warning says so."""

OURS = ("bridge", "contextlib", "exporters")
"""Whose frames lie between a user's call and a warning."""

Given = Tensor | NDArray[Any] | Iterable[Any]
"""Images ``[B, *input]``: a tensor, an array, or batches of them, such as a DataLoader."""


def checked(graph: LayerGraph, x: Given, what: str = "x", grid: PixelGrid | None = None) -> Tensor:
    """`x` as a float32 CPU tensor ``[B, *input]`` of what `graph` takes.

    A float network takes floats, the ANN's input, and refuses integers. A network in integers takes pixels: integers
    are pixels, and floats become pixels by its `grid`. A `RangeWarning` says if more than `OUTSIDE` of the values lie
    outside the grid.

    Raises:
        InputError: `x`, which the message calls `what`, holds no images, or images of another shape, or values that are
            not finite; or integers where floats are needed, or the reverse where there is no grid.
    """
    values = expected_shape(as_array(x, what), graph.input.shape, what)
    if not graph.integer:
        if values.dtype.kind in "biu":
            raise no_pixels(what, values.dtype)
        return torch.from_numpy(finite(values.astype(np.float32, copy=False), what))
    if values.dtype.kind in "biu":
        return checked_pixels(values, graph.input.shape, what, grid)
    if grid is None:
        raise InputError(
            f"{what}: this network is in integers and takes pixels, integers from 0 to {LARGEST_PIXEL}; got "
            f"{values.dtype}, which is the ANN's input, and how that and pixels relate is not known here. If these are "
            "pixels, give x.to(torch.uint8), or of an array x.astype('uint8'). If not, network.pixels(x) makes pixels "
            "of them, where network is what quantize returned, or was read from a file that its save wrote"
        )
    wide = torch.from_numpy(finite(values.astype(np.float64), what))
    return grid.encode(in_range(wide, what, grid))


def no_pixels(what: str, dtype: np.dtype[Any]) -> InputError:
    """What is to be said of integers `what` where a float network is to run on them."""
    return InputError(
        f"{what}: integers are pixels, and this network takes the ANN's input, floats as it was trained on; got "
        f"{dtype}. Do with them what was done in training, such as (x / 255 - mean) / std; quantize gives a network "
        "that takes pixels. On the command line, give a .npy file of floats"
    )


def as_array(x: Given, what: str) -> NDArray[Any]:
    """The real numbers in a tensor, an array, or batches of either. Raises `InputError` if there are others."""
    if isinstance(x, Tensor):
        return _of_tensor(x, what)
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "biuf":
            raise InputError(f"{what}: expected an array of real numbers, got {x.dtype}")
        return x
    if isinstance(x, str | bytes | Mapping) or not isinstance(x, Iterable):
        raise InputError(
            f"{what}: expected images as a tensor, an array or batches of them (a DataLoader), got {type(x).__name__}"
        )
    found = [as_array(_first(batch, what), what) for batch in x]
    shapes = {batch.shape[1:] for batch in found}
    if len(shapes) > 1:
        hint = ""
        if len(found) == 2 and found[1].ndim == 1 and isinstance(x, tuple | list):
            hint = "; of one batch (images, labels), give the images"
        listed = ", ".join(str(list(batch.shape)) for batch in found[:4])
        raise InputError(f"{what}: expected batches [B, ...] of images of one shape, got {listed}{hint}")
    return np.concatenate(found) if found else np.zeros(0)


def with_labels(x: Given, labels: Any, what: str = "x") -> tuple[Given, Any]:
    """`x`, its batches gathered, and `labels`; if these are None, those that batches ``(images, labels)`` hold."""
    if isinstance(x, Tensor | np.ndarray | str | bytes | Mapping) or not isinstance(x, Iterable):
        return x, labels
    batches = list(x)
    if labels is None and batches and all(isinstance(one, tuple | list) and len(one) == 2 for one in batches):
        found = [np.asarray(as_array(one[1], f"{what}: labels")) for one in batches]
        if all(one.ndim == 1 and one.dtype.kind in "iu" for one in found):
            labels = np.concatenate(found)
        else:
            warnings.warn(
                f"{what}: its batches hold {found[0].dtype} {list(found[0].shape)} beside the images, and no classes "
                "[B]; no accuracy is told. Give the classes as labels=",
                stacklevel=_callers_level(),
            )
    return as_array(batches, what), labels


def _first(batch: Any, what: str) -> Any:
    """The images of a batch: itself, or what it begins with."""
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(first, Tensor | np.ndarray):
        raise InputError(
            f"{what}: expected batches that are images [B, ...] or begin with them, got {type(first).__name__}"
        )
    return first


def _of_tensor(x: Tensor, what: str) -> NDArray[Any]:
    if x.is_complex():
        raise InputError(f"{what}: expected real numbers, got {x.dtype}")
    if x.layout != torch.strided or x.is_quantized or x.is_nested or x.is_meta:
        kind = "a quantized" if x.is_quantized else "a nested" if x.is_nested else "a meta" if x.is_meta else "a sparse"
        raise InputError(
            f"{what}: expected a dense tensor, got {kind} one; x.to_dense() and x.dequantize() make one, and a meta "
            "tensor holds no images"
        )
    x = x.detach().cpu()
    return np.asarray((x.float() if x.is_floating_point() and x.dtype != torch.float64 else x).numpy())


def expected_shape(values: NDArray[Any], shape: Shape, what: str) -> NDArray[Any]:
    """`values`, if they are images ``[B, *shape]``. Raises `InputError`, with a hint at what is likely meant."""
    if values.shape[1:] == shape and values.ndim and len(values):
        return values
    expected = f"[B, {', '.join(map(str, shape))}]"
    if values.ndim and not len(values):
        raise InputError(f"{what}: expected at least one image, {expected}, got {list(values.shape)}")
    hint = ""
    if values.shape == shape:
        hint = ": one image without its batch; give x[None]"
    elif len(shape) == 3 and values.ndim == 4 and (values.shape[3], *values.shape[1:3]) == shape:
        hint = ": the channels come last; give x.permute(0, 3, 1, 2), or of an array x.transpose(0, 3, 1, 2)"
    elif shape[0] == 1 and values.ndim == len(shape) and values.shape[1:] == shape[1:]:
        hint = ": images without their channel; give x[:, None]"
    elif values.shape[2:] == shape:
        hint = ": images over time; each is held constant here, so give them once, [B, ...]"
    raise InputError(f"{what}: expected images {expected}, got {list(values.shape)}{hint}")


def finite(values: NDArray[Any], what: str) -> NDArray[Any]:
    if not (finite := np.isfinite(values)).all():
        raise InputError(f"{what}: holds {np.count_nonzero(~finite)} values that are NaN or infinite")
    return np.require(values, requirements=["C", "W"])


def checked_pixels(values: NDArray[Any], shape: Shape, what: str, grid: PixelGrid | None) -> Tensor:
    """Integers ``[B, *shape]`` as pixels in float32. Raises `InputError` if they are none; warns as `checked`."""
    values = expected_shape(values, shape, what)
    found = pixels(values, what)
    if grid is not None and (above := np.count_nonzero(values > grid.largest)):
        where = f"above {grid.largest}, the largest pixel of the images that this network was made for"
        _warn(above / values.size, what, where)
    return torch.from_numpy(found)


def pixels(values: NDArray[Any], what: str) -> NDArray[np.float32]:
    """Integers as pixels in float32. Raises `InputError` if they are none."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > LARGEST_PIXEL:
        raise InputError(
            f"{what}: integers are pixels from 0 to {LARGEST_PIXEL}, got {values.dtype} from {low} to {high}"
        )
    return values.astype(np.float32)


def in_range(x: Tensor, what: str, grid: PixelGrid) -> Tensor:
    """`x`, the ANN's input; a warning if much of it lies where there are no pixels."""
    low, high = grid.range()
    _warn(grid.outside(x), what, f"outside {low:.4g}…{high:.4g}, the ANN's input that this network was made for")
    return x


def _warn(share: float, what: str, where: str) -> None:
    if share > OUTSIDE:
        warnings.warn(
            f"{what}: {share:.0%} of the values lie {where}. Integers are taken for pixels, floats for the ANN's input",
            RangeWarning,
            stacklevel=_callers_level(),
        )


def _callers_level() -> int:
    """How far up the caller of this package is, for a warning that is to point there."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in OURS:
        frame, level = frame.f_back, level + 1
    return level


def parts_of(x: Tensor, size: int, threads: int) -> list[Tensor]:
    """`x` in parts of at most `size` images, one at least for each thread where there are as many images."""
    if len(x) >= threads:
        size = min(size, -(-len(x) // threads))
    return [x[at : at + size] for at in range(0, len(x), size)] if size < len(x) else [x]
