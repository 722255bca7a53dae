"""A short soak: what a validation takes, it gives back."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.backends import require

from fuzz import soak


@pytest.mark.parametrize("name", ["spikingjelly", "snntorch", "onnxruntime"])
def test_nothing_grows(name):
    require(name)
    assert soak.soak([name], 20, integer=False) == []


@pytest.mark.lava
def test_nothing_of_lavas_is_left():
    require("lava-fixed")
    assert soak.soak(["lava-fixed"], 4, integer=True) == []


def test_what_grows_is_found(monkeypatch):
    require("onnxruntime")
    kept, files = [], []
    validate = soak.bridge.SpikingNetwork.validate

    def leaks(self, *arguments):
        kept.append(b"x" * 2**22)
        files.append(Path("/dev/null").open())  # noqa: SIM115
        return validate(self, *arguments)

    monkeypatch.setattr(soak.bridge.SpikingNetwork, "validate", leaks)
    grown = soak.soak(["onnxruntime"], 20, integer=False)
    for file in files:
        file.close()
    assert [" memory " in grown[0], " descriptors " in grown[1]] == [True, True]
