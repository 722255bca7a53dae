"""Importing Lava where it cannot be imported as it is, and changing nothing else by it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.lava import LAVA

from exporters.lava import compat

pytestmark = LAVA

ROOT = Path(__file__).parents[2]


def run_script(script: str) -> None:
    """Run `script` in a fresh interpreter with every warning an error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""


def test_the_backend_does_not_import_lava() -> None:
    run_script("import sys, exporters.lava; assert not [name for name in sys.modules if name.startswith('lava')]")


@pytest.mark.parametrize("chosen", [None, "fork", "spawn"])
def test_compat_imports_lava_and_changes_nothing_else(chosen: str | None) -> None:
    run_script(f"""
import dataclasses, multiprocessing, numpy as np
decorator = dataclasses.dataclass
if {chosen!r}:
    multiprocessing.set_start_method({chosen!r})
from exporters.lava import Lava, compat
from exporters.lava.backend import build_network
from bridge.graph import Input, IntegrateFire, LayerGraph
compat.apply(), compat.apply()
assert dataclasses.dataclass is decorator
assert multiprocessing.get_start_method(allow_none=True) == ({chosen!r} or "fork")
graph = LayerGraph((Input(name="x", shape=(2,)), IntegrateFire(name="a", inputs=("x",), level=np.full(2, 0.5))))
record = Lava().run(build_network(graph), np.array([[0.5, 0.25]], dtype=np.float32), 2)
assert record.spikes("a")[:, 0].tolist() == [[True, False], [False, True]]
assert multiprocessing.get_start_method(allow_none=True) == ({chosen!r} or "fork")
""")


def test_reshaped_ports_need_no_newshape() -> None:
    from lava.magma.core.process.ports.ports import ReshapePort

    compat.apply()
    port = ReshapePort(new_shape=(2, 3), old_shape=(6,))
    data = np.arange(6)
    assert port.get_transform_func_fwd()(data).shape == (2, 3)
    assert port.get_transform_func_bwd()(data.reshape(2, 3)).shape == (6,)
