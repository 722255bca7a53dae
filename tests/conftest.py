"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from bridge import registry
from bridge.records import SpikeRecord

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
gc.set_threshold(100_000, 50, 100)  # the frameworks' objects stay: seeking garbage among them took a sixth of the time
BACKENDS = ("lava", "nengo", "norse", "onnxruntime", "rockpool", "sinabs", "snntorch", "spikingjelly", "spyx")


def require(name: str):
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


def assert_equal(record: SpikeRecord, spikes: dict[str, np.ndarray], readout: np.ndarray) -> None:
    """The record holds just these layers, with just these spikes, and this readout."""
    assert set(record.layers) == set(spikes)
    for layer, fired in spikes.items():
        np.testing.assert_array_equal(record.spikes(layer), fired, err_msg=layer)
    np.testing.assert_array_equal(record.readout, readout)


@pytest.fixture(
    params=[pytest.param(name, marks=[getattr(pytest.mark, name)] if name == "lava" else []) for name in BACKENDS]
)
def backend(request):
    """Each backend in turn."""
    return require(request.param)


@pytest.fixture(params=["snntorch", "spikingjelly"])
def torch_backend(request):
    """Each torch-based backend in turn."""
    return require(request.param)


@pytest.fixture(scope="session")
def browser():
    """Chromium. Where it is missing, skips on a user's machine and fails in CI."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if sync_playwright is None or not CHROMIUM.exists():
        message = "the page needs a browser: pip install playwright; apt-get install chromium"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=[*QUIET, "--disable-sync"])
        yield chromium
        chromium.close()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
