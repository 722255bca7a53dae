"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite("support")

from support.backends import BACKENDS, require  # noqa: E402
from support.packages import needs  # noqa: E402

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
gc.set_threshold(100_000, 50, 100)  # the frameworks' objects stay: seeking garbage among them took a sixth of the time


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
    if find_spec("playwright") is None or not CHROMIUM.exists():
        message = "the page needs a browser: pip install playwright; apt-get install chromium"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=[*QUIET, "--disable-sync"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def torchvision_operators():
    """Makes torchvision and timm importable, also beside a torch without torchvision's compiled operators.

    Where one is missing, skips on a user's machine and fails in CI.
    """
    for package, extra in (("torchvision", "spikingjelly"), ("timm", "test-backends")):
        if find_spec(package) is None:
            needs(package, extra)
    from torchvision_table import torchvision_models

    torchvision_models()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """For what is compared to the last bit with what another process computed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
