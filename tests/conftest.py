"""Fixtures that all tests share."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

from bridge import registry

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


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
