"""Backends in another environment: real processes of real interpreters, and every way in which they can fail."""

from __future__ import annotations

import gc
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import networks, oracle
from support.backends import require

import bridge
from bridge import BackendError, GraphError, InputError, registry
from bridge.backends.settings import time_limit, variable
from bridge.backends.subprocess_client import OtherEnvironment, RemoteNetwork
from bridge.graph import Input, IntegrateFire, LayerGraph, Linear
from bridge.nir_graph import to_nir
from bridge.simulate.reference import simulate
from exporters.onnx_runtime import OnnxRuntime
from exporters.snntorch import SnnTorch

STEPS = 5
LONG = 1_000_000  # time steps that nobody waits for
NAME, TARGET = "onnxruntime", "exporters.onnx_runtime:OnnxRuntime"
"""The backend that most of these run: it needs no torch, so its processes start in half a second and not in three."""


@pytest.fixture(autouse=True)
def _nothing_left(monkeypatch, tmp_path):
    """What the processes leave behind would be found here."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    gc.collect()
    assert [path.name for path in tmp_path.glob("qcfs-bridge-*") if path.is_dir()] == []


@pytest.fixture
def remote():
    """ONNX Runtime in another process of this environment."""
    require(NAME)
    return OtherEnvironment(NAME, TARGET, sys.executable)


def processes(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just gone
            continue
        if int(of) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def until(condition, limit: float = 60.0) -> bool:
    """Whether `condition` comes true within `limit` seconds."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def busy(pid: int) -> int:
    """Hundredths of a second that a process has computed."""
    user, system = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[11:13]
    return int(user) + int(system)


def in_a_run(native: RemoteNetwork, x: np.ndarray, steps: int, errors: list[BaseException]) -> threading.Thread:
    """A thread in which `native` runs, when it is in the middle of that."""

    def run() -> None:
        try:
            native.backend.run(native, x, steps)
        except BaseException as error:
            errors.append(error)

    pid = native.start().process.pid
    before = busy(pid)
    thread = threading.Thread(target=run)
    thread.start()
    assert until(lambda: busy(pid) > before + 20)
    return thread


@contextmanager
def control_c() -> Iterator[None]:
    """Interrupts this process after half a second and, as a user would, again if nothing comes of it: Python drops an
    interrupt that arrives while an object is being deleted.
    """
    done = threading.Event()

    def interrupt() -> None:
        seconds = 0.5
        while not done.wait(seconds):
            signal.raise_signal(signal.SIGINT)
            seconds = 10.0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever another test's packages have set
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


def mlp() -> tuple[torch.nn.Module, bridge.SpikingNetwork, np.ndarray]:
    model, shape = networks.mlp()
    x = networks.dyadic_images(3, shape)
    return model, bridge.convert(model, x), x.numpy()


@pytest.mark.parametrize(("name", "case"), [("spikingjelly", "residual"), ("onnxruntime", "cnn")])
def test_spikes_are_those_of_the_oracle(name, case, monkeypatch):
    require(name)
    model, shape = networks.ALL[case]()
    x = networks.dyadic_images(3, shape)
    network = bridge.convert(model, x)
    monkeypatch.setenv(variable(name), sys.executable)
    monkeypatch.setenv("ONEDNN_VERBOSE", "1")  # torch's convolutions print to standard output, from C
    backend = registry.get(name)
    native = backend.export(network.to_nir())
    pid = native.start().process.pid
    for images in (3, 1, 3):
        spikes, readout = oracle.spikes_of(model, x[:images].numpy(), STEPS)
        record = backend.run(native, x[:images].numpy(), STEPS)
        assert record.backend == name
        for layer, fired in zip(network.layers, spikes, strict=True):
            np.testing.assert_array_equal(record.spikes(layer), fired, err_msg=layer)
        np.testing.assert_array_equal(record.readout, readout)
        assert not record.membranes
    expected = simulate(network.graph, x, STEPS, membranes=True)
    record = backend.run(native, x.numpy(), STEPS, membranes=True)
    for layer in network.layers:
        np.testing.assert_array_equal(record.membranes[layer], expected.membranes[layer])
    assert native.start().process.pid == pid, "one process for all runs"
    if name == "spikingjelly":
        assert "onednn_verbose" in (native.start().folder / "log").read_text()
    folder = native.start().folder
    assert processes(pid) == [pid]
    assert sorted(path.name for path in folder.iterdir()) == ["bridge", "exporters", "log"]
    del native
    gc.collect()
    assert not processes(pid)
    assert not folder.exists()


