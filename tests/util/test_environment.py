"""What a result was made with is told also where something of it is missing."""

from __future__ import annotations

import torch

from bridge._util import environment


def test_a_package_that_runs_without_being_installed(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "qcfs-bridge-in-a-folder"))
    assert environment.environment()["packages"] == {
        "torch": torch.__version__,
        "qcfs-bridge-in-a-folder": "not installed",
    }
