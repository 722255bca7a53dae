"""Importing Lava where it cannot be imported as it is, and changing nothing else by it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
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


def test_the_backend_does_not_import_lava_and_compat_does_and_changes_nothing_else() -> None:
    """Whatever start method was chosen, or none: in children of an interpreter that has not imported Lava yet."""
    run_script("""
import sys
from exporters.lava import Lava, compat
assert not [name for name in sys.modules if name.startswith("lava")]
import dataclasses, multiprocessing, os, traceback, numpy as np
from bridge.graph import Input, IntegrateFire, LayerGraph


def check(chosen):
    decorator = dataclasses.dataclass
    if chosen:
        multiprocessing.set_start_method(chosen)
    from exporters.lava.backend import build_network
    compat.apply(), compat.apply()
    assert dataclasses.dataclass is decorator
    assert multiprocessing.get_start_method(allow_none=True) == (chosen or "fork")
    graph = LayerGraph((Input(name="x", shape=(2,)), IntegrateFire(name="a", inputs=("x",), level=np.full(2, 0.5))))
    record = Lava().run(build_network(graph), np.array([[0.5, 0.25]], dtype=np.float32), 2)
    assert record.spikes("a")[:, 0].tolist() == [[True, False], [False, True]]
    assert multiprocessing.get_start_method(allow_none=True) == (chosen or "fork")


for chosen in (None, "fork", "spawn"):
    child = os.fork()
    if not child:
        code = 1
        try:
            check(chosen)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, chosen
""")


def test_reshaped_ports_need_no_newshape() -> None:
    from lava.magma.core.process.ports.ports import ReshapePort

    compat.apply()
    port = ReshapePort(new_shape=(2, 3), old_shape=(6,))
    data = np.arange(6)
    assert port.get_transform_func_fwd()(data).shape == (2, 3)
    assert port.get_transform_func_bwd()(data.reshape(2, 3)).shape == (6,)
