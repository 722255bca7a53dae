"""Backends in tests: real ones only, and what is asked of their records."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bridge import registry
from bridge.backends.protocol import Backend
from bridge.records import SpikeRecord

BACKENDS = ("lava", "nengo", "norse", "onnxruntime", "rockpool", "sinabs", "snntorch", "spikingjelly", "spyx")


def require(name: str) -> Backend:
    """The backend `name`. A missing framework skips on a user's machine and fails in CI."""
    backend = registry.get(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what frameworks warn of while they are imported is not ours to test
        availability = backend.available()
    if not availability.usable:
        message = f"{name}: {availability.reason}; {availability.install}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return backend


def assert_equal(record: SpikeRecord, spikes: Mapping[str, NDArray[Any]], readout: NDArray[Any]) -> None:
    """The record holds just these layers, with just these spikes, and this readout."""
    assert set(record.layers) == set(spikes)
    for layer, fired in spikes.items():
        np.testing.assert_array_equal(record.spikes(layer), fired, err_msg=layer)
    np.testing.assert_array_equal(record.readout, readout)
