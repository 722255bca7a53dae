"""A pool of forked processes after torch has had threads: each fork computes alone, and none waits for its parent's."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import multiprocessing
import numpy as np, torch, bridge
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), bridge.QCFS(4, 1.0), nn.Conv2d(16, 32, 3, padding=1), bridge.QCFS(4, 1.0),
    nn.Flatten(), nn.Linear(32 * 256, 10),
)
x = torch.rand(32, 3, 16, 16)
plain, staged = bridge.convert(model, x), bridge.convert(model, x, schedule="staged")
torch.set_num_threads(2)
expected = [plain.simulate(x, 8).outputs, staged.simulate(x).outputs, plain.run(x, 2).outputs()]

def part(start):
    some = x[start : start + 8]
    return [plain.simulate(some, 8).outputs, staged.simulate(some).outputs, plain.run(some, 2).outputs()]

with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map_async(part, range(0, 32, 8)).get(60)
for number, whole in enumerate(expected):
    np.testing.assert_allclose(np.concatenate([one[number] for one in found], axis=1), whole, atol=1e-4)
print("done")
"""


def test_a_forked_pool_after_threads():
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert ran.stdout.strip() == "done", ran.stderr[-2000:]
