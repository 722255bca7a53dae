"""Programs killed while they write, train or wait for another Python: old files whole or new ones, and nothing left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import alive, children

import bridge
from bridge import SpikeRecord
from bridge.agreement import Agreement

SAVES = """
import sys, bridge
from pathlib import Path
from fuzz import mutants

folder = Path(sys.argv[1])
network = mutants.network()
record, agreement = network.run(mutants.images(), 3), network.validate(mutants.images(), 3, [mutants.Same()])
print("begins", flush=True)
while True:
    network.save(folder / "n.nir")
    record.save(folder / "r.npz")
    agreement.save(folder / "a.json")
"""
READERS: dict[str, Callable[[Path], object]] = {
    "n.nir": bridge.load,
    "r.npz": SpikeRecord.load,
    "a.json": Agreement.load,
}
PATHS = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]


def started(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A program that has said that it begins."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1"}
    program = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert program.stdout is not None
    assert program.stdout.readline().startswith("begins")
    return program


def ended(pids: list[int]) -> bool:
    """Whether all of them end within twenty seconds."""
    deadline = time.monotonic() + 20
    while any(map(alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("times", [4, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_files_are_whole_whenever_a_program_is_killed(tmp_path, times):
    rng = random.Random(0)
    for _ in range(times):
        program = started(SAVES, str(tmp_path))
        time.sleep(rng.random() * 0.3)
        program.kill()
        program.communicate(timeout=20)
        for name, read in READERS.items():
            if (tmp_path / name).exists():
                read(tmp_path / name)
        assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".bridge-")} <= set(READERS)
        hidden = [path for path in tmp_path.iterdir() if path.name.startswith(".bridge-")]
        assert len(hidden) <= 1  # between having a name and its place, for a thousandth of a second
        for path in hidden:
            path.unlink()


def test_programs_that_write_one_file_at_once(tmp_path):
    """A reader finds one of their files, whole, at any moment."""
    programs = [started(SAVES, str(tmp_path)) for _ in range(3)]
    deadline = time.monotonic() + 3
    reads = 0
    while time.monotonic() < deadline:
        for name, read in READERS.items():
            if (tmp_path / name).exists():
                read(tmp_path / name)
                reads += 1
    assert reads > 20
    for program in programs:
        program.kill()
        program.communicate(timeout=20)


FULL = """
import sys, bridge
from fuzz import mutants

network = mutants.network()
print("begins", flush=True)
try:
    network.save(sys.argv[1])
except bridge.BridgeError as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.mark.parametrize(
    ("options", "reason"), [("size=40k", "No space left"), ("size=1m,ro", "Read-only file system")]
)
def test_a_disk_that_is_full_or_read_only(tmp_path, options, reason):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting needs root, and a system that lets it: {mounted.stderr.strip()}")
    try:
        program = started(FULL, str(disk / "n.nir"))
        assert program.stdout is not None
        said = program.stdout.read()  # the rest of what was read already, too
        program.communicate(timeout=60)
        assert program.returncode == 0
        assert said.startswith("FileError")
        assert reason in said
        assert not any(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


WORKER = """
import sys, torch, bridge
from bridge.backends.subprocess_client import OtherEnvironment
from fuzz import mutants

backend = OtherEnvironment("lava-twin", "exporters.lava:LavaTwin", sys.executable)
network = mutants.network().quantize(8, mutants.images())
native = backend.export(network.to_nir())
x = network.pixels(mutants.images()).numpy()
backend.run(native, x, 2)
print("begins", flush=True)
while True:
    backend.run(native, x, 50)
"""


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda one: one.name)
def test_another_python_ends_with_its_program(ending):
    program = started(WORKER)
    workers = children(program.pid)
    assert workers
    program.send_signal(ending)
    program.communicate(timeout=20)
    assert ended(workers)


def test_training_that_is_killed_leaves_no_process(tmp_path):
    """And a checkpoint from which it goes on, or none."""
    pytest.importorskip("safetensors")
    run = str(tmp_path / "run")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "bridge.cli",
        "train",
        "digits",
        "digits",
        run,
        "--recipe",
        "short",
    ]
    for ending in (signal.SIGTERM, signal.SIGKILL):
        program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert program.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        others = children(program.pid)
        program.send_signal(ending)
        program.communicate(timeout=20)
        assert ended(others)
        assert not [path for path in (tmp_path / "run").iterdir() if path.suffix == ".tmp"]
