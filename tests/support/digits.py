"""The digits CNN of the demo, trained once for all tests of one run."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bridge import SpikingNetwork, convert
from bridge.zoo.digits import load_digits, train_digits


@cache
def network() -> SpikingNetwork:
    """The float network, trained on real digits."""
    x, y, _, _ = load_digits()
    return convert(train_digits(x, y), x[:1])


@cache
def quantized(bits: int = 8, scheme: str = "per_channel") -> SpikingNetwork:
    return network().quantize(bits, calibration=load_digits()[0], scheme=scheme)


def test_images() -> tuple[Tensor, NDArray[np.int64]]:
    _, _, x, y = load_digits()
    return x, y


test_images.__test__ = False  # type: ignore[attr-defined]