def test_the_variable_decides(monkeypatch):
    require(NAME)
    monkeypatch.delenv(variable(NAME), raising=False)
    here = registry.get(NAME)
    assert isinstance(here, OnnxRuntime)
    assert here.available().environment == ""
    monkeypatch.setenv("QCFS_BRIDGE_PYTHON_ONNXRUNTIME", sys.executable)
    assert registry.get(NAME) == OtherEnvironment(NAME, TARGET, sys.executable)
    assert variable("lava-fixed") == "QCFS_BRIDGE_PYTHON_LAVA_FIXED"
    _, network, x = mlp()
    agreement = network.validate(x, 4, [NAME])
    assert agreement.agreed
    assert agreement.backends[NAME].total_differing == 0


FORGETFUL = """
from exporters.onnx_runtime import OnnxRuntime


class Mine(OnnxRuntime):
    def run(self, native, x, steps, *, membranes=False):
        return native.session.run(None, {"x": x})
"""
"""A backend that does not tell its framework what it needs."""


def test_errors_are_those_of_the_backend(remote, tmp_path, monkeypatch):
    linear = Linear(name="code", inputs=("x",), weight=np.eye(2, dtype=np.float32), bias=np.zeros(2, np.float32))
    fire = IntegrateFire(name="fire", inputs=("code",), level=np.full(2, 0.5, np.float32))
    graph = to_nir(LayerGraph((Input(name="x", shape=(2,)), linear, fire)))
    require("snntorch")
    with pytest.raises(GraphError) as refused:
        SnnTorch().export(graph)
    with pytest.raises(GraphError, match=re.escape(str(refused.value))):
        OtherEnvironment("snntorch", "exporters.snntorch:SnnTorch", sys.executable).export(graph)

    _, network, x = mlp()
    native = remote.export(network.to_nir())
    pid = native.start().process.pid
    for images, steps in ((x[:, :5], 4), (np.full_like(x, np.nan), 4), (x, 0), (x.astype(str), 4)):
        with pytest.raises(InputError) as here:
            OnnxRuntime().run(OnnxRuntime().export(network.to_nir()), images, steps)
        with pytest.raises(InputError, match=re.escape(str(here.value))):
            remote.run(native, images, steps)
    assert native.start().process.pid == pid

    (tmp_path / "mine.py").write_text(FORGETFUL)
    monkeypatch.syspath_prepend(tmp_path)
    native = OtherEnvironment("mine", "mine:Mine", sys.executable).export(network.to_nir())
    pid = native.start().process.pid
    with pytest.raises(
        BackendError, match=r"'mine': 'run' failed in .*ValueError: Required inputs \(\['steps'\]\).*; log: (.*)"
    ) as error:
        native.backend.run(native, x, 4)
    log = Path(str(error.value).rpartition("; log: ")[2])
    assert "Traceback" in log.read_text()
    assert not processes(pid)


