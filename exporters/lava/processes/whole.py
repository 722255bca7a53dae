"""What fixed point takes: whole numbers. Lava itself cuts off whatever is behind the point."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

WORD = np.iinfo(np.int32)  # the type in which Lava's fixed point models hold and send


def expect_whole(what: str, values: ArrayLike, low: int = WORD.min, high: int = WORD.max) -> None:
    """Raise `ValueError`, naming `what`, unless all `values` are whole numbers from `low` to `high`."""
    values = np.asarray(values)
    wrong = ~((values == np.rint(values)) & (low <= values) & (values <= high))
    if wrong.any():
        raise ValueError(
            f"{what}: fixed point takes whole numbers from {low} to {high}, got {values[wrong].flat[0]}: quantise the "
            "network, or run it in floating point"
        )
