"""Runs of Lava that fail, hang, or take turns: each ends with a reason, and none leaves anything behind."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.lava import LAVA, images
from support.lava_networks import chain, linear, spike

from bridge.errors import BackendError
from bridge.records import SpikeRecord
from exporters.lava import Lava
from exporters.lava.backend import build_network
from exporters.lava.network import LavaNetwork

pytestmark = LAVA


def traces(segments: list[str]) -> dict[str, Any]:
    """What a run could leave behind. `segments` are the names of Lava's shared memory."""
    from lava.magma.core.process.process import ProcessServer
    from lava.magma.core.process.variable import VarServer

    return {
        "children": sorted(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        "multiprocessing": multiprocessing.active_children(),
        "threads": threading.active_count(),
        "shared memory": [name for name in segments if Path("/dev/shm", name).exists()],
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "log handlers": len(logging.getLogger().handlers),
        "processes": len(ProcessServer().processes),
        "vars": len(VarServer().vars),
        "start method": multiprocessing.get_start_method(allow_none=True),
    }


@pytest.fixture(scope="module")
def small() -> tuple[LavaNetwork, NDArray[np.float32]]:
    """A network that has run before, so that what Python itself keeps (its resource tracker) is there, and images."""
    rng = np.random.default_rng(5)
    graph = chain(rng, (3,), linear(3), spike(), linear(2))
    network, x = build_network(graph), images(rng, graph, 2)
    Lava().run(network, x, 2)
    return network, x


@pytest.fixture
def leaves_nothing(small: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import gc

    from lava.magma.runtime.message_infrastructure.shared_memory_manager import SharedMemoryManager

    create = SharedMemoryManager.create_shared_memory
    segments: list[str] = []

    def create_and_note(manager: Any, size: int) -> Any:
        segments.append((memory := create(manager, size)).name)
        return memory

    monkeypatch.setattr(SharedMemoryManager, "create_shared_memory", create_and_note)
    gc.collect()
    before = traces(segments)
    yield
    assert segments, "Lava's shared memory was not watched"
    for attempt in range(100):  # threads and memory go a moment after the processes
        after = traces(segments)
        if after == before:
            break
        if attempt == 0:
            gc.collect()
        threading.Event().wait(0.02)
    assert after == before


def fail(model: Any, *_: Any) -> None:
    raise ArithmeticError(f"a fault in {type(model).__name__}")


def die(*_: Any) -> None:
    os._exit(3)


def hang(*_: Any) -> None:
    threading.Event().wait()


class UnpicklableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("of two arguments")


def fail_unpicklably(*_: Any) -> None:
    raise UnpicklableError(1, 2)


@pytest.mark.parametrize(
    ("model", "method", "fault", "message"),
    [
        ("neurons.PyIntegrateFireModelFloat", "run_spk", fail, "a fault in PyIntegrateFireModelFloat"),
        pytest.param(
            *("neurons.PyReadoutModelFloat", "run_spk", fail, "a fault in PyReadoutModelFloat"), marks=pytest.mark.long
        ),
        ("streams.PyCurrentSourceModel", "__init__", fail, "a fault in PyCurrentSourceModel"),
        ("streams.PySinkModel", "run_spk", die, "exit code 3"),
        ("streams.PySinkModel", "__init__", die, "exit code 3"),
        # Whether Lava gets it through depends on which of its two messages is read: either says what failed.
        ("streams.PySinkModel", "run_spk", fail_unpicklably, "an error that cannot be shown|UnpicklableError"),
        ("streams.PySinkModel", "run_spk", hang, "did not finish within 2 s"),
        ("streams.PySinkModel", "__init__", hang, "did not finish within 2 s"),
    ],
)
def test_a_failing_child_ends_the_run(
    model: str,
    method: str,
    fault: Any,
    message: str,
    small: tuple[LavaNetwork, NDArray[np.float32]],
    leaves_nothing: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"exporters.lava.processes.{model}.{method}", fault)
    with pytest.raises(BackendError, match=message):
        Lava(time_limit=2 if fault is hang else 60).run(*small, steps=4)


def test_success_leaves_nothing_either(
    small: tuple[LavaNetwork, NDArray[np.float32]], leaves_nothing: None, capfd: pytest.CaptureFixture[str]
) -> None:
    Lava().run(*small, steps=4)
    assert capfd.readouterr() == ("", "")


def test_runs_in_several_threads_take_turns(small: Any) -> None:
    native, x = small
    expected = Lava().run(native, x, 3)
    records: list[SpikeRecord] = []
    threads = [threading.Thread(target=lambda: records.append(Lava().run(native, x, 3))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records) == 3
    for record in records:
        np.testing.assert_array_equal(record.readout, expected.readout)
    assert sys.stdout is not None
