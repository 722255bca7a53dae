"""The shape of the images that a model takes: from an example, from the caller, or from the model itself."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bridge.errors import InputError
from bridge.graph import Shape
from bridge.prepare.inference import at_inference, device_and_dtype

LARGEST = 1024
"""Largest height and width that are tried."""


def shape_of_example(example: Any) -> Shape:
    """The shape of a batch of images: a tensor, an array, or such a batch with labels.

    Raises `InputError` if `example` is none.
    """
    batch = example
    if isinstance(example, tuple | list) and example and isinstance(example[0], Tensor | np.ndarray):
        batch = example[0]  # a DataLoader's batch: images and labels
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "fiub":
        batch = torch.from_numpy(np.ascontiguousarray(batch))
    if not isinstance(batch, Tensor):
        raise InputError(f"example_input: expected a float tensor [B, ...], got {type(example).__name__}")
    if not batch.is_floating_point() or batch.dim() < 2 or batch.numel() == 0:
        came = f"{batch.dtype} {list(batch.shape)}"
        raise InputError(
            f"example_input: expected a float tensor [B, ...] with a batch dimension, got {came}; pass x[None] for one "
            "image, x.float() for whole numbers"
        )
    return tuple(batch.shape)


def checked_shape(shape: Any) -> Shape:
    """`shape` as a tuple of whole numbers. Raises `InputError` if it is no shape of one image."""
    sizes = tuple(shape) if isinstance(shape, Sequence | np.ndarray) and not isinstance(shape, str) else (shape,)
    if not sizes or not all(isinstance(each, int | np.integer) and not isinstance(each, bool) for each in sizes):
        raise InputError(f"input_shape: expected whole numbers for one image, such as (3, 32, 32), got {shape!r}")
    if min(sizes) < 1:
        raise InputError(f"input_shape: expected sizes of at least 1, without the batch, got {shape!r}")
    return tuple(int(each) for each in sizes)


def shape_of_model(model: nn.Module) -> Shape:
    """The shape of the images that `model` takes, where it says so.

    It says so by an attribute ``input_shape``, by a first layer that is linear, or by a linear layer that maps of one
    square size alone fit.

    Raises:
        InputError: it does not; the message lists the sizes that would fit.
    """
    title = type(model).__name__
    known = getattr(model, "input_shape", None)
    if isinstance(known, tuple | list) and known:
        return checked_shape(known)
    first = next((each for each in model.modules() if isinstance(each, nn.Linear | nn.Conv1d | nn.Conv2d)), None)
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    if first is None:
        raise InputError(
            f"convert: {title} does not tell the shape of its input; pass it: convert(model, input_shape=(3, 32, 32))"
        )
    dimensions = 1 if isinstance(first, nn.Conv1d) else 2
    least, most = _sizes(model, first.in_channels, dimensions)
    if least is not None and least == most:
        return (first.in_channels, *[least] * dimensions)

    def shown(size: int) -> str:
        return str((first.in_channels, *[size] * dimensions))

    example = shown(least or (32 if dimensions == 2 else 1000))
    if least is None or most is None:
        fits = f"no size up to {LARGEST} was found that fits"
    elif most == LARGEST:
        fits = f"it takes every size from {shown(least)} on"
    elif most - least < 4:
        fits = f"it takes {', '.join(shown(size) for size in range(least, most + 1))}"
    else:
        fits = f"it takes every size from {shown(least)} to {shown(most)}"
    raise InputError(
        f"convert: {title} does not tell the shape of its input ({fits}); pass it: "
        f"convert(model, input_shape={example}), or an example_input"
    )


class _OtherFeaturesError(Exception):
    """A linear layer was reached with ``features`` values, where it takes others."""

    def __init__(self, more: bool) -> None:
        super().__init__()
        self.more = more


def _sizes(model: nn.Module, channels: int, dimensions: int) -> tuple[int | None, int | None]:
    """The least and the largest size of images that `model` runs on, up to `LARGEST`; None if there is none."""
    try:
        shadow = copy.deepcopy(model).to("meta")  # computes shapes, and nothing else
    except Exception:
        return None, None

    def check(module: Any, args: tuple[Any, ...]) -> None:
        features = args[0].shape[-1]
        if features != module.in_features:
            raise _OtherFeaturesError(more=features > module.in_features)

    for module in shadow.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(check)

    def tried(size: int) -> int:
        """-1 if images of this size are too small, 1 if they are too large, 0 if they fit."""
        images = torch.empty(2, channels, *[size] * dimensions, device="meta")
        try:
            with at_inference(shadow), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                shadow(images)
        except _OtherFeaturesError as found:
            return 1 if found.more else -1
        except Exception:
            return -1
        return 0

    least = _first(lambda size: tried(size) >= 0)
    if least is None or tried(least) != 0:
        return None, None
    beyond = _first(lambda size: tried(size) > 0)
    return least, LARGEST if beyond is None else beyond - 1


def _first(holds: Any) -> int | None:
    """The least size for which `holds` is true, if it is true of all larger ones; None if of none."""
    low, high = 1, 1
    while not holds(high):
        if high == LARGEST:
            return None
        low, high = high + 1, min(2 * high, LARGEST)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def remedy(model: nn.Module, given: Shape) -> str:
    """What to do with images of shape `given` ``[B, ...]``, which `model` does not take, if that is plain; else ""."""
    image = given[1:]
    others = {
        "is the batch dimension missing? Pass x[None]": given,
        "are the channels last? Pass x.permute(0, 3, 1, 2)": (image[-1], *image[:-1]) if len(image) == 3 else None,
        "is the channel dimension missing? Pass x[:, None]": (1, *image),
        "does it take vectors? Pass x.flatten(1)": (math.prod(image),) if len(image) > 1 else None,
    }
    for advice, shape in others.items():
        if shape is not None and shape != image and _takes(model, shape):
            return f"; {advice}"
    return ""


def _takes(model: nn.Module, shape: Shape) -> bool:
    try:
        with at_inference(model), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(random_images(model, 2, shape))
    except Exception:
        return False
    return True


def random_images(model: nn.Module, count: int, shape: Shape) -> Tensor:
    """Images between 0 and 1, always the same, where the model is and of its type."""
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
    return images.to(**device_and_dtype(model))