def test_killed_interrupted_and_hanging(remote):
    """In the middle of a run; the next one starts a new process."""
    model, network, x = mlp()
    native = remote.export(network.to_nir())
    expected = oracle.spikes_of(model, x, STEPS)[1]

    pid = native.start().process.pid
    errors: list[BaseException] = []
    thread = in_a_run(native, x, LONG, errors)
    os.kill(pid, signal.SIGKILL)
    thread.join(60)
    assert isinstance(errors[0], BackendError)
    assert re.match(
        r"backend 'onnxruntime': its process was killed by signal 9 \(Killed\) during 'run'", str(errors[0])
    )
    np.testing.assert_array_equal(remote.run(native, x, STEPS).readout, expected)

    pid = native.start().process.pid
    with control_c(), pytest.raises(KeyboardInterrupt):
        remote.run(native, x, LONG)
    assert not processes(pid)

    pid = native.start().process.pid
    os.kill(pid, signal.SIGSTOP)
    native.backend = replace(remote, time_limit=0.7)
    start = time.monotonic()
    with pytest.raises(BackendError, match=r"did not answer 'run' within 0.7 s: .*QCFS_BRIDGE_TIME_LIMIT"):
        remote.run(native, x, STEPS)
    assert time.monotonic() - start < 30
    assert not processes(pid)


@pytest.mark.lava
def test_what_a_framework_started_goes_with_it():
    """Lava forks a process for each of its Processes, which also hold the pipe open on which answers come."""
    require("lava")
    _, network, x = mlp()
    native = OtherEnvironment("lava", "exporters.lava:Lava", sys.executable).export(network.to_nir())
    pid = native.start().process.pid
    errors: list[BaseException] = []
    thread = in_a_run(native, x, 20_000, errors)
    assert until(lambda: len(processes(pid)) > 5)
    os.kill(pid, signal.SIGKILL)
    thread.join(60)
    assert "killed by signal 9" in str(errors[0])
    assert until(lambda: not processes(pid))


def test_pickles_threads_and_forks(remote):
    model, network, x = mlp()
    native = remote.export(network.to_nir())
    expected = oracle.spikes_of(model, x, STEPS)[1]
    twin = pickle.loads(pickle.dumps(native))
    np.testing.assert_array_equal(remote.run(twin, x, STEPS).readout, expected)
    assert twin.start().process.pid != native.start().process.pid
    with ThreadPoolExecutor(4) as pool:
        for part, record in zip(
            "0120121", pool.map(lambda i: remote.run(native, x[int(i) :], STEPS), "0120121"), strict=True
        ):
            np.testing.assert_array_equal(record.readout, expected[:, int(part) :])

    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            remote.run(native, x, STEPS)
        except BackendError as error:
            os.write(write, str(error).encode())
        del native
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    assert b"before this process was forked" in os.read(read, 1000)
    os.close(read)
    os.close(write)
    np.testing.assert_array_equal(remote.run(native, x, STEPS).readout, expected)

    os.kill(native.start().process.pid, signal.SIGKILL)
    with pytest.raises(BackendError, match="killed by signal 9"):
        remote.run(native, x, STEPS)


PROGRAM = f"""
import os, sys, threading, time
sys.path[:0] = {[str(path) for path in (Path(__file__).parents[2], Path(__file__).parents[1])]!r}
import bridge
from support import networks
from bridge.backends.subprocess_client import OtherEnvironment
model, shape = networks.mlp()
x = networks.dyadic_images(3, shape)
backend = OtherEnvironment({NAME!r}, {TARGET!r}, sys.executable)
native = backend.export(bridge.convert(model, x).to_nir())
worker = native.start()
"""


def test_gone_when_this_process_ends(tmp_path):
    require(NAME)
    program = PROGRAM + "print(worker.process.pid, worker.folder)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    pid, folder = done.stdout.split()
    assert not done.stderr
    assert not processes(int(pid))
    assert not Path(folder).exists()


