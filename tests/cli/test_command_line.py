"""The command line, the demo and what a user without a framework is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.backends import BACKENDS, require
from typer.testing import CliRunner

import bridge
from bridge import registry
from bridge.cli import app, demo
from bridge.zoo.digits import load_digits
from exporters.base import probe


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What another Python says."""
    variables = {**os.environ, **environment}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=variables, check=False)


def test_doctor_lists_every_backend():
    for name in BACKENDS:
        require(name)
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    for name in (*BACKENDS, "yes", "lava-nc 0.10.0", "spikingjelly 2.0.0", "snntorch 1.0.0"):
        assert name in done.output


def test_doctor_without_the_frameworks(tmp_path):
    """Each framework made unimportable: the doctor says which command brings it, and validate refuses by name."""
    for package in ("lava", "nengo", "norse", "onnxruntime", "rockpool", "sinabs", "snntorch", "spikingjelly", "spyx"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('not here')")
    code = (
        "import torch, bridge, bridge.cli\n"
        "print('status', bridge.cli.app(['doctor'], standalone_mode=False))\n"
        "net = bridge.convert(torch.nn.Sequential(torch.nn.Linear(2, 2), bridge.QCFS(4)), torch.zeros(1, 2))\n"
        "try:\n"
        "    net.validate(torch.zeros(1, 2), 2)\n"
        "except bridge.BackendError as error:\n"
        "    print(error)\n"
        "net.validate(torch.zeros(1, 2), 2, ['snntorch'])"
    )
    done = run("-c", code, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]), COLUMNS="200")
    assert "status 1\nno backend that takes this network is installed; the easiest to get: pip" in done.stdout
    assert "`qcfs-bridge doctor` says what each needs; backends=[] holds" in done.stdout
    assert 'pip install "spikingjelly>=2.0.0"' in done.stdout
    assert 'pip install "snntorch>=1.0.0"' in done.stdout
    assert 'pip install "qcfs-bridge[onnxruntime]"' in done.stdout
    assert "pip install --no-deps --ignore-requires-python lava-nc==0.10.0" in done.stdout
    assert "lava-dl==0.6.0" in done.stdout
    assert done.stdout.count("not here") == 11
    assert all(f'pip install "{name}>=' in done.stdout for name in ("nengo", "norse", "rockpool", "spyx"))
    assert "pip install --no-deps sinabs==3.1.3" in done.stdout
    assert "BackendError: backend 'snntorch' is not usable: import snntorch failed" in done.stderr


def test_bridge_knows_no_exporter():
    for path in Path(bridge.__file__).parent.rglob("*.py"):
        imports = [
            line for line in path.read_text().splitlines() if line.startswith(("import exporters", "from exporters"))
        ]
        assert not imports, f"{path.name}: {imports}"


def test_probe_reports_the_reason():
    availability = probe({"no_such_module": "nothing"}, "pip install nothing")
    assert not availability.usable
    assert "no_such_module" in availability.reason
    assert availability.install == "pip install nothing"


def test_a_backend_that_cannot_be_loaded(monkeypatch):
    from importlib.metadata import EntryPoint

    broken = EntryPoint("broken", "no_such_module:Backend", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    assert registry.names() == ("broken",)
    with pytest.raises(bridge.BackendError, match=r"cannot be loaded.*no_such_module"):
        registry.get("broken")
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1


@pytest.mark.lava
@pytest.mark.slow
def test_demo(tmp_path, monkeypatch):
    """The main job, on a third of the test images."""

    def fewer(*arguments: Any) -> Any:
        x, y, x_test, y_test = load_digits(*arguments)
        return x, y, x_test[:150], y_test[:150]

    for name in BACKENDS:
        require(name)
    monkeypatch.setattr(demo, "load_digits", fewer)
    monkeypatch.setattr(demo, "LAVA_IMAGES", 8)
    done = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["demo", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert done.output.count("equal") >= 3
    check_demo(tmp_path / "out", 150, 8)


@pytest.mark.lava
@pytest.mark.long
def test_the_whole_demo(tmp_path):
    """As a user runs it."""
    for name in BACKENDS:
        require(name)
    done = run("-m", "bridge.cli", "demo", "--out", str(tmp_path / "out"), COLUMNS="120")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal") >= 3
    check_demo(tmp_path / "out", 450, 60)


def check_demo(out: Path, images: int, by_lava: int) -> None:
    result = json.loads((out / "agreement.json").read_text())
    assert result["steps"] == 8
    assert result["ann_accuracy"] >= 0.97
    assert {name: entry["images"] for name, entry in result["backends"].items()} == {
        "spikingjelly": images,
        "snntorch": images,
        "onnxruntime": images,
        "lava": by_lava,
    }
    for entry in result["backends"].values():
        assert entry["unexplained"] == 0
        assert entry["ties"] == len(entry["divergences"])
        if not entry["divergences"]:
            assert entry["differing"] == {name: [0] * 8 for name in ("act1", "act2", "act3")}
    assert abs(result["reference"]["accuracy"][-1] - result["ann_accuracy"]) <= 0.01
    for name in ("spikingjelly", "snntorch", "onnxruntime"):
        assert abs(result["backends"][name]["accuracy"][-1] - result["ann_accuracy"]) <= 0.01
    assert (out / "rate_error.png").stat().st_size > 10_000
    # The file that the demo wrote is the network: without the model, it classifies the same.
    _, _, x, y = load_digits()
    network = bridge.load(out / "digits.nir")
    assert isinstance(network, bridge.SpikingNetwork)
    record = network.run(x[:images], 8)
    accuracy = (record.outputs()[-1].argmax(axis=1) == y[:images]).mean()
    assert accuracy == pytest.approx(result["reference"]["accuracy"][-1])
    assert np.isfinite(record.readout).all()
