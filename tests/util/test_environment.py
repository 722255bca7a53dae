"""What a result was made with is told also where something of it is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import bridge

SITE = Path(bridge.__file__).parent


def test_an_agreement_says_what_it_was_made_with():
    model = nn.Sequential(nn.Linear(2, 3), bridge.QCFS(4), nn.Linear(3, 2))
    made_with = bridge.convert(model, torch.zeros(1, 2)).validate(torch.rand(2, 2), 2, []).environment
    assert made_with["packages"] == {name: version(name) for name in ("qcfs-bridge", "torch", "numpy", "nir")}


def test_a_package_that_runs_without_being_installed(tmp_path):
    """A copy, in a Python that finds nothing installed: to say its version, the package needs nothing."""
    shutil.copytree(SITE, tmp_path / SITE.name, ignore=shutil.ignore_patterns("__pycache__", "trained"))
    code = "import bridge; print(bridge.__version__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "not installed", done.stderr
