"""Arguments that many functions take, checked in one way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.errors import InputError


def positive(value: object, what: str) -> int:
    """`value`, a whole number of at least 1. Raises `InputError`, which calls it `what`, if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{what}: expected a whole number of at least 1, got {value!r}")
    return int(value)


MOST_STEPS = 2**24
"""Up to here, float32 counts time steps, and the spikes in them, exactly."""


def time_steps(value: object) -> int:
    """`value`, a number of time steps. Raises `InputError` if it is none, or more than float32 can count."""
    steps = positive(value, "steps")
    if steps > MOST_STEPS:
        raise InputError(f"steps: expected at most {MOST_STEPS}, up to which float32 counts exactly, got {value}")
    return steps


def is_real(value: object) -> bool:
    """Whether `value` is one real number, of Python's or of numpy's; True and False are none."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def usable_device(device: str | torch.device) -> torch.device:
    """`device`, on which something can be computed here. Raises `InputError` if that is not so."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f'device: expected the name of one that torch knows, such as "cpu", got {device!r}') from error
    try:
        torch.zeros(1, device=found).cpu()
    except Exception as error:  # each kind of device fails in its own way
        reason = str(error).splitlines()[0]
        raise InputError(
            f'device: nothing can be computed on {str(found)!r} here ({reason}); "cpu" always works'
        ) from error
    return found


def true_classes(
    labels: Tensor | NDArray[Any] | Sequence[int] | None, count: int, classes: int
) -> NDArray[np.integer] | None:
    """`labels`, the true ones of `classes` for `count` images, as an array ``[B]``.

    Raises `InputError` if they do not fit.
    """
    if labels is None:
        return None
    try:
        values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    except ValueError as error:  # lists of unequal lengths
        raise InputError(f"labels: expected {count} whole numbers, one an image, got no array ({error})") from error
    if values.shape != (count,) or not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"labels: expected {count} whole numbers, one an image, got {values.dtype} {values.shape}")
    wrong = np.flatnonzero((values < 0) | (values >= classes))
    if len(wrong):
        raise InputError(
            f"labels: the network has {classes} outputs, so labels go from 0 to {classes - 1}; image {wrong[0]} has "
            f"{values[wrong[0]]}"
        )
    return values
