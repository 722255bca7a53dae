"""Arguments that many functions take, checked in one way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bridge.errors import InputError


def positive(value: int, what: str) -> int:
    """`value`, a whole number of at least 1. Raises `InputError`, which calls it `what`, if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{what}: expected a whole number of at least 1, got {value!r}")
    return int(value)


def true_classes(labels: Tensor | NDArray[Any] | Sequence[int] | None, count: int) -> NDArray[np.integer] | None:
    """`labels`, the true classes of `count` images, as an array ``[B]``. Raises `InputError` if they do not fit."""
    if labels is None:
        return None
    values = np.asarray(labels)
    if values.shape != (count,) or not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"labels: expected {count} whole numbers, one an image, got {values.dtype} {values.shape}")
    return values
