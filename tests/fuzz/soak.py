"""Validates many times in one process: memory, descriptors, processes and shared memory have to stay level.

    PYTHONPATH=tests python tests/fuzz/soak.py         # 500 times without Lava, 50 with
    PYTHONPATH=tests python tests/fuzz/soak.py --count 40 --lava 0 --backends spikingjelly snntorch

The first tenth warms up. Then each backend may grow by a few MB, as allocators do, and by nothing else.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from dataclasses import astuple, dataclass
from multiprocessing import shared_memory
from pathlib import Path

import torch
from support.processes import children
from torch import nn

import bridge
from bridge import QCFS
from bridge._util.progress import progress

GROWTH = 32 * 2**20
"""Bytes that memory may grow by after the first tenth."""
MAPPINGS = 32
"""Mappings that may be added: libraries that are loaded late, arenas of an allocator; not one for each validation."""
LAVA = ("lava", "lava-fixed")
SEGMENT = f"s{os.getpid()}_"
"""How the names of this process's and its children's segments in /dev/shm begin: other programs have theirs there."""


@dataclass(frozen=True)
class Held:
    """What a process holds: resident memory in bytes, descriptors, child processes, segments in /dev/shm, mappings."""

    memory: int
    descriptors: int
    children: int
    shared: int
    mappings: int

    @staticmethod
    def now() -> Held:
        """By Linux's /proc."""
        gc.collect()
        status = Path("/proc/self/status").read_text().splitlines()
        memory = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))
        mappings = len(Path("/proc/self/maps").read_text().splitlines())
        shared = sum(name.startswith(SEGMENT) for name in os.listdir("/dev/shm"))  # noqa: PTH208
        return Held(memory, len(os.listdir("/proc/self/fd")), len(children(os.getpid())), shared, mappings)  # noqa: PTH208


def network(integer: bool) -> tuple[bridge.SpikingNetwork, torch.Tensor]:
    """A small one with a pool, and images."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), QCFS(4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 8), QCFS(4)]
    x = torch.rand(6, 1, 8, 8)
    found = bridge.convert(nn.Sequential(*layers, nn.Linear(8, 3)).eval(), x)
    return (found.quantize(8, x), (x * 255).round().to(torch.uint8)) if integer else (found, x)


def soak(backends: list[str], count: int, *, integer: bool) -> list[str]:
    """Validate `count` times on `backends` and print what was held; return what has grown."""
    shared_memory._SHM_NAME_PREFIX = f"/{SEGMENT}"  # type: ignore[attr-defined]
    subject, x = network(integer)
    warm = max(1, count // 10)
    before = None
    for number in progress(range(count), ", ".join(backends)):
        if number == warm:
            before = Held.now()
        assert subject.validate(x, 4, backends).agreed
    assert before is not None
    after = Held.now()
    print(f"{', '.join(backends)}: {count} times\n  {before}\n  {after}", flush=True)
    return [
        f"{', '.join(backends)}: {name} from {one} to {other}"
        for name, one, other in zip(Held.__annotations__, astuple(before), astuple(after), strict=True)
        if other > one + (GROWTH if name == "memory" else MAPPINGS if name == "mappings" else 0)
    ]


def main() -> None:
    """Soak, and exit with 1 if anything grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="validations without Lava")
    parser.add_argument("--lava", type=int, default=50, help="validations with Lava")
    parser.add_argument("--backends", nargs="*", default=["spikingjelly", "snntorch", "onnxruntime", "norse", "sinabs"])
    chosen = parser.parse_args()
    grown: list[str] = []
    for name in chosen.backends if chosen.count else []:
        grown += soak([name], chosen.count // len(chosen.backends), integer=False)
    for name in LAVA if chosen.lava else []:
        grown += soak([name], chosen.lava // len(LAVA), integer=name == "lava-fixed")
    print("\n".join(grown) or "nothing has grown")
    sys.exit(bool(grown))


if __name__ == "__main__":
    main()