def test_gone_when_this_process_is_killed(tmp_path):
    """In the middle of a run, and though a forked child holds the pipe open on which requests come."""
    require(NAME)
    program = (
        PROGRAM
        + f"""
threading.Thread(target=backend.run, args=(native, x.numpy(), {LONG})).start()
child = os.fork()
if not child:
    time.sleep(600)
print(worker.process.pid, worker.folder, child, flush=True)
time.sleep(600)
"""
    )
    parent = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with parent:
        assert parent.stdout is not None
        pid, folder, child = parent.stdout.readline().split()
        assert processes(int(pid)) == [int(pid)]
        before = busy(int(pid))
        assert until(lambda: busy(int(pid)) > before + 20)
        parent.kill()
        parent.wait()
        try:
            assert until(lambda: not processes(int(pid)))
            assert not Path(folder).exists()
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_interpreters_that_are_none(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    talks = tmp_path / "talks"
    talks.write_text("#!/bin/sh\necho hello\ncat > /dev/null\n")
    talks.chmod(0o755)
    _, network, _ = mlp()
    for python, says in (
        (str(tmp_path / "nowhere/bin/python"), "there is no program"),
        (str(tmp_path), "there is no program"),
        (str(plain), "there is no program"),
        (shutil.which("false") or "", "ended with status 1"),
        (str(talks), r"answered b'hello\n'; is it a Python interpreter?"),
    ):
        backend = OtherEnvironment(NAME, TARGET, python)
        found = backend.available()
        assert not found.usable
        assert says in found.reason
        assert "QCFS_BRIDGE_PYTHON_ONNXRUNTIME" in found.install
        assert found.environment == python
        with pytest.raises(BackendError, match=re.escape(says)):
            backend.export(network.to_nir())
    with pytest.raises(BackendError, match="there is no package 'nowhere'"):
        OtherEnvironment("mine", "nowhere:Mine", sys.executable).export(network.to_nir())


def test_an_environment_without_the_framework(tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    backend = OtherEnvironment(NAME, TARGET, str(python))
    found = backend.available()
    assert not found.usable
    assert "No module named 'nir'" in found.reason or "No module named 'numpy'" in found.reason
    assert str(python) in found.install
    assert found.environment.startswith(f"{python} (Python 3.")
    _, network, _ = mlp()
    with pytest.raises(BackendError, match=r"'export' failed in .*ModuleNotFoundError: No module named .*log: "):
        backend.export(network.to_nir())


def test_an_environment_with_a_few_packages_sees_only_those(tmp_path, monkeypatch):
    """What the framework needs and no more: neither what this environment has nor bridge's other packages."""
    require("onnxruntime")
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv/lib").glob("python3.*/site-packages"))
    packages = Path(np.__file__).parent.parent
    for name in ("typer", "rich", "jinja2", "snntorch"):
        assert (packages / name).exists(), "in this environment, and not needed there"
    python = tmp_path / "venv/bin/python"
    without = {"typer", "rich", "jinja2", "snntorch", "spikingjelly", "exporters", "bridge"}
    for path in packages.iterdir():
        if path.name.split("-")[0] not in without and path.suffix != ".pth" and not path.name.startswith("__"):
            with_name = site / path.name
            if not with_name.exists():
                with_name.symlink_to(path)
    model, network, x = mlp()
    backend = OtherEnvironment("onnxruntime", "exporters.onnx_runtime:OnnxRuntime", str(python))
    record = backend.run(backend.export(network.to_nir()), x, STEPS)
    np.testing.assert_array_equal(record.readout, oracle.spikes_of(model, x, STEPS)[1])
    (tmp_path / "mine.py").write_text("from exporters.snntorch import SnnTorch as Mine")
    monkeypatch.syspath_prepend(tmp_path)
    found = OtherEnvironment("mine", "mine:Mine", str(python)).available()
    assert (found.usable, found.versions) == (False, {})
    assert found.reason.startswith("import snntorch failed: ModuleNotFoundError")
    assert found.install == f'with the pip of {python}: pip install "snntorch>=1.0.0"'


def test_time_limit(monkeypatch):
    monkeypatch.delenv("QCFS_BRIDGE_TIME_LIMIT", raising=False)
    assert time_limit() == 3600
    monkeypatch.setenv("QCFS_BRIDGE_TIME_LIMIT", "2.5")
    assert OtherEnvironment(NAME, TARGET, sys.executable).time_limit == 2.5
    for text in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv("QCFS_BRIDGE_TIME_LIMIT", text)
        with pytest.raises(BackendError, match=f"QCFS_BRIDGE_TIME_LIMIT={text}: expected a number of seconds above 0"):
            time_limit()
