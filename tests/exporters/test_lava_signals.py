"""Programs that run Lava, killed while they do, or with several threads: nothing is left, and nothing breaks."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.lava import LAVA
from support.processes import alive, children

pytestmark = LAVA


ENDLESS = """
import torch, bridge
from torch import nn

torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(40, 30), bridge.QCFS(4), nn.Linear(30, 20), bridge.QCFS(4), nn.Linear(20, 2))
network = bridge.convert(model, torch.rand(1, 40))
print("begins", flush=True)
while True:
    network.validate(torch.rand(200, 40), 8, ["lava"])
"""


def memory(pid: int) -> list[Path]:
    """The shared memory that a process has mapped."""
    lines = (Path("/proc") / str(pid) / "maps").read_text().splitlines()
    return [Path(line.split()[-1]) for line in lines if "/dev/shm/" in line]


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], ids=lambda one: one.name)
def test_a_killed_program_leaves_nothing(ending):
    """No process of Lava's lives on, none holds the program's output open, and no memory stays shared."""
    program = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert program.stdout is not None
    program.stdout.readline()
    deadline = time.monotonic() + 120
    while len(started := children(program.pid)) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    shared = memory(program.pid)
    program.send_signal(ending)
    program.communicate(timeout=20)  # until all have closed it
    deadline = time.monotonic() + 20
    while any(map(alive, started)) or any(path.exists() for path in shared):
        assert time.monotonic() < deadline
        time.sleep(0.05)


TOGETHER = """
import threading, torch, bridge
from torch import nn

torch.set_num_threads(1)
network = bridge.convert(nn.Sequential(nn.Linear(4, 3), bridge.QCFS(4), nn.Linear(3, 2)), torch.rand(1, 4))
agreed = []
run = lambda: agreed.append(network.validate(torch.rand(3, 4), 2, ["lava"]).agreed)
threads = [threading.Thread(target=run) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
run()
print(agreed)
"""


def test_the_first_use_in_several_threads_at_once():
    ran = subprocess.run([sys.executable, "-c", TOGETHER], capture_output=True, text=True, timeout=200, check=False)
    assert ran.stdout.strip() == "[True, True, True, True]", ran.stderr[-2000:]
